"""The `openai` section: any server that speaks the OpenAI API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pytest_llem.study.sections.section import Extra, Name, PositiveFloat, PositiveInt, Section


class OpenAI(Section):
    """How to reach the server, or to start it."""

    base_url: Name | None = Field(None, description="Where the server answers.", examples=["http://127.0.0.1:8000/v1"])
    command: list[Name] | None = Field(
        None,
        description="Starts the server, without a shell; {model}, {port} and others are filled in. Null: it is running "
        "already, or its image knows how.",
        examples=[["vllm", "serve", "{model}", "--port", "{port}"]],
    )
    image: Name | None = Field(
        None,
        description="Image that the server runs in; `command` then stands in place of the image's entry point.",
        examples=["vllm/vllm-openai:latest"],
    )
    server_args: list[Name] = Field(
        default_factory=list,
        description="Arguments behind the command or the image's entry point, with the same placeholders.",
        examples=[["--model", "{model}", "--port", "{port}", "--dtype", "{dtype}"]],
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the server that is started, with the same placeholders; no secrets.",
        examples=[{"OMP_NUM_THREADS": "1"}],
    )
    tensor_parallel_size: PositiveInt = Field(
        1, description="GPUs that are leased for the server, and filled in as {tensor_parallel_size}."
    )
    api: Literal["completions", "chat"] = Field("completions", description="Which endpoint to use.")
    served_model: Name | None = Field(None, description="Name of the model on the server; null asks for the first.")
    api_key_env: Name | None = Field(
        None, description="Environment variable that holds the key; the key itself is never written down."
    )
    concurrency: PositiveInt | None = Field(None, description="Requests in flight; null is all prompts at once.")
    stream: bool = Field(True, description="Stream answers, so that token times are known.")
    request_timeout_s: PositiveFloat = Field(600.0, description="Longest time of one request.")
    keep_server: bool = Field(
        True,
        description="Whether a started server stays for the next cycles that need the same one; false starts it anew "
        "for every cycle, which gates then count as independent.",
    )
    ready_path: Name | None = Field(
        None,
        description="Answers 200 once the server is ready; null asks /health, then /v1/models.",
        examples=["/ready"],
    )
    ready_timeout_s: PositiveFloat = Field(600.0, description="Longest time until a started server answers.")
    enable_prefix_caching: bool | None = Field(
        None,
        description="Whether the server reuses the cache of common prefixes: true keeps that, false says that it was "
        "started without. Null: it is found out, and emptied before every repeat.",
    )
    extra: Extra = Field(
        default_factory=dict,
        description="Passed through: fields of the request's body.",
        examples=[{"ignore_eos": True}],
    )
