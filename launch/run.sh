#!/usr/bin/env bash
# Preflight, then training. The same line runs on every host, or once for every GPU under SLURM:
#   launch/run.sh --config configs/crops_qwen2_5_0_5b.py [--section.field=value ...]
# Leaves with the exit codes of README.md's table. Nothing to edit; from the environment:
#   STUCK_RESTARTS  how often a stuck run (76) is started again here (default 3). Runs on several hosts set 0, because
#                   all hosts have to start again together: the scheduler does it.
#   EXIT_CODES      a folder: every task of SLURM leaves its exit code there, in a file named by its number (0 without
#                   SLURM).
#   PREFLIGHT, TRAIN  the two commands.
set -uo pipefail

stuck_restarts=${STUCK_RESTARTS:-3}
if [[ ! $stuck_restarts =~ ^(0|[1-9][0-9]*)$ ]]; then # said now: after hours a run would restart for ever, or end as a bug
  echo "run.sh: STUCK_RESTARTS=$stuck_restarts is no whole number" >&2
  exit 2
fi
read -ra preflight <<<"${PREFLIGHT:-python -m crops_jax.preflight}"
read -ra train <<<"${TRAIN:-python -m crops_jax.train}"

# A container's signals go to its first process, this shell: they are passed on, whatever they are, as SIGTERM.
child='' stopping='' interrupted=''
stop() {
  stopping=yes interrupted=yes
  if [[ $child ]]; then kill -TERM "$child" 2>/dev/null; fi
}
trap stop TERM INT HUP

# Runs a command to its end and returns its exit code.
run() {
  "$@" &
  child=$!
  if [[ $stopping ]]; then kill -TERM "$child" 2>/dev/null; fi
  while :; do # a signal ends `wait` before the child has ended
    interrupted=''
    wait "$child"
    code=$?
    if [[ ! $interrupted ]]; then break; fi
  done
  child=''
  return "$code"
}

leave() {
  # Stopped before there was anything to save. A signal that meets a child as it is being started gives other codes than
  # 143 (255, say); those that a command left with by itself stay.
  if [[ $stopping && ! $1 =~ ^(0|1|2|75|76)$ ]]; then set -- 75; fi
  echo "run.sh: exit code $1" >&2
  if [[ ${EXIT_CODES:-} ]]; then echo "$1" >"$EXIT_CODES/${SLURM_PROCID:-0}"; fi
  exit "$1"
}

if [[ ! ${PREFLIGHT:-} ]] && ! python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("jax"))'; then
  echo "run.sh: $(command -v python || echo 'no python') has no jax: enter the environment first (. .venv/bin/activate)" >&2
  leave 2
fi

run "${preflight[@]}" "$@"
code=$?
if [[ $code != 0 ]]; then leave "$code"; fi
if [[ $stopping ]]; then leave 143; fi

for ((restarts = 0; ; restarts++)); do
  run "${train[@]}" "$@"
  code=$?
  if [[ $code != 76 || $stopping || $restarts -ge $stuck_restarts ]]; then leave "$code"; fi
  echo "run.sh: stuck; restart $((restarts + 1)) of $stuck_restarts" >&2
done
