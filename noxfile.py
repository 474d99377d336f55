"""Sessions for developers and CI: `nox` runs lint and types, `nox -s NAME` another, `nox --list` shows all.

They use the environment that nox itself is installed in (the README's `.venv`) and build none of their own.
`.ci/run` calls `lint`, `types`, `docs`, `amd` and `plugins`; arguments after `--` go to pytest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nox

BIN = Path(sys.executable).parent
"""Where this environment's programs are: it need not be on PATH."""

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types"]


def pytest(session: nox.Session, *paths: str, env: dict[str, str] | None = None) -> None:
    """Run pytest on `paths`, or on the tests that the command line names after `--`; `gate` of `-k gate` is none."""
    named = any(argument.startswith("tests/") for argument in session.posargs)
    session.run(str(BIN / "pytest"), *([] if named else paths), *session.posargs, env=env)


@nox.session
def unit(session: nox.Session) -> None:
    """The unit tests: seconds, no engine."""
    pytest(session, "tests/unit")


@nox.session
def plugin(session: nox.Session) -> None:
    """Studies that run through pytest, as users run them."""
    pytest(session, "tests/plugin")


@nox.session
def engines(session: nox.Session) -> None:
    """Engines and servers on tiny models; what is not installed is skipped."""
    pytest(session, "tests/engines")


@nox.session
def ray(session: nox.Session) -> None:
    """Clusters of several nodes on this machine."""
    pytest(session, "tests/ray", env={"LLEM_REQUIRE_RAY": "1"})


@nox.session
def docker(session: nox.Session) -> None:
    """Containers, on a daemon that this starts unless DOCKER_HOST names one (Debian, root)."""
    env = {"LLEM_REQUIRE_DOCKER": "1"}
    if "DOCKER_HOST" not in os.environ:
        printed = subprocess.run([".ci/docker-for-tests.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout
        env |= dict(word.split("=", 1) for word in shlex.split(printed) if "=" in word)
    pytest(session, "tests/docker", env=env)


@nox.session
def gpu(session: nox.Session) -> None:
    """Checks on a real NVIDIA GPU; skipped without one."""
    pytest(session, "tests/gpu")


@nox.session
def vllm(session: nox.Session) -> None:
    """The vLLM engine on its CPU build, in an environment of its own (4 GB)."""
    session.run(".ci/vllm-tests.sh", *session.posargs)


@nox.session
def amd(session: nox.Session) -> None:
    """AMD GPUs: found, leased, shown to a worker and metered, on a simulated library."""
    session.run(".ci/amd-tests.sh")


@nox.session
def plugins(session: nox.Session) -> None:
    """Studies under the plugins of others that are used most."""
    session.run(".ci/plugins-tests.sh", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, the floors, the figures of the layout, and the workflows: correct, and safe."""
    session.run(str(BIN / "ruff"), "check", ".")
    session.run(str(BIN / "ruff"), "format", "--check", ".")
    session.run(str(BIN / "lint-imports"))
    session.run(sys.executable, ".ci/house.py")
    session.run(str(BIN / "zizmor"), "--offline", "--no-progress", "--persona=pedantic", ".github", "action.yml")
    # A fork of actionlint: PyPI has it as a program, and it reads actions as well. It hands scripts to ShellCheck.
    session.run(str(BIN / "jactionlint"), "--strict-exit")
    if shutil.which("shellcheck") or "LLEM_REQUIRE_SHELLCHECK" in os.environ:
        session.run("shellcheck", *map(str, sorted(Path(".github/scripts").glob("*.sh"))), external=True)
    else:
        session.warn("shellcheck is not installed: the scripts of the workflows were not checked")


@nox.session
def audit(session: nox.Session) -> None:
    """Known weaknesses of what is installed here; it asks PyPI, so the network must reach it."""
    session.run(str(BIN / "pip-audit"), "--local", "--skip-editable", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    session.run(str(BIN / "mypy"))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into build/site; a broken link or anchor fails."""
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    session.run(str(BIN / "mkdocs"), "build", "--strict", "--site-dir", "build/site", *session.posargs, env=quiet)


@nox.session
def pages(session: nox.Session) -> None:
    """Write the generated pages and the packaged schema anew."""
    written = {
        "docs/configuration.md": ("-m", "pytest_llem.study.published"),
        "docs/command-line.md": (".ci/command_line_page.py",),
        "docs/errors.md": (".ci/errors_page.py",),
        "docs/metrics.md": (".ci/metrics_page.py",),
        "pytest_llem/study/study.schema.json": ("-m", "pytest_llem.cli", "schema", "study"),
    }
    for page, command in written.items():
        text = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
        Path(page).write_text(text, encoding="utf-8")
        session.log(f"wrote {page}")
