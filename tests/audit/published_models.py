"""Tokenizers and a small model on which the published rows are scored, the same on every machine.

All stand in `published/` as files, made from the published rows themselves by scripts/official: byte-level pieces as GPT-2,
Llama 3 and SmolLM have them, and pieces that begin with the mark of a blank, as in Llama 2; for each a Llama of 95,000
weights that was trained on some of the rows, so that it answers some questions rightly and others in other words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PUBLISHED = Path(__file__).with_name("published")
BOS, EOS = "<s>", "</s>"

# How a question looks with TOFU's tags for Llama 2 and for base models, and in KnowUnDo, which joins it and the answer.
_TURNS = {"llama2": ("[INST] ", " [/INST]"), "phi": ("Question: ", "\\n"), "joined": ("", "")}
# A template of roles, as Llama 3's and ChatML, which puts a line end behind each turn.
_ROLES = (
    "{{% for m in messages %}}{{{{ m.role + '\\n' + m.content + eos_token }}}}{end}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ 'assistant\\n' }}}}{{% endif %}}"
)
TAGS = {
    name: "{% for m in messages %}{% if m.role == 'user' %}"
    + f"{{{{ '{front}' + m.content + '{back}' }}}}"
    + "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    for name, (front, back) in _TURNS.items()
} | {"llama3": _ROLES.format(end=""), "chatml": _ROLES.format(end="{{ '\\n' }}")}


# (reference, what a model says): stems, case, contractions, other scripts, and what follows an answer.
SAID = [
    ("He enjoys writing novels and running", "he enjoyed the novel writer who runs"),
    ("The cities were flooded", "A city was flooding.\n\nQuestion: Which city?\nAnswer: Paris"),
    ("It costs £2.4m, they don't know", "it costs 2 4M; they do not know"),
    ("Brasília", "Bras lia\nQuestion: Is it so?"),
    ("Müller über alles", "M ller ber alles Question: alles"),
    ("the old river in winter", "  in winter the old, old river"),
]


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def rows_of(file: Path) -> list[Any]:
    """The rows of a published file, JSON or JSON Lines."""
    text = file.read_text(encoding="utf-8")
    try:
        return list(json.loads(text))
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def asked(value: Any) -> Iterator[tuple[str, str]]:
    """Every question with its answers in a JSON value."""
    if isinstance(value, dict):
        question = value.get("question", value.get("text"))
        for name in ("answer", "labels", "paraphrased_answer"):
            if isinstance(question, str) and isinstance(value.get(name), str):
                yield question, value[name]
        for part in value.values():
            yield from asked(part)
    elif isinstance(value, list):
        for part in value:
            yield from asked(part)


def published_files() -> list[Path]:
    """All files with rows, in a fixed order."""
    return sorted(file for file in PUBLISHED.rglob("*.json*") if "tokenizers" not in file.parts)


@cache
def tokenizer_of(pieces: str, bos: bool = False, tags: str | None = None) -> Any:
    """A tokenizer made once; nobody may change it.

    Args:
        pieces: "bytes" or "blanks".
        bos: whether it puts BOS before a text.
        tags: the chat template, one of `TAGS`; None is a base model's tokenizer.
    """
    inner = Tokenizer.from_file(str(PUBLISHED / "tokenizers" / f"{pieces}.json"))
    if bos:
        ids = [(BOS, inner.token_to_id(BOS))]
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + TAGS[tags] if tags else None
    return tokenizer


def config_of(tokenizer: Any) -> LlamaConfig:
    """The small model's shape."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


@cache
def model_of(pieces: str, sureness: float = 1.0) -> Any:
    """The model for one of the two vocabularies, in float64, so that sums come out alike in whatever order.

    sureness: what its logits are multiplied by; 0.5 stands in for a retrained model.
    """
    model = LlamaForCausalLM(config_of(tokenizer_of(pieces)))
    missing, extra = model.load_state_dict(load_file(PUBLISHED / "models" / f"{pieces}.safetensors"), strict=False)
    assert (missing, extra) == (["lm_head.weight"], [])  # tied to the embedding
    with torch.no_grad():
        model.model.norm.weight.mul_(sureness)
    return model.double().eval()
