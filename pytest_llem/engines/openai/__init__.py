"""What the package knows of the client of OpenAI-compatible servers.

`pytest_llem.engines`, the engine and `servers.spec` take `INFO`, whose `name` is part of ids and results: it must stay.
"""

from __future__ import annotations

from pytest_llem.engines.info import EngineInfo, PrefixCache

INFO = EngineInfo(
    name="openai",
    engine="pytest_llem.engines.openai.engine:OpenAIEngine",
    settings="pytest_llem.engines.openai.settings:OpenAISettings",
    title="Any OpenAI-compatible server",
    order=5,
    modules=("aiohttp",),
    install="pip install 'pytest-llem[openai]'",
    preload=("aiohttp",),
    # What it makes prompts with.
    preload_if_installed=(
        "transformers",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.configuration_llama",
        "transformers:AutoConfig",
        "transformers:AutoTokenizer",
    ),
    serves_over_http=True,
    stop_strings=True,
    prefix_cache=PrefixCache("enable_prefix_caching", (False,)),
    starts_server_with=("command", "image"),
)
