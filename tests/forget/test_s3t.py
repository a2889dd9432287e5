"""S3T: what is left after a deletion has never seen the record, whatever the model; orders, their cost and how long they live."""

from __future__ import annotations

import copy
from itertools import permutations
from math import sqrt

import pytest
import torch
from sharding import KINDS, QUICK, answers, in_slice, make_hub_vit, make_s3t, make_vit, other_images, unsynced

from helpers.tiny import make_examples, make_images, make_llama, make_tokenizer
from unwrite.data import Examples
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget.sharded import increments, orders, training
from unwrite.forget.sharded.increments import LoraGroups
from unwrite.forget.sharded.s3t import S3T, SISA
from unwrite.forget.sharded.serving import combined
from unwrite.models.recipe import CausalTraining
from unwrite.nets import SmallCNN

__all__ = ["unsynced"]


@pytest.fixture
def images():
    return make_images()


# What is left of two trainings that differ in what is deleted.


def fits(kind, tmp_path, **settings):
    """Two trainings whose records differ in slice (0, 1), and a record of it that both have."""
    make_model, make_rows, options = KINDS[kind]
    rows = make_rows()
    one = make_s3t(**settings).fit(make_model(), rows, tmp_path / "one", **options)
    names = in_slice(one, 0, 1)
    if isinstance(rows, Examples):
        gone = {*names[1:]}
        ids = {row.index: name for row, name in zip(rows, one.ledger.plan.records, strict=True)}
        others = Examples([row for row in rows if ids[row.index] not in gone], "others")
    else:
        others = other_images(rows, names)
    two = make_s3t(**settings).fit(make_model(), others, tmp_path / "two", **options)
    return one, two, rows, names[0]


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_that_differ_in_a_slice_answer_alike_bit_for_bit_once_it_is_deleted(kind, tmp_path):
    one, two, rows, name = fits(kind, tmp_path, budget=2 if kind == "net" else 1)
    assert not torch.equal(answers(one, rows), answers(two, rows))
    for sharded in (one, two):
        assert sharded.delete(name).slices == ((0, 1),)
        assert sharded.served == {0: (0,), 1: (0, 1)}
    assert torch.equal(answers(one, rows), answers(two, rows))


def test_a_head_that_is_shared_between_stages_would_break_it(tmp_path, monkeypatch):
    own = LoraGroups.start

    def shared(self, base):
        model = own(self, base)
        for path in self.head:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, base.get_submodule(path))
        return model

    monkeypatch.setattr(LoraGroups, "start", shared)
    monkeypatch.setattr("unwrite.forget.sharded.model.loaded", lambda base, expected=None: base)
    one, two, rows, name = fits("net", tmp_path)
    for sharded in (one, two):
        sharded.delete(name)
    assert not torch.equal(answers(one, rows), answers(two, rows))


def test_retraining_what_is_off_gives_bit_for_bit_what_a_fit_without_the_record_gives(tmp_path, images):
    one = make_s3t().fit(make_vit(), images, tmp_path / "one")
    name = in_slice(one, 0, 1)[0]
    one.delete(name)
    assert one.retrain(images) == 0  # the queue is empty: every shard still answers
    assert one.retrain(images, shards=[0, 1]) == 3
    without = images.where(images.index != int(name))
    two = make_s3t().fit(make_vit(), without, tmp_path / "two")
    assert one.served == two.served == {0: (0, 1), 1: (0, 1)}
    assert torch.equal(one.predict(images), two.predict(images))


def test_nothing_of_the_callers_is_read_or_changed(tmp_path, images):
    """Neither the base, nor random state, nor the number of threads."""
    s3t, base, threads = make_s3t(n_shards=1, budget=1), make_vit(), torch.get_num_threads()
    before = copy.deepcopy(base.state_dict())
    first = s3t.fit(base, images, tmp_path / "one").predict(images)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(s3t.fit(base, images, tmp_path / "two").predict(images), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.parameters())


# What a stage is.


@pytest.mark.parametrize(("make_model", "depth"), [(make_vit, 5), (make_hub_vit, 4)])
def test_a_stage_changes_its_group_and_its_head_alone(make_model, depth, tmp_path, images, monkeypatch):
    seen = []
    fit_rows = training.fit_rows

    def watched(model, *args, **kwargs):
        whole = model.whole
        before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
        trainable = [name for name, parameter in whole.named_parameters() if parameter.requires_grad]
        fit_rows(model, *args, **kwargs)
        changed = {name for name, tensor in whole.state_dict().items() if not torch.equal(tensor, before[name])}
        seen.append((trainable, changed))

    monkeypatch.setattr(training, "fit_rows", watched)
    model = make_model(5) if depth == 5 else make_model()
    sharded = make_s3t(n_shards=1, budget=1).fit(model, images, tmp_path / "out")
    parts, size = sharded.parts, depth // 2
    assert parts.head == (("head",) if depth == 5 else ("classifier",))
    assert [parts.places(stage) for stage in (0, 1)] == [[depth - 1, depth - 2], [depth - 3, depth - 4]]
    for stage, (trainable, changed) in enumerate(seen):
        assert len(trainable) == 2 * size * len(parts.targets) + 2
        assert changed == {*trainable}
        blocks = {f"{parts.blocks}.{place}" for place in parts.places(stage)}
        inside = [name for name in trainable if "lora_" in name]
        assert all(any(name.startswith(f"{block}.") for block in blocks) for name in inside)


def switched_off(sharded, groups):
    """The model of the whole order with all later groups off, and the head of the last group that is on."""
    parts, (order,) = sharded.parts, sharded.ledger.plan.orders
    model = copy.deepcopy(sharded.stage(0, order))
    for stage in range(groups, parts.groups):
        for place in parts.places(stage):
            for module in model.get_submodule(f"{parts.blocks}.{place}").modules():
                if hasattr(module, "enable_adapters"):
                    module.enable_adapters(False)
    head = sharded.stage(0, order[:groups]).get_submodule(parts.head[0])
    model.get_submodule(parts.head[0]).load_state_dict(head.state_dict())
    return model


def prefixes_hold(sharded, images):
    (order,) = sharded.ledger.plan.orders
    return [
        torch.equal(
            sharded.probabilities(switched_off(sharded, groups), images),
            sharded.probabilities(sharded.stage(0, order[:groups]), images),
        )
        for groups in (1, len(order) - 1)
    ]


def test_with_later_groups_off_the_model_is_the_checkpoint_of_the_stage(tmp_path, images):
    sharded = make_s3t(n_shards=1, n_slices=5, budget=1).fit(make_vit(11), images, tmp_path / "out")
    assert prefixes_hold(sharded, images) == [True, True]


def by_substring(self, model, stage):
    parts = [f"{self.blocks}.{place}" for place in self.places(stage)]
    ends = tuple(self.targets)
    names = [name.replace(".base_layer", "") for name, _ in model.named_modules()]
    return sorted({name for name in names if name.endswith(ends) and any(part in name for part in parts)})


def test_layers_matched_by_substring_would_break_that_and_are_refused(tmp_path, images, monkeypatch):
    """blocks.1 is in blocks.10: the last slice's stage trains the first slice's layers again."""
    monkeypatch.setattr(LoraGroups, "targeted", by_substring)
    with pytest.raises(ModelError, match=r"blocks.10.qkv of this SmallViT is in two groups"):
        make_s3t(n_shards=1, n_slices=5, budget=1).fit(make_vit(11), images, tmp_path / "refused")
    monkeypatch.setattr(increments, "_check_adapted", lambda model, names, before: None)
    sharded = make_s3t(n_shards=1, n_slices=5, budget=1).fit(make_vit(11), images, tmp_path / "out")
    assert prefixes_hold(sharded, images) == [False, False]


def test_the_seed_and_the_rows_of_a_stage_are_of_its_own_prefix(tmp_path, images):
    few = make_s3t(n_shards=1, budget=1).fit(make_vit(), images, tmp_path / "few").ledger
    both = make_s3t(n_shards=1, budget=2).fit(make_vit(), images, tmp_path / "both").ledger
    assert {key: few.notes[key].weights for key in few.notes} == {key: both.notes[key].weights for key in few.notes}


# Orders.


@pytest.mark.parametrize(
    ("m", "n_slices", "expected"),
    [
        (5, 6, [68.5, 87.869, 99.547, 107.932, 114.479, 119.850]),
        (3, 4, [22.0, 29.4, 33.948, 37.239]),
        (2, 2, [6.0, 8.3333]),
    ],
)
def test_plans_live_as_long_as_the_closed_form_says(m, n_slices, expected):
    for budget, mean in enumerate(expected, 1):
        assert orders.expected_deletions(m, n_slices, budget) == pytest.approx(mean, abs=6e-4)
        counts = orders.simulated_deletions(m, orders.rotated_orders(n_slices, budget), 2000, seed=budget)
        assert abs(counts.mean() - mean) <= 3 * counts.std(ddof=1) / sqrt(2000)


def test_more_orders_than_slices_live_no_longer():
    assert orders.expected_deletions(3, 4, 24) == orders.expected_deletions(3, 4, 4)


def test_rotations_are_a_latin_square_and_the_full_budget_has_every_permutation_once():
    assert orders.rotations(4) == [(0, 1, 2, 3), (3, 0, 1, 2), (2, 3, 0, 1), (1, 2, 3, 0)]
    assert all(len({*column}) == 4 for column in zip(*orders.rotated_orders(4, 4), strict=True))
    assert sorted(orders.rotated_orders(4, 24)) == sorted(permutations(range(4)))
    assert all(len({*orders.rotated_orders(4, budget)}) == budget for budget in range(1, 25))


def test_a_deletion_cuts_an_order_before_its_slice():
    assert orders.truncated((2, 0, 3, 1), 3) == (2, 0)
    assert orders.surviving([(2, 0, 3, 1), (3, 1, 2, 0)], [3]) == [(2, 0)]
    assert orders.truncated((2, 0), 3) == (2, 0)
    for several in permutations((0, 3, 1), 3):
        assert orders.surviving([(2, 0, 3, 1), (2, 3, 0, 1)], [*several, several[0]]) == [(2,), (2,)]


def test_orders_share_the_stages_they_begin_with():
    assert len(orders.prefixes(orders.rotated_orders(4, 3))) == 12
    assert len(orders.prefixes(orders.rotated_orders(3, 6))) == 15
    for tree in (orders.prefixes(orders.rotated_orders(4, 24)), orders.prefixes([(2, 1, 0), (0, 1, 2)])):
        assert all(len(one) == 1 or one[:-1] in tree[:at] for at, one in enumerate(tree))


def test_matching_gives_a_latin_square_of_no_lower_score_than_rotation():
    risk = (0.4, 0.3, 0.2, 0.1)
    matched = orders.matched_orders(risk, 4)
    assert all(sorted(order) == [0, 1, 2, 3] for order in matched)
    assert all(len({*column}) == 4 for column in zip(*matched, strict=True))

    def total(chosen):
        return sum(orders.order_score(order, risk) for order in chosen)

    assert total(matched) >= total(orders.rotations(4))
    assert orders.matched_orders(risk, 1)[0][0] == 3  # the least likely slice first


def test_sampling_draws_different_orders_with_risky_slices_late():
    drawn = orders.drawn_orders((0.9, 0.5, 0.1, 0.1), 12, seed=0)
    assert len({*drawn}) == 12
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    firsts = [orders.drawn_orders((0.9, 0.5, 0.1, 0.1), 1, seed=seed)[0][0] for seed in range(60)]
    assert firsts.count(0) < firsts.count(1) < min(firsts.count(2), firsts.count(3))
    with pytest.raises(MethodError, match=r"budget is 6, and 10,000 draws gave 2 different orders"):
        orders.drawn_orders((1.0, 0.0, 0.0), 6, seed=0)


# Serving.


def test_a_shards_longest_prefix_serves_and_public_rows_decide_between_equals(tmp_path, images):
    public = make_images(seed=1)
    sharded = make_s3t(n_shards=1).fit(make_vit(), images, tmp_path / "out", validation=public)
    scores = {prefix: sharded.ledger.notes[0, prefix].score for prefix in ((0, 1), (1, 0))}
    assert sharded.served == {0: max(scores, key=lambda prefix: scores[prefix])}
    log_p = sharded.probabilities(sharded.stage(0, (0, 1)), public).log()
    mean = log_p.gather(1, public.labels[:, None]).mean()
    assert scores[0, 1] == pytest.approx(float(mean), abs=1e-5)


def test_shards_are_combined_as_the_mean_of_probabilities_or_by_vote(tmp_path, images):
    given = torch.tensor([[[0.9, 0.1, 0.0]], [[0.4, 0.6, 0.0]], [[0.4, 0.6, 0.0]]])
    assert torch.allclose(combined(given, "mean"), torch.tensor([[1.7, 1.3, 0.0]]) / 3)
    assert torch.allclose(combined(given, "vote"), torch.tensor([[1.0, 2.0, 0.0]]) / 3)
    sharded = make_s3t().fit(make_vit(), images, tmp_path / "out")
    each = torch.stack([sharded.probabilities(sharded.model(shard), images) for shard in (0, 1)])
    assert torch.equal(sharded.predict(images), each.mean(0))
    assert not torch.allclose(each[0], each[1])


def test_a_dead_shard_waits_in_the_queue_and_the_others_answer(tmp_path, images):
    sharded = make_s3t().fit(make_vit(), images, tmp_path / "out")
    sharded.delete(in_slice(sharded, 0, 0)[0])
    done = sharded.delete(in_slice(sharded, 0, 1)[0])
    assert done.queue == (0,)
    assert sharded.queue == [0]
    assert torch.equal(sharded.predict(images), sharded.probabilities(sharded.model(1), images))
    assert sharded.retrain(images) == 4
    assert sharded.queue == []


def test_language_models_write_with_the_mean_probability_with_and_without_a_cache(tmp_path):
    rows, tokenizer = make_examples("forget", 30), make_tokenizer()
    s3t = make_s3t(n_shards=3, budget=1, training=CausalTraining(epochs=1, lr=1e-2, batch_size=8))
    sharded = s3t.fit(make_llama(layers=2), rows, tmp_path / "out", processing_class=tokenizer)
    model = sharded.language_model()
    ids = torch.tensor([[3, 5, 6, 7], [0, 0, 9, 11]])
    mask = (ids != 0).long()
    with torch.no_grad():
        each = [sharded.model(shard)(ids, attention_mask=mask).logits.softmax(-1) for shard in range(3)]
        assert torch.allclose(model(ids, attention_mask=mask).logits.exp(), torch.stack(each).mean(0), atol=1e-6)
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(ids, use_cache=False, **settings)
    assert torch.equal(model.generate(ids, **settings), plain)
    assert model.generate(ids, num_beams=2, **settings).shape[0] == 2
    with pytest.raises(ModelError, match="is not saved apart from its ledger"):
        model.save_pretrained(tmp_path / "copy")
    with pytest.raises(MethodError, match="a language model has no classes to predict"):
        sharded.predict(rows)


def test_a_language_model_keeps_its_head_and_its_embeddings(tmp_path):
    sharded = make_s3t(n_shards=1, budget=1).fit(
        make_llama(layers=2), make_examples("forget", 24), tmp_path / "out", processing_class=make_tokenizer()
    )
    assert sharded.parts.head == ()
    assert len(sharded.parts.targets) == 7
    assert all("lora_" in entry["tensor"] for entry in sharded.certificate().tensors)


# Baselines.


def test_sisa_answers_from_the_checkpoint_before_and_trains_what_followed(tmp_path, images):
    sisa = SISA(n_shards=1, n_slices=3, training=QUICK)
    one = sisa.fit(make_vit(), images, tmp_path / "one")
    assert {note.prefix for note in one.ledger.notes.values()} == {(0,), (0, 1), (0, 1, 2)}
    assert one.certificate().tensors[0]["tensor"] == "blocks.0.down.bias"
    name = in_slice(one, 0, 1)[0]
    one.delete(name)
    assert one.served == {0: (0,)}
    assert one.retrain(images, shards=[0]) == 2
    two = sisa.fit(make_vit(), images.where(images.index != int(name)), tmp_path / "two")
    assert torch.equal(one.predict(images), two.predict(images))


def test_one_shard_of_one_slice_is_retraining(tmp_path, images):
    sharded = SISA(n_shards=1, n_slices=1, training=QUICK).fit(make_vit(), images, tmp_path / "out")
    sharded.delete(3)
    assert sharded.queue == [0]
    assert sharded.retrain(images) == 1


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_slices": 1}, "n_slices is 1; it must be a finite number, at least 2"),
        ({"n_shards": 0}, "n_shards is 0"),
        ({"budget": 0}, "budget is 0, and 4 slices have 24 orders"),
        ({"budget": 25}, "budget is 25, and 4 slices have 24 orders"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"combine": "nonsense"}, "unknown combine 'nonsense'"),
        ({"orders": "nonsense"}, "unknown orders 'nonsense'"),
        ({"orders": "matching"}, "orders='matching' needs probabilities"),
        ({"probabilities": (0.5, 0.5)}, "orders='rotation' takes no probabilities"),
        ({"orders": "sampling", "probabilities": (0.5, 0.5)}, "probabilities has 2 values for 4 slices"),
        ({"orders": "matching", "probabilities": (0.5, 0.2, 0.2, 1.1)}, "probabilities is 1.1"),
        ({"orders": "matching", "probabilities": (0.5, 0.2, 0.2, 0.1), "budget": 5}, "matching makes 4 orders"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        S3T(**settings)


def test_a_model_that_cannot_be_trained_so_is_refused(tmp_path, images):
    with pytest.raises(ModelError, match=r"blocks.0.norm of this SmallCNN is a BatchNorm2d with running statistics"):
        make_s3t().fit(SmallCNN(num_classes=3), images, tmp_path / "out")
    with pytest.raises(MethodError, match="n_slices is 5, and SmallViT has 4 blocks"):
        make_s3t(n_slices=5).fit(make_vit(), images, tmp_path / "out")
    with pytest.raises(
        MethodError, match=r"targets has 'q', which is no linear layer of blocks.0. It has: qkv, out, up"
    ):
        make_s3t(targets=("q",)).fit(make_vit(), images, tmp_path / "out")
    with pytest.raises(MethodError, match=r"head has 'blocks.3', which is no module behind the blocks"):
        make_s3t(head=("blocks.3",)).fit(make_vit(), images, tmp_path / "out")
    with pytest.raises(ModelError, match="texts need the model's tokenizer: processing_class"):
        make_s3t().fit(make_llama(), make_examples("forget", 8), tmp_path / "out")
    with pytest.raises(ModelError, match="SmallViT is neither a causal language model nor a sequence classifier"):
        make_s3t().fit(make_vit(), make_examples("forget", 8), tmp_path / "out", processing_class=make_tokenizer())
    assert not (tmp_path / "out").exists()


def test_records_that_cannot_be_told_apart_or_do_not_reach_are_refused(tmp_path, images):
    twice = images.joined(type(images)(images.pixels[:1], images.labels[:1], index=[99], classes=images.classes))
    with pytest.raises(DataError, match="the records '0' and '99' say the same, so deleting one would leave the other"):
        make_s3t().fit(make_vit(), twice, tmp_path / "out")
    with pytest.raises(DataError, match="rows 0 and 1 have one name, 'a'"):
        make_s3t().fit(make_vit(), images, tmp_path / "out", ids=["a"] * 48)
    with pytest.raises(DataError, match="2 ids are given for 48 records"):
        make_s3t().fit(make_vit(), images, tmp_path / "out", ids=["a", "b"])
    with pytest.raises(DataError, match=r"of 40 slices get no record of 48. Take fewer n_shards or n_slices"):
        make_s3t(n_shards=20).fit(make_vit(), images, tmp_path / "out")
    with pytest.raises(DataError, match="places has None for the record '0'"):
        make_s3t().fit(make_vit(), images, tmp_path / "out", places={})
    with pytest.raises(DataError, match="has targets, and shards are combined as probabilities"):
        make_s3t().fit(make_vit(), make_images(regression=True), tmp_path / "out")
