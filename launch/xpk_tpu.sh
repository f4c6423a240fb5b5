#!/usr/bin/env bash
# TPU slices on a cluster that XPK made:  launch/xpk_tpu.sh --config configs/crops_qwen2_5_0_5b.py --mesh.replica=2
#
# Edit the values, or set them in the environment; STORAGE is what `xpk storage attach` or `create` made, mounted where
# --workdir points. DRY_RUN=1 prints what would be done.
#
# XPK ends the workload on 1 and 2, and restarts all slices on 75, on 76 (stuck, or lost a host) and on a signal's code.
# It counts these together, so MAX_RESTARTS has to cover the preemptions too.
set -euo pipefail

NAME=${NAME:-crops}
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-central1-a}
CLUSTER=${CLUSTER:-crops-cluster}
STORAGE=${STORAGE:-crops-data}
IMAGE=${IMAGE:-REGISTRY/crops:tpu}
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
SLICES=${SLICES:-2}
MAX_RESTARTS=${MAX_RESTARTS:-20}

printf -v command '%q ' launch/run.sh "$@"
exec xpk workload create \
  --workload="$NAME" \
  --project="$PROJECT" \
  --zone="$ZONE" \
  --cluster="$CLUSTER" \
  --storage="$STORAGE" \
  --docker-image="$IMAGE" \
  --tpu-type="$TPU_TYPE" \
  --num-slices="$SLICES" \
  --env=STUCK_RESTARTS=0 \
  --max-restarts="$MAX_RESTARTS" \
  --restart-on-exit-codes=75,76 \
  --termination-grace-period-seconds=120 \
  --command="$command" \
  ${DRY_RUN:+--dry-run --skip-validation --quiet}
