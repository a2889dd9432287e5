"""UDFC's experiment: planted copies, what each arm does to a net, and that each check can fail for its own reason."""

import pytest
import torch
from torch import nn

from helpers.nets import settled
from unwrite.beds.budget import Budget
from unwrite.beds.wide_glyphs import SHAPE, share_right, with_copies
from unwrite.compress import UDFC, net_graph
from unwrite.data.images.images import Images
from unwrite.nets.glyph_nets import SmallResNet14, SmallVGG
from unwrite.reproduce import udfc as experiment
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

BITS = experiment.SCALES["small"].bits
BASE = {"PLAIN": 50.0, "MERGING": 55.0, "OWN": 70.0, "APART": 68.0, "EXCHANGED": 45.0, "NORMS": 80.0, "DATA": 85.0}


def figures(whole=90.0, repaired=1e-5, pruned=0.5, light=0.0, **arms):
    """Every arm the same everywhere but at a ratio of 0.1, where all but UDFC lose nothing of note."""
    by = {}
    for name, value in {**BASE, **arms}.items():
        arm = getattr(experiment, name)
        ratios = experiment.RATIOS if arm in experiment.GRID_ARMS else experiment.RATIOS[1:]
        by[arm] = {(ratio, bits): value for ratio in ratios for bits in BITS}
        if arm in experiment.GRID_ARMS:
            by[arm] |= {(0.1, bits): 88.0 + light * (name == "OWN") for bits in BITS}
            by[arm] |= {(0.7, bits): by[arm][0.5, bits] - (5.0 if name == "OWN" else 0) for bits in BITS}
    narrow = {arm: {(ratio, 6): 30.0 for ratio in (0.3, 0.5, 0.7)} for arm in (experiment.PLAIN, experiment.OWN)}
    return experiment.NetFigures(whole, by, narrow, 88.0, repaired, pruned)


@pytest.mark.parametrize(
    ("differs", "fails", "verdict"),
    [
        ({}, [], "reproduced"),
        ({"whole": 69.0}, ["whole nets"], "bed says nothing"),
        ({"whole": 85.0, "PLAIN": 76.0, "MERGING": 77.0, "EXCHANGED": 70.0, "OWN": 85.0, "APART": 80.0}, ["cost at least"], "bed says nothing"),
        ({"repaired": 0.01}, ["copies come back"], "untested here"),
        ({"pruned": 0.05}, ["moves answers"], "untested here"),
        ({"MERGING": 72.0}, ["better of plain and merging"], "not reproduced"),
        ({"PLAIN": 72.0, "MERGING": 72.5}, ["better of plain and merging", "largest"], "not reproduced"),
        ({"MERGING": 49.0}, ["merging is ahead of plain"], "partly"),
        ({"APART": 71.0}, ["no worse than one after"], "partly"),
        ({"light": 30.0}, ["largest at medium"], "partly"),
        ({"EXCHANGED": 52.0}, ["wrong channels"], "not reproduced"),
    ],
)  # fmt: skip
def test_each_check_fails_for_its_own_reason(differs, fails, verdict):
    one = figures(**differs)
    checks = experiment.checks_of([one, one])
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails), failed
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_two_standard_errors_decide_and_not_the_mean():
    assert experiment.two_errors([1.0, 3.0]) == (0.0, 4.0)
    checks = experiment.checks_of([figures(), figures(MERGING=90.0)])
    assert next(check for check in checks if "better of plain" in check.text).holds is None


@pytest.mark.parametrize(("net", "chains"), [(SmallVGG, 6), (SmallResNet14, 6)])
def test_planted_copies_are_what_is_pruned_and_come_back_whole(net, chains):
    twice = with_copies(settled(net(width=4)))
    assert len(net_graph(twice, SHAPE).chains) == chains
    _, report = UDFC(prune_ratio=0.5, bits=None, alpha2=1e-9).apply(twice, SHAPE)
    for layer in report.prunable:
        partners = layer.combination[[n for n in range(layer.channels) if n not in layer.kept.tolist()]]
        assert torch.allclose(partners.sort(1).values[:, -1], torch.tensor(0.8).double(), atol=1e-4)
        assert partners.sort(1).values[:, :-1].abs().max() < 1e-4
    repaired, pruned = experiment.planted(settled(net(width=4)), torch.rand(20, *SHAPE))
    assert repaired < experiment.WHOLE
    assert pruned > experiment.FAR


def test_planting_leaves_the_net_it_is_given():
    net = settled(SmallVGG(width=4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with_copies(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_right_is_the_share_of_named_pictures():
    class Brightest(nn.Module):
        def forward(self, pixels):
            return pixels.mean((2, 3))

    pixels = torch.eye(3)[torch.tensor([0, 1, 2, 2])][:, :, None, None].expand(-1, -1, 2, 2)
    rows = Images(pixels.clone(), torch.tensor([0, 1, 2, 1]), classes=("a", "b", "c"))
    assert share_right(Brightest(), rows, batch=3) == 75


def test_arms_are_what_they_are_called():
    net, pixels = settled(SmallVGG(width=4)), torch.rand(4, *SHAPE)
    answers = {
        arm: experiment.compressed(net, arm, (0.5, 3), pixels)(pixels)
        for arm in (*experiment.GRID_ARMS, *experiment.SOME_ARMS)
    }
    plain, _ = UDFC(0.5, 3, reconstruct=False).apply(net, SHAPE)
    apart, _ = UDFC(0.5, 3, joint=False).apply(net, SHAPE)
    own, _ = UDFC(0.5, 3).apply(net, SHAPE)
    for arm, expected in ((experiment.PLAIN, plain), (experiment.APART, apart), (experiment.OWN, own)):
        assert torch.equal(answers[arm], expected(pixels))
    texts = {tuple(answer.flatten().tolist()) for answer in answers.values()}
    assert len(texts) == len(answers)


def test_a_headline_fits_its_cell():
    rows = dict.fromkeys(
        (experiment.OWN, experiment.MERGING, experiment.PLAIN, experiment.NOTHING), ("1.23e-05 +- 0.1",) * 5
    )
    assert len(experiment.headline(rows, {})) <= HEADLINE


@pytest.mark.slow
def test_it_runs_tiny():
    claim, record = run("udfc", Budget("tiny", (0,)))
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert set(claim.rows) == {
        experiment.NOTHING, *experiment.GRID_ARMS, *experiment.SOME_ARMS,
        *(experiment.NARROW + arm for arm in (experiment.NOTHING, experiment.PLAIN, experiment.OWN)),
    }  # fmt: skip
    assert all(len(row) == len(experiment.COLUMNS) for row in claim.rows.values())
    assert experiment.headline(record["rows"], record["extra"]) == record["headline"]
    assert len(record["extra"]["VGG, seed 0"][experiment.OWN]) == 12
