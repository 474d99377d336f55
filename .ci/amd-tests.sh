#!/usr/bin/env bash
# The test of the meter for AMD GPUs, with `amdsmi` beside the environment that runs it: where ROCm is missing, that
# package fails on import, and Ray fails with it.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$PWD/.venv-amd
report=$packages/junit.xml
.venv/bin/pip install -q --no-deps --target "$packages" --upgrade "amdsmi==7.0.2"
PYTHONPATH=$packages .venv/bin/pytest tests/unit/energy/test_amd.py -q -p no:cacheprovider --junitxml="$report"
.venv/bin/python .ci/require_all_ran.py "$report" tests/unit/energy/test_amd.py
