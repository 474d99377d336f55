#!/usr/bin/env bash
# Measures $STUDY and judges it by llem-history/. What cannot be judged fails too ($STRICT), once there are three
# earlier runs that may be compared: before that it is no news.
set -euo pipefail
: "${ARGUMENTS?}" "${FAIL_IF?}"

# -d "": of all lines, not the first alone; the end of the text makes read end with 1.
read -rd "" -a arguments <<< "$ARGUMENTS" || true
read -rd "" -a limits <<< "$FAIL_IF" || true
options=("--llem-study=$STUDY" --llem-out=llem-results --llem-html=llem-results/report.html)
for limit in "${limits[@]}"; do options+=("--llem-fail-if=$limit"); done
known=3
if [ "$HISTORY" != none ]; then
  options+=(--llem-baseline=history:llem-history)
  known=$("$RUNNER_TEMP/llem/bin/python" "$(dirname "$0")/known_runs.py" "$STUDY" llem-history "${limits[@]}")
fi
if [ "$STRICT" = true ] && [ "$known" -ge 3 ]; then
  options+=(--llem-strict)
elif [ "$STRICT" = true ]; then
  echo "::notice title=not strict yet::$known of 3 earlier runs of $STUDY: what cannot be judged yet does not fail"
fi
"$RUNNER_TEMP/llem/bin/pytest" "${options[@]}" "${arguments[@]}"
