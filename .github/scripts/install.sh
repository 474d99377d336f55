#!/usr/bin/env bash
# Installs $REQUIREMENTS into an environment of its own. pytest-llem itself comes from the checkout in $LLEM_SOURCE, that
# of the workflow's own commit, unless a requirement says from where: nothing depends on a package index having it.
set -euo pipefail
: "${REQUIREMENTS:?}"

python3 -m venv "$RUNNER_TEMP/llem"
read -ra requirements <<< "$REQUIREMENTS"
if [[ "$REQUIREMENTS" != *pytest-llem*@* && "$REQUIREMENTS" != *pytest-llem*=* ]]; then
  source=$(cd "$LLEM_SOURCE" && pwd)
  printf 'pytest-llem @ file://%s\n' "$source" > "$RUNNER_TEMP/llem-source.txt"
  requirements+=(--constraint "$RUNNER_TEMP/llem-source.txt")
fi
"$RUNNER_TEMP/llem/bin/pip" install --quiet "${requirements[@]}"
