#!/usr/bin/env bash
# TPU VMs by queued resources, without Kubernetes; from any machine with gcloud:
#   launch/tpu_queued_resources.sh create         asks for the slices and waits until they are there
#   launch/tpu_queued_resources.sh train --config configs/crops_qwen2_5_0_5b.py --workdir=/data/crops
#   launch/tpu_queued_resources.sh logs | stop | delete
#
# Edit the values, or set them in the environment. MOUNT is a folder that all hosts share (Filestore by NFS, say); the
# container sees it as /data. The hosts have to be allowed to pull IMAGE (`gcloud auth configure-docker` on them).
#
# `train` starts a detached container on every host and waits until all have ended. A lost connection ends nothing: the
# same line goes on waiting. A run that is stuck or lost a host (76, or a signal's code) starts again on all hosts, at
# most RESTARTS times. A slice that the zone takes back is gone: delete, create, train.
set -euo pipefail

NAME=${NAME:-crops}
ZONE=${ZONE:-us-central1-a}
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SLICES=${SLICES:-1}
IMAGE=${IMAGE:-REGISTRY/crops:tpu}
MOUNT=${MOUNT:-/mnt/crops}
RESTARTS=${RESTARTS:-3}

tpus() {
  gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"
}

on_hosts() {
  tpus ssh --node=all --worker=all --command="$1"
}

create() {
  local nodes=(--node-id="$NAME") state
  if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  tpus create "${nodes[@]}" --accelerator-type="$TPU_TYPE" --runtime-version="$RUNTIME" --spot
  until state=$(tpus describe --format="value(state.state)") && [[ $state == ACTIVE ]]; do
    echo "$NAME: $state"
    if [[ $state == FAILED || $state == SUSPENDED ]]; then exit 1; fi
    sleep 30
  done
}

# The exit code of each host, a line each. Whoever lost its connection is asked again, as long as the slices are there.
exit_codes() {
  local codes
  until codes=$(on_hosts "sudo docker wait crops" | grep -xE '[0-9]+'); do
    echo "$NAME: not all hosts answered; asking again" >&2
    case $(tpus describe --format="value(state.state)") in
      FAILED | SUSPEND* | DELET*) return 1 ;;
    esac
    sleep 30
  done
  echo "$codes"
}

# Runs once on all hosts; the exit code of the run is that of the host that says most about it.
train_once() {
  local run codes telling asked other
  asked=$(printf '%q ' "$IMAGE" "$@" | sha256sum | cut -c1-12)
  printf -v run '%q ' sudo docker run --detach --name crops --label "asked=$asked" --privileged --net=host --user=0 \
    --volume="$MOUNT:/data" --env=STUCK_RESTARTS=0 "$IMAGE" "$@"
  # A run that is there already is waited for, if it is this one; on all hosts before any begins another.
  other="echo 'another run is on this host: end it with stop, then run the line that began it once more, which keeps its log'"
  on_hosts "there=\$(sudo docker container inspect --format '{{.Config.Labels.asked}}' crops 2>/dev/null) && [ \"\$there\" != $asked ] && { $other >&2; exit 1; } || true" || return 1
  on_hosts "sudo docker container inspect crops >/dev/null 2>&1 || $run" || return 1
  codes=$(exit_codes) || return 1
  # The log outlives the container, and its end is shown.
  on_hosts "sudo docker logs crops 2>&1 | sudo tee -a $MOUNT/$NAME.\$(hostname).log | tail -n 5; sudo docker rm crops"
  for telling in 2 1 75 76; do # the others of such a run ended only because they lost this one
    if grep -qx "$telling" <<<"$codes"; then return "$telling"; fi
  done
  return "$(sort -n <<<"$codes" | tail -n 1)"
}

train() {
  local restarts=0 code
  while true; do
    code=0
    train_once "$@" || code=$?
    echo "$NAME: exit code $code"
    case $code in
      0 | 1 | 2 | 75) exit "$code" ;;
    esac
    if ((restarts++ >= RESTARTS)); then exit "$code"; fi
  done
}

case ${1:-} in
  create) create ;;
  train) train "${@:2}" ;;
  logs) tpus ssh --node=0 --worker=0 --command="sudo docker logs --follow --tail 20 crops" ;;
  stop) on_hosts "sudo docker stop --time 120 crops" ;;
  delete) tpus delete --force --quiet ;;
  *)
    sed -n '2,5s/^# //p' "$0"
    exit 2
    ;;
esac
