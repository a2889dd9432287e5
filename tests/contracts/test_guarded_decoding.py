"""Every guard with every way to decode: the text is the guarded model's own, greedy and sampled, alone and in a batch."""

import copy
from functools import lru_cache

import pytest
import torch
from texts import apply, of_kind

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite import catalog
from unwrite.decode.engine.planning.knowledge import forget_knowledge

STRATEGIES = catalog.strategies()
each_pair = pytest.mark.parametrize(
    ("guard", "strategy"), [(guard, strategy) for guard in of_kind("guard") for strategy in STRATEGIES]
)
NEW = 8


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


@lru_cache
def guarded(slug):
    model = lively(make_llama(0, layers=2), 0.1)
    forget, retain = make_examples("forget", 16), make_examples("retain", 20)
    return apply(slug, model, forget, retain, make_tokenizer())


@lru_cache(maxsize=1)
def draft():
    return lively(make_llama(3, layers=1), 0.1)


def made(slug):
    given = {"draft_model": copy.deepcopy(draft())} if "draft model" in STRATEGIES[slug].needs else {}
    return STRATEGIES[slug].load()(**given)


def inputs():
    """A forget question and another, padded on the left."""
    tokenizer = make_tokenizer()
    texts = [make_examples("forget", 16)[4].question, "what is the old book of dov in winter near the river ?"]
    rows = [tokenizer(f"<user> {text} <assistant>")["input_ids"] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, (ids != 0).long()


def written(model, ids, mask, strategy=None, **options):
    torch.manual_seed(5)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(input_ids=ids, attention_mask=mask, custom_generate=strategy, **options)


@lru_cache
def own(guard, first, last, **options):
    """The guard's text without drafts after the prompts from first to last, one alone without its padding: (ids, mask, text)."""
    ids, mask = (part[first:last] for part in inputs())
    if len(ids) == 1:
        ids, mask = ids[:, mask[0] == 1], mask[:, mask[0] == 1]
    return ids, mask, written(guarded(guard), ids, mask, **options)


@each_pair
def test_greedy_text_is_the_guards_own_in_a_batch_where_there_are_batches(guard, strategy):
    for first, last in [(0, 2)] if STRATEGIES[strategy].load().batched else [(0, 1), (1, 2)]:
        ids, mask, text = own(guard, first, last)
        assert torch.equal(written(guarded(guard), ids, mask, made(strategy)), text)


@each_pair
def test_a_sampled_text_of_a_guard_is_its_own(guard, strategy):
    """Of strategies that keep to the distribution alone, that they sample at all; their distribution is their own contract's."""
    ids, mask, text = own(guard, 1, 2, do_sample=True)
    drafted = written(guarded(guard), ids, mask, made(strategy), do_sample=True)
    if STRATEGIES[strategy].exact == "identical":
        assert torch.equal(drafted, text)
    else:
        assert torch.equal(drafted[:, : ids.shape[1]], ids)
        assert drafted.shape[1] > ids.shape[1]
