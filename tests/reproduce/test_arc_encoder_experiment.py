"""ARC-Encoder's experiment: it runs, every arm counts the same tokens, and each check can fail for its own reason."""

import dataclasses

import numpy as np
import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.compress.contexts.inputs import MixedRow
from unwrite.reproduce import arc_encoder as arc
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

LOSS = {
    arc.NOTHING: 5.0,
    arc.WHOLE: 4.0,
    arc.LAST: 4.5,
    arc.CHOSEN: 4.7,
    arc.MEANS: 4.9,
    arc.OWN: 4.2,
    arc.UNTRAINED: 5.1,
    arc.HALF_WAY: 4.3,
    arc.EIGHT: 4.4,
    arc.CAUSAL: 4.4,
    arc.ALL: 4.4,
    arc.OTHER: 5.2,
}
RIGHT = {arc.OWN: 40.0, arc.HALF_WAY: 30.0, arc.UNTRAINED: 5.0, arc.EIGHT: 20.0}


def figures(carried=1.0, right=None, **loss):
    named = {getattr(arc, name): value for name, value in loss.items()}
    return [arc.ContextFigures(LOSS | named, RIGHT | (right or {}), carried)] * 3


@pytest.mark.parametrize(
    ("differs", "fails", "verdict"),
    [
        ({}, [], "reproduced"),
        ({"WHOLE": 4.91}, ["the whole context helps", "above the whole context"], "bed says nothing"),
        ({"carried": 0.4}, ["planted texts"], "untested here"),
        ({"NOTHING": 4.15, "WHOLE": 3.9}, ["below that without context"], "not reproduced"),
        ({"WHOLE": 4.25}, ["above the whole context"], "partly"),
        ({"MEANS": 4.1}, ["means of token embeddings"], "partly"),
        ({"LAST": 4.1}, ["as many last tokens"], "partly"),
        ({"right": {arc.OWN: 29.0}}, ["with more steps"], "partly"),
        ({"right": {arc.UNTRAINED: 31.0}}, ["with more steps"], "partly"),
        ({"EIGHT": 4.2}, ["factor 8"], "partly"),
        ({"OTHER": 4.1}, ["another text's vectors"], "not reproduced"),
        ({"UNTRAINED": 4.1}, ["an untrained encoder's"], "not reproduced"),
    ],
)
def test_each_check_can_fail_for_its_own_reason(differs, fails, verdict):
    checks = arc.checks_of(figures(**differs))
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails)
    assert all(part in text for part, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_as_good_as_the_last_tokens_is_enough_and_as_good_as_no_context_is_not():
    assert verdict_of(arc.checks_of(figures(LAST=4.2))) == "reproduced"
    assert verdict_of(arc.checks_of(figures(NOTHING=4.2, WHOLE=4.0))) == "not reproduced"


def test_ablations_of_one_seed_are_rows_and_decide_nothing():
    first, *others = figures()
    loss = {arm: value for arm, value in others[0].loss.items() if arm not in arc.ABLATIONS}
    seeds = [first, *(arc.ContextFigures(loss, one.right, one.carried) for one in others)]
    rows = arc.rows_of(seeds)
    assert rows[arc.CAUSAL][0] == "4.4"
    assert rows[arc.OWN] == ("4.2 +- 0", "66.7 +- 0", "40 +- 0")
    assert rows[arc.NOTHING][2] == ""
    assert verdict_of(arc.checks_of(seeds)) == "reproduced"
    assert not any(arm in check.text for check in arc.checks_of(seeds) for arm in arc.ABLATIONS)


def test_rates_are_chosen_by_a_seed_and_a_split_that_arent_reported():
    assert arc.CHOOSING not in Budget("small").seeds
    assert arc.training(arc.made(arc.SCALES["tiny"]), 10, 0).lr == arc.LADDER[0][0]


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = arc.made(arc.SCALES["tiny"])
        assert made.decoder is not None
        yield made


def test_pieces_are_whole_and_a_context_precedes_its_text(bed):
    pieces = bed.pieces("test")
    run = [token for row in bed.texts.blocks["test"] for token in row.input_ids]
    assert pieces[0] == run[:17]
    assert pieces[1] == run[16:33]
    assert bed.context(pieces[0]) == run[:8]
    assert bed.text(pieces[0]) == run[8:17]


def test_every_arm_counts_the_same_tokens(bed):
    """Nine tokens of a text after its context: the first is given and the next four count, whatever stands before."""
    pieces = bed.pieces("test")[:3]
    none, whole = bed.after_tokens(pieces, [()] * 3), bed.after_tokens(pieces, [range(8)] * 3)
    for number, piece in enumerate(pieces):
        for given, loss in ((piece[8:], none), (piece, whole)):
            logits = bed.decoder(torch.tensor([given])).logits[0, -9:-5]
            nll = torch.nn.functional.cross_entropy(logits, torch.tensor(piece[9:13]))
            assert loss[number] == pytest.approx(nll.item(), abs=1e-5)
    embeddings = [bed.embeddings(torch.tensor(piece[:8])) for piece in pieces]
    assert bed.after_vectors(pieces, embeddings) == pytest.approx(whole, abs=1e-5)
    every = dataclasses.replace(bed, counted=None).after_tokens(pieces, [()] * 3)
    logits = bed.decoder(torch.tensor([piece[8:] for piece in pieces])).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.tensor([piece[9:] for piece in pieces]), reduction="none"
    )
    assert every == pytest.approx(nll.mean(1).tolist(), abs=1e-5)


def test_what_is_right_is_counted_over_tokens_behind_the_first(bed):
    pieces = bed.pieces("test")[:4]
    rows = [MixedRow(piece) for piece in pieces]
    likeliest = bed.decoder(torch.tensor(pieces)).logits[:, :-1].argmax(-1)
    assert bed.right(rows) == pytest.approx(100 * float((likeliest == torch.tensor(pieces)[:, 1:]).float().mean()))


def test_means_of_one_token_are_the_tokens(bed):
    pieces = bed.pieces("test")[:2]
    (first, _), whole = arc.averaged(bed, pieces, 1), bed.after_tokens(pieces, [range(8)] * 2)
    assert torch.equal(first, bed.embeddings(torch.tensor(pieces[0][:8])))
    assert bed.after_vectors(pieces, arc.averaged(bed, pieces, 1)) == pytest.approx(whole, abs=1e-5)


def test_parts_of_a_context_have_as_many_inputs_as_vectors(bed, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        type(bed), "after_tokens", lambda self, pieces, kept: seen.setdefault(len(seen), kept) and [0.0]
    )
    arc.plain(bed, bed.pieces("test")[:3], 0)
    none, whole, last, chosen = seen.values()
    encoder = arc.blank(bed, arc.FOUR, 0)
    slots = len(arc.compressed(bed, encoder, bed.pieces("test")[:1])[0])
    assert [len(one) for one in (none[0], whole[0], last[0], chosen[0])] == [0, 8, slots, slots] == [0, 8, 3, 3]
    assert list(last[0]) == [5, 6, 7]
    assert all(one == sorted({*one}) and max(one) < 8 for one in chosen)
    assert len({tuple(one) for one in chosen}) > 1


def test_planted_texts_say_their_context_again_and_test_ones_are_others():
    pieces, others = arc.planted_pieces(200, 0), arc.planted_pieces(200, 1)
    assert all(piece[:4] == piece[5:] and piece[4] == 19 and len(piece) == 9 for piece in pieces)
    assert len({token for piece in pieces for token in piece[:4]}) == arc.PLANTED_WORDS
    known = {tuple(piece) for piece in pieces}
    assert np.mean([tuple(piece) in known for piece in others]) < 0.05
    assert pieces.hash != others.hash


def test_a_texts_vectors_stand_at_another_text():
    assert arc.turned([1, 2, 3]) == [2, 3, 1]


def test_an_encoder_is_trained_once_and_found_again(bed):
    how = arc.training(bed, 2, 0)
    pieces = arc.Pieces(bed.pieces("train")[:32])
    first, again = (arc.fitted(bed, arc.FOUR, how, pieces) for _ in range(2))
    other = arc.fitted(bed, arc.EncoderShape(8), how, pieces)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))
    blank = arc.blank(bed, arc.FOUR, 0)
    assert any(not torch.equal(one, two) for one, two in zip(first.parameters(), blank.parameters(), strict=True))


def test_it_runs_within_a_tiny_budget():
    claim, record = run("arc-encoder", Budget("tiny", (0,)))
    assert set(claim.rows) == set(LOSS)
    assert all(len(row) == len(arc.COLUMNS) for row in claim.rows.values())
    assert len(claim.headline) <= HEADLINE
    assert record["verdict"] == "too small for a verdict"
