#!/usr/bin/env bash
# What a pod runs: prepares the volume, starts the services that are asked for, trains the job that the environment
# names, then stops the pod or waits. docs/runpod.md explains every variable. Works as PID 1 and below an init.
#
# A pod whose main process exits is started again and costs money, so the script ends only when it is told to: by a
# signal, by RUN_ON_SUCCESS=exit or by RUN_ON_FAILURE=exit. With arguments it becomes that command and does no more.
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
workspace=${RP_WORKSPACE:-/workspace}
program=${ATELIER_HOME:-$(dirname "${here}")}
python=${ATELIER_PYTHON:-/opt/venv/bin/python}
on_failure=${RUN_ON_FAILURE:-idle}
on_success=${RUN_ON_SUCCESS:-stop}
read -ra pauses <<<"${RESTART_PAUSES-10 30 90}" # seconds before each restart after a crash; three at most

read -ra options <<<"${RUN_ARGS-}" # of run.py, such as --allow-change

as_user=() # put before a command to give up root
withhold=(env -u RUNPOD_API_KEY -u JUPYTER_PASSWORD -u JUPYTER_LAB_PASSWORD) # what a job has no use for
problem=     # the first thing that makes it pointless to start the job
outcome=     # the exit code of the job, once there is one
job=         # what run.py is given

# shellcheck source-path=SCRIPTDIR source=children.sh
. "${here}/children.sh"
# shellcheck source-path=SCRIPTDIR source=services.sh
. "${here}/services.sh"

main() {
  set_caches
  (($# == 0)) || exec "$@"
  trap on_signal TERM INT
  trap '((BASHPID != $$)) || finish 1 "the start script failed (line ${LINENO}); please report it." "${on_failure}"' ERR
  check_settings
  prepare_volume
  run_hooks pre_start
  choose_user
  write_environment
  start_sshd
  start_jupyter
  [[ -z ${problem} ]] || finish 1 "${problem}" "${on_failure}"
  find_job
  run_hooks post_start
  [[ -z ${problem} ]] || finish 1 "${problem}" "${on_failure}"
  train
}

# ---- preparing -----------------------------------------------------------------------------------------------------

# Downloads and compiled kernels go to the volume, temporary files stay on the container's disk.
set_caches() {
  export HF_HOME=${HF_HOME:-${workspace}/.cache/huggingface}
  export XDG_CACHE_HOME=${XDG_CACHE_HOME:-${workspace}/.cache}
  export HF_XET_HIGH_PERFORMANCE=${HF_XET_HIGH_PERFORMANCE:-1}
  export EXTENSIONS_PATH=${EXTENSIONS_PATH:-${workspace}/extensions}
  export PYTHONUNBUFFERED=1
}

check_settings() {
  local name value pause
  for name in RUN_ON_SUCCESS RUN_ON_FAILURE; do
    value=${!name:-}
    [[ ${value} =~ ^(stop|idle|exit)?$ ]] || blame "${name} is '${value}': write stop, idle or exit."
  done
  [[ ${on_failure} =~ ^(stop|idle|exit)$ ]] || on_failure=idle
  for pause in "${pauses[@]}"; do
    [[ ${pause} =~ ^[0-9]+(\.[0-9]+)?$ ]] || blame "RESTART_PAUSES: '${pause}' is not a number of seconds."
  done
}

prepare_volume() {
  if ! mountpoint -q "${workspace}"; then
    warn "${workspace} is not a mounted volume: OUTPUTS DIE WITH THIS POD. Give the template a volume at ${workspace}."
  fi
  if ! mkdir -p "${workspace}" || ! (: >"${workspace}/.write_test") 2>/dev/null; then
    warn "${workspace} cannot be written: NOTHING CAN BE SAVED."
    blame "${workspace} cannot be written. Mount a volume there, or set RP_WORKSPACE."
    return
  fi
  rm -f "${workspace}/.write_test"
  cd "${workspace}"
  mkdir -p models datasets output config logs "${HF_HOME}" "${XDG_CACHE_HOME}"
  [[ ${EXTENSIONS_PATH} != "${workspace}/extensions" ]] || mkdir -p extensions
  # `JOB_CONFIG=config/examples/quickstart.yaml` is the quickest way to see whether a pod works.
  [[ -e config/examples ]] || ln -sfn "${program}/config/examples" config/examples || true
  if [[ -z ${RUN_ON_SUCCESS:-} && $(stat -f -c %T . || true) == overlayfs ]]; then
    warn "stopping this pod deletes ${workspace}, so it will wait after the job. RUN_ON_SUCCESS=stop stops it anyway."
    on_success=idle
  fi
}

# Hooks run as root, before the services (pre_start) and before the job (post_start); one that fails keeps the job
# from starting, since what it was to bring (data, packages) is missing.
run_hooks() {
  local hook code
  for hook in "/$1.sh" "${workspace}/$1.sh"; do
    [[ -f ${hook} ]] || continue
    say "running ${hook}"
    code=0
    run bash "${hook}" || code=$?
    ((code == 0)) || blame "${hook} failed with exit code ${code}."
  done
}

# Jobs and Jupyter run as an ordinary user when the image has one and the volume lets its folders be handed over.
# Datasets stay as they are: a job only reads them.
choose_user() {
  local user=${RUN_AS:-atelier} home
  [[ ${EUID} == 0 && ${user} != root && -z ${problem} ]] || return 0
  if ! id -u "${user}" >/dev/null 2>&1; then
    [[ -z ${RUN_AS:-} ]] || blame "RUN_AS: there is no user '${user}'."
    return 0
  fi
  home=$(getent passwd "${user}" | cut -d: -f6)
  as_user=(setpriv "--reuid=${user}" "--regid=${user}" --init-groups env "HOME=${home}")
  run find models output config logs "${XDG_CACHE_HOME}" "${HF_HOME}" ! -user "${user}" \
    -exec chown -h "${user}" {} + || true
  if ! "${as_user[@]}" test -w output || ! "${as_user[@]}" test -w "${HF_HOME}"; then
    warn "${workspace} cannot be handed to the user ${user}: the job runs as root."
    as_user=()
  fi
}

# ---- the job -------------------------------------------------------------------------------------------------------

atelier() { run "${as_user[@]}" "${withhold[@]}" "${python}" "${program}/run.py" "$@"; }

# Sets `job`, and has run.py check it: a mistake shows before anything large is downloaded.
find_job() {
  local code=0 answer
  if [[ -z ${JOB_CONFIG_B64:-}${JOB_CONFIG_URL:-}${JOB_CONFIG:-}${JOB_CONFIG_YAML:-} ]]; then
    finish 0 "no job: set JOB_CONFIG_B64, JOB_CONFIG_URL, JOB_CONFIG or JOB_CONFIG_YAML to train one." idle
  fi
  answer=$(mktemp)
  run "${as_user[@]}" "${withhold[@]}" "${python}" "${here}/job_config.py" "${workspace}/config" >"${answer}" || code=$?
  job=$(<"${answer}")
  rm -f "${answer}"
  ((code == 0)) || finish "${code}" "the job cannot be read; see the line above." "${on_failure}"
  say "checking ${job}"
  atelier --dry-run "${job}" || code=$?
  ((code == 0)) || finish "${code}" "the job cannot run; see the lines above (exit code ${code})." "${on_failure}"
}

# Trains; after a crash again, which resumes from the last save. Codes of run.py: 0 done, 2 a mistake in the input
# (a second try would find the same), 130 and 75 stopped by a signal that somebody sent to the trainer itself.
train() {
  local code pause restarts=0
  while :; do
    say "training ${job}"
    code=0 is_job=yes
    atelier --log "${workspace}/logs/job.log" "${options[@]}" "${job}" || code=$?
    is_job=no
    case ${code} in
      0) finish 0 "the job is done." "${on_success}" ;;
      2) finish 2 "the job has a mistake (exit code 2): not tried again." "${on_failure}" ;;
      75 | 130) finish "${code}" "the trainer was stopped (exit code ${code}): not tried again." "${on_failure}" ;;
      *) say "the trainer crashed (exit code ${code})." ;;
    esac
    pause=${pauses[restarts]:-}
    if [[ ${restarts} == 3 || -z ${pause} ]]; then
      finish "${code}" "abandoned after ${restarts} restarts." "${on_failure}"
    fi
    restarts=$((restarts + 1))
    say "restart ${restarts} in ${pause} s; it resumes from the last save."
    run sleep "${pause}"
  done
}

# The end of the script: says why, then does what is asked for. `stop` waits for the pod to be taken away.
finish() {
  local code=$1 reason=$2 action=$3
  trap - ERR
  outcome=${code}
  say "${reason}"
  [[ ${action} != exit ]] || leave "${code}"
  if [[ ${action} == stop ]] && ! run "${python}" "${here}/stop_pod.py"; then
    say "the pod goes on and costs money until you stop it."
  fi
  say "waiting."
  while :; do
    run sleep infinity || true
  done
}

main "$@"
