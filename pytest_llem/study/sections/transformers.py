"""The `transformers` section: Hugging Face transformers, generating offline in static batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pytest_llem.study.sections.section import Attention, Dtype, Extra, Name, NonNegativeFloat, PositiveInt, Section


class Compile(Section):
    """`torch.compile` of the forward pass; off until `mode` is set."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        None, description="Mode of torch.compile; null does not compile.", examples=["reduce-overhead"]
    )
    backend: Name = Field("inductor", description="Backend of torch.compile.", examples=["inductor", "eager"])
    fullgraph: bool = Field(False, description="Refuse graph breaks.")
    dynamic: bool | None = Field(None, description="Compile for dynamic shapes; null lets torch decide.")


class Quantization(Section):
    """Weights quantised while loading, by bitsandbytes."""

    load_in_8bit: bool = Field(False, description="8-bit weights (LLM.int8()).")
    load_in_4bit: bool = Field(False, description="4-bit weights.")
    llm_int8_threshold: NonNegativeFloat = Field(6.0, description="Outlier threshold of LLM.int8(); 8-bit only.")
    llm_int8_skip_modules: list[Name] | None = Field(None, description="Modules left unquantised; 8-bit only.")
    llm_int8_enable_fp32_cpu_offload: bool = Field(False, description="Keep offloaded modules in float32; 8-bit only.")
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = Field("fp4", description="4-bit data type; 4-bit only.")
    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Type that products are computed in; 4-bit only."
    )
    bnb_4bit_use_double_quant: bool = Field(False, description="Quantise the quantisation constants; 4-bit only.")
    bnb_4bit_quant_storage: Literal["uint8", "float32", "float16", "bfloat16"] = Field(
        "uint8", description="Type that packed weights are stored in; 4-bit only."
    )


class Transformers(Section):
    """Settings of Hugging Face transformers. Names follow `from_pretrained` and `GenerationConfig`."""

    batch_size: PositiveInt = Field(1, description="Prompts generated together in one static batch.", examples=[4])
    attn_implementation: Attention | None = Field(
        None, description="Attention kernel; null lets transformers choose.", examples=["sdpa"]
    )
    compile: Compile = Field(default_factory=Compile, description="torch.compile of the forward pass.")
    quantization: Quantization = Field(default_factory=Quantization, description="Quantisation while loading.")
    use_cache: bool = Field(True, description="Keep keys and values of earlier tokens.")
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = Field(
        None, description="Kind of KV cache; null is transformers' own choice.", examples=["static"]
    )
    num_beams: PositiveInt = Field(1, description="Beams of beam search; 1 is no beam search.", examples=[4])
    length_penalty: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None, description="Exponent on the length in beam scores; beam search only."
    )
    early_stopping: bool | None = Field(None, description="End beam search early; beam search only.")
    no_repeat_ngram_size: PositiveInt | None = Field(None, description="Length of n-grams that may occur once.")
    prompt_lookup_num_tokens: PositiveInt | None = Field(
        None, description="Candidate tokens per step of prompt-lookup decoding; null is off.", examples=[10]
    )
    device_map: Name | dict[str, str | int] | None = Field(
        None,
        description="Placement of modules (`auto`, a device, or a mapping); null is one device.",
        examples=["auto"],
    )
    max_memory: dict[str, str | int] | None = Field(
        None, description="Memory limit per device for `device_map`.", examples=[{"0": "20GiB", "cpu": "60GiB"}]
    )
    tensor_parallel_size: PositiveInt | None = Field(None, description="Devices that share each layer.", examples=[2])
    data_parallel_size: PositiveInt | None = Field(
        None, description="Copies of the model, each on devices of its own.", examples=[2]
    )
    continuous_batching: bool = Field(False, description="Continuous instead of static batching (`generate_batch`).")
    threads: PositiveInt | None = Field(None, description="CPU threads per operation; null is torch's choice.")
    revision: Name | None = Field(None, description="Revision of the model for this engine, over the common one.")
    dtype: Dtype | None = Field(None, description="Type of the weights for this engine, over the common one.")
    extra: Extra = Field(
        default_factory=dict,
        description="Passed through: fields of `GenerationConfig`, or keywords of `from_pretrained`.",
        examples=[{"typical_p": 0.9}],
    )
