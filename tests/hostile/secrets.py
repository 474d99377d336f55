"""Plants secrets of ten kinds, runs studies whose engines and servers tell all that they know, and greps what is left.

`python -m tests.hostile.secrets --tries N --write-docs` is the long form, with other secrets in each try;
`test_secrets` makes one of them. docs/security.md says what may hold a secret at all.
"""

from __future__ import annotations

import argparse
import os
import random
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import gossip
from tests.hostile.report import SEED, table, write_docs

HEAD = """\
engine: {engine}
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.05}}, warmup: {{max_repeats: 1}}}}
execution: {{cycles: 1, retries: 0, timeout_s: 60}}
"""
STUDIES = {
    "engine": HEAD.format(engine="gossip") + "sweep: {model: [tells, fails, refuses]}\n",
    "server": HEAD.format(engine="openai") + "model: builtin:tiny-llama\n"
    "openai: {base_url: '@URL@', api_key_env: CORP_LLM}\n",
    "command": HEAD.format(engine="openai") + "model: builtin:tiny-llama\nopenai:\n  api_key_env: CORP_LLM\n"
    "  command: ['@PYTHON@', -c, 'import os; from tests.hostile.gossip import sayings; print(*sayings(), sep=chr(10)); "
    "raise SystemExit(os.environ)', '{model}', '{port}']\n",
}
SHORTEST = 6
"""Texts below it are not looked for: they stand by chance in files of numbers."""


@dataclass(frozen=True)
class Leak:
    """A secret that was found: its variable, its spelling, and where."""

    variable: str
    spelling: str
    place: str


def secrets(rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that hold secrets, and the secret part of each."""

    def word(length: int, more: str = "") -> str:
        letters = string.ascii_letters + string.digits
        return "x7" + "".join(rng.choice(letters + more) for _ in range(length))

    password, odd = word(10), f"{word(8)} ü+/=&%{word(4)}"
    lines = [word(60, "+/") for _ in range(3)]
    key = "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----"])
    plain = {
        "HF_TOKEN": f"hf_{word(30)}",
        "OPENAI_API_KEY": f"sk-proj-{word(30, '-_')}",
        "CORP_LLM": word(12, "-"),
        "AWS_SECRET_ACCESS_KEY": word(38, "+/"),
        "GITHUB_TOKEN": f"ghp_{word(34)}",
        "SERVICE_PASSWORD": odd,
        "CI_JOB_JWT": f"eyJ{word(20)}.eyJ{word(40)}.{word(20, '-_')}",
    }
    inside = {
        "HTTPS_PROXY": f"http://agent:{password}@127.0.0.1:9",
        "DATABASE_URL": f"postgres://app:{password[::-1]}@db/results",
        "DEPLOY_KEY": key,
    }
    # The names of some say nothing: of CORP_LLM the study says it, of the others their form.
    parts = {"HTTPS_PROXY": password, "DATABASE_URL": password[::-1], "DEPLOY_KEY": lines[1]}
    return {**plain, **inside}, {**plain, **parts}


def run(directory: Path, studies: Sequence[str], planted: Mapping[str, str]) -> tuple[int, str]:
    """Run studies that know the secrets, with every kind of report; exit code and output."""
    name = studies[0]
    names = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in names if name in os.environ} | {
        "PYTHONPATH": gossip.register(directory.parent / "site"),
        "LLEM_LEASE_DIR": str(directory / "leases"),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(directory / f"{name}-summary.md"),
        "TMPDIR": str(directory),
        **{
            key: value for key, value in planted.items() if all(key != "CORP_LLM" or key in STUDIES[s] for s in studies)
        },
    }
    server = gossip.Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "pytest", "-vv", "-rA", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += [f"--llem-out={directory / 'out'}", f"--llem-html={directory / name}.html", "--showlocals"]
    command += [f"--junitxml={directory / name}.xml", "-o", "junit_logging=all"]
    for study in studies:
        path = directory / f"{study}.yaml"
        text = STUDIES[study].replace("@URL@", server.url).replace("@PYTHON@", sys.executable)
        path.write_text(text, encoding="utf-8")
        command.append(f"--llem-study={path}")
    try:
        ended = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, errors="replace", timeout=300
        )
    finally:
        server.shutdown()
        server.server_close()
    return ended.returncode, ended.stdout + ended.stderr


@contextmanager
def process_list(found: list[str]) -> Iterator[None]:
    """Collect the command lines of all processes meanwhile, as `ps` shows them to every user."""
    done = threading.Event()

    def look() -> None:
        seen: set[str] = set()
        while not done.wait(0.05):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(entry.read_bytes().decode("utf-8", "replace").replace("\0", " "))
                except OSError:
                    continue
        found.extend(seen)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def leaks(parts: Mapping[str, str], texts: Mapping[str, str]) -> list[Leak]:
    """Every secret that stands in one of the texts, by place, in any spelling."""
    found = []
    for variable, secret in parts.items():
        for spelling, written in gossip.spellings(secret).items():
            # Of Base64 the shared ends are left out: they are other text as well.
            wanted = written.rstrip("=")[8:-4] if spelling.startswith("base64 ") else written
            found += [
                Leak(variable, spelling, place)
                for place, text in texts.items()
                if len(wanted) >= SHORTEST and wanted in text
            ]
    return found


def files_below(directory: Path) -> dict[str, str]:
    """Every file of a directory as text."""
    return {
        str(path.relative_to(directory)): path.read_bytes().decode("utf-8", "replace")
        for path in directory.rglob("*")
        if path.is_file()
    }


def attempt(directory: Path, rng: random.Random) -> tuple[list[Leak], int]:
    """One try in an empty directory: the leaks, and how many files and streams were looked through."""
    planted, parts = secrets(rng)
    commands: list[str] = []
    texts: dict[str, str] = {}
    with process_list(commands):
        for studies in (("engine",), ("server", "command")):
            code, output = run(directory, studies, planted)
            texts[f"terminal of {studies[0]}"] = output
            if code != 1:
                raise AssertionError(f"{studies}: exit code {code}\n{output}")
    texts |= files_below(directory) | {"process list": "\n".join(commands)}
    return leaks(parts, texts), len(texts)


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    rng, found, looked, begun = random.Random(SEED), [], 0, time.monotonic()
    for number in range(arguments.tries):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name) / "run"
            directory.mkdir()
            leaked, files = attempt(directory, rng)
        found += leaked
        looked += files
        sys.stdout.write(f"{number + 1}/{arguments.tries}: {len(leaked)} leaks in {files} files and streams\n")
        for leak in dict.fromkeys(leaked):
            sys.stdout.write(f"  {leak}\n")
    planted, _ = secrets(random.Random(SEED))
    rows = [(len(planted), len(gossip.spellings("")), arguments.tries, looked, len(found))]
    text = table(("kinds of secrets", "spellings", "tries", "files and streams looked through", "found"), rows)
    sys.stdout.write(f"{text}\n{time.monotonic() - begun:.0f} s\n")
    if arguments.write_docs:
        write_docs("secrets", text)


if __name__ == "__main__":
    main()
