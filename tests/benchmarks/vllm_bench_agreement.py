"""Whether this project's client and `vllm bench serve` see a server alike: the same work by both, in alternation.

    python tests/benchmarks/vllm_bench_agreement.py [--server vllm] [--api chat] [--concurrency 4 | --rate 2]
        [--model DIR [--gguf FILE]] [--prompts 64] [--output-tokens 64] [--rounds 7] [--vllm-python PYTHON]

The server is started once, without a prefix cache, with a core of its own where there are two. Each round sends the
prompts of one file by both clients, each a process of its own; which goes first alternates, and the first round is left
out. Printed are medians over the rounds, with quartiles: the ratio of what the clients saw, this project's over that of
`vllm bench serve`; the ratio of what the server says of the same requests by its own clock; and the quotient of both,
from which is gone what the server did faster or slower meanwhile. vLLM says it in its histograms, llama.cpp in its log:
`prompt eval time` (ttft), `eval time` over the tokens after the first (tpot, itl), and `total time` (e2el).

`vllm bench serve` needs pandas beside vLLM. It is run as the function behind that command: vLLM's wheel for CPUs lacks
the package metadata which the command itself asks for. The .venv-vllm of `.ci/vllm-environment.sh` has the former.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pytest_llem.engines.builtin import builtin_path, is_builtin  # noqa: E402
from pytest_llem.engines.openai.observations import means, parse_metrics  # noqa: E402
from pytest_llem.servers.server import free_port  # noqa: E402
from tests.engines.servers.gguf_model import write_gguf  # noqa: E402
from tests.engines.servers.starting import RealServer, running  # noqa: E402

BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
LATENCIES = ("ttft", "tpot", "itl", "e2el")
WORDS = ("light", "rays", "colour", "glass", "prism", "motion", "body", "force", "space", "time", "water", "air", "sun")
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass(frozen=True)
class Seen:
    """One client's figures of a round, in seconds and per second, those of the server, and how much work it was."""

    figures: dict[str, float]
    server: Mapping[str, float]
    work: Mapping[str, int]
    gaps: int
    """How many gaps between pieces `itl` is a mean of."""
    notes: Sequence[str]


def write_prompts(path: Path, count: int, words: int, output_tokens: int) -> None:
    draw = random.Random(0)
    rows = [{"prompt": " ".join(draw.choices(WORDS, k=words)), "output_tokens": output_tokens} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def directory_of(model: str) -> Path:
    return builtin_path(model) if is_builtin(model) else Path(model).resolve()


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def served(options: argparse.Namespace, directory: Path, cores: set[int]) -> Iterator[RealServer]:
    """A server that runs on the cores."""
    port = free_port()
    if options.server == "vllm":
        python = options.vllm_python
        arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(directory_of(options.model))]
        arguments += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching"]
        arguments += ["--max-model-len", "2048", "--max-num-seqs", str(options.slots), "--disable-uvicorn-access-log"]
    else:
        python = sys.executable
        model = options.gguf or write_gguf(directory / "model.gguf", options.model)
        arguments = ["-m", "tests.engines.servers.llama_cpp", str(model), str(port)]
        arguments += [f"n_parallel={options.slots}", f"n_ctx={2048 * options.slots}"]
    environment = {**OFFLINE, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with ExitStack() as stack:
        with on_cores(cores):
            server = stack.enter_context(running(arguments, port, directory, environment, python=python))
        yield server


def by_vllm_bench(options: argparse.Namespace, server: RealServer, prompts: Path, directory: Path) -> Seen:
    """The work by `vllm bench serve`."""
    found = directory / "bench.json"
    chat = options.api == "chat"
    arguments = {
        "backend": "openai-chat" if chat else "openai",
        "endpoint": "/v1/chat/completions" if chat else "/v1/completions",
        "base-url": server.url,
        "model": str(directory_of(options.model)),
        "dataset-name": "custom",
        "dataset-path": str(prompts),
        "num-prompts": str(options.prompts),
        "custom-output-len": "-1",
        "temperature": "0",
        "ready-check-timeout-sec": "0",
        "extra-body": json.dumps(fields_of_this_client(options)),
        "percentile-metrics": ",".join(LATENCIES),
        "result-filename": str(found),
    }
    if options.rate:
        arguments |= {"request-rate": str(options.rate), "burstiness": "inf"}
    else:
        arguments |= {"max-concurrency": str(options.concurrency)}
    if options.server == "llama.cpp":
        # It closes each connection after an answer, and `vllm bench serve` fails requests that it sends too late.
        arguments |= {"header": "Connection=close"}
    command = [options.vllm_python, "-c", BENCH, "--ignore-eos", "--skip-chat-template", "--disable-shuffle"]
    command += ["--disable-tqdm", "--save-result", "--save-detailed"]
    command += [part for name, value in arguments.items() for part in (f"--{name}", value)]
    before = metrics_of(server)
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **OFFLINE}, cwd=directory, check=False
    )
    if not found.exists():
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    result = json.loads(found.read_text())
    if result["failed"]:
        raise SystemExit(f"{result['failed']} requests failed: {next(filter(None, result['errors']))}")
    figures = {f"{name} mean": result[f"mean_{name}_ms"] / 1e3 for name in LATENCIES}
    figures |= {f"{name} p50": result[f"median_{name}_ms"] / 1e3 for name in LATENCIES}
    figures |= {"output tokens/s": result["output_throughput"], "requests/s": result["request_throughput"]}
    work = {"input": result["total_input_tokens"], "output": result["total_output_tokens"]}
    said = means(before, metrics_of(server)) if options.server == "vllm" else said_by_llama_cpp(server, options)
    return Seen(figures, said, work, sum(map(len, result["itls"])), [])


def fields_of_this_client(options: argparse.Namespace) -> dict[str, Any]:
    """The fields beyond the API that this project's client sends as well, so that the server does the same work."""
    if options.server == "vllm":
        return {"return_token_ids": True} if options.same_fields else {}
    return {"cache_prompt": False, **({"timings_per_token": True} if options.same_fields else {})}


def by_this_project(options: argparse.Namespace, server: RealServer, prompts: Path, directory: Path) -> Seen:
    """The work as a study of one cycle."""
    openai: dict[str, Any] = {"base_url": server.url, "api": options.api, "enable_prefix_caching": False}
    workload: dict[str, Any] = {"dataset": str(prompts), "prompts": options.prompts}
    if options.rate:
        workload["arrival"] = {"process": "constant", "rate_per_s": options.rate}
    else:
        openai["concurrency"] = options.concurrency
    study = {
        "model": options.model if is_builtin(options.model) else str(directory_of(options.model)),
        "engine": "openai",
        "workload": {**workload, "output_tokens": options.output_tokens},
        "openai": openai,
        "measurement": {"min_duration_s": 0.001, "idle": {"duration_s": 0.1}, "warmup": {"max_repeats": 0}},
        "execution": {"cycles": 1, "retries": 0, "cooldown": 0},
    }
    file, out = directory / "agreement.yaml", directory / "out"
    file.write_text(json.dumps(study))
    command = [sys.executable, "-m", "pytest", f"--llem-study={file}", f"--llem-out={out}", "--llem-meter=none"]
    command += ["-p", "no:cacheprovider", f"--rootdir={directory}"]
    environment = {**os.environ, **OFFLINE, "LLEM_LEASE_DIR": str(directory / "leases")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory, check=False)
    found = list(out.rglob("result.json"))
    if not found:
        raise SystemExit(done.stdout[-4000:] + done.stderr[-2000:])
    result = json.loads(found[0].read_text())
    assert result["workload"]["failures"] == {}, result["workload"]["failures"]
    latency = result["latency"]
    seen = {**{name: latency[f"{name}_s"] for name in LATENCIES}, "itl": latency["itl_chunk_s"]}
    figures = {f"{name} mean": seen[name]["mean"] for name in LATENCIES}
    figures |= {f"{name} p50": seen[name]["p50"] for name in LATENCIES}
    throughput = result["throughput"]
    figures |= {"output tokens/s": throughput["output_tokens_per_s"], "requests/s": throughput["requests_per_s"]}
    work = {name: result["tokens"][name] for name in ("input", "output")}
    if options.server == "vllm":
        said: Mapping[str, float] = {name: result["engine"]["statistics"][f"server_{name}_s"] for name in LATENCIES}
    else:
        said = said_by_llama_cpp(server, options)
    notes = [note["code"] for note in (*result["validity"]["reasons"], *result["warnings"])]
    return Seen(figures, said, work, seen["itl"]["n"], notes)


def metrics_of(server: RealServer) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        return parse_metrics(reply.read().decode())


def said_by_llama_cpp(server: RealServer, options: argparse.Namespace) -> dict[str, float]:
    """Means over the latest requests, as the server's log has them."""
    log = server.log.read_text(errors="replace")
    prompt_s, after_s, whole_s = (
        fmean(float(took_ms) for took_ms in re.findall(rf"\|\s+{what} time =\s+([\d.]+) ms", log)[-options.prompts :])
        / 1e3
        for what in ("prompt eval", "eval", "total")
    )
    step_s = after_s / (options.output_tokens - 1)
    return {"ttft": prompt_s, "tpot": step_s, "itl": step_s, "e2el": whole_s}


def main() -> None:
    options = parse()
    os.nice(options.nice)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="agreement-") as name:
        directory, rounds = Path(name), []
        prompts = directory / "prompts.jsonl"
        write_prompts(prompts, options.prompts, options.words, options.output_tokens)
        with served(options, directory, {cores[0]}) as server, on_cores({cores[-1]}):
            for number in range(options.rounds + 1):
                both = []
                for run in (by_this_project, by_vllm_bench)[:: 1 if number % 2 else -1]:
                    place = directory / f"{number}-{run.__name__}"
                    place.mkdir()
                    both.append(run(options, server, prompts, place))
                ours, theirs = both[:: 1 if number % 2 else -1]
                assert ours.work == theirs.work, f"not the same work: {ours.work} and {theirs.work}"
                print(f"round {number}: load {os.getloadavg()[0]:.1f} {' '.join(ours.notes)}", file=sys.stderr)
                for side in (ours, theirs):
                    # `vllm bench serve` counts gaps to pieces without a token, such as the one with the reason to end.
                    side.figures["itl per piece, mean"] = side.figures["itl mean"] * side.gaps / ours.gaps
                rounds.append((ours, theirs))
    report(rounds[1:], options)


def report(rounds: Sequence[tuple[Seen, Seen]], options: argparse.Namespace) -> None:
    ours, theirs = rounds[0]
    how = f"{options.rate:g} requests/s" if options.rate else f"{options.concurrency} in flight"
    print(f"{options.server}, {Path(options.model).name}, {options.api}, {options.prompts} prompts, {how}: {ours.work}")
    print(f"{len(rounds)} rounds, {platform.machine()}, load average {os.getloadavg()[1]:.1f}")
    print(f"gaps between pieces: {ours.gaps} and {theirs.gaps}")
    print(f"{'':20} {'seen by the clients':28} {'said by the server':28} {'quotient':28} this, bench")
    for name in ours.figures:
        seen = [a.figures[name] / b.figures[name] for a, b in rounds]
        said = [a.server[name.split()[0]] / b.server[name.split()[0]] for a, b in rounds if name.endswith("mean")]
        quotient = [mine / its for mine, its in zip(seen, said, strict=False)]
        values = [median(side.figures[name] for side in sides) for sides in zip(*rounds, strict=True)]
        columns = [f"{spread(part):28}" for part in (seen, said, quotient)]
        print(f"{name:20}", *columns, *(f"{value:.5g}" for value in values))
    for name in LATENCIES:
        excess = [
            fmean(s.figures[f"{name} mean"] - s.server[name] for s in sides) for sides in zip(*rounds, strict=True)
        ]
        print(f"{name}: client above server by {', '.join(f'{value * 1e3:.3f}' for value in excess)} ms")


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("llama.cpp", "vllm"), default="llama.cpp")
    parser.add_argument("--model", default="builtin:tiny-llama", help="built in, or a directory with a tokenizer")
    parser.add_argument("--gguf", help="the file that llama.cpp loads; without it a built-in model is converted")
    parser.add_argument("--api", choices=("completions", "chat"), default="chat")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--words", type=int, default=100, help="of each prompt")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second at equal intervals")
    parser.add_argument("--slots", type=int, default=4, help="how many requests the server runs at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--same-fields", action="store_true", help="send the fields of this project's client by both")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm/bin/python"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
