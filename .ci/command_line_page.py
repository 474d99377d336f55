"""Prints docs/command-line.md, from the parsers that read the command line.

python .ci/command_line_page.py > docs/command-line.md

A test holds the page and this output together. What an option does is said where it is declared, in
`pytest_llem/plugin.py` and `pytest_llem/cli.py`; only the grouping is here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from pytest_llem import cli, plugin

HEAD = """\
# Command line

<!-- Written by .ci/command_line_page.py: change the parsers, not this page. -->

## pytest

Options of the group `llem`; `pytest --help` shows them too. [Writing a study](studies.md#selecting) says how pytest's
own options (`-k`, `-m`, `--lf`, `-x`, `-n`, `--collect-only`) select and run a study's items.
"""

INI = """
### In the ini file

Stable options have a twin in `pytest.ini`, `tox.ini` or `[tool.pytest.ini_options]`; the command line stands above it.
[Settings of a user](configuration.md#settings-of-a-user) says what stands above what.
"""

MARKS = [
    (
        "@pytest.mark.llem_study(path, allow_invalid=False)",
        "run the test once per cycle (`llem_result`) or experiment (`llem_results`) of a study; the path is relative "
        "to the test file",
    ),
    ("llem(...)", "on every item of a study: its settings, for `-m \"llem(batch_size=4, dtype='bfloat16')\"`"),
    (
        "llem_result",
        "the [`Result`](api.md#pytest_llem.Result) of one cycle; skips the test when the cycle is invalid, an error "
        "when it failed",
    ),
    ("llem_results", "the results of all cycles of one experiment"),
    (
        "llem_meter",
        "measures the test's own code: `with llem_meter() as meter: ...` gives a "
        "[`CodeMeter`](api.md#pytest_llem.CodeMeter)",
    ),
]

VERBS = """
### Exit codes

pytest's own: 0 all passed, 1 some failed, 2 interrupted or a wrong study (under xdist 1), 3 internal error, 4 wrong
option, 5 nothing collected. A run that lost an item, or that cannot write a report that was asked for, ends with 1.

## llem

What one does before and after a run. `llem VERB --help` says the same. Exit code 0 means done, 1 a limit that is
exceeded or a problem that was found, 2 a wrong argument, a file that cannot be read or written, or nothing
that could be compared.
"""


class Options:
    """Stands in for pytest's parser, and keeps what a plugin declares."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.ini: list[tuple[str, str]] = []

    def getgroup(self, *_: str) -> Options:
        return self

    def addoption(self, name: str, **given: Any) -> None:
        shown = name
        if given.get("choices"):
            shown += f"={'|'.join(given['choices'])}"
        elif given.get("metavar"):
            shown += f"={given['metavar']}"
        self.rows.append((shown, given["help"].replace("%%", "%")))

    def addini(self, name: str, help: str, **_: Any) -> None:
        self.ini.append((name, help))


def table(head: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {head} | meaning |"
    yield "|---|---|"
    for name, text in rows:
        cell = name.replace("|", "\\|")
        yield f"| `{cell}` | {text.replace('|', chr(92) + '|')} |"


def verbs(parser: argparse.ArgumentParser, called: str = "llem") -> Iterator[str]:
    for group in _groups(parser):
        helps = {choice.dest: choice.help for choice in group._choices_actions}
        for name, verb in sorted(group.choices.items()):
            yield f"\n### {called} {name}\n"
            text = helps[name] or ""
            yield f"{text[:1].upper()}{text[1:]}."
            own = [action for action in verb._actions if action.dest != "help" and action not in _groups(verb)]
            if own:
                yield ""
                yield from table("argument", [(_shown(action), _text(action)) for action in own])
            yield from verbs(verb, f"{called} {name}")


def _groups(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[argparse.ArgumentParser]]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _shown(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"{value}..." if action.nargs in ("*", "+") else str(value)
    name = ", ".join(action.option_strings)
    return name if action.nargs == 0 else f"{name} {value}"


def _text(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", f"`{action.default}`").replace("%%", "%")
    stated = action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in text
    return f"{text} (default: `{action.default}`)".lstrip() if stated else text


def page() -> str:
    options = Options()
    plugin.pytest_addoption(options)  # type: ignore[arg-type]
    lines = [HEAD, *table("option", options.rows), INI, *table("ini option", options.ini)]
    lines += ["\n### Marks and fixtures\n", *table("name", MARKS), VERBS.rstrip(), *verbs(cli.parser())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
