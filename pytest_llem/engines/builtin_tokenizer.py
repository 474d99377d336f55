"""The built-in models' tokenizer: byte-level BPE, trained on the shipped corpus."""

from __future__ import annotations

from pytest_llem.errors import EngineNotInstalledError
from pytest_llem.workload.corpus import corpus_paragraphs

VOCAB_SIZE = 2048
PAD, BOS, EOS = (0, "<pad>"), (1, "<s>"), (2, "</s>")
TURNS = ("<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer() -> str:
    """The text of `tokenizer.json`. Raises `EngineNotInstalledError` where the `tokenizers` package is missing.

    The vocabulary holds all 256 bytes, so any text can be encoded and decoded without loss.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    except ImportError:
        raise EngineNotInstalledError(
            "the built-in models need the package 'tokenizers' to make their tokenizer",
            fix="pip install 'pytest-llem[transformers]'",
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD[1], BOS[1], EOS[1], *TURNS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus_paragraphs(), trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS[1]} $A", special_tokens=[(BOS[1], BOS[0])])
    return str(tokenizer.to_str(pretty=False))
