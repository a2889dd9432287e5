"""What every part of the denoising loop keeps to in a sampler: all is written, what was given stays, rows and seeds count."""

import dataclasses
import pickle
from functools import cache

import pytest
import torch

from helpers.tiny import END, MASK, lively, make_mask_predictor
from unwrite import catalog
from unwrite.cli.samplers import sampler_of
from unwrite.diffusion import FixedBlocks, MaskPredictor, Sampler, TopK
from unwrite.diffusion.base import Part
from unwrite.diffusion.parts.learn2pd import Filter

SIZE = 16
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
FIXED = {2: 5, 9: 6}
PARTS = catalog.parts()
SETTINGS = {"adablock": {"delimiters": (9,)}}  # a token that the tiny model has
SINGLE = {"blocks": FixedBlocks(None), "commit": TopK(), "steps": 4}
BESIDE = {  # what some parts work with
    "ascending": lambda part: {**SINGLE, "quota": part},
    "ascending-blocks": lambda part: {**SINGLE, "blocks": part, "quota": catalog.part("ascending").load()()},
    "learned-select": lambda part: {"commit": part, "blocks": FixedBlocks(8)},
}
every_part = pytest.mark.parametrize("slug", PARTS)
every_rule = pytest.mark.parametrize("slug", [slug for slug, record in PARTS.items() if record.kind == "commit"])


def made(slug):
    """The part by its defaults, as far as it has them; a trained one with a filter that lets some through."""
    cls = PARTS[slug].load()
    if slug != "learned-select":
        return cls(**SETTINGS.get(slug, {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(Filter(8, source={"mask_id": str(MASK)}), accept=0.5)


def sampler(slug, **settings):
    part, kind = made(slug), PARTS[slug].kind
    plain = {"blocks": FixedBlocks(8), **({"commit": TopK()} if kind == "quota" else {}), kind: part}
    return Sampler(gen_length=SIZE, **{**BESIDE.get(slug, lambda _: plain)(part), **settings})


@pytest.fixture(scope="module")
def predictor():
    return MaskPredictor(lively(make_mask_predictor(layers=2)), MASK, (END,))


@pytest.fixture(scope="module")
def fresh(predictor):
    """What a sampler of the part writes that has written nothing before."""
    return cache(lambda slug: sampler(slug)(predictor, None, PROMPTS))


@every_part
def test_is_a_frozen_value_that_fills_a_field_of_the_sampler(slug):
    cls = PARTS[slug].load()
    assert issubclass(cls, Part)
    assert cls.__dataclass_params__.frozen
    assert PARTS[slug].kind in {field.name for field in dataclasses.fields(Sampler)}
    assert sampler(slug).parts()
    if slug != "learned-select":  # a net is no value
        assert hash(made(slug)) == hash(made(slug))
        assert pickle.loads(pickle.dumps(made(slug))) == made(slug)


@every_part
def test_every_field_has_a_line_in_a_docstring(slug):
    cls = PARTS[slug].load()
    documented = "\n".join(base.__doc__ or "" for base in cls.__mro__)
    assert [field.name for field in dataclasses.fields(cls) if field.name not in documented] == []


@pytest.mark.parametrize("slug", [slug for slug in PARTS if slug != "learned-select"])  # it takes a file
def test_a_line_names_it(slug):
    beside = {"ascending": "+top-k+fixed-blocks(size=none)", "ascending-blocks": "+ascending+top-k"}
    found = sampler_of(slug + beside.get(slug, ""), SIZE, steps=4 if slug in beside else None)
    assert getattr(found, PARTS[slug].kind) == PARTS[slug].load()()


@every_part
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_all_is_written_and_what_was_given_stays(slug, cache, predictor):
    out = sampler(slug, cache=cache)(predictor, None, PROMPTS, fixed=FIXED)
    for row, prompt in enumerate(PROMPTS):
        ids = out.sequences[row, : len(prompt) + SIZE].tolist()
        assert MASK not in ids
        assert ids[: len(prompt)] == prompt
        answer = ids[len(prompt) :]
        whole = len(answer) - sum(1 for _ in filter(lambda token: token == END, answer[::-1]))
        assert all(answer[place] == token for place, token in FIXED.items() if place < whole)
        assert 1 <= int(out.nfe[row]) <= 4 * SIZE


@every_part
def test_the_same_seed_writes_the_same_text_and_leaves_the_processs_random_state(slug, predictor):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    once = sampler(slug, seed=4)(predictor, None, PROMPTS)
    assert torch.equal(torch.rand(2), expected)
    again = sampler(slug, seed=4)(predictor, None, PROMPTS)
    assert torch.equal(once.sequences, again.sequences)
    assert torch.equal(once.trace.order, again.trace.order)


@every_part
def test_a_row_of_a_batch_is_the_row_alone(slug, fresh, predictor):
    together = fresh(slug)
    alone = sampler(slug)(predictor, None, PROMPTS[:1])
    assert together.sequences[0, : len(PROMPTS[0]) + SIZE].tolist() == alone.sequences[0].tolist()
    assert int(together.nfe[0]) == int(alone.nfe[0])


@every_part
def test_a_call_leaves_nothing_for_the_next(slug, fresh, predictor):
    """What a part remembers belongs to the loop."""
    one = sampler(slug)
    one(predictor, None, [[13, 14]])
    assert torch.equal(one(predictor, None, PROMPTS).sequences, fresh(slug).sequences)


class Stepwise:
    """Notes of every step what is masked, and the canvas."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append((step.masked.clone(), step.canvas.clone()))


@every_rule
def test_a_commit_rule_ends_and_hides_only_what_it_wrote(slug, predictor):
    """A position that was given, or belongs to the prompt, is never masked again."""
    watch = Stepwise()
    sampler(slug, watch=watch)(predictor, None, PROMPTS[:1], fixed=FIXED)
    start = len(PROMPTS[0])
    assert 1 <= len(watch.steps) <= 4 * SIZE
    for masked, canvas in watch.steps:
        assert masked.any()
        assert canvas[0, :start].tolist() == PROMPTS[0]
        assert all(int(canvas[0, start + place]) == token for place, token in FIXED.items())
