"""Quotas, thresholds and factors by hand; remasking's own identities."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from masks import MASK, VOCAB, confident, lively, prompts_of, rows_of

from unwrite.diffusion import RCR, Edit, Factor, Fading, FixedBlocks, Origin, ReMDM, Sampler, Threshold, TopK, Uniform
from unwrite.errors import MethodError


def revealed(confidences, **settings):
    """How many positions each step reveals, with these constant confidences."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * len(confidences), confidences)])
    sampler = Sampler(**{"gen_length": len(confidences), "blocks": FixedBlocks(None), "keep_history": True, **settings})
    return sampler(rows_of(table), None, [[6]]).trace.revealed[0]


@pytest.mark.parametrize(
    ("size", "steps", "expected"),
    [(10, 4, [3, 3, 2, 2]), (7, 7, [1] * 7), (8, 3, [3, 3, 2]), (5, 1, [5])],
)
def test_quotas_are_spread_with_the_rest_first(size, steps, expected):
    assert revealed([0.5] * size, steps=steps, commit=TopK()) == expected


def quotas_of(masks, steps, size=16):
    """What `Uniform` says of every step of a single block."""
    block = {"at_entry": torch.tensor([masks]), "opened": torch.tensor([size]), "total": steps, "size": size}
    counts = [Uniform().count(SimpleNamespace(**block, in_block=torch.tensor([number]))) for number in range(steps)]
    return [int(count) for count in counts]


@pytest.mark.parametrize("steps", range(1, 17))
def test_quotas_sum_to_the_masks_and_differ_by_one_at_most(steps):
    for masks in range(17):
        quotas = quotas_of(masks, steps)
        assert sum(quotas) == masks
        assert quotas == sorted(quotas, reverse=True)
        assert quotas[0] - quotas[-1] <= 1


def test_quotas_may_be_zero():
    assert quotas_of(2, 4) == [1, 1, 0, 0]
    assert quotas_of(0, 4) == [0, 0, 0, 0]


def test_a_block_with_fewer_masks_than_steps_has_quotas_of_zero():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 4, [0.5] * 4)])
    sampler = Sampler(gen_length=4, steps=4, blocks=FixedBlocks(None), commit=TopK(), keep_history=True)
    out = sampler(rows_of(table), None, [[6]], fixed={0: 7, 1: 7})
    assert out.trace.revealed[0] == [1, 1]


def test_a_step_may_reveal_none():
    """Sixteen masks over 24 steps: 16 / 24 is none yet."""
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 24, [0.5] * 24)])
    sampler = Sampler(gen_length=24, blocks=FixedBlocks(None), quota=Fading(), commit=TopK(), keep_history=True)
    out = sampler(rows_of(table), None, [[6]], fixed=dict.fromkeys(range(8), 7))
    found = out.trace.revealed[0]
    assert found[0] == 0
    assert sum(found) == 16
    assert len(found) == 24


class Cut(Edit):
    """Six positions of the answer are left after the first step."""

    def edit(self, step, revealed):
        return step.prompt + 6


@pytest.mark.parametrize(
    ("quota", "commit"),
    [(Uniform(), TopK()), (Uniform(), RCR()), (Uniform(), ReMDM(extra=0)), (Fading(), TopK()), (Fading(), RCR())],
)
def test_a_cut_leaves_the_pace_alone(quota, commit):
    """32 masks in 16 steps are two a step, or what Dream's times say; a block cut to 6 is not filled at once."""
    steps, parts = [], {"steps": 16, "quota": quota, "commit": commit, "edit": Cut()}
    sampler = Sampler(gen_length=32, blocks=FixedBlocks(None), **parts)
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 32, [0.9 - place / 100 for place in range(32)])])
    out = replace(sampler, watch=steps.append)(rows_of(table), None, [[6]])
    assert [int(step.opened) for step in steps] == [32] * len(steps)
    assert [int(step.end - step.start) for step in steps] == [32, *[6] * (len(steps) - 1)]
    if quota == Uniform():
        assert out.nfe.tolist() == [3]
    else:  # a sixteenth of the time passes a step: of six positions none, then one, ...
        assert int(out.nfe) > 6


def test_a_cut_leaves_origins_pace_alone():
    table = torch.cat([torch.zeros(1, VOCAB), confident([5] * 32, [0.5] * 32)])
    sampler = Sampler(gen_length=32, steps=32, blocks=FixedBlocks(None), commit=Origin(), edit=Cut())
    counts = [int(replace(sampler, seed=seed)(rows_of(table), None, [[6]]).nfe) for seed in range(10)]
    assert sum(counts) / 10 > 16  # the last of six is written late in the 32 steps; hurried it takes at most 6


def test_threshold_reveals_what_is_sure_and_always_the_surest():
    assert revealed([0.95, 0.9, 0.5, 0.3], commit=Threshold(0.9)) == [2, 1, 1]
    assert revealed([0.8, 0.8, 0.7], commit=Threshold(0.9)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("confidences", "first"),
    [
        ([0.70, 0.67, 0.10], 2),  # two tokens need the second at 2/3
        ([0.70, 0.66, 0.10], 1),
        ([0.80, 0.76, 0.75, 0.1], 3),  # three need the third at 3/4
        ([0.80, 0.76, 0.74, 0.1], 2),
        ([0.10, 0.10], 1),  # always one
        ([0.49, 0.9, 0.1], 1),
    ],
)
def test_factor_one_has_the_papers_bars(confidences, first):
    assert revealed(confidences, commit=Factor(1.0))[0] == first


def test_a_factor_reveals_no_more_once_a_rank_failed():
    """Ranks 1 and 2 pass, rank 3 fails, rank 4 would pass alone only if ranks were not in order: they are."""
    assert revealed([0.99, 0.98, 0.5, 0.5], commit=Factor(1.0))[0] == 2


def test_fading_follows_dreams_times():
    quotas, left, size, steps, eps = [], 32, 32, 8, 1e-3
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float64)
    for i in range(steps):
        n = left if i == steps - 1 else int(left * (1 - times[i + 1] / times[i]))
        quotas.append(n)
        left -= n
    found = revealed([0.5] * size, steps=steps, quota=Fading(), commit=TopK())
    assert found == quotas


def test_origin_reveals_everything_by_the_last_step():
    found = revealed([0.5] * 64, steps=8, commit=Origin())
    assert sum(found) == 64
    assert len(found) <= 8


def test_rcr_takes_the_plain_loops_forwards_and_hides_nothing_in_the_last():
    predictor, prompts = lively(4), prompts_of(5, 3)
    plain = Sampler(gen_length=16, steps=8, blocks=FixedBlocks(8), commit=TopK(), keep_history=True)
    again = replace(plain, commit=RCR())(predictor, None, prompts)
    assert torch.equal(again.nfe, plain(predictor, None, prompts).nfe)
    left = [sum(token == MASK for token in canvas) for canvas in again.trace.canvases[0]]
    assert left == [14, 12, 10, 8, 6, 4, 2, 0]


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_remdm_adds_its_extra_steps_to_every_block(extra):
    predictor, prompts = lively(4), prompts_of(5, 3)
    plain = Sampler(gen_length=16, steps=16, blocks=FixedBlocks(8), commit=TopK())
    out = replace(plain, commit=ReMDM(extra=extra))(predictor, None, prompts)
    assert out.nfe.tolist() == [16 + 2 * extra] * 2
    assert not (out.sequences == MASK).any()


def test_remdm_without_extra_steps_is_the_plain_loop():
    predictor, prompts = lively(4), prompts_of(5, 3)
    plain = Sampler(gen_length=16, steps=8, blocks=FixedBlocks(8), commit=TopK())
    same = replace(plain, commit=ReMDM(extra=0))
    assert torch.equal(same(predictor, None, prompts).sequences, plain(predictor, None, prompts).sequences)


def test_if_all_marginals_are_sure_the_joint_arg_max_is_theirs():
    """n marginals above 1 - eps with (n + 1) eps <= 1, over all 3-token, 2-position joints of a random family."""
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for _ in range(3000):
        joint = torch.rand(3, 3, generator=generator, dtype=torch.float64) ** 8
        joint /= joint.sum()
        rows, columns = joint.sum(1), joint.sum(0)
        eps = 1 - min(float(rows.max()), float(columns.max()))
        if 3 * eps <= 1:
            checked += 1
            assert divmod(int(joint.argmax()), 3) == (int(rows.argmax()), int(columns.argmax()))
    assert checked > 300


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"gen_length": 10, "blocks": FixedBlocks(4), "commit": TopK()}, "no multiple of the block size"),
        ({"gen_length": 12, "steps": 4, "blocks": FixedBlocks(4), "commit": TopK()}, "number of blocks"),
    ],
)
def test_lengths_that_do_not_divide_are_refused_where_quotas_need_it(settings, what):
    with pytest.raises(MethodError, match=what):
        Sampler(**settings)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Fading(0.0), "eps is 0.0"),
        (lambda: Fading(1.0), "eps is 1.0"),
        (lambda: Fading(float("nan")), "eps is nan"),
        (lambda: Sampler(commit=ReMDM(), quota=Fading()), "Fading"),
    ],
)
def test_quotas_without_meaning_are_refused(make, what):
    with pytest.raises(MethodError, match=what):
        make()


def test_lengths_that_do_not_divide_are_fine_for_a_threshold():
    out = Sampler(gen_length=10, blocks=FixedBlocks(4), commit=Threshold(0.0), quota=Uniform())(
        lively(), None, prompts_of(3)
    )
    assert out.trace.blocks == [[4, 4, 2]]
