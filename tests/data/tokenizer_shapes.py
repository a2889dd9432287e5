"""Tokenizers and chat templates of the shapes that published models have, small enough to make in milliseconds.

What matters of each is kept: byte-level or blank-marking pieces, BOS or none, what a turn ends in and whether that is
the end-of-sequence token, what follows it, and what a template writes by itself. The words are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

_TEXT = [
    "Paris is the capital of France. Berlin is the capital of Germany.",
    "Question: Who wrote the letter?\nAnswer: Ann wrote the letter in 1984, near the old river.",
    "user assistant system model Where is it? It is in Paris, of course. <think>\n\n</think>\n\n /no_think",
    "Three line ends:\n\n\nnew lines.\n\n\nThey are one token.\n\n\n",
    "Use the end token to stop; Paris Paris Berlin Berlin capital capital Answer: Question:",
] * 4

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
SMOLLM3 = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}<|im_start|>system\n"
    "{{ '/think' if thinks else '/no_think' }}<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not thinks %}<think>\n\n</think>\n{% endif %}"
    "{{ m['content'].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not thinks %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}<|assistant|>{{ '\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A tokenizer, and what must come out of it for the question "Where is it?".

    Args:
        prompt: the text a model reads before it writes.
        end: the token that ends an answer.
        make: builds the tokenizer.
    """

    name: str
    prompt: str
    end: str
    make: Callable[[], Any]


# How Llama 3 and Qwen cut a text: a run of line ends is a piece of its own, digits come in threes.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(special: tuple[str, ...], older: bool) -> Tokenizer:
    """older: cut as GPT-2 does, where the last of several line ends goes its own way before a word."""
    inner = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=older)
    split = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    inner.pre_tokenizer = level if older else pre_tokenizers.Sequence([split, level])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_TEXT, trainer)
    return inner


def _blank_marking(special: tuple[str, ...], everywhere: bool) -> Tokenizer:
    """Pieces that begin with the mark of a blank, bytes for what is not in the vocabulary.

    everywhere: a blank is put before each stretch of text (Llama 2), else only where a text starts (Mistral, Gemma none).
    """
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if everywhere:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        pieces = [text.replace(" ", " ▁").split(" ") for text in _TEXT]
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        pieces = [_TEXT]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*special, "<unk>", *(f"<0x{i:02X}>" for i in range(256))],
        initial_alphabet=["▁"],
        show_progress=False,
    )
    inner.train_from_iterator([text for part in pieces for text in part], trainer)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def _wrapped(
    inner: Tokenizer,
    template: str | None,
    special: tuple[str, ...],
    *,
    bos: str | None = None,
    eos: str,
    front: bool = False,
    back: bool = False,
) -> Any:
    """front, back: whether the tokenizer itself puts BOS before a text and EOS behind it."""
    if front or back:
        ids = [(token, inner.token_to_id(token)) for token in {bos, eos} if token]
        parts = [bos if front else None, "$A", eos if back else None]
        inner.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in parts if part), special_tokens=ids
        )
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    names = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False, **names
    )
    tokenizer.chat_template = template
    return tokenizer


def _bytes(template: str | None, *special: str, older: bool = False, **options: Any) -> Callable[[], Any]:
    return lambda: _wrapped(_byte_level(special, older), template, special, **options)


def _blanks(template: str | None, *special: str, everywhere: bool = False, **options: Any) -> Callable[[], Any]:
    return lambda: _wrapped(_blank_marking(special, everywhere), template, special, **options)


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_PHI3 = ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_HEAD = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
_QUESTION = "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
_PLAIN = "Question: Where is it?\nAnswer:"

SHAPES = [
    Shape("llama 2", "<s>[INST] Where is it? [/INST]", "</s>",
          _blanks(LLAMA2, "<s>", "</s>", everywhere=True, bos="<s>", eos="</s>", front=True)),
    Shape("llama 3", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhere is it?<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
          _bytes(LLAMA3, *_LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", front=True)),
    Shape("mistral", "<s>[INST] Where is it?[/INST]", "</s>",
          _blanks(MISTRAL, "<s>", "</s>", bos="<s>", eos="</s>", front=True)),
    Shape("gemma 2 and 3", "<bos><start_of_turn>user\nWhere is it?<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>",
          _blanks(GEMMA, *_GEMMA, bos="<bos>", eos="<eos>", front=True)),
    Shape("phi 3", "<|user|>\nWhere is it?<|end|>\n<|assistant|>\n", "<|end|>",
          _blanks(PHI3, *_PHI3, everywhere=True, bos="<s>", eos="<|endoftext|>")),
    Shape("phi 4", "<|im_start|>user<|im_sep|>Where is it?<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>",
          _bytes(PHI4, *_IM, "<|im_sep|>", bos="<|endoftext|>", eos="<|im_end|>")),
    Shape("qwen 2.5", _HEAD + _QUESTION, "<|im_end|>", _bytes(CHATML, *_IM, eos="<|im_end|>")),
    Shape("qwen 3", _QUESTION + "<think>\n\n</think>\n\n", "<|im_end|>", _bytes(QWEN3, *_IM, eos="<|im_end|>")),
    Shape("olmo 2", "<|endoftext|><|user|>\nWhere is it?\n<|assistant|>\n", "<|endoftext|>",
          _bytes(OLMO2, "<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>")),
    Shape("smollm 2", _HEAD + _QUESTION, "<|im_end|>", _bytes(CHATML, *_IM, older=True, bos="<|im_start|>", eos="<|im_end|>")),
    Shape("smollm 3", "<|im_start|>system\n/no_think<|im_end|>\n" + _QUESTION + "<think>\n\n</think>\n", "<|im_end|>",
          _bytes(SMOLLM3, *_IM, eos="<|im_end|>")),
    Shape("none, bytes", _PLAIN, "<|endoftext|>", _bytes(None, "<|endoftext|>", older=True, eos="<|endoftext|>")),
    Shape("none, bytes and bos", _PLAIN, "</s>", _bytes(None, "<s>", "</s>", bos="<s>", eos="</s>", front=True)),
    Shape("none, blanks and bos", _PLAIN, "</s>",
          _blanks(None, "<s>", "</s>", everywhere=True, bos="<s>", eos="</s>", front=True)),
    Shape("none, blanks", _PLAIN, "</s>", _blanks(None, "<s>", "</s>", bos="<s>", eos="</s>")),
    Shape("none, appends eos", _PLAIN, "</s>", _bytes(None, "<s>", "</s>", bos="<s>", eos="</s>", front=True, back=True)),
    Shape("chatml, appends eos", _HEAD + _QUESTION, "<|im_end|>", _bytes(CHATML, *_IM, eos="<|im_end|>", back=True)),
    Shape("none, single bytes, appends eos", _PLAIN, "</s>", ByT5Tokenizer),
]  # fmt: skip


@cache
def _made(name: str) -> Any:
    return next(shape for shape in SHAPES if shape.name == name).make()


def tokenizer_of(shape: Shape) -> Any:
    """The shape's tokenizer, made once; nobody may change it."""
    return _made(shape.name)
