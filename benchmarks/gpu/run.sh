#!/bin/bash
# Measures this checkout on one GPU in at most eight minutes, without network: bash benchmarks/gpu/run.sh [--only part,...]
# Wheels in benchmarks/gpu/wheels/, if there are any, are installed on top of the machine's own packages for this run alone:
#   pip download --no-deps -d benchmarks/gpu/wheels torchao==0.15.0 peft==0.18.1 omegaconf tyro datasets
# Results: benchmarks/gpu/out/results.json, and log.txt with what the recipes printed.
set -e
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
if compgen -G "$here/wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install -q --no-index --no-deps --target "$site" "$here"/wheels/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
timeout 480 python3 "$here" "$@"
