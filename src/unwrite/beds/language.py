"""Small language models that know invented things, trained once and shared by every experiment.

A Llama of 3.4 million weights learns the shipped authors from nothing: the *target* all of them, the *oracle* all but
those to be forgotten. Both know the real authors and world facts of the split, so that utility can be measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import Example, Examples, ForgetSplit
from ..data.text.authors import authors
from ..data.text.encoding import Encoded, encode_all
from ..models import causal_recipe, load_model, trained
from ..runs import hash_json

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


class EncodedRows(list[Encoded]):
    """Encoded rows with the content hash that `trained` asks for."""

    @property
    def hash(self) -> str:
        return hash_json([(row.input_ids, row.labels) for row in self])


@dataclass(frozen=True)
class LanguageBed:
    """A tokenizer, a split, and the folders of two models.

    target: trained on everything; oracle: trained on everything but the forget set.
    """

    tokenizer: PreTrainedTokenizerBase
    split: ForgetSplit
    target: Path
    oracle: Path

    def load(self, which: str = "target") -> PreTrainedModel:
        """A fresh copy of one of the models."""
        return load_model(getattr(self, which)).eval()


def small_tokenizer(texts: Iterable[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from the texts, with a chat template, an end and a pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(list(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_config(tokenizer: PreTrainedTokenizerBase, layers: int = 6, width: int = 192) -> LlamaConfig:
    """A Llama of about 3.4 million weights at the defaults."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )


def texts_of(rows: Iterable[Example]) -> list[str]:
    """Everything a row says."""
    return [
        text
        for row in rows
        for text in (row.question, row.answer, row.paraphrased_question, row.paraphrased_answer, *row.perturbed_answers)
        if text
    ]


@lru_cache(maxsize=2)
def authors_bed(seed: int = 0, epochs: int = 40) -> LanguageBed:
    """Target and oracle on the shipped authors; the first call trains both (about ten minutes on two cores)."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    split = authors()
    assert split.retain is not None
    known = Examples([row for rows in split.evaluation.values() for row in rows], "known")
    everything = [*split.forget, *split.retain, *known]
    tokenizer = small_tokenizer(texts_of([*split.forget, *split.retain, *known]))
    rows = EncodedRows(encode_all(everything, tokenizer))
    recipe = causal_recipe(small_config(tokenizer), epochs=epochs, lr=1e-3, batch_size=16, weight_decay=0.01)
    target = trained(recipe, rows, range(len(rows)), seed)
    oracle = trained(recipe, rows, range(len(split.forget), len(rows)), seed)
    return LanguageBed(tokenizer, split, target, oracle)
