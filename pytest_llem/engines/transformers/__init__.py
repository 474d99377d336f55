"""What the package knows of Hugging Face transformers without importing it.

`pytest_llem.engines` collects it, and its engine takes it. `name` and `inactive` decide experiments' ids: keep them.
"""

from __future__ import annotations

from pytest_llem.engines.info import EngineInfo, Inactive, Layout, Target

_GENERATION = Target(("transformers:GenerationConfig",))
_FROM_PRETRAINED = Target(
    ("transformers:PreTrainedModel.from_pretrained",),
    more=(
        "attn_implementation", "device_map", "max_memory", "revision", "dtype", "experts_implementation",
        "offload_buffers", "offload_folder", "subfolder", "tp_plan", "tp_size", "use_kernels", "use_safetensors",
        "variant",
    ),
)  # fmt: skip

INFO = EngineInfo(
    name="transformers",
    engine="pytest_llem.engines.transformers.engine:TransformersEngine",
    settings="pytest_llem.engines.transformers.settings:TransformersSettings",
    title="Hugging Face transformers",
    order=1,
    modules=("torch", "transformers"),
    packages=("torch", "transformers"),
    install="pip install 'pytest-llem[transformers]'",
    stock_image="huggingface/transformers-pytorch-gpu:latest",
    preload=(
        "torch",
        "transformers",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "pytest_llem.engines.transformers.generation",
        # transformers resolves these names on first use: here, once for all children.
        "transformers:AutoConfig",
        "transformers:AutoModelForCausalLM",
        "transformers:AutoTokenizer",
        "transformers:GenerationConfig",
    ),
    exclusive=True,
    stop_strings=True,
    batch_size="batch_size",
    expands_latent_attention=True,
    signatures=Layout(
        main=(_GENERATION, _FROM_PRETRAINED),
        decoding=_GENERATION,
        sections={"quantization": Target(("transformers:BitsAndBytesConfig",)), "compile": Target(("torch:compile",))},
        own=("batch_size", "continuous_batching", "threads", "tensor_parallel_size", "data_parallel_size"),
    ),
    inactive=(
        Inactive(
            (
                "quantization.bnb_4bit_quant_type",
                "quantization.bnb_4bit_compute_dtype",
                "quantization.bnb_4bit_use_double_quant",
                "quantization.bnb_4bit_quant_storage",
            ),
            "quantization.load_in_4bit",
            (None, False),
            "without load_in_4bit",
        ),
        Inactive(
            (
                "quantization.llm_int8_threshold",
                "quantization.llm_int8_skip_modules",
                "quantization.llm_int8_enable_fp32_cpu_offload",
            ),
            "quantization.load_in_8bit",
            (None, False),
            "without load_in_8bit",
        ),
        Inactive(
            ("compile.backend", "compile.fullgraph", "compile.dynamic"),
            "compile.mode",
            (None,),
            "without transformers.compile.mode",
        ),
        Inactive(
            ("length_penalty", "early_stopping"), "num_beams", (1,), "without beam search (transformers.num_beams is 1)"
        ),
        Inactive(("max_memory",), "device_map", (None,), "without transformers.device_map"),
    ),
)
