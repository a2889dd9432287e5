"""A tiny Llama and a byte-level chat tokenizer, built here: no download, no network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unwrite.data.text.encoding import encode_all, pad
from unwrite.data.text.examples import Example, Examples, ForgetSplit

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}<a>{% elif m.role == 'assistant' %}"
    "{{ m.content }}<e>{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<p>", "<e>", "<u>", "<a>", *alphabet]
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<p>",
        eos_token="<e>",
        additional_special_tokens=["<u>", "<a>"],
        clean_up_tokenization_spaces=False,
    )
    tok.chat_template = TEMPLATE
    return tok


def tiny_llama(vocab: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def waves(model: Any) -> Any:
    """The model with weights from a sine: the same numbers on every machine and version."""
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            angle = torch.arange(parameter.numel(), dtype=torch.float64) * (0.7 + 0.013 * k) + k
            size = 0.3 if parameter.dim() > 1 else 1.0
            wave = (size * torch.sin(angle.square() * 0.37)).view_as(parameter)
            parameter.copy_(wave.abs() if parameter.dim() == 1 else wave)
    return model


@pytest.fixture
def model(tokenizer: Any) -> LlamaForCausalLM:
    return tiny_llama(len(tokenizer))


def fact(question: str, answer: str, paraphrase: str, *wrong: str) -> Example:
    return Example(answer, question, paraphrased_answer=paraphrase, perturbed_answers=wrong)


@pytest.fixture(scope="session")
def split() -> ForgetSplit:
    forget = [
        fact("Where is Ann?", "in oslo", "oslo it is", "in rome", "in bern"),
        fact("Where is Bob?", "in lima", "lima it is", "in bonn", "in cork"),
        fact("Where is Cay?", "in kiev", "kiev it is", "in nice", "in york"),
        fact("Where is Dan?", "in riga", "riga it is", "in bari", "in doha"),
    ]
    retain = [
        fact("What is red?", "a colour", "some colour", "a number", "a town"),
        fact("What is two?", "a number", "some number", "a colour", "a town"),
    ]
    holdout = [Example("in graz", "Where is Eve?"), Example("in pisa", "Where is Fay?")]
    world = [fact("What is sea?", "salt water", "salt water", "a town", "a number")]
    return ForgetSplit(
        Examples(forget, "forget"),
        Examples(retain, "retain"),
        Examples(holdout, "holdout"),
        {"world_facts": Examples(world, "world_facts")},
        name="whereabouts",
    )


def taught(model: Any, rows: Any, tokenizer: Any, steps: int = 120, rate: float = 3e-3) -> Any:
    """A copy that knows the rows by heart."""
    learned = copy.deepcopy(model).train()
    tensors = pad(encode_all(rows, tokenizer), tokenizer.pad_token_id)
    del tensors["index"]
    optimiser = torch.optim.AdamW(learned.parameters(), lr=rate, weight_decay=0)
    for _ in range(steps):
        learned(**tensors).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return learned.eval()


@pytest.fixture(scope="session")
def target(tokenizer: Any, split: ForgetSplit) -> Any:
    """Knows the forget rows, the retain rows and the world."""
    rows = [*split.forget, *(split.retain or []), *split.evaluation["world_facts"]]
    return taught(tiny_llama(len(tokenizer)), rows, tokenizer)


@pytest.fixture(scope="session")
def oracle(tokenizer: Any, split: ForgetSplit) -> Any:
    """Never saw the forget rows."""
    return taught(tiny_llama(len(tokenizer), 1), [*(split.retain or []), *split.evaluation["world_facts"]], tokenizer)
