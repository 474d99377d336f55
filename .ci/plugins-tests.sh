#!/usr/bin/env bash
# Studies under those plugins of others that the environment lacks, in a directory beside it: loaded by themselves, they
# would change what every other test prints. What the environment has, pytest-cov for one, all other tests try.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$PWD/.venv-plugins
report=$packages/junit.xml
plugins=(
  allure-pytest==2.16.2 pytest-asyncio==1.5.0 pytest-flakefinder==1.1.0 pytest-forked==1.7.5 pytest-instafail==0.5.0
  pytest-mock==3.17.0 pytest-order==1.5.0 pytest-random-order==1.2.0 pytest-recording==0.14.1 pytest-repeat==0.9.4
  pytest-retry==1.7.0 pytest-run-parallel==0.10.0 pytest-socket==0.8.1 pytest-split==0.11.0 pytest-sugar==1.1.1
  pytest-testmon==2.2.0
)
.venv/bin/pip install -q --no-deps --target "$packages" --upgrade \
  "${plugins[@]}" allure-python-commons==2.16.2 termcolor==3.3.0 vcrpy==9.4.2 wrapt==2.5.2
named=$(printf ' or %s' "${plugins[@]%%==*}")
PYTHONPATH=$packages PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv/bin/pytest -p xdist -p pytest_llem.plugin \
  tests/plugin/test_other_plugins.py -k "${named# or }" -q -p no:cacheprovider --junitxml="$report" "$@"
.venv/bin/python .ci/require_all_ran.py "$report" tests/plugin/test_other_plugins.py
