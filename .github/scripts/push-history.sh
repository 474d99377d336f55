#!/usr/bin/env bash
# Adds the files below llem-history-added/ to the branch $HISTORY_BRANCH, which it begins where there is none. A file per
# run: whoever pushed meanwhile changed none of them, so a push that was rejected is made anew on top of theirs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=git-token.sh
source "$(dirname "$0")/git-token.sh"

if [ "$HISTORY_BRANCH" = "$DEFAULT_BRANCH" ]; then
  echo "::error::the history takes a branch of its own, and $HISTORY_BRANCH is the default one"
  exit 2
fi
added=$PWD/llem-history-added
work=$(mktemp -d)
for attempt in 1 2 3 4 5 6 7 8; do
  rm -rf "$work/history"
  if ! clone_history "$work/history"; then
    git init --quiet --initial-branch "$HISTORY_BRANCH" "$work/history"
    git -C "$work/history" remote add origin "$url"
    printf '# History\n\nRuns of pytest-llem, a file each. Written by CI.\n' > "$work/history/README.md"
  fi
  (cd "$added" && find . -mindepth 2 -maxdepth 2 -type f -name '*.jsonl' -exec cp --parents -t "$work/history" {} +)
  git -C "$work/history" add --all
  if git -C "$work/history" diff --cached --quiet; then echo "nothing new"; exit 0; fi
  git -C "$work/history" -c user.name='github-actions[bot]' \
    -c user.email='41898282+github-actions[bot]@users.noreply.github.com' \
    commit --quiet --message "Add the run of $GITHUB_SHA"
  if git -C "$work/history" push --quiet origin "HEAD:refs/heads/$HISTORY_BRANCH"; then exit 0; fi
  echo "attempt $attempt was rejected"
  sleep "$((RANDOM % (attempt * 2)))"
done
echo "::error::the history was not pushed: is $HISTORY_BRANCH protected, or may this job not write contents?"
exit 1
