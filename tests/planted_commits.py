"""A repository whose commits have known levels, and a command that stands in for the interpreter that measures them.

`llem bisect --python` takes any command. This one reads the level from the commit that is checked out, adds noise, and
writes the run that pytest would: so all of the command is tried, with git and processes, in milliseconds a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.store import RunStore
from tests.unit.results.conftest import Bench, Worker

KEY = CycleKey("study", "study", "0123456789abcdef", 1)
STUDY = "model: builtin:tiny-llama\n"
STUB = """#!{python} -IS
import json, math, pathlib, random, shutil, sys
if "-m" not in sys.argv: sys.exit()
study = pathlib.Path(sys.argv[sys.argv.index("pytest") + 1])
if not study.is_file(): sys.exit("no file " + str(study))
out = pathlib.Path(next(each[11:] for each in sys.argv if each.startswith("--llem-out=")))
said = pathlib.Path("level").read_text().strip()
if said == "broken": sys.exit("no module named engine")
shutil.copytree({template!r}, out / out.name)
file = next((out / out.name).glob("*/*/c1/result.json"))
result = json.loads(file.read_text())
noise = random.Random({seed!r} + out.name[:4]).gauss(0, {noise!r})
result["run_id"] = out.name
result["energy"]["joules_per_output_token"] = math.exp(float(said) + noise)
file.write_text(json.dumps(result))
"""


def repository(path: Path, levels: Sequence[float | str]) -> Path:
    """A repository with a commit for each level, called `commit 0` and so on: all of it by one `git fast-import`."""
    lines = []
    for number, level in enumerate(levels):
        text = f"{level}\n"
        lines += [
            f"commit refs/heads/main\nmark :{number + 1}\ncommitter A <a@example.org> {1_700_000_000 + number} +0000"
        ]
        lines += [f"data {len(f'commit {number}')}\ncommit {number}", *([f"from :{number}"] if number else [])]
        lines += [f"M 100644 inline level\ndata {len(text)}\n{text}"]
    path.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "-b", "main", str(path)], check=True)
    command = ["git", "-C", str(path), "fast-import", "--quiet"]
    subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True)
    subprocess.run(["git", "-C", str(path), "checkout", "-q", "main"], check=True)
    return path


def stub(directory: Path, *, noise: float = 0.0, seed: str = "") -> Path:
    """The command, with a noise that depends on `seed` and the number of the attempt."""
    template = directory / "template"
    store = RunStore.create(template, "run-1", environment={})
    get_or_measure(store, KEY, Worker(Bench(), KEY, Bench().measurement()))
    command = directory / "python"
    script = STUB.format(python=sys.executable, template=str(store.run_dir), noise=noise, seed=seed)
    command.write_text(script, encoding="utf-8")
    command.chmod(0o755)
    return command


def finding(out: Path) -> dict[str, Any]:
    """What `bisect.json` holds."""
    data: dict[str, Any] = json.loads((out / "bisect.json").read_text(encoding="utf-8"))
    return data
