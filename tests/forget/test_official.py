"""Our losses against the official codes' own numbers on the same inputs (official.json says how they were got).

Where the official code is wrong, the number stands there too, and the test says that ours is another.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from forgetting import value
from official_inputs import inputs, whole

from conftest import make_llama
from unwrite.forget import DPO, NPO, RMU, UNDIAL, GradientAscent, GradientDifference, KLAscent, SimNPO
from unwrite.forget.engine.batch import BatchPart, PairedBatch, positions
from unwrite.forget.engine.stream import interleave
from unwrite.forget.engine.text.logit_difference import kept_tokens, subtract
from unwrite.forget.uld import ULD, _ReversedObjective
from unwrite.scoring import prediction_mask, sum_rows, token_nll

OFFICIAL = json.loads((Path(__file__).parent / "official.json").read_text())["numbers"]
NONE = {"retain_loss": "none"}


def part(data, mask=None, layer=None):
    """A part after the forward pass, with the given logits."""
    where = positions(data["labels"], data["attention_mask"], mask)
    predicts = prediction_mask(data["labels"])
    reference_nll = token_nll(data["reference"][predicts], data["labels"][:, 1:][predicts[:, :-1]])
    return BatchPart(
        index=torch.arange(3),
        input_ids=data["input_ids"],
        attention_mask=data["attention_mask"],
        labels=data["labels"],
        where=where,
        logits=data["policy"][where],
        reference=sum_rows(reference_nll, predicts),
        reference_logits=data["reference"][where],
        hidden={} if layer is None else {layer: data["hidden"]},
        reference_hidden={} if layer is None else {layer: data["reference_hidden"]},
    )


def loss_of(objective, *, whole_parts=(), layer=None):
    data = inputs()
    data |= {name: whole(data[name]) for name in whole_parts}
    parts = {
        name: part(values, objective.retain_positions() if name == "retain" else None, layer)
        for name, values in data.items()
    }
    return value(objective, PairedBatch(**parts)).item()


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("gradient-ascent", GradientAscent()),
        ("gradient-difference", GradientDifference()),
        ("kl-ascent, kl_mask all", KLAscent(kl_mask="all")),
        ("npo beta 0.1", NPO(beta=0.1)),
        ("npo beta 0.1 kl_mask all", NPO(beta=0.1, retain_loss="kl", kl_mask="all")),
        ("dpo beta 0.1", DPO(beta=0.1)),
        ("simnpo beta 4.5 forget_weight 0.125 margin 5", SimNPO(beta=4.5, forget_weight=0.125, margin=5.0)),
        ("simnpo beta 2.5 forget_weight 0.1375 margin 5.5", SimNPO(beta=2.5, forget_weight=0.1375, margin=5.5)),
    ],
)
def test_loss_is_open_unlearnings(name, objective):
    assert loss_of(objective) == pytest.approx(OFFICIAL[name], rel=1e-5)


def test_undial_is_open_unlearnings_where_every_position_has_a_label():
    ours = loss_of(UNDIAL(strength=10.0), whole_parts=("forget",))
    assert ours == pytest.approx(OFFICIAL["undial strength 10, every position a label"], rel=1e-5)


def test_undial_differs_where_theirs_lowers_an_ignored_token_and_averages_over_prompt_and_padding():
    assert abs(loss_of(UNDIAL(strength=10.0)) - OFFICIAL["undial strength 10, masked labels (wrong there)"]) > 1e-3


def test_kl_differs_where_theirs_averages_over_padding():
    assert abs(loss_of(KLAscent()) - OFFICIAL["kl-ascent, kl_mask all"]) > 1e-3


def test_npo_differs_from_muses_on_raw_logits():
    assert abs(loss_of(NPO(beta=0.1, **NONE)) - OFFICIAL["muse npo on raw logits (wrong there)"]) > 1.0


def test_muses_npo_sees_a_shift_of_all_logits_that_changes_no_probability():
    plain, shifted = (
        OFFICIAL["muse npo on raw logits (wrong there)"],
        OFFICIAL["muse npo on raw logits, policy logits + 3"],
    )
    assert abs(plain - shifted) > 1.0


def test_rmu_control_vector_is_open_unlearnings():
    torch.testing.assert_close(
        RMU(steering=2.0).control(16), torch.tensor(OFFICIAL["rmu control"]), rtol=1e-5, atol=1e-7
    )


def test_rmu_loss_is_open_unlearnings_where_answers_have_one_length():
    ours = loss_of(RMU(layer=1, steering=2.0), whole_parts=("forget", "retain"), layer=1)
    assert ours == pytest.approx(OFFICIAL["rmu steering 2, every position a label"], rel=1e-5)


def test_rmu_differs_where_theirs_divides_every_row_by_every_rows_length():
    ours = loss_of(RMU(layer=1, steering=2.0), layer=1)
    assert abs(ours - OFFICIAL["rmu steering 2, answers of unequal length (wrong there)"]) > 0.1


def test_uld_assistant_loss_is_the_official_one_over_all_positions():
    objective = _ReversedObjective(retain_weight=5.0, positions="all")
    data = inputs()
    batch = PairedBatch(forget=part(data["forget"]), retain=part(data["retain"], "all"))
    assert value(objective, batch, objective.loss).item() == pytest.approx(
        OFFICIAL["uld loss weight 5, all positions"], rel=1e-5
    )
    uniform = objective.loss(PairedBatch(retain=batch.retain)).terms["uniform"].values.mean() / 5.0
    assert uniform.item() == pytest.approx(OFFICIAL["uld uniform, all positions"], rel=1e-5)


def pair():
    torch.manual_seed(2)
    return 3 * torch.randn(4, 1000, dtype=torch.float64), 3 * torch.randn(4, 1000, dtype=torch.float64)


def test_uld_filter_keeps_as_many_tokens_as_the_official_one():
    kept = kept_tokens(pair()[0], 0.01)
    assert kept.sum(-1).tolist() == OFFICIAL["uld filter, 1000 tokens, 0.01: kept"]


def test_uld_filter_works_on_small_vocabularies_where_the_official_one_keeps_everything():
    torch.manual_seed(3)
    logits = torch.randn(1, 50, dtype=torch.float64) * 4
    assert OFFICIAL["uld filter, 50 tokens, 0.01: kept (wrong there)"] == [50]
    share = logits.softmax(-1) >= 0.01 * logits.softmax(-1).max()
    assert torch.equal(kept_tokens(logits, 0.01), share)
    assert share.sum() < 50


def test_uld_raw_combination_is_the_official_one_in_generation():
    target, assistant = pair()
    ours = subtract(target, assistant, 0.8, 0.01, drop=True, raw=True)
    kept = kept_tokens(target, 0.01)
    assert ours[kept].sum().item() == pytest.approx(
        OFFICIAL["uld raw combination, alpha 0.8, 0.01: kept sum"], rel=1e-5
    )
    assert ours.argmax(-1).tolist() == OFFICIAL["uld raw combination, alpha 0.8, 0.01: argmax"]
    assert (ours[~kept] == -math.inf).all()


def test_uld_raw_combination_is_the_official_one_in_scoring():
    ours = subtract(*pair(), 0.8, 0.01, drop=False, raw=True).logsumexp(-1)
    assert ours.tolist() == pytest.approx(OFFICIAL["uld raw scoring, alpha 0.8, 0.01: logsumexp"], rel=1e-5)


def test_uld_unfiltered_combination_is_the_official_one_for_centred_logits():
    ours = subtract(*pair(), 0.8, 0.0, drop=True, raw=False).log_softmax(-1)[:, 0]
    expected = OFFICIAL["uld unfiltered combination, alpha 0.8: log probs of token 0"]
    assert ours.tolist() == pytest.approx(expected, rel=1e-5)


def test_uld_batch_order_is_the_official_one():
    assert interleave(range(5), range(5, 18)) == OFFICIAL["uld order, 5 and 13"]
    assert interleave(range(6), range(6, 10)) == OFFICIAL["uld order, 6 and 4"]


def test_uld_defaults_are_the_official_scripts():
    assert (
        ULD().fitted(make_llama(layers=32)).layers,
        ULD().alpha,
        ULD().top_filter,
        ULD().retain_weight,
        ULD().rank,
    ) == (8, 0.8, 0.01, 5.0, 16)
