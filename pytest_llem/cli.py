"""The command `llem`: what one does before and after a run. A function per verb; the work lies elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from pytest_llem.errors import LlemError

Verb = Callable[[argparse.Namespace], int]
"""Runs a verb and returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; an `LlemError` is printed and exits with 2."""
    options = parser().parse_args(arguments)
    run: Verb = options.run
    try:
        return run(options)
    except LlemError as error:
        sys.stderr.write(f"llem: {error}\n")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line of `llem`, with every verb."""
    top = argparse.ArgumentParser(prog="llem", description="LLM-inference energy experiments: before and after a run.")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in VERBS:
        add(verbs)
    return top


def add_schema(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `llem schema`."""
    verb = verbs.add_parser("schema", help="print a JSON Schema, for editors and validators")
    verb.add_argument("which", choices=("study", "result", "config"), help="of a study file, a result or the user file")
    verb.set_defaults(run=run_schema)


def run_schema(options: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    from pytest_llem.study.json_schema import schema_text

    sys.stdout.write(schema_text(options.which))
    return 0


def add_config(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `llem config`."""
    verb = verbs.add_parser("config", help="print every setting, its effective value and where it came from")
    verb.set_defaults(run=run_config)


def run_config(options: argparse.Namespace) -> int:
    """Print the effective settings."""
    from pytest_llem.study.settings import load_settings, report_lines

    del options
    sys.stdout.write("\n".join(report_lines(load_settings())) + "\n")
    return 0


VERBS = (add_schema, add_config)
"""Each adds one verb to the command line; a new verb is one more entry."""


if __name__ == "__main__":
    sys.exit(main())
