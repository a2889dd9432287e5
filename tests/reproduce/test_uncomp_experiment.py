"""UNComp's experiment: it runs, all arms take the same bytes, what is planted is found, and each check can fail."""

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.beds.budget import Budget
from unwrite.cache import HeadGroups
from unwrite.reproduce import uncomp
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

ARMS = (uncomp.FULL, *uncomp.COMPRESSED)


def figures(hits=None, share=None, **losses):
    level = {uncomp.FULL: 2.0, uncomp.OWN: 2.2, uncomp.RECENT: 3.0}
    level |= {getattr(uncomp, name): loss for name, loss in losses.items()}
    found = {uncomp.OWN: 1.0, **(hits or {})}
    return {
        name: uncomp.CacheFigures(
            [level.get(name, 2.5) + 0.01 * row for row in range(6)],
            [found.get(name, 0.0)] * 6,
            [(share or {}).get(name, 9.0)] * 3,
        )
        for name in ARMS
    }


PLANTED = {uncomp.OWN: 0.1, uncomp.SNAP: 0.2, uncomp.REVERSED: 0.3}


@pytest.mark.parametrize(
    ("differs", "planted", "fails", "verdict"),
    [
        ({}, {}, [], "reproduced"),
        ({"FULL": 2.99}, {}, ["first and last tokens"], "bed says nothing"),
        ({"share": {uncomp.SNAP: 12.0}}, {}, ["the same bytes"], "bed says nothing"),
        ({}, {uncomp.OWN: 0.25}, ["planted error"], "untested here"),
        ({}, {uncomp.REVERSED: 0.15}, ["reversed groups err"], "untested here"),
        ({"SNAP": 2.1}, {}, ["foretold at least as well"], "not reproduced"),
        ({"hits": {uncomp.OWN: 0.0, uncomp.SNAP: 1.0}}, {}, ["numbers are found"], "partly"),
        ({"REVERSED": 2.1}, {}, ["reversed groups foretell"], "not reproduced"),
        ({"RANDOM": 2.1}, {}, ["at random"], "not reproduced"),
    ],
)
def test_each_check_can_fail_for_its_own_reason(differs, planted, fails, verdict):
    checks = uncomp.checks_of(figures(**differs), [PLANTED | planted] * 3)
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails)
    assert all(part in text for part, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_a_tie_with_a_control_is_inconclusive():
    level = figures()
    own = level[uncomp.OWN].losses
    level[uncomp.RANDOM].losses[:] = [loss + (-1) ** row * 0.1 for row, loss in enumerate(own)]
    assert verdict_of(uncomp.checks_of(level, [PLANTED] * 3)) == "inconclusive"


def test_what_is_planted_is_found():
    for seed in range(3):
        errors = uncomp.planted_errors(seed)
        assert errors[uncomp.OWN] < errors[uncomp.SNAP] < errors[uncomp.REVERSED]


def test_all_arms_take_the_same_bytes():
    """Three key-value heads of 64, as SmolLM2 has: two low ones and a high one."""
    model = make_llama(
        layers=2, hidden=48, num_attention_heads=3, num_key_value_heads=3, head_dim=64, max_position_embeddings=400
    )
    groups = dict.fromkeys((uncomp.OWN, uncomp.WHOLE), HeadGroups(((0, 0, 1), (0, 1, 0))))
    scale = uncomp.SCALES["small"]
    sizes = []
    for settings in uncomp.settings_of(groups, scale, 0).values():
        cache = settings.cache(model)
        with torch.no_grad():
            model(torch.randint(5, 60, (1, 200)), past_key_values=cache)
            for _ in range(4):
                model(torch.tensor([[7]]), past_key_values=cache)
        sizes.append(cache.nbytes())
    assert len({*sizes[:-1]}) == 1
    assert abs(sizes[-1] / sizes[0] - 1) < 0.02


def test_first_and_last_tokens_are_kept():
    model = make_llama()
    settings = uncomp.FirstAndLast(HeadGroups.one(), capacity=14, window=4, n_sink=3)
    cache = settings.cache(model)
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad():
        model(torch.randint(5, 60, (1, 40)), attention_mask=mask, past_key_values=cache)
        model(torch.tensor([[7]]), attention_mask=torch.cat([mask, mask[:, -1:]], 1), past_key_values=cache)
    assert cache.layers[0].columns[0][0, 0].tolist() == [5, 6, 7, *range(30, 41)]


def test_it_runs_within_a_tiny_budget():
    claim, record = run("uncomp", Budget("tiny", (0,)))
    assert set(claim.rows) == set(ARMS)
    assert all(len(row) == len(uncomp.COLUMNS) for row in claim.rows.values())
    assert record["verdict"] == "too small for a verdict"
    longest = {name: ["1.23e-05 +- 0.1"] * 3 for name in claim.rows}
    assert len(uncomp.headline(longest, {})) <= HEADLINE
