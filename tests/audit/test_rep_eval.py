"""Rep-eval: CKA and its bias, both agreements with the retrained model, downstream sets, and how a sweep ranks by both."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.tiny import make_image_recipe, make_image_split, make_images
from unwrite.audit import cka, evaluate, linear_cka, permuted_cka, top_classes
from unwrite.audit.images import representation as rep
from unwrite.audit.images.context import ImageContext
from unwrite.beds import images as bed_module
from unwrite.beds.images import DIGITS, ImageBed, forgetting_top
from unwrite.beds.text_beds import BEDS as TEXT_BEDS
from unwrite.bench.sweep import run_trial, trials_of
from unwrite.bench.sweep_kinds import AGAIN, Contender, sweep_kind
from unwrite.bench.sweep_table import markdown, rank_agreement, summary
from unwrite.data.images.downstream import alike, digit_downstream, has_loop, mosaics, parity, rotated
from unwrite.data.images.images import Images
from unwrite.data.images.sets import TrainTest, digits
from unwrite.data.images.splits import split_by_class
from unwrite.errors import DataError, MethodError, ModelError, Notice
from unwrite.forget import PseudoLabel
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.forget.vision.head_only import HeadOnly

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 7)), RNG.normal(size=(60, 5))
ROTATION = np.linalg.qr(RNG.normal(size=(7, 7)))[0]


# CKA


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka_is_1_of_itself_blind_to_rotation_scale_and_offset_and_symmetric(kernel: Any) -> None:
    assert cka(X, X, kernel=kernel) == pytest.approx(1)
    assert cka(X, -3 * X @ ROTATION + 2, kernel=kernel) == pytest.approx(1)
    assert cka(X, Y, kernel=kernel) == pytest.approx(cka(Y, X, kernel=kernel))
    assert 0 <= cka(X, Y, kernel=kernel) <= 1
    stretched = X * np.array([30.0, *[1.0] * 6])
    assert cka(X, stretched, kernel=kernel) < 0.9


def test_cka_of_one_dimension_is_the_squared_correlation() -> None:
    assert cka([[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]]) == pytest.approx(27 / 28)


@pytest.mark.parametrize(
    ("rows", "dims", "value"),
    [
        (64, 64, 0.492),
        (64, 512, 0.885),
        (64, 2048, 0.968),
        (512, 2048, 0.8),
    ],
)
def test_biased_cka_of_unrelated_features_is_high_and_debiased_is_not(rows: int, dims: int, value: float) -> None:
    rng = np.random.default_rng(rows + dims)
    draws = [rng.normal(size=(2, rows, dims)) for _ in range(16 if rows == 64 else 1)]
    assert value == pytest.approx(dims / (dims + rows - 1), abs=0.015)  # what biased CKA is of on average
    assert np.mean([cka(x, y) for x, y in draws]) == pytest.approx(dims / (dims + rows - 1), abs=0.01)
    values = [cka(x, y, debiased=True) for x, y in draws]
    assert np.mean(values) == pytest.approx(0, abs=0.03)
    assert max(map(abs, values)) < 0.1  # a single draw of 64 rows has a deviation of 0.02 to 0.03


@pytest.mark.slow
def test_biased_cka_of_as_many_rows_as_dims_is_a_half() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 2048, 2048))
    assert cka(x, y) == pytest.approx(0.5, abs=0.005)
    assert cka(x, y, debiased=True) == pytest.approx(0, abs=0.03)


def test_debiased_cka_is_1_of_itself_and_agrees_with_the_formula_of_hsic() -> None:
    """HSIC_1 of Song et al.: tr(KL) + (1'K1)(1'L1)/((n-1)(n-2)) - 2/(n-2) 1'KL1, zero diagonals."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        return float(np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum())

    grams = []
    for features in (X, Y):
        gram = features @ features.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    k, m = grams
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert cka(X, Y, debiased=True) == pytest.approx(expected, abs=1e-9)
    assert cka(X, X, debiased=True) == pytest.approx(1)


def test_feature_space_and_gram_form_agree() -> None:
    x, y = X - X.mean(0), Y - Y.mean(0)
    by_features = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    centring = np.eye(60) - 1 / 60
    k, m = centring @ (X @ X.T) @ centring, centring @ (Y @ Y.T) @ centring
    by_grams = (k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m))
    assert cka(X, Y) == pytest.approx(by_features, abs=1e-6)
    assert cka(X, Y) == pytest.approx(by_grams, abs=1e-6)
    assert linear_cka(X, Y).value == pytest.approx(by_features, abs=1e-6)


def test_the_rbf_kernel_has_the_median_squared_distance() -> None:
    squares = ((X[:, None] - X[None]) ** 2).sum(-1)
    gram = np.exp(-squares / (2 * np.median(squares[squares > 0])))
    other = ((Y[:, None] - Y[None]) ** 2).sum(-1)
    other = np.exp(-other / (2 * np.median(other[other > 0])))
    centring = np.eye(60) - 1 / 60
    k, m = centring @ gram @ centring, centring @ other @ centring
    assert cka(X, Y, kernel="rbf") == pytest.approx((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))


def test_batches_weigh_by_their_rows_and_a_few_last_rows_are_left_out() -> None:
    whole = [cka(X[:20], Y[:20]), cka(X[20:40], Y[20:40]), cka(X[40:50], Y[40:50])]
    assert rep.batched_cka(X[:50], Y[:50], batch=20) == pytest.approx(np.average(whole, weights=[20, 20, 10]))
    assert rep.batched_cka(X[:44], Y[:44], batch=20) == pytest.approx(np.mean(whole[:2]))
    assert rep.batched_cka(X, Y) == pytest.approx(cka(X, Y))


def test_the_null_value_is_that_of_shuffled_rows() -> None:
    wide = np.random.default_rng(5).normal(size=(64, 512))
    assert permuted_cka(wide, wide) == pytest.approx(0.885, abs=0.03)
    assert permuted_cka(wide, wide, debiased=True) == pytest.approx(0, abs=0.05)
    assert rep.batched_cka(wide, wide) == pytest.approx(1)
    assert permuted_cka(wide, wide) == permuted_cka(wide, wide)


# Aggregates


def test_aggregates_by_hand() -> None:
    u, r = {"forget": 0.2, "retain": 0.9}, {"forget": 0.0, "retain": 1.0}
    assert rep.agl(u, r) == pytest.approx(0.8 * 0.9)
    assert rep.agl(r, r) == 1
    assert rep.agr({"a": 0.5, "b": 1.0}, {"a": 0.9, "b": 0.5}, {"a": 0.7, "b": 0.5}) == pytest.approx(
        (0.5 * 0.8 + 1) / 2
    )
    assert rep.agr({"a": -0.1}, {"a": 1.0}, {"a": 1.0}) == 0
    assert rep.h_lr(1, 0.5) == pytest.approx(2 / 3)
    assert rep.h_lr(0.9, 0) == 0
    assert rep.h_lr(0, 0) == 0
    assert rep.h_lr(0.4, 0.4) == pytest.approx(0.4)


# Models


def rows_with_downstream() -> Any:
    """A class of three to forget, and two downstream sets with labels of their own."""
    unseen, other = make_images(seed=1), make_images(seed=2)
    bright = (other.pixels.mean((1, 2, 3)) > 0.5).long()
    split = make_image_split(test=unseen)
    sets = {
        "bright": Images(other.pixels, bright, classes=("dark", "bright")),
        "thirds": Images(other.pixels, other.labels, classes=("x", "y", "z")),
    }
    return replace(split, downstream=sets)


@pytest.fixture(scope="module")
def split() -> Any:
    return rows_with_downstream()


def net(seed: int) -> nn.Module:
    return make_image_recipe().build(seed).eval()


def contexts(split: Any, **models: nn.Module) -> dict[str, ImageContext]:
    return {role: ImageContext(model, split, cached=False) for role, model in models.items()}


@pytest.fixture(scope="module")
def headed(split: Any) -> nn.Module:
    """The net of seed 0 with its head alone changed."""
    return HeadOnly().apply(net(0), split.forget, split.retain, copy=True)


def test_a_change_of_the_head_alone_changes_answers_and_no_features(split: Any, headed: nn.Module) -> None:
    found = contexts(split, before=net(0), oracle=net(1), after=headed)
    after, before = found["after"], found["before"]
    assert not (after.logits("forget").argmax(1) == after.labels("forget")).any()
    for name in ("forget", "bright", "thirds"):
        assert rep.DownstreamLikeness(on=name, to="before")(after, found).value == pytest.approx(1, abs=1e-12)
    for name in ("bright", "thirds"):
        own, theirs = (rep.DownstreamNeighbours(on=name)(one, found) for one in (after, before))
        assert own.per_example == theirs.per_example
    metric = rep.AgreementOfFeatures()
    assert metric(after, found).value == metric(before, found).value
    of_logits = rep.DownstreamLikeness(on="bright", to="before", at="logits")
    assert of_logits(after, found).value < 0.99  # type: ignore[operator]
    closed = rep.DownstreamNeighbours(on="thirds", at="logits")
    assert closed(after, found).per_example != closed(before, found).per_example
    former = rep.FormerHead()
    assert former(after, found).value == former(before, found).value
    right = 100 * (before.logits("forget").argmax(1) == before.labels("forget")).mean()
    assert former(before, found).value == pytest.approx(right)


def test_the_retrained_model_agrees_with_itself_wholly_and_a_random_one_does_not(split: Any) -> None:
    found = contexts(split, oracle=net(1), after=copy.deepcopy(net(1)), other=net(2))
    metrics = (rep.AgreementOfLogits(), rep.AgreementOfFeatures(), rep.LogitsAndFeatures())
    for metric in metrics:
        assert metric(found["after"], found).value == pytest.approx(1)
    assert rep.AgreementOfFeatures()(found["other"], found).value < 0.95  # type: ignore[operator]


def test_agreements_are_made_of_their_parts_and_say_so(split: Any) -> None:
    found = contexts(split, oracle=net(1), after=net(0))
    after, oracle = found["after"], found["oracle"]
    gaps = [
        abs((a.logits(n).argmax(1) == a.labels(n)).mean() - (oracle.logits(n).argmax(1) == oracle.labels(n)).mean())
        for n in ("forget", "retain", "test forget", "test retain")
        for a in [after]
    ]
    answers = rep.AgreementOfLogits()(after, found)
    assert answers.value == pytest.approx(np.prod([1 - gap for gap in gaps]))
    parts = []
    for name in split.downstream:
        near = rep.DownstreamLikeness(on=name)(after, found)
        ours, theirs = (rep.DownstreamNeighbours(on=name)(one, found).value / 100 for one in (after, oracle))  # type: ignore[operator]
        parts.append(near.value * (1 - abs(ours - theirs)))  # type: ignore[operator]
        assert "in batches of 48 rows" in near.note
        assert "rows shuffled: " in near.note
    features = rep.AgreementOfFeatures()(after, found)
    assert features.value == pytest.approx(np.mean(parts))
    both = rep.LogitsAndFeatures()(after, found)
    assert both.value == pytest.approx(rep.h_lr(answers.value, features.value))  # type: ignore[arg-type]
    for score in (answers, features, both):
        assert "aggregate=library definition" in score.note


def test_a_collapsed_model_has_no_likeness_and_no_agreement(split: Any) -> None:
    flat = net(0)
    nn.init.zeros_(flat.blocks[-1].norm.weight)  # type: ignore[index,union-attr]
    nn.init.zeros_(flat.blocks[-1].norm.bias)  # type: ignore[index,union-attr]
    found = contexts(split, oracle=net(1), after=flat)
    near = rep.DownstreamLikeness(on="bright")(found["after"], found)
    assert near.value is None
    assert "collapsed" in near.note
    assert rep.AgreementOfFeatures()(found["after"], found).value == 0


def test_knn_is_of_a_fixed_split_and_whole_where_rows_are_their_own_neighbours() -> None:
    bank, asked = rep.downstream_split(100, 5, "a")
    again, _ = rep.downstream_split(100, 5, "a")
    assert bank.tolist() == again.tolist()
    assert (len(bank), len(asked)) == (80, 20)
    assert sorted([*bank, *asked]) == list(range(100))
    official = torch.utils.data.random_split(range(100), [80, 20], generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    assert [list(part.indices) for part in official] == [bank.tolist(), asked.tolist()]
    labels = np.arange(60) % 4
    from unwrite.audit import knn_accuracy

    assert knn_accuracy(X, labels, X, labels, k=1, distance="cosine").value == 100


# Downstream sets chosen by the top classes


def test_top_classes_are_the_most_predicted_ones_whatever_the_order() -> None:
    logits = np.full((9, 5), -1.0)
    logits[[0, 1, 2, 3], 4] = 2.0
    logits[[4, 5], 1] = 2.0
    logits[[6, 7], 3] = 5.0  # as often as 1, with more mass
    logits[8, 0] = 2.0
    assert rep.most_predicted(logits, 4) == (4, 3, 1, 0)
    order = np.random.default_rng(1).permutation(9)
    assert rep.most_predicted(logits[order], 5) == rep.most_predicted(logits, 5)
    assert len(set(rep.most_predicted(logits, 5))) == 5


def test_top_classes_of_a_model_do_not_depend_on_rows_order_or_batches() -> None:
    rows, model = make_images(seed=3), net(0)
    mixed = rows.subset(rows.index[torch.randperm(48, generator=torch.Generator().manual_seed(0))])
    chosen = top_classes(model.train(), rows, 2)
    assert chosen == top_classes(model, mixed, 2, batch_size=7)
    assert model.training
    logits = model.eval()(rows.pixels).detach()
    assert chosen == rep.most_predicted(logits, 2)
    assert set(chosen) <= {0, 1, 2}


def test_downstream_sets_of_digits_are_other_tasks_on_the_same_strokes() -> None:
    rows = digits().test
    sets = digit_downstream(rows, (3, 8))
    turned = sets["rotated"]
    assert torch.equal(turned.pixels[0, 0], torch.rot90(rows.pixels[0, 0]))
    assert torch.equal(turned.labels, rows.labels)  # type: ignore[arg-type]
    assert len(sets["mosaics"]) == 45 * 16
    assert sets["mosaics"].shape == rows.shape
    assert {0, 9} <= set(sets["mosaics"].labels.tolist())  # type: ignore[union-attr]
    loops = rows.labels[sets["loop"].labels == 1]  # type: ignore[index]
    assert set(loops.tolist()) == {0, 6, 8, 9}
    assert torch.equal(sets["parity"].labels, rows.labels % 2)  # type: ignore[operator,arg-type]
    three = sets["alike"]
    assert three.classes == ("3", "8")
    assert len(three) == int(torch.isin(rows.labels, torch.tensor([3, 8])).sum())  # type: ignore[arg-type]
    assert torch.equal(three.pixels[three.labels == 1], rows.pixels[rows.labels == 8])  # type: ignore[index]


def test_a_mosaic_has_the_halved_digits_and_the_last_digit_of_their_sum() -> None:
    pixels = (torch.arange(10.0) / 10)[:, None, None, None].expand(10, 1, 4, 4)
    ten = Images(pixels, torch.arange(10), classes=tuple("0123456789"))
    made = mosaics(ten, copies=1)
    left, right = (10 * made.pixels[:, 0, 0, at] for at in (0, 3))
    assert torch.equal((left + right).round().long() % 10, made.labels)  # type: ignore[arg-type]
    assert bool((left < right).all())
    assert len(made) == 45


# The bed and the sweep


def few_digits(seed: int) -> TrainTest:
    whole = digits(seed=seed)
    return TrainTest(whole.train.subset(whole.train.index[:300]), whole.test.subset(whole.test.index[:160]))


def tiny_top(data: TrainTest, seed: int) -> Any:
    sets = digit_downstream(data.test, (3, 8), seed)
    return replace(split_by_class(data.train, (3, 8), test=data.test, seed=seed), downstream=sets)


TINY = replace(
    forgetting_top((3, 8)), name="tiny top", data=few_digits, split=tiny_top, net={**DIGITS, "width": 4}, epochs=1
)
FEW = [
    Contender("pl", PseudoLabel(), {"max_steps": 4, "learning_rate": 0.05}),
    Contender("ft", FineTune(), {"max_steps": 4}),
]


def test_the_bed_forgets_what_the_target_sees_in_the_downstream_set(monkeypatch: Any) -> None:
    class Says(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            first = torch.arange(len(pixels)) % 3 > 0
            return torch.stack([(~first).float(), first.float(), *[torch.zeros(len(pixels))] * 8], 1)

    monkeypatch.setattr(bed_module, "fitted", lambda recipe, data, rows, seed: Says())
    made = forgetting_top((3, 8)).split(few_digits(0), 0)
    assert set(made.forget.labels.tolist()) == {0, 1}  # type: ignore[union-attr]
    assert not {0, 1} & set(made.retain.labels.tolist())  # type: ignore[union-attr]
    assert set(made.downstream) == {"rotated", "mosaics", "loop", "parity", "alike"}


def test_a_sweep_ranks_by_answers_and_by_features_with_the_retrained_again_as_ceiling() -> None:
    rows = [run_trial(trial) for trial in trials_of(FEW, [TINY], [0])]
    assert [row.get("error") for row in rows] == [None] * 6
    by_name = {row["contender"]: row["values"] for row in rows}
    assert list(by_name) == ["before", "retrained", AGAIN, "head-only", "pl", "ft"]
    assert (
        by_name["retrained"]["agl"] == by_name["retrained"]["agr"] == by_name["retrained"]["h_lr"] == pytest.approx(1)
    )
    assert by_name[AGAIN]["agr"] < 1
    assert by_name["head-only"]["agr"] == by_name["before"]["agr"]
    assert by_name["head-only"]["cka_forget_to_before"] == pytest.approx(1)
    entries = summary(rows)
    ranks = {entry["contender"]: entry["ranks"] for entry in entries}
    assert ranks["before"] == ranks[AGAIN] == {"agl": None, "agr": None}
    for name in ("agl", "agr"):
        first = max(("pl", "ft"), key=lambda one: by_name[one][name])
        assert ranks[first][name] == 1
    text = "\n".join(markdown(rows))
    assert "| rank | model | rank by answers | rank by features | AGL | AGR | H-LR |" in text


def entry(name: str, agl: float, agr: float, kind: str = "method") -> dict[str, Any]:
    values = {"agl": agl, "agr": agr, "h_lr": 2 * agl * agr / (agl + agr)}
    return {"bed": "b", "contender": name, "kind": kind, "seed": 0, "values": values, "cost": 1.0, "seconds": None}


def test_two_rankings_are_compared_by_kendalls_tau_over_methods_alone() -> None:
    rows = [entry("before", 0.1, 0.99, "reference"), entry("a", 0.9, 0.5), entry("b", 0.8, 0.9), entry("c", 0.7, 0.6)]
    entries = summary(rows)
    ranks = {one["contender"]: one["ranks"] for one in entries}
    assert [ranks[name]["agl"] for name in "abc"] == [1, 2, 3]
    assert [ranks[name]["agr"] for name in "abc"] == [3, 1, 2]
    tau, methods = rank_agreement(entries)  # type: ignore[misc]
    assert (tau, methods) == (pytest.approx(-1 / 3), 3)
    assert "so they rank differently" in "\n".join(markdown(rows))
    alike_rows = [entry("a", 0.9, 0.9), entry("b", 0.8, 0.8), entry("c", 0.7, 0.8)]
    assert [one["ranks"]["agr"] for one in summary(alike_rows)] == [1, 2, 2]
    assert "so they rank alike" in "\n".join(markdown(alike_rows))
    assert rank_agreement(summary(rows[:2])) is None
    refused = {**entry("d", 0.1, 0.1), "error": "no"}
    assert [one["ranks"]["agl"] for one in summary([*rows, refused]) if one["contender"] == "d"] == [None]


# An audit, and what it is told


def test_an_audit_says_where_the_answers_alone_were_changed(split: Any, headed: nn.Module) -> None:
    report = evaluate(headed, split, suite="representation", before=net(0), oracle=net(1))
    assert {"agl", "agr", "h_lr", "cka_bright", "cka_bright_to_before", "knn_thirds"} <= set(report.columns["after"])
    assert report.rows["bright"] == 48
    assert report.value("agr", "oracle") == pytest.approx(1)
    assert report.value("agr") == report.value("agr", "before")
    text = (
        " ".join(clause.text for clause in report.summary.clauses)
        if hasattr(report.summary, "clauses")
        else str(report.summary)
    )
    assert "by its answers and" in text


def test_test_rows_stand_in_where_there_is_no_downstream_set() -> None:
    split = make_image_split(test=make_images(seed=1))
    found = contexts(split, oracle=net(1), after=net(0))
    score = rep.AgreementOfFeatures()(found["after"], found)
    assert "the test rows stand in" in score.note
    assert 0 < score.value <= 1  # type: ignore[operator]


def test_a_retrained_model_that_knows_the_forgotten_class_is_warned_of(split: Any) -> None:
    knows = net(0)
    with torch.no_grad():
        knows.head.bias[1] = 50.0  # type: ignore[index,union-attr]
    found = contexts(split, oracle=knows, after=net(1))
    with pytest.warns(Notice, match="right on 100.0 % of the forgotten classes' rows"):
        rep.AgreementOfLogits()(found["after"], found)


def test_pseudo_labels_are_the_classes_to_be_kept_that_the_model_likes_best(split: Any) -> None:
    from unwrite.forget.engine.images.work import ImageWork

    model, seen = net(0), []

    class Spy(PseudoLabel):
        def relabelled(self, work: ImageWork) -> Images:
            rows = super().relabelled(work)
            seen.append((rows, work.cost.forwards))
            return rows

    before = copy.deepcopy(model)
    Spy().apply(model, split.forget, split.retain, args={"max_steps": 1, "learning_rate": 0.1})
    logits = before(split.forget.pixels).detach()
    logits[:, 1] = -torch.inf
    rows, forwards = seen[0]
    assert torch.equal(rows.labels, logits.argmax(1))
    assert forwards == len(split.forget)
    assert not torch.equal(before.head.weight, model.head.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(DataError, match="PseudoLabel forgets whole classes, and the retain set still has rows of 1"):
        PseudoLabel().apply(net(0), split.forget.subset(split.forget.index[:3]), make_images(seed=1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: cka(X, Y[:5]), DataError, r"same rows \(x 60, y 5\)"),
        (lambda s: cka(X[:3], Y[:3], debiased=True), DataError, "needs 4 rows or more, and there are 3"),
        (lambda s: cka(X, np.ones((60, 2))), DataError, "the y features are the same for all 60 rows"),
        (lambda s: cka(X, Y, kernel="poly"), MethodError, "unknown CKA kernel 'poly'"),  # type: ignore[arg-type]
        (lambda s: rep.batched_cka(X, Y, batch=3), MethodError, "batch is 3"),
        (lambda s: rep.AgreementOfFeatures(batch=2), MethodError, "batch is 2"),
        (lambda s: rep.AgreementOfFeatures(at="pool"), MethodError, "unknown spot of features 'pool'"),  # type: ignore[arg-type]
        (lambda s: rep.AgreementOfFeatures(k=0), MethodError, "k is 0"),
        (
            lambda s: rep.downstream_split(5, 5, "few"),
            DataError,
            "downstream set 'few' has 5 rows, a bank of 4, for k = 5",
        ),
        (lambda s: rep.most_predicted(np.eye(3), 4), MethodError, "n is 4, and there are 3 classes"),
        (lambda s: rep.agl({"a": 1.2}, {"a": 1.0}), DataError, "the figure of a is 1.2"),
        (lambda s: rep.agl({"a": 1.0}, {"b": 1.0}), DataError, "only one of them has: a, b"),
        (lambda s: rep.agr({}, {}, {}), DataError, "only one of them has: none"),
        (lambda s: rep.h_lr(1.5, 1), DataError, "AGL is 1.5"),
        (lambda s: replace(s, downstream={"test": s.test}), DataError, "downstream set can't be called 'test'"),
        (lambda s: replace(s, downstream={"t": make_images(regression=True, seed=1)}), DataError, "'t' has targets"),
        (
            lambda s: evaluate(net(0), s, suite="representation"),
            MethodError,
            "suite 'representation' needs a retrained model",
        ),
        (
            lambda s: evaluate(nn.Sequential(nn.Flatten(), _Cubes()), s, suite="representation", oracle=net(1)),
            ModelError,
            "no linear layer of Sequential takes",
        ),
        (lambda s: alike(digits().test, (3,)), DataError, "no task to tell apart"),
        (lambda s: mosaics(s.forget), DataError, "mosaics need rows of all ten digits"),
        (lambda s: rotated(make_images(regression=True)), DataError, "a downstream task is made of labels"),
        (
            lambda s: sweep_kind(TINY).audited(TINY, ("tofu",)),
            MethodError,
            "suite 'tofu' is for text; bed tiny top is of images",
        ),
        (
            lambda s: trials_of([Contender(AGAIN)], [next(iter(TEXT_BEDS.values()))], [0]),
            MethodError,
            "is there for beds of images alone",
        ),
    ],
)
def test_refusals_name_the_value(call: Any, error: Any, message: str, split: Any) -> None:
    with pytest.raises(error, match=message):
        call(split)


class _Cubes(nn.Module):
    """A head that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows**3).cumsum(1)[:, :3] * self.weight[:1]


def test_regressors_have_no_agreement() -> None:
    split = make_image_split(regression=True, test=make_images(regression=True, seed=1))
    model, oracle = (make_image_recipe(regression=True).build(seed).eval() for seed in (0, 1))
    with pytest.raises(MethodError, match="no metric of suite 'representation' applies"):
        evaluate(model, split, suite="representation", oracle=oracle)


def test_labels_of_loops_and_parity_name_their_classes() -> None:
    assert has_loop(digits().test).classes == ("open", "loop")
    assert parity(digits().test).classes == ("even", "odd")


def test_a_bed_with_suites_measures_theirs_alone() -> None:
    bed = ImageBed(replace(TINY, suites=("representation", "vision"), metrics=()), 0)
    names = [metric.name for metric in bed.metrics]
    assert len(set(names)) == len(names)
    assert {"agl", "avg_gap"} <= set(names)
    assert "avg_gap" not in {metric.name for metric in ImageBed(TINY, 0).metrics}


def test_where_features_are_compared_target_oracle_and_second_oracle_begin_from_three_seeds(monkeypatch: Any) -> None:
    seeds = []

    def train(recipe: Any, data: Any, rows: Any, seed: int) -> nn.Module:
        seeds.append(seed)
        return net(0)

    monkeypatch.setattr(bed_module, "fitted", train)
    for one in (TINY, replace(TINY, oracle_from=0)):
        bed = ImageBed(one, 5)
        _ = bed.before, bed.oracle, bed.again
    assert seeds == [5, 1005, 2005, 5, 5, 1005]
    chosen = sweep_kind(TINY).audited(bed_module.BEDS["digits/class"], ("representation",))
    assert chosen.oracle_from == 1000
    assert AGAIN in [one.name for one in sweep_kind(chosen).references(chosen)]
    assert AGAIN not in [one.name for one in sweep_kind(TINY).references(bed_module.BEDS["digits/class"])]
