# shellcheck shell=bash
# Sourced: lets git use $TOKEN for this server alone, by the environment, where no list of processes shows it.
if [ -n "${TOKEN:-}" ]; then
  basic=$(printf 'x-access-token:%s' "$TOKEN" | base64 -w0)
  echo "::add-mask::$basic"
  export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="http.$GITHUB_SERVER_URL/.extraheader"
  export GIT_CONFIG_VALUE_0="AUTHORIZATION: basic $basic"
fi
export GIT_TERMINAL_PROMPT=0
url=$GITHUB_SERVER_URL/$GITHUB_REPOSITORY

# Clones $HISTORY_BRANCH into a folder; 1 where there is no such branch, and the end where that cannot be told.
clone_history() {
  local found=0
  git check-ref-format "refs/heads/$HISTORY_BRANCH" || { echo "::error::no name of a branch: $HISTORY_BRANCH"; exit 2; }
  git ls-remote --quiet --exit-code "$url" "refs/heads/$HISTORY_BRANCH" > /dev/null || found=$?
  case $found in
    0) git clone --quiet --depth=1 --single-branch --branch "$HISTORY_BRANCH" "$url" "$1" || exit ;;
    2) return 1 ;;
    *) echo "::error::the history cannot be read: git ls-remote ended with $found"; exit "$found" ;;
  esac
}
