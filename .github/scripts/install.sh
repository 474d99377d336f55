#!/usr/bin/env bash
# Installs $REQUIREMENTS into an environment of its own. pytest-llem itself comes from the checkout in $LLEM_SOURCE, that
# of the workflow's own commit, unless a requirement says from where: nothing depends on a package index having it.
set -euo pipefail
: "${REQUIREMENTS:?}"

python3 -m venv "$RUNNER_TEMP/llem"
source=$(cd "$LLEM_SOURCE" && pwd)
source=${source//%/%25} # as the path of an address, where a runner's folder has blanks
source=${source// /%20}
read -rd "" -a words <<< "$REQUIREMENTS" || true
requirements=()
for word in "${words[@]}"; do
  if [[ $word =~ ^pytest-llem(\[[A-Za-z0-9,-]*\])?$ ]]; then word="$word @ file://$source"; fi
  requirements+=("$word")
done
"$RUNNER_TEMP/llem/bin/pip" install --quiet "${requirements[@]}"
