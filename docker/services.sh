# shellcheck shell=bash disable=SC2154
# The ways into a pod: ssh, TensorBoard and the program's own page. Uses the variables and functions of start.sh.

# ssh for whoever has the private half of the key in PUBLIC_KEY, which RunPod sets; no password opens it.
start_ssh() {
  local server file=${HOME:-/root}/.ssh/authorized_keys
  [[ -n ${PUBLIC_KEY:-} ]] || return 0
  if ! server=$(command -v sshd); then
    warn "PUBLIC_KEY is given, but there is no sshd in this image: no ssh."
  elif [[ ! ${PUBLIC_KEY} =~ ^(ssh|ecdsa|sk)-[a-z0-9@.-]+[[:space:]][A-Za-z0-9+/=]+ ]]; then
    warn "PUBLIC_KEY is no public key (it begins with ssh-ed25519 or ssh-rsa): no ssh."
  elif (umask 077 && mkdir -p "${file%/*}" /run/sshd && echo "${PUBLIC_KEY}" >>"${file}") && ssh-keygen -A >/dev/null \
    && "${server}" -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password; then
    say "ssh is on port 22, for the key in PUBLIC_KEY alone."
  else
    warn "sshd did not start; see the line above: no ssh."
  fi
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
  "${as_user[@]}" "${withhold[@]}" -u HF_TOKEN -u WANDB_API_KEY \
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
      "${as_user[@]}" "${withhold[@]}" "${python}" "${program}/run.py" ui --host 0.0.0.0 --port "${port}" || true
      sleep 5
    done >>logs/ui.log 2>&1
  ) &
  say "the web page: ${address}"
}
