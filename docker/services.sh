# shellcheck shell=bash disable=SC2154
# The ways into a pod: the environment of logins, sshd and Jupyter. Uses the variables and functions of start.sh.

# What a login over ssh needs to be like the job, without secrets. The image's /etc/bash.bashrc reads it.
write_environment() {
  local file=${HOME:-/root}/.atelier_environment name
  (
    umask 077
    rm -f "${file}"
    { compgen -e || true; } | while read -r name; do
      is_private "${name}" || printf 'export %s=%q\n' "${name}" "${!name}"
    done >"${file}"
  ) || warn "${file} cannot be written: logins will not see the pod's variables."
}

is_private() {
  local LC_ALL=C
  [[ ${1^^} =~ TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|^JOB_|^DATASET_|^POST_TRAIN$ ]] && return 0
  [[ $1 =~ ^(BASH.*|SHELLOPTS|HOME|USER|LOGNAME|PWD|OLDPWD|SHLVL|TERM|_)$ ]] && return 0
  # Known shapes of tokens, and addresses with a password in them.
  [[ ${!1} =~ (hf_|rpa_|gh[a-z]_|github_pat_|glpat-|sk-|wandb_v|xox.-|AKIA|eyJ)[A-Za-z0-9_-]{12} ]] && return 0
  [[ ${!1} =~ ://[^/@]+@|[Bb]earer\ |(^|[^0-9A-Za-z])[0-9a-f]{40}([^0-9A-Za-z]|$) ]]
}

start_sshd() {
  local sshd
  [[ -n ${PUBLIC_KEY:-}${SSH_PUBLIC_KEY:-} ]] || return 0
  if [[ ${EUID} != 0 ]] || ! sshd=$(command -v sshd) || ! prepare_sshd; then
    warn "a public key is given, but sshd cannot be set up (not installed, or not root): no ssh."
    return 0
  fi
  "${withhold[@]}" "${sshd}" -D -e -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o PermitRootLogin=prohibit-password &
  say "sshd is on port 22."
}

# The keys that may log in, added to those that are there, and the host's own, which no image may contain.
prepare_sshd() {
  local folder=${HOME:-/root}/.ssh line kind
  mkdir -p "${folder}" /run/sshd && touch "${folder}/authorized_keys" &&
    chmod 700 "${folder}" && chmod 600 "${folder}/authorized_keys" || return 1
  while read -r line; do
    [[ -n ${line} ]] || continue
    grep -qxF -- "${line}" "${folder}/authorized_keys" || printf '%s\n' "${line}" >>"${folder}/authorized_keys"
  done <<<"${PUBLIC_KEY:-}"$'\n'"${SSH_PUBLIC_KEY:-}"
  for kind in ed25519 rsa; do
    [[ -f /etc/ssh/ssh_host_${kind}_key ]] ||
      ssh-keygen -q -t "${kind}" -N '' -f "/etc/ssh/ssh_host_${kind}_key" || return 1
  done
}

# The password reaches Jupyter through its environment; jupyter_server_config.py hashes and forgets it.
start_jupyter() {
  local password=${JUPYTER_PASSWORD:-${JUPYTER_LAB_PASSWORD:-}}
  [[ -n ${password} && -z ${problem} ]] || return 0
  if ! command -v jupyter >/dev/null; then
    warn "a Jupyter password is given, but Jupyter is not installed in this image."
    return 0
  fi
  JUPYTER_PASSWORD=${password} "${as_user[@]}" env -u RUNPOD_API_KEY -u JUPYTER_LAB_PASSWORD \
    jupyter lab "--config=${here}/jupyter_server_config.py" "--ServerApp.root_dir=${workspace}" \
    >logs/jupyter.log 2>&1 &
  say "Jupyter is on port 8888; its log is ${workspace}/logs/jupyter.log."
}

# The curves of all runs, for anybody who knows the pod's address: TensorBoard has no password.
start_tensorboard() {
  local port=${TENSORBOARD_PORT:-}
  [[ -n ${port} && -z ${problem} ]] || return 0
  if [[ ! ${port} =~ ^[1-9][0-9]{0,4}$ ]]; then
    warn "TENSORBOARD_PORT is '${port}', no port: no TensorBoard."
    return 0
  fi
  if ! command -v tensorboard >/dev/null; then
    warn "TENSORBOARD_PORT is given, but TensorBoard is not installed in this image."
    return 0
  fi
  "${as_user[@]}" "${withhold[@]}" "${spent[@]}" -u HF_TOKEN -u WANDB_API_KEY \
    tensorboard --logdir "${workspace}/output" --bind_all --port "${port}" >logs/tensorboard.log 2>&1 &
  say "TensorBoard is on port ${port}; its log is ${workspace}/logs/tensorboard.log."
}

# The web page, for whoever has its token: the one in APP_AUTH or AI_TOOLKIT_AUTH, else one that is made once and kept on
# the volume. A page that dies takes no job with it, and is started again.
start_ui() {
  local port=${UI_PORT-${RUNPOD_POD_ID:+8675}} file=${workspace}/.app_token token=${APP_AUTH:-${AI_TOOLKIT_AUTH:-}} address
  [[ -n ${port} && -z ${problem} ]] || return 0
  if [[ ! ${port} =~ ^[1-9][0-9]{0,4}$ ]]; then
    warn "UI_PORT is '${port}', no port: no web page."
    return 0
  fi
  address=http://127.0.0.1:${port}/
  [[ -z ${RUNPOD_POD_ID:-} ]] || address=https://${RUNPOD_POD_ID}-${port}.proxy.runpod.net/
  if [[ -z ${token} ]]; then
    [[ -s ${file} ]] || (umask 077 && "${python}" -c 'import secrets; print(secrets.token_urlsafe(24))' >"${file}")
    token=$(<"${file}")
    address+="?token=${token}"
  fi
  (
    export APP_AUTH=${token}
    while :; do
      "${as_user[@]}" "${withhold[@]}" "${spent[@]}" "${python}" "${program}/run.py" ui --host 0.0.0.0 --port "${port}" || true
      sleep 5
    done >>logs/ui.log 2>&1
  ) &
  say "the web page: ${address}"
}
