#!/usr/bin/env bash
# Everything that is to be known of one GPU, in one go of under ten minutes, as one JSON file:
#   benchmarks/gpu.sh [FILE]                  # default build/gpu.json; needs jax[cuda13], torch and sentence-transformers
#   SMALL=1 benchmarks/gpu.sh [FILE]          # the same road in small, on any machine; PART_S=900 on a busy one
#   PARTS="encode" benchmarks/gpu.sh [FILE]   # some of: attention train_step encode
# 1. Is the attention kernel right on this chip, and how fast is it beside XLA's products?
# 2. A training step of 0.5B in bfloat16, ours against sentence-transformers, on the same texts.
# 3. Encoding with it, likewise.
# A part that fails leaves its name under "failed", and the others still run. The texts are the demo's; where there are
# none yet they are made, which takes a minute or two of CPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

out=${1:-build/gpu.json}
python=${PYTHON:-python}
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
# Sides take the device one after the other; what JAX does not need stays free for what follows.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}

if [[ ! -d runs/demo/crops/records ]]; then
  for verb in simulate_logs mine write_records; do
    JAX_PLATFORMS=cpu "$python" -m crops_jax.$verb --config configs/demo.py || exit 2
  done
fi

towers=${TOWERS:-$parts/towers} # one folder for both parts: half a minute of CPU
step=(--shape qwen2_5_0_5b --dtype bfloat16 --row-tokens 128 --times 2 --turns 3 --steps 4 --towers "$towers")
encode=(--shape qwen2_5_0_5b --dtype bfloat16 --row-tokens 128 --turns 3 --batch 1024 --repeat 8 --towers "$towers")
kernel=()
if [[ ${SMALL:-} ]]; then
  step=(--shape demo --turns 1 --steps 1 --towers "$towers")
  encode=(--shape demo --turns 1 --towers "$towers")
  kernel=(--dtype float32)
fi

failed=()
part() { # NAME SCRIPT FLAGS...: at most three minutes, unless PART_S says otherwise
  local name=$1 script=$2
  shift 2
  [[ " ${PARTS:-attention train_step encode} " == *" $name "* ]] || return
  timeout "${PART_S:-180}" "$python" "benchmarks/$script.py" "$@" --json "$parts/$name.json" || failed+=("$name")
}
start=$SECONDS
part attention attention "${kernel[@]}"
part train_step train_step "${step[@]}" --sides packed peer --apart
part encode encode "${encode[@]}" --apart

mkdir -p "$(dirname "$out")"
"$python" - "$parts" "$out" "$((SECONDS - start))" "${failed[@]}" <<'PY'
import json
import sys
from pathlib import Path

parts, out, seconds, *failed = sys.argv[1:]
told = {path.stem: json.loads(path.read_text()) for path in sorted(Path(parts).glob("*.json"))}
Path(out).write_text(json.dumps({"seconds": int(seconds), "failed": failed, **told}, indent=1) + "\n")
PY
echo "wrote $out in $((SECONDS - start)) s${failed[*]:+; failed: ${failed[*]}}"
[[ ${#failed[@]} -eq 0 ]]
