#!/usr/bin/env bash
# What a pod runs: prepares the volume, starts the pages that are asked for and trains the jobs that the environment
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
withhold=(env -u RUNPOD_API_KEY -u PRE_START -u POST_TRAIN) # what a job has no use for
problem=     # the first thing that makes it pointless to start the job
outcome=     # the exit code of the job, once there is one
made=()      # the folders that were not there before
jobs=()      # what run.py is given, one after another
processes=1  # that train a job together

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
  start_ssh
  prepare_volume
  run_hooks pre_start
  choose_user
  start_tensorboard
  start_ui
  [[ -z ${problem} ]] || finish 1 "${problem}" "${on_failure}"
  find_jobs
  run_hooks post_start
  [[ -z ${problem} ]] || finish 1 "${problem}" "${on_failure}"
  train_all
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
  for name in DATASET_URL JOB_CONFIG_URL; do
    [[ -z ${!name:-} ]] || blame "${name} is not read any more: bring it with PRE_START (docs/runpod.md)."
  done
  [[ -z ${JUPYTER_PASSWORD:-} ]] || warn "JUPYTER_PASSWORD: there is no Jupyter in this image (docs/runpod.md)."
  count_processes
  for pause in "${pauses[@]}"; do
    [[ ${pause} =~ ^[0-9]+(\.[0-9]+)?$ ]] || blame "RESTART_PAUSES: '${pause}' is not a number of seconds."
  done
}

# NPROC: as many processes as GPUs unless it says a number. CUDA_VISIBLE_DEVICES hides GPUs from nvidia-smi's list too.
count_processes() {
  local gpus=${CUDA_VISIBLE_DEVICES-}
  case ${NPROC:-auto} in
    auto)
      if [[ -n ${gpus} ]]; then
        processes=$(tr ',' '\n' <<<"${gpus}" | grep -c .) || true
      else
        processes=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ') || true
      fi
      ((processes > 0)) || processes=1
      ;;
    [1-9] | [1-9][0-9]) processes=${NPROC} ;;
    *) blame "NPROC is '${NPROC}': write auto or the number of processes." ;;
  esac
}

# Whether a folder takes a file with something in it; prints why not.
write_test() {
  local code=0
  (echo test >"$1/.write_test") 2>&1 || code=1
  rm -f "$1/.write_test" || code=1
  return "${code}"
}

# Makes a folder, or blames what keeps it from being one. $2: what else to do.
make_folder() {
  local folder=$1 why
  [[ ! -d ${folder} ]] || return 0
  if why=$(mkdir -p "${folder}" 2>&1); then
    made+=("${folder}")
  elif [[ -L ${folder} ]]; then
    why=$(readlink "${folder}")
    blame "${folder} is a link to ${why}, which is not there. Mount what it leads to, or remove the link."
  elif [[ -e ${folder} ]]; then
    blame "${folder} is a file, and a folder is needed there. $2."
  else
    blame "${folder} cannot be made (${why##*: }). $2, or make room."
  fi
}

# Whether a folder is on the container's own disk, and not on a volume or a folder of one.
is_own_disk() { [[ $(findmnt -n -o TARGET -T "$1" 2>/dev/null || true) == / ]]; }

prepare_volume() {
  local folder why
  if ! why=$(mkdir -p "${workspace}" 2>&1 && write_test "${workspace}"); then
    warn "${workspace} cannot be written (${why##*: }): NOTHING CAN BE SAVED."
    if [[ ${why} == *"No space"* || ${why} == *quota* ]]; then
      blame "${workspace} is full (${why##*: }). Delete what is not needed there, or enlarge the volume."
    else
      blame "${workspace} cannot be written (${why##*: }). Mount a volume there, or set RP_WORKSPACE."
    fi
    return
  fi
  if is_own_disk "${workspace}"; then
    warn "${workspace} is not a mounted volume: OUTPUTS DIE WITH THIS POD. Give the template a volume at ${workspace}."
  fi
  cd "${workspace}"
  for folder in models datasets output config logs; do
    make_folder "${workspace}/${folder}" "Move it away"
  done
  make_folder "${XDG_CACHE_HOME}" "Set XDG_CACHE_HOME to another folder"
  make_folder "${HF_HOME}" "Set HF_HOME to another folder"
  if ! is_own_disk "${workspace}" && is_own_disk "${HF_HOME}"; then
    warn "HF_HOME (${HF_HOME}) is on the container's own disk: downloads will not survive the pod. Leave HF_HOME out."
  fi
  [[ ${EXTENSIONS_PATH} != "${workspace}/extensions" ]] || make_folder "${EXTENSIONS_PATH}" "Move it away"
  if ! write_test "${TMPDIR:-/tmp}" >/dev/null && [[ -z ${problem} ]]; then # a read-only root, or a full one
    warn "${TMPDIR:-/tmp} cannot be written: temporary files go to ${workspace}/.cache/tmp."
    export TMPDIR=${workspace}/.cache/tmp
    make_folder "${TMPDIR}" "Set TMPDIR to another folder"
    [[ -n ${problem} ]] || chmod 1777 "${TMPDIR}"
  fi
  [[ -z ${problem} ]] || return 0
  # `JOB_CONFIG=config/examples/quickstart.yaml` is the quickest way to see whether a pod works.
  [[ -e config/examples ]] || ln -sfn "${program}/config/examples" config/examples || true
  if [[ -z ${RUN_ON_SUCCESS:-} && $(stat -f -c %T . || true) == overlayfs ]]; then
    warn "stopping this pod deletes ${workspace}, so it will wait after the job. RUN_ON_SUCCESS=stop stops it anyway."
    on_success=idle
  fi
}

# Hooks run as root, before the pages (pre_start, then the script in PRE_START) and before the job (post_start); one that
# fails keeps the job from starting, since what it was to bring (data, packages) is missing.
run_hooks() {
  local hook code=0
  for hook in "/$1.sh" "${workspace}/$1.sh"; do
    [[ -f ${hook} ]] || continue
    say "running ${hook}"
    code=0
    run bash "${hook}" || code=$?
    ((code == 0)) || blame "${hook} failed with exit code ${code}."
  done
  [[ $1 == pre_start && -n ${PRE_START:-} ]] || return 0
  say "running PRE_START"
  code=0
  run bash -c 'eval "${PRE_START}"' || code=$? # not as an argument: other processes can read those
  ((code == 0)) || blame "PRE_START failed with exit code ${code}."
}

# Jobs run as an ordinary user when the image has one and the volume lets its folders be handed over: those that a job
# writes, where they are root's. What belongs to somebody else stays so, and models and datasets, which a job only reads.
choose_user() {
  local user=${RUN_AS:-atelier} home
  [[ ${EUID} == 0 && ${user} != root && -z ${problem} ]] || return 0
  if ! id -u "${user}" >/dev/null 2>&1; then
    [[ -z ${RUN_AS:-} ]] || blame "RUN_AS: there is no user '${user}'."
    return 0
  fi
  home=$(getent passwd "${user}" | cut -d: -f6)
  as_user=(setpriv "--reuid=${user}" "--regid=${user}" --init-groups env "HOME=${home}")
  say "what is root's in output, config, logs and the caches is handed to the user ${user}."
  run find output config logs "${XDG_CACHE_HOME}" "${HF_HOME}" -uid 0 -exec chown -h "${user}" {} + || true
  ((${#made[@]} == 0)) || chown -h "${user}" "${made[@]}" || true
  if ! "${as_user[@]}" test -w output || ! "${as_user[@]}" test -w "${HF_HOME}"; then
    warn "${workspace} cannot be handed to the user ${user}: the job runs as root."
    as_user=()
  fi
}

# ---- the job -------------------------------------------------------------------------------------------------------

atelier() { run "${as_user[@]}" "${withhold[@]}" "${python}" "${program}/run.py" "$@"; }

# The same, by as many processes as there are GPUs.
atelier_on_all_gpus() {
  if ((processes == 1)); then
    atelier "$@"
    return
  fi
  run "${as_user[@]}" "${withhold[@]}" "${python}" "${program}/launch.py" --standalone \
    --nproc-per-node "${processes}" -- "${program}/run.py" "$@"
}

# Sets `jobs`, and has run.py check them: a mistake shows before anything large is downloaded.
find_jobs() {
  local code=0 answer
  if [[ -z ${JOB_CONFIG_B64:-}${JOB_CONFIG:-}${JOB_CONFIG_YAML:-} ]]; then
    finish 0 "no job: set JOB_CONFIG_B64, JOB_CONFIG or JOB_CONFIG_YAML to train one." idle
  fi
  answer=$(mktemp)
  run "${as_user[@]}" "${withhold[@]}" "${python}" "${here}/job_config.py" "${workspace}/config" >"${answer}" || code=$?
  mapfile -t jobs <"${answer}"
  rm -f "${answer}"
  ((code == 0)) || finish "${code}" "the job cannot be read; see the line above." "${on_failure}"
  say "checking ${jobs[*]}"
  atelier --dry-run "${jobs[@]}" || code=$?
  ((code == 0)) || finish "${code}" "the job cannot run; see the lines above (exit code ${code})." "${on_failure}"
}

# Trains the jobs in order. One that fails ends the series, unless RUN_ARGS has --recover; a stop always ends it.
train_all() {
  local job result carried code=0 reason='' one_reason
  for job in "${jobs[@]}"; do
    result=0 carried=0
    train "${job}" || result=$?
    post_train "${job}" "${result}" || carried=$?
    if ((carried != 0)); then
      say "post_train failed (exit code ${carried}): are the results where they should be?"
      ((result != 0)) || result=${carried} one_reason="the job is done, but post_train failed."
    fi
    ((result != 0)) || continue
    ((code != 0)) || code=${result} reason=${one_reason}
    [[ ${result} =~ ^(75|130|143)$ || " ${options[*]} " != *" "@(-r|--recover)" "* ]] && break
  done
  ((code == 0)) || finish "${code}" "${reason}" "${on_failure}"
  case ${#jobs[@]} in
    1) finish 0 "the job is done." "${on_success}" ;;
    *) finish 0 "all ${#jobs[@]} jobs are done." "${on_success}" ;;
  esac
}

# Trains one job; after a crash again, which resumes from the last save. Returns its code and sets `one_reason`. Codes
# of run.py: 0 done, 2 a mistake in the input (a second try would find the same), 130 and 75 stopped by a signal that
# somebody sent to the trainer or its launcher; 143 when that was still importing PyTorch.
train() {
  local job=$1 code pause restarts=0
  while :; do
    say "training ${job}$( ((processes == 1)) || echo " with ${processes} processes")"
    code=0 is_job=yes
    atelier_on_all_gpus --log "${workspace}/logs/job.log" "${options[@]}" "${job}" || code=$?
    is_job=no
    case ${code} in
      0) return 0 ;;
      2) one_reason="the job has a mistake (exit code 2): not tried again." ;;
      75 | 130 | 143) one_reason="the trainer was stopped (exit code ${code}): not tried again." ;;
      *) one_reason= ;;
    esac
    [[ -z ${one_reason} ]] || return "${code}"
    say "the trainer crashed (exit code ${code})."
    pause=${pauses[restarts]:-}
    if [[ ${restarts} == 3 || -z ${pause} ]]; then
      one_reason="abandoned after ${restarts} restarts."
      return "${code}"
    fi
    restarts=$((restarts + 1))
    say "restart ${restarts} in ${pause} s; it resumes from the last save."
    run sleep "${pause}"
  done
}

# What carries results away: post_train.sh (of the image's root, then of the volume), then the script in POST_TRAIN.
# They see the job, its exit code and its folder. A failure of theirs counts as one of the job.
post_train() {
  local job=$1 result=$2 folder hook code=0
  local hooks=()
  for hook in /post_train.sh "${workspace}/post_train.sh"; do
    [[ ! -f ${hook} ]] || hooks+=("${hook}")
  done
  ((${#hooks[@]} > 0)) || [[ -n ${POST_TRAIN:-} ]] || return 0
  folder=$("${as_user[@]}" "${withhold[@]}" "${python}" "${program}/run.py" --dry-run --json "${job}" \
    2>/dev/null | "${python}" -c 'import json, sys; print(*json.load(sys.stdin)["folders"][-1:])' 2>/dev/null) || folder=
  [[ -z ${folder} || ${folder} == /* ]] || folder=${workspace}/${folder}
  export ATELIER_JOB=${job} ATELIER_EXIT_CODE=${result} ATELIER_RUN_FOLDER=${folder}
  for hook in "${hooks[@]}"; do
    say "running ${hook}"
    run bash "${hook}" || code=$?
    ((code == 0)) || return "${code}"
  done
  if [[ -n ${POST_TRAIN:-} ]]; then
    say "running POST_TRAIN"
    run bash -c 'eval "${POST_TRAIN}"' || code=$? # not as an argument: other processes can read those
  fi
  return "${code}"
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
