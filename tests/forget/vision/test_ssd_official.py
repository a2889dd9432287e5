"""Dampening against the official code's numbers on the same net and images (official_edits.json says how they were got)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_inputs import edit_net, edit_sets

from unwrite.forget.dampening import ASSD, LFSSD, SSD, Potion
from unwrite.forget.engine.importance_ratio import percentile_of_share, ratios

OFFICIAL = json.loads((Path(__file__).parent / "official_edits.json").read_text())
ADAPTIVE = {"assd": ASSD(importance_batch=8), "alfssd": LFSSD(importance_batch=8), "potion": Potion(importance_batch=8)}
pytestmark = pytest.mark.filterwarnings("ignore:.* selects:UserWarning")  # so few rows select much


def same_weights(net, wanted):
    for name, value in net.named_parameters():
        expected = torch.tensor(wanted[name]).view_as(value)
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", OFFICIAL["ssd"]["cases"], ids=lambda case: f"alpha {case['alpha']}")
def test_ssd_gives_the_official_weights(case):
    net, (forget, retain) = edit_net(), edit_sets()
    SSD(alpha=case["alpha"], lam=case["lam"], importance_batch=8).apply(net, forget, retain)
    same_weights(net, case["weights"])


@pytest.mark.parametrize("case", OFFICIAL["adaptive"]["cases"], ids=lambda case: f"{case['name']} {case['share']:.3g}")
def test_the_adaptive_bar_is_the_official_one(case):
    method, net, (forget, retain) = ADAPTIVE[case["name"]], edit_net(), edit_sets()
    own, kept = (method.importances_of(net, rows) for rows in (forget, retain))
    alpha = np.percentile(ratios(kept.joined(own), own), percentile_of_share(case["share"]))
    assert alpha == pytest.approx(case["alpha"], rel=1e-5)


def test_assd_gives_the_official_weights():
    net, (forget, retain) = edit_net(), edit_sets()
    ASSD(importance_batch=8).apply(net, forget, retain)
    same_weights(net, next(case for case in OFFICIAL["adaptive"]["cases"] if case["name"] == "assd")["weights"])
