"""The command `llem`: what users do before and after a run.

The console script calls `main`; only the chosen verb's function may be imported. Verbs and options are public.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pytest_llem import __version__
from pytest_llem.errors import LlemError, LlemWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script. An `LlemError`, or a file that cannot be written, is printed: exit code 2."""
    if sys.stdout is None:  # closed
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    options = parser().parse_args(arguments)
    if "run" not in options:
        parser().print_help()
        return 0  # as pip: nothing was asked for, and nothing failed
    try:
        run: Callable[[argparse.Namespace], int] = resolve_name(options.run)
        with _notes():
            code = run(options)
        sys.stdout.flush()
        return code
    except LlemError as error:
        sys.stderr.write(f"llem: {error}\n")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as problem:
        sys.stderr.write(f"llem: {problem.filename or 'standard output'}: {problem.strerror or problem}\n")
        sys.stderr.write("fix: name a place that can be read, or written and has room\n")
        if problem.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return 2


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of this package as notes for people: without the place in its code, and the line there."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, LlemWarning):
                sys.stderr.write(f"llem: note: {message}\n")
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        yield


def parser() -> argparse.ArgumentParser:
    """The command line of `llem`, with every verb and the function that runs it."""
    top = argparse.ArgumentParser(
        prog="llem",
        description="LLM-inference energy experiments: before and after a run.",
        epilog="A study is measured by pytest: pytest --llem-study=FILE",
    )
    top.add_argument("--version", action="version", version=f"pytest-llem {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB")

    def add(name: str, help: str, of: Any = verbs) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = of.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        return parser

    verb = add("init", help="write a commented study that runs as it is, and say what comes next")
    verb.add_argument("file", metavar="FILE", type=Path, nargs="?", default=Path("study.yaml"), help="the study")
    verb.add_argument("--engine", metavar="NAME", help="the engine (default: the first that is installed)")
    verb.add_argument("--model", metavar="MODEL", help="hub id or path (default: a tiny model that is made here)")
    verb.set_defaults(run="pytest_llem.study.first_study:init")

    verb = add("schema", help="print a JSON Schema, for editors and validators")
    verb.add_argument("which", choices=("study", "result", "config"), help="of a study file, a result or the user file")
    verb.set_defaults(run="pytest_llem.cli:print_schema")

    verb = add("config", help="print every setting, its effective value and where it came from")
    verb.set_defaults(run="pytest_llem.session.options:print_settings")

    verb = add("convert", help="write a file of LLenergyMeasure, of any generation, as a study")
    verb.add_argument("file", metavar="FILE", type=Path, help="its study, experiment or campaign file")
    verb.add_argument("-o", "--out", type=Path, metavar="FILE", help="the study (default: standard output)")
    verb.set_defaults(run="pytest_llem.study.conversion:convert")

    verb = add("list", help="list the runs of a results folder, newest first")
    verb.add_argument("out", metavar="DIR", type=Path, nargs="?", default=Path("llem-results"))
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(run="pytest_llem.results.run_list:list_all")

    verb = add(
        "compare", help="compare runs with a baseline (exit code 1 beyond a limit), or the settings inside a run"
    )
    verb.add_argument("baseline", metavar="A", help="run, results folder, result.json, saved baseline or history:DIR")
    verb.add_argument("others", metavar="B", nargs="*", default=[], help="what to hold against it, run by run")
    verb.add_argument("--by", metavar="AXIS", help="inside A: each value of this axis, paired over the other axes")
    verb.add_argument("--reference", metavar="VALUE", help="hold the others against this value (default: the first)")
    verb.add_argument("--metric", action="append", default=[], help="show this metric instead of the headline ones")
    verb.add_argument("--fail-if", action="append", default=[], metavar="METRIC:LIMIT", help="as --llem-fail-if")
    verb.add_argument("--allow", action="append", default=[], metavar="NAME", help="a condition that may differ")
    verb.add_argument("--match", choices=("config", "id"), default="config", help="id: also under changed settings")
    verb.add_argument("--alpha", type=float, default=0.05, help="error rate of each one-sided bound")
    verb.add_argument("--strict", action="store_true", help="fail on what cannot be judged, too")
    verb.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    verb.add_argument(
        "--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="of saved baselines"
    )
    verb.set_defaults(run="pytest_llem.results.compare_command:compare_results")

    verb = add("gate-power", help="how many cycles a gate needs to find a regression")
    verb.add_argument("paths", metavar="RUN", nargs="*", help="runs or saved baselines, whose noise counts; or --noise")
    verb.add_argument("--metric", default="joules_per_output_token", help="whose noise (default: %(default)s)")
    verb.add_argument("--noise", metavar="PERCENT", help="standard deviation between the cycles of a run")
    verb.add_argument("--between-runs", metavar="PERCENT", help="the same between runs (default: measured, or 0%%)")
    verb.add_argument("--limit", metavar="PERCENT", default="5%", help="the gate's limit (default: 5%%)")
    verb.add_argument("--regression", metavar="PERCENT", default="10%", help="what is to be found (default: 10%%)")
    verb.add_argument("--power", metavar="PERCENT", default="95%", help="in what share of gates (default: 95%%)")
    verb.add_argument("--baseline-runs", type=int, metavar="N", default=3, help="runs in the baseline (default: 3)")
    verb.add_argument("--alpha", type=float, default=0.05, help="error rate of each one-sided bound")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="llem aa's")
    verb.set_defaults(run="pytest_llem.results.gate_power:gate_power")

    verb = add("budget", help="print what the uncertainty of a figure is made of")
    verb.add_argument("paths", metavar="RESULT|RUN", type=Path, nargs="+", help="a cycle's result, or whole runs")
    verb.add_argument("--metric", action="append", default=[], help="of this (default: joules_per_output_token)")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="llem aa's")
    verb.set_defaults(run="pytest_llem.results.budget:print_budget")

    verb = add("preregister", help="write a study and its decision rule down, before it is measured")
    verb.add_argument("study", metavar="STUDY", type=Path, help="the study file")
    verb.add_argument("--rule", metavar="TEXT", help="what decides, in words")
    verb.add_argument("--check", metavar="RUN", type=Path, nargs="+", help="list how runs deviate from it instead")
    verb.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="default: STUDY.registration.json beside the study"
    )
    verb.set_defaults(run="pytest_llem.results.preregister:preregister")

    verb = add("aa", help="run a study several times over: how often gates fail on equal runs here")
    verb.add_argument("study", metavar="STUDY", type=Path, help="the study file, or builtin:NAME")
    verb.add_argument("--pytest", metavar="OPTIONS", default="", help="for each run, such as '--llem-runner=docker'")
    verb.add_argument("--runs", type=int, metavar="N", default=5, help="how often (default: 5, at least 3)")
    verb.add_argument("--out", metavar="DIR", type=Path, default=Path("llem-results"), help="where the runs go")
    verb.add_argument(
        "--from", dest="from_runs", action="append", metavar="DIR", type=Path, help="measured runs instead (repeatable)"
    )
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="keep it here")
    verb.add_argument("--limit", metavar="CHANGE", default="5%", help="of the headline, if the study has no fail_if")
    verb.add_argument("--alpha", type=float, default=0.05, help="error rate of each one-sided bound, likewise")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.aa:aa")

    verb = add("ab", help="measure two sides in turn, and judge the second against the first")
    verb.add_argument("study", metavar="STUDY", type=Path, help="the study file, or builtin:NAME")
    verb.add_argument("study_b", metavar="STUDY_B", type=Path, nargs="?", help="of the second side, if it has its own")
    for side in ("a", "b"):
        verb.add_argument(f"--{side}", metavar="OPTIONS", default="", help=f"pytest's options of side {side.upper()}")
        verb.add_argument(f"--{side}-python", metavar="FILE", help="its interpreter (default: this one)")
    verb.add_argument("--cycles", type=int, metavar="N", default=5, help="of each side (default: 5, at least 3)")
    verb.add_argument("--fail-if", action="append", default=[], metavar="METRIC:LIMIT", help="as --llem-fail-if")
    verb.add_argument("--allow", action="append", default=[], metavar="NAME", help="a condition that may differ")
    verb.add_argument("--alpha", type=float, help="error rate of each one-sided bound (default: the study's)")
    verb.add_argument("--strict", action="store_true", help="fail on what cannot be judged, too")
    verb.add_argument("--out", metavar="DIR", type=Path, default=Path("llem-results"), help="where the runs go")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.ab:ab")

    verb = add("reproduce", help="measure another laboratory's study here, and judge whether its figures hold")
    verb.add_argument("package", metavar="PACKAGE", type=Path, help="what they published, their run, or results")
    verb.add_argument("--study", metavar="NAME|FILE", help="this study of theirs, or its file (default: all, theirs)")
    verb.add_argument("--run", metavar="RUN", dest="run_here", type=Path, help="judge this run, and measure nothing")
    verb.add_argument("--check", action="store_true", help="only say what differs between the machines")
    verb.add_argument(
        "--metric", action="append", default=[], help="judge this one (repeatable; default: the headline)"
    )
    verb.add_argument("--margin", type=float, default=0.05, help="equivalent within this share (default: 0.05)")
    verb.add_argument("--pytest", metavar="OPTIONS", default="", help="of the run here")
    verb.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("llem-results/reproduction"),
        help="where the run and verdict go",
    )
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.reproduce_command:reproduce")

    verb = add("attach", help="run a command, and measure what it draws (exit code: the command's)")
    verb.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, behind --")
    verb.add_argument("--server", metavar="URL", help="the server that it talks to, which is what is measured")
    verb.add_argument("--gpus", metavar="N,...", help="the server's, where its process is not seen here")
    verb.add_argument("--meter", metavar="NAME", default="auto", help="as --llem-meter (default: auto)")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda", "rocm"), default="auto", help="as device.kind")
    verb.add_argument("--idle-s", metavar="S", type=float, default=2.0, help="idle window before it (default: 2)")
    verb.add_argument("--name", metavar="NAME", help="how the result is called (default: the command's first words)")
    verb.add_argument("-o", "--out", metavar="DIR", type=Path, default=Path("llem-results"), help="where the run goes")
    verb.set_defaults(run="pytest_llem.results.attach.command:attach")

    verb = add("import", help="take over a result of vllm bench serve, GuideLLM or AIPerf, with its energy")
    verb.add_argument("file", metavar="FILE", type=Path, help="its JSON, or JSONL")
    verb.add_argument("--power", metavar="RUN", type=Path, help="the run of llem attach in whose time it ran")
    verb.add_argument("--name", metavar="NAME", help="how the result is called (default: the tool and its load)")
    verb.add_argument("-o", "--out", metavar="DIR", type=Path, default=Path("llem-results"), help="where the run goes")
    verb.set_defaults(run="pytest_llem.results.imports.command:import_results")

    verb = add("history", help="keep the runs of a study, and see since when something changed")
    history = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb = add("add", of=history, help="add runs to a history: about 3 kB per experiment")
    verb.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="runs, or folders of runs")
    verb.add_argument("--to", metavar="DIR", type=Path, default=Path("llem-history"), help="the history")
    verb.set_defaults(run="pytest_llem.results.history.commands:add_runs")
    verb = add("list", of=history, help="list the studies of a history, and what began their segments")
    verb.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("llem-history"))
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.history.commands:list_history")
    verb = add("show", of=history, help="print levels, spread between runs and change points of each experiment")
    verb.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("llem-history"))
    verb.add_argument("--study", metavar="NAME", help="of this study alone")
    verb.add_argument("--experiment", metavar="ID", action="append", default=[], help="of this one alone (repeatable)")
    verb.add_argument("--metric", action="append", default=[], help="this one instead of those with gates (repeatable)")
    verb.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.history.show:show_history")
    verb = add("check", of=history, help="exit code 1 if a newest run got worse, or a file is broken")
    verb.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("llem-history"))
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.add_argument("--repository", metavar="PATH", type=Path, help="the clone with the commits (default: this one)")
    verb.set_defaults(run="pytest_llem.results.history.show:check_history")

    verb = add("page", of=history, help="write a history as a static page: trends and change points, for GitHub Pages")
    verb.add_argument("history", metavar="DIR", type=Path, nargs="?", default=Path("llem-history"), help="the history")
    verb.add_argument("-o", "--out", metavar="DIR", type=Path, default=Path("site"), help="the page's folder")
    verb.add_argument("--metric", action="append", default=[], help="show this one (default: limited and usual ones)")
    verb.add_argument("--title", help="the page's title")
    verb.set_defaults(run="pytest_llem.results.history.page.page:write_page")

    verb = add("bisect", help="find the commit that changed what a study measures (exit code 1 when there is none)")
    verb.add_argument("range", metavar="GOOD..BAD", help="its commits, along first parents; GOOD is not among them")
    verb.add_argument("--study", metavar="STUDY", type=Path, required=True, help="as it lies here, or builtin:NAME")
    verb.add_argument("--build", metavar="CMD", help="a shell's command that builds each commit, in its work tree")
    verb.add_argument("--metric", help="what changed (default: the study's headline)")
    verb.add_argument("--experiment", metavar="ID", help="by this one alone (default: the geometric mean of all)")
    verb.add_argument("--python", metavar="FILE", help="the interpreter that measures (default: this one)")
    verb.add_argument("--pytest", metavar="OPTIONS", default="", help="of each run; knows $LLEM_BISECT_COMMIT")
    verb.add_argument("--cycles", type=int, metavar="N", help="of each run (default: the study's)")
    verb.add_argument("--allow", action="append", default=[], metavar="NAME", help="a condition that may differ")
    verb.add_argument("--confidence", type=float, default=0.95, help="probability that ends it (default: 0.95)")
    verb.add_argument("--max-runs", type=int, metavar="N", default=100, help="give up after so many (default: 100)")
    verb.add_argument("--history", action="append", metavar="DIR", type=Path, help="use its runs, too (repeatable)")
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="llem aa's")
    verb.add_argument("--out", metavar="DIR", type=Path, help="all goes here (default: llem-results/bisect-STUDY)")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.bisect.command:bisect")

    verb = add("score", help="score stored answers again, and say which questions that changes")
    verb.add_argument("paths", metavar="RUN", type=Path, nargs="+", help="runs, results folders or result files")
    verb.add_argument(
        "--score", metavar="SCORER", help="a name, regex:EXPRESSION or python:FILE:FUNCTION (default: the study's)"
    )
    verb.add_argument("--write", action="store_true", help="keep the new scores in the run, and the old ones beside")
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="llem aa's")
    verb.add_argument("--format", choices=("text", "json"), default="text")
    verb.set_defaults(run="pytest_llem.results.score_command:score")

    verb = add("report", help="write a self-contained HTML report, and its charts as figures")
    verb.add_argument("paths", metavar="DIR", type=Path, nargs="+", help="runs, results folders or result files")
    verb.add_argument("-o", "--out", type=Path, default=Path("llem-report.html"), help="the HTML file")
    verb.add_argument("--baseline", type=Path, help="a run, saved baseline or history:DIR to compare with")
    verb.add_argument("--title", help="the page's title")
    verb.add_argument(
        "--figures", type=Path, metavar="DIR", help="also write the charts as svg, pdf and png, with captions.md"
    )
    verb.set_defaults(run="pytest_llem.results.commands:report")

    verb = add("publish", help="write what a paper needs of its runs: tables, figures, methods, and a data package")
    verb.add_argument("paths", metavar="RUN", type=Path, nargs="+", help="runs, results folders or result files")
    verb.add_argument("-o", "--out", type=Path, default=Path("paper"), help="the folder (default: paper)")
    verb.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="METRIC,...",
        type=listed,
        help="a table of these metrics (repeatable; default: those of the study)",
    )
    verb.add_argument(
        "--by",
        default=[],
        metavar="SETTING,...",
        type=listed,
        help="settings that come first and group the rows (default: as the study sweeps them)",
    )
    verb.add_argument(
        "--author", action="append", default=[], metavar="NAME", help="'Family, Given; ORCID' (repeatable)"
    )
    verb.add_argument(
        "--without-data-sets", action="store_true", help="leave out the files that studies name; what is needed is said"
    )
    verb.add_argument("--license", metavar="SPDX", help="of the data, such as CC-BY-4.0 (default: none is stated)")
    verb.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="TEXT",
        help="publish this home's path or host's name all the same",
    )
    verb.add_argument("--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="llem aa's")
    verb.set_defaults(run="pytest_llem.results.publish.command:publish")

    verb = add("comment", help="say in Markdown what a run means for a pull request, and post it to GitHub")
    verb.add_argument("run_path", metavar="RUN", type=Path, help="a run's directory, or what --json printed of one")
    verb.add_argument("--baseline", metavar="REF", help="judge against this (default: the verdicts of the run's gates)")
    verb.add_argument("--history", metavar="DIR", type=Path, help="earlier runs (default: those of its baseline)")
    verb.add_argument("--report-url", metavar="URL", help="where the report is")
    verb.add_argument("--name", default="", help="tells this comment from others on the same pull request")
    verb.add_argument("--json", action="store_true", help="print what the comment is made from, to be posted elsewhere")
    verb.add_argument("--post", action="store_true", help="write it to the pull request, once: later runs replace it")
    verb.add_argument("--pull-request", metavar="N", type=int, help="which one (default: that of the workflow's event)")
    verb.add_argument(
        "--baseline-dir", metavar="DIR", type=Path, default=Path("llem-baselines"), help="of saved baselines"
    )
    verb.set_defaults(run="pytest_llem.results.comment.command:comment")

    verb = add("export", help="write results in another tool's format")
    verb.add_argument("paths", metavar="DIR", type=Path, nargs="+", help="runs, results folders or result files")
    verb.add_argument(
        "--format",
        required=True,
        help="csv, parquet, requests, vllm-bench, mlperf, boamps, aienergyscore, otel, or another's",
    )
    verb.add_argument("-o", "--out", type=Path, required=True, help="a file; a folder for vllm-bench and boamps")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        type=pair,
        help="a fact that no run knows, by its name in boamps: infrastructure.infraType=onPremise (repeatable)",
    )
    verb.set_defaults(run="pytest_llem.results.commands:export_results")

    verb = add("doctor", help="say what this machine can measure, and how to fix what it cannot")
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.add_argument("--restore", action="store_true", help="first put back settings of GPUs that a run left behind")
    verb.add_argument("--calibrate", action="store_true", help="first measure the sensors of idle GPUs, and keep that")
    verb.add_argument("--gpu", action="append", default=[], metavar="UUID", help="calibrate this one (repeatable)")
    verb.add_argument("--without-load", action="store_true", help="calibrate without torch; bounds stay wide")
    verb.set_defaults(run="pytest_llem.doctor:run")
    return top


def listed(text: str) -> list[str]:
    """Names between commas."""
    return [name for each in text.split(",") if (name := each.strip())]


def pair(text: str) -> tuple[str, str]:
    """A name and its value."""
    name, sign, value = text.partition("=")
    if not (sign and name.strip() and value.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    return name.strip(), value.strip()


def print_schema(options: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    from pytest_llem.study.schema import DIALECT, build_schema

    if options.which == "result":
        from pytest_llem.results.schema import Result

        schema: dict[str, object] = {"$schema": DIALECT, **Result.model_json_schema()}
    else:
        schema = build_schema(options.which)
    sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
