#!/bin/sh
# Installs a wheel into an environment of its own and runs the quickstart from it in an empty folder, as a stranger would:
#   .ci/try-wheel.sh dist/pytest_llem-0.1.0-py3-none-any.whl
# Needs Python with venv, and 1.5 GB. PIP_CONSTRAINT pins what pip chooses, as everywhere.
set -eu

wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch --index-url https://download.pytorch.org/whl/cpu
venv/bin/pip install -q "pytest-llem[transformers] @ file://$wheel"
mkdir empty
cd empty
../venv/bin/llem --version
../venv/bin/pytest --llem-study=builtin:quickstart
