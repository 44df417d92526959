# shellcheck shell=bash
# How start.sh runs commands and passes signals on to them, and how it speaks. Uses `outcome` and `problem` of start.sh.

stopping=no # whether a signal has come
child=      # the process that is being waited for
child_told=no
woken=no
is_job=no # whether what runs is the job itself, whose 0 means that all is done

on_signal() {
  stopping=yes woken=yes
  if [[ -n ${child} ]]; then
    child_told=yes
    kill -TERM "${child}" 2>/dev/null || true
  fi
}

# Runs a command, passes a signal on to it at once, and returns its exit code; after a signal, leaves with that code.
# Both signals are passed on as SIGTERM: bash starts children that are not waited for with SIGINT ignored. Each child
# has a session of its own, so that Ctrl-C in a terminal does not reach it a second time past this script.
run() {
  local code=0
  child='' child_told=no
  [[ ${stopping} == no ]] || leave 143
  setsid "$@" &
  child=$!
  if [[ ${stopping} == yes && ${child_told} == no ]]; then
    kill -TERM "${child}" 2>/dev/null || true # the signal came before the process was known
  fi
  while :; do
    woken=no code=0
    wait "${child}" || code=$?
    [[ ${woken} == yes ]] || break # `wait` also returns when a signal comes
  done
  child=
  # A child that ends while the trap runs may be forgotten by bash 5.2: `wait` then says -1 (or 127, no such child).
  if [[ ${stopping} == yes && (${code} == -1 || ${code} == 127) ]]; then code=143; fi
  # What was done just when the signal came was not the job: that has been stopped, not finished.
  if [[ ${stopping} == yes && ${code} == 0 && ${is_job} == no ]]; then code=143; fi
  [[ ${stopping} == no ]] || leave "${code}"
  return "${code}"
}

leave() {
  trap - ERR
  say "leaving with exit code ${outcome:-$1}."
  exit "${outcome:-$1}"
}

say() { printf 'start: %s\n' "$*" >&2; }

warn() { say "WARNING: $*"; }

blame() { [[ -n ${problem} ]] || problem=$1; }
