# shellcheck shell=bash
# What every script here begins with: a temporary folder with an empty virtual environment, removed at the end.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cd "${work}"
python3 -m venv venv
