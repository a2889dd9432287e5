"""What every decoding strategy keeps to: the target's own text, in a batch too, and its sampling rule."""

import dataclasses
import inspect
import pickle

import pytest
import torch
from scipy.stats import chi2

from helpers.tiny import lively, make_llama
from unwrite import catalog
from unwrite.cli.generate import generate as generate_command
from unwrite.decode import Strategy
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.errors import MethodError

VOCAB, NEW = 16, 24
STRATEGIES = catalog.strategies()
every_strategy = pytest.mark.parametrize("slug", STRATEGIES)


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


@pytest.fixture(scope="module")
def model():
    """Its texts end up in loops, which drafts come to know."""
    return lively(make_llama(0, layers=2, vocab=VOCAB), 0.1)


@pytest.fixture(scope="module")
def draft():
    """As the model is, with noise: right now and then."""
    small = lively(make_llama(0, layers=2, vocab=VOCAB), 0.1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in small.parameters():
            weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=generator)
    return small


@pytest.fixture(scope="module")
def plain(model):
    """The model's own greedy texts."""
    return [write(model, ids[None]) for ids in prompts(3)]


def made(slug, draft, **settings):
    given = {"draft_model": draft} if "draft model" in STRATEGIES[slug].needs else {}
    return STRATEGIES[slug].load()(**given, **settings)


def prompts(count, length=9):
    ids = torch.randint(3, VOCAB, (count, length), generator=torch.Generator().manual_seed(1))
    ids[:, -4:] = ids[:, :4]  # something to copy
    return ids


def write(model, ids, strategy=None, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(ids, attention_mask=mask, custom_generate=strategy, **options)


@every_strategy
def test_is_a_frozen_value_with_defaults_and_documented_fields(slug):
    cls = STRATEGIES[slug].load()
    assert issubclass(cls, Strategy)
    assert cls.__dataclass_params__.frozen
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert [name for name in fields if name not in documented] == []
    assert hash(made(slug, None)) == hash(made(slug, None))
    assert pickle.loads(pickle.dumps(made(slug, None))) == made(slug, None)


@every_strategy
def test_no_field_has_the_name_of_a_flag_that_means_something_else(slug):
    shared = {field.name for field in dataclasses.fields(STRATEGIES[slug].load())} & set(
        inspect.signature(generate_command).parameters
    )
    assert shared <= {"draft_model", "seed"}


@every_strategy
@pytest.mark.parametrize("cost_model", [True, False])
def test_greedy_text_is_token_identical(slug, cost_model, model, draft, plain):
    for ids, text in zip(prompts(3), plain, strict=True):
        assert torch.equal(write(model, ids[None], made(slug, draft, cost_model=cost_model)), text)


@every_strategy
def test_drafts_are_accepted_and_no_forward_is_wasted(slug, model, draft):
    out = write(model, prompts(1), made(slug, draft, cost_model=False), return_dict_in_generate=True, max_new_tokens=48)
    assert out.stats.tokens == 48
    assert out.stats.forwards < 48
    assert out.stats.accepted > 0


@every_strategy
def test_rows_of_a_left_padded_batch_are_the_rows_alone_or_a_batch_is_refused(slug, model, draft):
    long, short = prompts(2)
    short = short[3:]
    ids = torch.stack([long, torch.cat([torch.zeros(3, dtype=torch.long), short])])
    mask = (torch.arange(9) >= torch.tensor([[0], [3]])).long()
    strategy = made(slug, draft, cost_model=False)
    if not strategy.batched:
        with pytest.raises(MethodError, match="decodes one text at a time, but the batch has 2"):
            write(model, ids, strategy, mask)
        return
    together = write(model, ids, strategy, mask)
    for row, prompt in zip(together, (long, short), strict=True):
        assert torch.equal(row[9:], write(model, prompt[None])[0, len(prompt) :])


@every_strategy
def test_a_text_ends_at_its_end_token_and_at_the_length_asked_for(slug, model, draft):
    ids = prompts(1)
    plain = write(model, ids)[0, 9:].tolist()
    for count in (1, 7):
        assert write(model, ids, made(slug, draft, cost_model=False), max_new_tokens=count).shape[1] == 9 + count
    end = plain[10]
    strategy = made(slug, draft, cost_model=False)
    assert write(model, ids, strategy, eos_token_id=end)[0, 9:].tolist() == plain[: plain.index(end) + 1]


@pytest.mark.parametrize("slug", [slug for slug, record in STRATEGIES.items() if record.exact == "identical"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_text_is_that_of_plain_decoding_at_the_same_seed(slug, seed, model, draft):
    texts = []
    for strategy in (None, made(slug, draft, cost_model=False)):
        torch.manual_seed(seed)
        texts.append(write(model, prompts(1), strategy, do_sample=True, temperature=1.5, top_k=0))
    assert torch.equal(*texts)


@pytest.mark.parametrize("slug", [slug for slug, record in STRATEGIES.items() if record.exact == "distribution"])
def test_sampled_text_is_drawn_from_the_targets_distribution(slug, model, draft):
    """The second token of 240 texts, which a draft proposed, against its exact probabilities: chi-square at 0.001."""
    texts, ids, strategy = 240, prompts(1), made(slug, draft, cost_model=False)
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": 2}
    drawn = torch.cat([write(model, ids, strategy, **options)[:, -1] for _ in range(texts)])
    with torch.no_grad():
        first = model(ids).logits[0, -1].double().softmax(-1)
        after = torch.cat([ids.repeat(VOCAB, 1), torch.arange(VOCAB)[:, None]], 1)
        expected = texts * first @ model(after).logits[:, -1].double().softmax(-1)
    observed = torch.bincount(drawn, minlength=VOCAB).double()
    likely = expected >= 5
    pooled = torch.stack([torch.cat([counts[likely], counts[~likely].sum()[None]]) for counts in (observed, expected)])
    statistic = float(((pooled[0] - pooled[1]) ** 2 / pooled[1].clamp(min=1)).sum())
    assert int(likely.sum()) > 3
    assert statistic < chi2.ppf(0.999, int(likely.sum()))


@every_strategy
def test_the_same_seed_gives_the_same_sampled_text(slug, model, draft):
    texts = []
    for _ in range(2):
        torch.manual_seed(5)
        texts.append(write(model, prompts(1), made(slug, draft, cost_model=False), do_sample=True, top_k=0))
    assert torch.equal(*texts)
