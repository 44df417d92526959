#!/bin/bash
# Runs one line of a list of jobs: bash docker/engines/many/one_of.sh jobs.txt 7
# A line is what stands behind run.py, without quotes: config/my_char.yaml --set train.lr=2e-4 --name my_char_2e-4
# The last line of results/7.out says how it ended, as JSON (docs/json.md). The run itself gets the signals.
set -u
list=${1:?give a list of jobs and a number: one_of.sh jobs.txt 7}
number=${2:?give a number: one_of.sh jobs.txt 7}
read -r -a words < <(sed -n "${number}p" "$list")
if [ "${#words[@]}" = 0 ]; then
  echo "$list has no job in line $number." >&2
  exit 2
fi
mkdir -p results
exec python "$(dirname "$0")/../../../run.py" "${words[@]}" --json >"results/$number.out"
