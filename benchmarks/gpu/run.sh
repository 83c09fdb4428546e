#!/bin/bash
# Measures this checkout on one GPU in at most eight minutes, without network: bash benchmarks/gpu/run.sh [--only part,...]
# What there was no time for is given by a second call on the same machine, which is warm then: --only teachers.
# The study, with the same packages: bash benchmarks/gpu/run.sh study run [--minutes N ...]
# Wheels in benchmarks/gpu/wheels/, if there are any, are installed on top of the machine's own packages for this run alone:
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform any -d benchmarks/gpu/wheels \
#     torchao==0.15.0 peft==0.18.1 omegaconf==2.4.0 tyro docstring-parser typeguard datasets==4.8.5 multiprocess dill \
#     python-dotenv rapidfuzz gguf sentencepiece
# That is 14 MiB for Python 3.12 on a machine that has torch and transformers; study.py needs the last two.
# Results: results.json, and log.txt with what the recipes printed, in $OUT if that is set, else in benchmarks/gpu/out.
set -e
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
if compgen -G "$here/wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install -q --no-index --no-deps --target "$site" "$here"/wheels/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
program=$here
if [ "$1" = study ]; then
  program=$here/study.py
  shift
fi
python3 "$program" "$@"
