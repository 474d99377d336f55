#!/usr/bin/env bash
# After measuring, whatever the verdict: adds a run of the default branch to the history ($ADDS), draws that as a page,
# and writes what the comment on a pull request is made from. Of a run that measured nothing there is none of these.
set -euo pipefail
llem=$RUNNER_TEMP/llem/bin/llem

if [ "$ADDS" = true ] && "$llem" history add llem-results/*/ --to llem-history-added; then
  mkdir -p llem-history
  cp -R llem-history-added/. llem-history/
  echo "added=true" >> "$GITHUB_OUTPUT"
  "$llem" history page llem-history --out llem-history-page || echo "::warning::the history's page was not written"
fi
mkdir -p llem-comment
"$llem" comment llem-results --name "$STUDY $GPU" --json > llem-comment/comment.json || rm -f llem-comment/comment.json
