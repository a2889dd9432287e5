"""O3's detector: how new a text is beside those of a request, and the weight that comes of it."""

import argparse
import decimal
import difflib
import inspect
import logging
import shutil
import statistics
import tarfile
import tempfile
import threading
import zipfile

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

from conftest import make_llama
from unwrite.beds.language import small_tokenizer
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.text.novelty import FAR, NoveltyDetector, NoveltyWeight, parted
from unwrite.forget.engine.text.row_states import RowStates

# --- the weight


@pytest.mark.parametrize(
    ("value", "weight"), [(0, 0.999665), (1, 0.763706), (2, 0.175810), (3, 0.122067), (4, 0.119269)]
)
def test_the_weights_of_a_unit_normal(value, weight):
    one = NoveltyWeight(0.0, 0.0, 1.0, 10.0, "paper")
    assert one(value) == pytest.approx(weight, abs=1e-6)
    assert one(-value) == pytest.approx(weight, abs=1e-6)


def test_the_weight_is_symmetric_around_the_middle_of_both_means():
    one = NoveltyWeight(1.0, 4.0, 0.7, 10.0, "paper")
    assert [one(2.5 + d) for d in (0.1, 0.9, 3.0)] == pytest.approx([one(2.5 - d) for d in (0.1, 0.9, 3.0)])


def test_a_far_text_has_a_weight_of_exactly_nothing():
    paper, floor = (NoveltyWeight(0.0, 0.0, 1.0, 10.0, mode) for mode in ("paper", "floor"))
    assert floor(50.0) == 0.0
    assert paper(50.0) == pytest.approx(FAR)
    assert floor(0.0) == pytest.approx((paper(0.0) - FAR) / (1 - FAR))


def test_the_released_evaluations_steps():
    one = NoveltyWeight(0.0, 0.0, 1.0, 10.0, "official_eval")
    by_weight = {round(one.sigmoid(v), 3): one(v) for v in np.linspace(0, 4, 400)}
    assert {value for weight, value in by_weight.items() if weight > 0.901} == {1.2}
    assert {value for weight, value in by_weight.items() if 0.402 < weight < 0.898 or weight < 0.299} == {0.0}
    assert all(
        value == pytest.approx(weight, abs=1e-3) for weight, value in by_weight.items() if 0.302 < weight < 0.398
    )


@pytest.mark.parametrize(
    ("change", "why"), [({"spread": 0.0}, "spread of 0"), ({"zeta": 0.0}, "zeta"), ({"mode": "soft"}, "soft")]
)
def test_a_weight_without_meaning_is_refused(change, why):
    with pytest.raises((DataError, MethodError), match=why):
        NoveltyWeight(**{"fitted": 0.0, "held": 0.0, "spread": 1.0, "zeta": 10.0, "mode": "floor"} | change)


# --- the detector


def states(seed, count, shift=0.0, layers=3, width=6):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, (count, layers, width)) + 5.0


class Lookup:
    """Gives texts, which are row numbers, their states."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, texts):
        return self.rows[[int(text) for text in texts]]


def fitted(rows, **options):
    return NoveltyDetector.fit([str(i) for i in range(len(rows))], Lookup(rows), **options)


def test_scores_are_the_nearest_text_and_the_distance_in_the_cloud():
    rows = states(0, 60)
    one = fitted(rows, official=True, held=0.2)
    used = [i for i in range(60) if any(np.allclose(rows[i, 0] / np.linalg.norm(rows[i, 0]), b[0]) for b in one.bank)]
    assert len(used) == 48
    cloud = EmpiricalCovariance().fit(rows[used][:, 1])
    text = states(1, 1)[0]
    unit = rows[used][:, 1] / np.linalg.norm(rows[used][:, 1], axis=1, keepdims=True)
    expected = -1000 * (unit @ text[1] / np.linalg.norm(text[1])).max() - 0.5 * cloud.mahalanobis(text[None, 1])[0]
    assert one.layer_scores(text[None])[0, 1] == pytest.approx(expected, rel=1e-9)


def test_both_parts_of_a_score_are_larger_for_what_is_near():
    rows, far = states(0, 60), states(1, 60, shift=4.0)
    ours, theirs = fitted(rows), fitted(rows, official=True)
    assert (ours.nearness, theirs.nearness) == (1000.0, -1000.0)
    near = np.einsum("tlw,blw->tbl", rows / np.linalg.norm(rows, axis=-1, keepdims=True), ours.bank).max(1)
    assert ours.layer_scores(rows).mean() > ours.layer_scores(far).mean()
    away = rows - ours.means
    distance = np.einsum("tlw,lwv,tlv->tl", away, ours.precisions, away)
    assert np.allclose(ours.layer_scores(rows), 1000 * near - 0.5 * distance)


def test_a_text_of_the_request_is_nearest_to_itself():
    rows = states(0, 60)
    one = fitted(rows, official=True)
    cosines = np.einsum("tlw,blw->tbl", rows / np.linalg.norm(rows, axis=-1, keepdims=True), one.bank).max(1)
    assert np.isclose(cosines, 1.0).all(1).sum() == len(one.bank)


def test_values_are_the_one_class_machines_own():
    rows = states(0, 80)
    one = fitted(rows, official=True, nu=0.2)
    used = one.bank  # of the rows it was made of, in order
    order = np.random.default_rng([0, 23]).permutation(80)
    kept = rows[np.sort(order[16:])]
    assert np.allclose(kept / np.linalg.norm(kept, axis=-1, keepdims=True), used)
    machine = OneClassSVM(nu=0.2, kernel="linear").fit(one.layer_scores(kept))
    fresh = states(5, 10)
    assert one.values(fresh) == pytest.approx(machine.score_samples(one.layer_scores(fresh)), rel=1e-6)
    assert one.offset == pytest.approx(float(machine.offset_[0]))


def test_the_scale_is_that_of_the_rows_held_back():
    rows = states(0, 80)
    one = fitted(rows, official=True)
    made_of, back = parted(80, 0.2, 0)
    own, others = one.values(rows[made_of]), one.values(rows[back])
    assert (one.weight.fitted, one.weight.held) == pytest.approx((own.mean(), others.mean()))
    assert one.weight.spread == pytest.approx(others.std())


def test_it_tells_texts_of_another_kind_and_not_texts_of_the_same():
    rows = states(0, 400)
    one = fitted(rows)
    middle = (one.weight.fitted + one.weight.held) / 2
    same, other = (np.abs(one.values(rows) - middle) for rows in (states(7, 200), states(8, 200, shift=2.0)))
    held_back = np.abs(one.values(rows[parted(400, 0.2, 0)[1]]) - middle)
    assert roc_auc_score([0] * 80 + [1] * 200, [*held_back, *other]) > 0.95
    assert 0.4 < roc_auc_score([0] * 80 + [1] * 200, [*held_back, *same]) < 0.6


def test_the_machine_is_fitted_to_scores_like_those_of_rows_held_back():
    """With fewer rows than dimensions, rows scored by statistics they are part of are worlds apart from any other."""
    rows = states(0, 40, width=64)
    one, (used, back) = fitted(rows), parted(40, 0.2, 0)
    inside, crossed, others = one.layer_scores(rows[used]), one._crossed(rows[used]), one.layer_scores(rows[back])
    gap = [abs(scores.mean() - others.mean()) for scores in (inside, crossed)]
    assert gap[0] > 3 * gap[1]
    assert np.allclose(one.precisions[0], LedoitWolf().fit(rows[used][:, 0]).precision_)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("width", [6, 64])
def test_the_requests_own_texts_are_taken_and_far_ones_are_not(official, width):
    rows = states(0, 60, width=width)
    one, (used, back) = fitted(rows, official=official), parted(60, 0.2, 0)
    assert np.mean([weight > 0.5 for weight in one.weights(rows[used])]) > 0.8
    assert np.mean([weight > 0.5 for weight in one.weights(rows[back])]) > 0.6
    assert max(one.weights(states(3, 60, shift=9.0, width=width))) < 0.01


def test_a_detector_is_the_same_by_its_seed_and_after_it_was_stored():
    rows = states(0, 50)
    one, again = fitted(rows, seed=3), fitted(rows, seed=3)
    fresh = states(4, 9)
    assert one.weights(fresh) == again.weights(fresh)
    assert fitted(rows, seed=4).weights(fresh) != one.weights(fresh)
    assert NoveltyDetector.of_state(*one.state()).weights(fresh) == one.weights(fresh)


def test_too_few_texts_and_states_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="needs 32 texts, and the forget set has 31"):
        fitted(states(0, 31))
    rows = states(0, 40)
    rows[3, 1, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fitted(rows)


def code_of(*modules):
    """Six lines at a time, without documentation and comments."""
    for module in modules:
        lines = inspect.getsource(module).splitlines()
        lines = [line for line in lines if line.strip() and '"""' not in line and not line.strip().startswith("#")]
        yield from ("\n".join(lines[first : first + 6]) for first in range(100, len(lines) - 6, 6))


def prose_of(*modules):
    """Paragraphs of documentation that show no code."""
    for module in modules:
        for text in (inspect.getdoc(one) or "" for one in vars(module).values() if callable(one)):
            paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
            yield from (one for one in paragraphs if 80 < len(one) < 300 and ">>>" not in one and "(" not in one)


def test_code_is_told_from_prose_and_not_from_other_code():
    """The card's easy pair, on the standard library; the states are a random model's."""
    code = list(code_of(argparse, tarfile, zipfile))[:200]
    prose = list(dict.fromkeys(prose_of(difflib, decimal, statistics, shutil, tempfile, logging, threading)))
    tokenizer = small_tokenizer([*code[:120], *prose], 600)
    model = make_llama(0, layers=2, hidden=256, vocab=len(tokenizer), max_position_embeddings=512)
    read = RowStates(model, tokenizer, 2)
    one = NoveltyDetector.fit(code[:120], read)
    middle = (one.weight.fitted + one.weight.held) / 2
    fresh, more, other = (np.abs(one.values(read(texts)) - middle) for texts in (code[120:160], code[160:], prose))
    assert roc_auc_score([0] * len(fresh) + [1] * len(other), [*fresh, *other]) > 0.95
    assert 0.3 < roc_auc_score([0] * len(fresh) + [1] * len(more), [*fresh, *more]) < 0.7
