"""Noise of clusters: what it reads, what it keeps to, and whose centre it carries to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from clustered import SMALL, Seer, painted, quietly, reader_of, training_of

from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError, NotFinite, Notice
from unwrite.runs import hash_model
from unwrite.runs.progress import progress
from unwrite.shield import PictureFeatures, UnlearnableClusters
from unwrite.shield.unlearnable_clusters import bounded, centre_loss, nearest


@pytest.fixture(scope="module")
def seer():
    return Seer().eval()


@pytest.fixture(scope="module")
def shield(seer):
    return UnlearnableClusters(
        key=5,
        surrogate=seer,
        n_clusters=4,
        width=8,
        blocks=1,
        downsamplings=1,
        steps=40,
        lr=5e-3,
        batch_size=16,
        eps=32 / 255,
    )


@pytest.fixture(scope="module")
def protection(shield):
    return shield.fit(painted())


# 1: no labels.


@quietly
def test_labels_are_not_read_and_relabelling_changes_no_byte(seer, tmp_path):
    shield = UnlearnableClusters(key=5, surrogate=seer, **SMALL)
    pixels, labels = painted(24), np.arange(24) % 5
    assert shield.reads == "nothing"
    plain = shield.fit(pixels)
    for others in (labels, labels[::-1].copy(), ["a caption"] * 24):
        again = shield.fit(pixels, others)
        assert all(np.array_equal(plain.state[name], again.state[name]) for name in plain.state)
        assert again.facts == plain.facts
        assert np.array_equal(again.transform(pixels, others), plain.transform(pixels))
    one, other = (Images(pixels.astype(np.float32) / 255, torch.tensor(one)) for one in (labels, labels * 0))
    assert torch.equal(shield.fit_transform(one).pixels, shield.fit_transform(other).pixels)


# 2: budget and noise of clusters.


def test_saved_pictures_stay_within_the_budget_and_a_cluster_has_one_noise(shield, protection):
    pixels, middle = painted(), np.full((48, 3, 16, 16), 128, dtype=np.uint8)
    change = protection.transform(pixels).astype(int) - pixels
    assert np.abs(change / 255).max() <= shield.eps + 0.5 / 255
    assert np.abs(protection.noise_).max() <= np.float32(shield.eps)
    assert len(np.unique(protection.noise_.reshape(4, -1), axis=0)) == 4
    inside = (pixels > 40) & (pixels < 215)
    for cluster in range(4):
        rows = (protection.assignment_ == cluster).nonzero()[0]
        expected = np.rint(protection.noise_[cluster].astype(np.float64) * 255)
        assert len(rows) > 1
        assert all((change[row][inside[row]] == expected[inside[row]]).all() for row in rows)
    assert len(np.unique(protection.transform(middle).reshape(48, -1), axis=0)) == 1  # all alike, so of one cluster


def test_the_output_of_the_generator_is_cut_off_at_the_budget_and_not_scaled():
    drawn = torch.tensor([[-0.9, -0.02, 0.0, 0.05, 0.3]])
    assert torch.equal(bounded(drawn, 0.0625, "linf"), torch.tensor([[-0.0625, -0.02, 0.0, 0.05, 0.0625]]))
    scaled = bounded(drawn, 0.0625, "l2")
    assert scaled.square().mean().sqrt().item() == pytest.approx(0.0625)
    assert (scaled[0, 4] / scaled[0, 3]).item() == pytest.approx(6, rel=1e-5)


@quietly
def test_noise_by_its_length_has_that_root_mean_square_and_no_bound_of_a_value(seer):
    shield = UnlearnableClusters(key=5, surrogate=seer, norm="l2", eps=0.05, **SMALL)
    protection = shield.fit(painted(24))
    assert np.sqrt((protection.noise_**2).mean((1, 2, 3))) == pytest.approx([0.05] * 3, rel=1e-4)
    assert np.abs(protection.noise_).max() > 0.06
    change = protection.transform(painted(24)).astype(int) - painted(24)
    assert np.abs(change).max() > 0.06 * 255
    assert shield.budget == 255
    assert replace(shield, eps=0.0).budget == 0


# 3: targets.


@pytest.mark.parametrize(("clusters", "offset"), [(2, 1), (2, 3), (5, 2), (10, 1), (10, 17)])
def test_targets_are_a_permutation_without_a_fixed_place(clusters, offset):
    targets = UnlearnableClusters(key=1, n_clusters=clusters, offset=offset).targets
    assert sorted(targets) == list(range(clusters))
    assert all(target != cluster for cluster, target in enumerate(targets))
    assert targets[0] == offset % clusters


def test_an_offset_that_leads_every_cluster_to_itself_is_refused():
    with pytest.raises(
        MethodError, match=r"offset is 20 and n_clusters 10, so each cluster would be carried to its own"
    ):
        UnlearnableClusters(key=1, offset=20)


# 4: the loss.


def test_the_loss_by_hand():
    features, centre = torch.zeros(1, 2), torch.tensor([np.log(3), 0.0]).float()
    assert centre_loss(features, centre).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-6)
    assert centre_loss(features, centre).item() == pytest.approx(0.13081, abs=1e-5)
    assert centre_loss(torch.cat([features, centre[None] + 2]), centre).item() == pytest.approx(0.13081 / 2, abs=1e-5)


def test_the_loss_is_nothing_at_the_centre_and_at_what_lies_a_constant_from_it():
    centre = torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert centre_loss(torch.stack([centre, centre + 3.5]), centre).item() == pytest.approx(0, abs=1e-6)


# 5: what it does to the surrogate.


def test_noise_carries_most_pictures_of_a_cluster_to_the_other_centre_and_random_noise_does_not(
    shield, protection, seer
):
    assert protection.targets_ == [1, 2, 3, 0]
    before, after = np.array(protection.kl_).T
    assert after.mean() < before.mean() / 4
    random = 32 / 255 * np.random.default_rng(0).choice([-1, 1], size=protection.noise_.shape).astype(np.float32)
    arms = {"noise": protection, "random": replace(protection, state={**protection.state, "noise": random})}
    wanted = np.array(shield.targets)[protection.assignment_]
    centres = torch.from_numpy(protection.centres_)
    carried, distance = {}, {}
    for name, arm in arms.items():
        features = torch.from_numpy(reader_of(seer).read(arm.transform(painted()), [""] * 48))
        losses = torch.stack([torch.stack([centre_loss(row[None], centre) for centre in centres]) for row in features])
        carried[name] = (losses.argmin(1).numpy() == wanted).mean()
        distance[name] = losses[range(48), wanted].mean().item()
    assert carried["noise"] >= 0.75
    assert carried["random"] <= 0.25
    assert distance["noise"] == pytest.approx(after.mean(), rel=0.3)  # after rounding to bytes
    assert distance["random"] > 3 * distance["noise"]


def test_what_is_said_of_the_effect_is_measured_on_pictures_that_are_not_flipped(shield, protection, seer):
    features = torch.from_numpy(reader_of(seer).read(painted(), [""] * 48))
    for cluster in range(4):
        members = protection.assignment_ == cluster
        centre = torch.from_numpy(protection.centres_[shield.targets[cluster]])
        assert protection.kl_[cluster][0] == pytest.approx(centre_loss(features[members], centre).item(), rel=1e-4)


def test_noise_without_an_effect_is_told(seer):
    shield = UnlearnableClusters(key=5, surrogate=seer, lr=1e-9, min_lr=0.0, eps=0.5 / 255, **SMALL)
    with pytest.warns(Notice, match=r"the noise of \d of 3 clusters carries their pictures no nearer"):
        shield.fit(painted(24))


# 6: nothing to do, and what can't be done.


@quietly
def test_no_budget_gives_the_quantised_pictures(seer):
    floats = np.random.default_rng(0).random((24, 3, 16, 16)).astype(np.float32)
    shield = UnlearnableClusters(key=5, surrogate=seer, eps=0.0, **SMALL)
    assert np.array_equal(shield.fit(floats).noise_, np.zeros((3, 3, 16, 16)))
    protected = shield.fit(np.rint(floats * 255).astype(np.uint8)).transform(np.rint(floats * 255).astype(np.uint8))
    assert np.array_equal(protected, np.rint(floats * 255))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_clusters": 1}, "n_clusters is 1; it must be a whole number, at least 2"),
        ({"n_clusters": 2.5}, "n_clusters is 2.5; it must be a whole number, at least 2"),
        ({"eps": 16}, "eps is 16, and pixels are in 0..1. For 8 levels of 255 give"),
        ({"norm": "l1"}, "norm is 'l1'; use one of 'linf', 'l2'"),
        ({"train_on": "class"}, "train_on is 'class'; use one of 'cluster', 'all'"),
        ({"resize": "image"}, "resize is 'image'; use one of 'noise', 'refuse'"),
        ({"crop": 0.0}, "crop is 0.0; it must be above 0 and at most 1"),
        ({"image_size": 3}, "image_size is 3; it must be a whole number, at least 4"),
        ({"offset": 0}, "offset is 0; it must be a whole number, at least 1"),
        ({"steps": 0}, "steps is 0; it must be a whole number, at least 1"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"device": "tpu9"}, "device is 'tpu9'; it must be a device of torch"),
        ({"surrogate": "small-cnn"}, "surrogate is 'small-cnn', which is no folder here and no name of the Hub"),
        ({"surrogate": 3}, "surrogate is 3; give a folder or a name of the Hub, a module, or a function"),
        ({"surrogate": Seer()}, r"the surrogate Seer is in training mode \(all of it\), .* Call .eval\(\) on it"),
    ],
)
def test_refuses_settings_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        UnlearnableClusters(key=1, **fields)


def test_a_surrogate_that_was_put_into_training_mode_later_is_refused():
    model = Seer().eval()
    shield = UnlearnableClusters(key=1, surrogate=model, **SMALL)
    model.norm.train()
    with pytest.raises(MethodError, match=r"Seer is in training mode \(norm\)"):
        shield.fit(painted(12))


def test_refuses_fewer_pictures_than_clusters_and_clusters_that_would_be_empty(seer):
    shield = UnlearnableClusters(key=1, surrogate=seer, **{**SMALL, "n_clusters": 5})
    with pytest.raises(DataError, match=r"images has 4 pictures, of which 5 clusters can't be made"):
        shield.fit(painted(4))
    with pytest.raises(DataError, match=r"3 of 5 clusters are empty: the surrogate sees 2 different pictures among 8"):
        shield.fit(np.repeat(painted(2), 4, axis=0))


def test_refuses_pictures_outside_their_range_and_of_channels_that_the_surrogate_does_not_take(seer):
    shield = UnlearnableClusters(key=1, surrogate=seer, **SMALL)
    with pytest.raises(DataError, match=r"image 0 has a pixel of 1.5. Give uint8, or floats in 0..1"):
        shield.fit(np.full((6, 3, 16, 16), 1.5, dtype=np.float32))
    with pytest.raises(ModelError, match=r"Seer doesn't take the pixels \[2, 1, 16, 16\]"):
        shield.fit(painted(12)[:, :1])
    protection = shield.fit(painted(12))
    with pytest.raises(DataError, match=r"image 0 has shape \[1, 16, 16\] and the noise \[3, 16, 16\]"):
        protection.transform(painted(12)[:, :1])


def test_refuses_features_that_are_no_numbers():
    model = Seer().eval()
    shield = UnlearnableClusters(key=1, surrogate=PictureFeatures(model, "fc"), **SMALL)
    with torch.no_grad():
        model.second.bias[3] = float("nan")
    with pytest.raises(ModelError, match=r"Seer gives a feature that is no finite number for image 0"):
        shield.fit(painted(12))


@quietly
def test_a_loss_that_is_no_number_ends_the_training(seer, monkeypatch):
    training = training_of(UnlearnableClusters(key=1, surrogate=seer, **SMALL), seer, painted(12))
    training.target[0] = float("nan")
    with pytest.raises(NotFinite, match=r"the generator's loss is nan. Lower lr"), progress(3, "x") as bar:
        training.run(bar)


# 7: what changes and what does not.


@quietly
def test_training_changes_the_generator_and_neither_weights_nor_statistics_of_the_surrogate(seer):
    shield = UnlearnableClusters(key=1, surrogate=seer, **SMALL)
    training = training_of(shield, seer, painted(24))
    surrogate, generator = hash_model(seer), hash_model(training.generator)
    with progress(3, "x") as bar:
        training.run(bar)
    assert hash_model(training.generator) != generator
    shield.fit(painted(24)).transform(painted(24))
    assert hash_model(seer) == surrogate
    assert not any(part.training for part in seer.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in seer.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in seer.modules())


# Clusters and who is in them.


@quietly
def test_pictures_it_was_fitted_to_have_the_noise_of_their_cluster_and_new_ones_of_the_nearest(protection, seer):
    pixels, new = painted(), painted(20, seed=9)
    reader = reader_of(seer)
    assert np.array_equal(nearest(reader.read(pixels, [""] * 48), protection.centres_), protection.assignment_)
    features = reader.read(new, [""] * 20)
    distances = ((features[:, None] - protection.centres_[None]) ** 2).sum(-1)
    levels = np.rint(protection.noise_[distances.argmin(1)].astype(np.float64) * 255).astype(int)
    assert np.array_equal(protection.transform(new), np.clip(new + levels, 0, 255))
    assert len({*distances.argmin(1)}) == 4
    reverse = protection.transform(pixels[::-1].copy())
    assert np.array_equal(reverse[::-1], protection.transform(pixels))
