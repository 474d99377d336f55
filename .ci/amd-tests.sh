#!/usr/bin/env bash
# The tests of AMD GPUs, with `amdsmi` beside the environment that runs them: where ROCm is missing, that package fails
# on import, and Ray fails with it.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$PWD/.venv-amd
report=$packages/junit.xml
tests=(tests/unit/energy/test_amd.py tests/unit/machine/test_amd_devices.py tests/plugin/test_amd_gpus.py)
.venv/bin/pip install -q --no-deps --target "$packages" --upgrade "amdsmi==7.0.2"
PYTHONPATH=$packages .venv/bin/pytest "${tests[@]}" -q -p no:cacheprovider --junitxml="$report"
.venv/bin/python .ci/require_all_ran.py "$report" "${tests[@]}"
