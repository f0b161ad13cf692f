#!/usr/bin/env bash
# What is to be seen on a GPU, in ten minutes: families in two types, steps of a model of 3B and of a real one.
#
#     benchmarks/gpu.sh [MODEL.gguf or folder] >gpu.log
#
# From the repository's root, in an environment with `pip install -e '.[dev,gguf]'` and a CUDA build of torch.
set -uo pipefail
failed=0
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
try() { timeout "$1" "${@:2}" || { echo "FAILED with $?: ${*:2}"; failed=1; }; }

python - <<'PY'
import torch
assert torch.cuda.is_available(), "no CUDA device; see constraints-cpu.txt for how to choose a CUDA build of torch"
print(torch.cuda.get_device_name(), torch.__version__)
PY
[ $? -eq 0 ] || exit 2

say "families on CUDA, in float32 and bfloat16"
CCA_TEST_DEVICE=cuda try 240 python -m pytest -q -p no:cacheprovider tests/test_families.py tests/test_family_batches.py
say "a model of 3B in bfloat16: all stages' steps, with the share of what the linear layers alone would reach"
try 200 python benchmarks/large_model.py qwen2.5-3b --device cuda --dtype bfloat16 --tokens 1200
if [ $# -gt 0 ]; then
    say "decode and read of $1"
    try 120 python benchmarks/real_model.py "$1" --device cuda --only decode,read
fi
exit $failed
