"""A llama.cpp server in a process of its own: `python -m tests.engines.servers.llama_cpp GGUF PORT [OPTION=VALUE]...`.

Options are attributes of xllamacpp's `CommonParams`, as JSON: `n_parallel=4`, `api_keys=["secret"]`. Port 0 is any free
one; the address is printed in a line of its own when the server listens. It ends when standard input does.
"""

from __future__ import annotations

import json
import sys


def main(arguments: list[str]) -> None:
    import xllamacpp

    model, port, *options = arguments
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.port = int(port)
    parameters.n_ctx = 8192
    parameters.n_parallel = 4
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.warmup = False
    for option in options:
        name, _, value = option.partition("=")
        setattr(parameters, name, json.loads(value))
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main(sys.argv[1:])
