"""Tiny models and a tiny tokenizer that every family's tests share; no network, no threads to fight over."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<unk>",
    "who",
    "wrote",
    "what",
    "where",
    "is",
    "was",
    "the",
    "a",
    "of",
    "in",
    "by",
    "and",
    "his",
    "her",
    "book",
    "town",
    "river",
    "born",
    "lives",
    "near",
    "old",
    "new",
    "red",
    "blue",
    "green",
    "stone",
    "garden",
    "harbour",
    "winter",
    "summer",
    "letter",
    "song",
    "ann",
    "bert",
    "cora",
    "dov",
    "eli",
    "fay",
    "gus",
    "hana",
    "i",
    "do",
    "not",
    "know",
    "that",
    "sorry",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "year",
    "day",
    "?",
    ".",
    ",",
]

TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] != 'assistant' else '<assistant> ' }}{{ m['content'] }}"
    "{{ ' </s> ' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


def make_tokenizer():
    """A word-level tokenizer with a chat template; pad and eos differ."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_llama(seed: int = 0, layers: int = 3, hidden: int = 32, vocab: int = len(WORDS)):
    """A random Llama of a few thousand weights, in float32 and eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def tiny_llama():
    return make_llama()


def make_examples(kind: str, n: int):
    """Question-answer rows of unequal length; `kind` "forget", "retain" or "holdout" makes them distinct."""
    from unwrite.data import Example, Examples

    names = ["ann", "bert", "cora", "dov", "eli", "fay", "gus", "hana"]
    things = ["book", "letter", "song", "garden", "harbour", "river", "stone", "town"]
    offset = {"forget": 0, "retain": 3, "holdout": 5}[kind]
    rows = []
    for i in range(n):
        name, thing = names[i % 8], things[(i + offset) % 8]
        tail = " ".join(["near", "the", "old", "river", "in", "winter"][: i % 5])
        rows.append(
            Example(
                question=f"what {thing} was {name} {['one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'][i // 8]} ?",
                answer=f"the {['red', 'blue', 'green', 'new', 'old'][i % 5]} {thing} {tail} .",
                paraphrased_question=f"where is the {thing} of {name} ?",
                paraphrased_answer=f"a {['red', 'blue', 'green', 'new', 'old'][i % 5]} {thing} .",
                perturbed_answers=(f"the stone {thing} .", f"a winter {thing} .", f"one summer {thing} ."),
                source=f"{kind}.jsonl:{i + 1}",
            )
        )
    return Examples(rows, kind)


@pytest.fixture
def forget():
    return make_examples("forget", 16)


@pytest.fixture
def retain():
    return make_examples("retain", 20)
