#!/usr/bin/env bash
# The engine tests on vLLM's CPU build, in the Python environment that .ci/vllm-environment.sh makes, a study through
# pytest included.
#
#   .ci/vllm-tests.sh [PYTEST ARGUMENT]...
set -euo pipefail
cd "$(dirname "$0")/.."

.ci/vllm-environment.sh
venv=$PWD/.venv-vllm

export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
tests=(tests/engines/test_{conformance,vllm,vllm_study,same_work,openai_vllm}.py)
report=$venv/junit.xml
rm -f "$report"
# Beside other work it may wait long for the processor, so no time limits it; a test that hangs shows where.
"$venv/bin/python" -m pytest "${tests[@]}" -v --durations=10 -o faulthandler_timeout=900 -p no:cacheprovider \
  --junitxml="$report" "$@" &
trap 'kill $! 2>/dev/null' TERM
wait $!
[ $# -gt 0 ] || "$venv/bin/python" .ci/require_all_ran.py "$report" "${tests[@]}"
