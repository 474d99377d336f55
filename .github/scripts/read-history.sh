#!/usr/bin/env bash
# Brings the history of earlier runs into llem-history/, from the branch $HISTORY_BRANCH where $HISTORY is `branch`. One
# that is not there yet is no error: the first run on the default branch begins it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=git-token.sh
source "$(dirname "$0")/git-token.sh"

case $HISTORY in
  branch)
    rm -rf llem-history # of an earlier step
    clone_history llem-history || true
    ;;
  artifact) ;; # which a step before this one fetched
  none) exit 0 ;;
  *) echo "::error::history is branch, artifact or none, not $HISTORY"; exit 2 ;;
esac
mkdir -p llem-history
if [ -z "$(find llem-history -name '*.jsonl' -print -quit)" ]; then
  echo "::notice title=no history yet::nothing is judged by earlier runs until the default branch has a run"
fi
