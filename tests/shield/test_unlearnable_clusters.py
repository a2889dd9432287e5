"""Noise of clusters: what it reads, what it keeps to, whose centre it carries to, and agreement with the official loop."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.cluster
import torch
from PIL import Image
from torch import nn

from helpers.formula import filled
from helpers.pictures import Linear, contents, make_pictures
from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError, NotFinite, Notice
from unwrite.runs import hash_model
from unwrite.runs.progress import progress
from unwrite.shield import PictureFeatures, Protection, UnlearnableClusters, protect_folder
from unwrite.shield import unlearnable_clusters as method
from unwrite.shield.engine.features import FeatureReader
from unwrite.shield.engine.folders import FolderPictures
from unwrite.shield.engine.pictures import ArrayPictures
from unwrite.shield.unlearnable_clusters import GeneratorTraining, bounded, centre_loss, nearest

OFFICIAL = json.loads((Path(__file__).parent / "official_uc.json").read_text(encoding="utf-8"))["numbers"]
SMALL = {"n_clusters": 3, "width": 4, "blocks": 1, "downsamplings": 1, "steps": 3, "batch_size": 16}
quietly = pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")


class Seer(nn.Module):
    """Two convolutions with batch normalisation, pooled: sees colours and edges; its features differ enough for a softmax."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 12, 3, padding=1)
            self.norm = nn.BatchNorm2d(12)
            self.second = nn.Conv2d(12, 12, 3, 2, padding=1)
            self.fc = nn.Linear(12, 4)
        self.norm.running_mean.fill_(0.1)

    def forward(self, pixels):
        x = torch.relu(self.norm(self.first(pixels - 0.5)))
        return self.fc(40 * torch.relu(self.second(x)).mean((2, 3)))


def painted(rows=48, side=16, seed=0):
    """Uint8 pictures of four colours that lie near one another, with noise."""
    random = np.random.default_rng(seed)
    tones = np.array([[145, 100, 100], [100, 145, 100], [100, 100, 145], [140, 140, 100]])[np.arange(rows) % 4]
    return np.clip(tones[:, :, None, None] + random.normal(0, 12, (rows, 3, side, side)), 0, 255).astype(np.uint8)


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


def reader_of(seer, side=16, crop=1.0):
    return FeatureReader(PictureFeatures(seer), 3, side, crop, "cpu")


def training_of(shield, seer, pixels, cluster=0):
    pictures = ArrayPictures(pixels, None, "nothing")
    reader = reader_of(seer)
    centres, assignment = shield.clustered(reader.read_all(pictures))
    torch.manual_seed(1)
    return GeneratorTraining(shield, reader, pictures, assignment, centres, cluster)


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


def test_clusters_are_the_best_of_scikit_learns_runs_on_features_as_they_are(monkeypatch):
    asked, own = [], sklearn.cluster.KMeans
    monkeypatch.setattr(
        sklearn.cluster, "KMeans", lambda *given, **how: asked.append((given, how)) or own(*given, **how)
    )
    features = np.random.default_rng(0).normal(5, 3, (60, 6)).astype(np.float32)
    shield = UnlearnableClusters(key=4, n_clusters=4, n_init=3)
    centres, assignment = shield.clustered(features)
    for cluster in range(4):
        assert centres[cluster] == pytest.approx(features[assignment == cluster].mean(0), abs=1e-4)
    again = shield.clustered(features)
    replace(shield, key=5).clustered(features)
    assert np.array_equal(again[0], centres)
    assert np.array_equal(again[1], assignment)
    seeds = [how["random_state"] for _, how in asked]
    assert [(given, how["n_init"]) for given, how in asked] == [((4,), 3)] * 3
    assert seeds[0] == seeds[1] != seeds[2]


@quietly
def test_a_generator_is_trained_on_its_cluster_or_on_all(seer, monkeypatch):
    seen = []
    views = GeneratorTraining.views
    monkeypatch.setattr(
        GeneratorTraining,
        "views",
        lambda self, rows, centred=False: (
            centred or seen.append((self.members, rows)),
            views(self, rows, centred=centred),
        )[1],
    )
    fields = {**SMALL, "steps": None, "epochs": 2, "batch_size": 5}
    protection = UnlearnableClusters(key=1, surrogate=seer, **fields).fit(painted(24))
    sizes = np.bincount(protection.assignment_)
    assert len(seen) == 2 * sum(-(-size // 5) for size in sizes)
    assert all(np.isin(rows, members).all() for members, rows in seen)
    seen.clear()
    UnlearnableClusters(key=1, surrogate=seer, train_on="all", **fields).fit(painted(24))
    assert len(seen) == 3 * 2 * 5
    assert np.concatenate([rows for _, rows in seen[:5]]).tolist() == list(range(24))


@quietly
def test_each_cluster_has_a_fixed_input_and_a_generator_of_its_own(seer):
    noise = UnlearnableClusters(key=1, surrogate=seer, **{**SMALL, "steps": 1}).fit(painted(24)).noise_
    assert all(np.abs(noise[a] - noise[b]).mean() > 0.01 for a, b in ((0, 1), (1, 2), (0, 2)))
    training = training_of(UnlearnableClusters(key=1, surrogate=seer, **SMALL), seer, painted(24))
    before = training.input.clone()
    assert 0 <= before.min() < 0.1 < 0.9 < before.max() <= 1
    with progress(3, "x") as bar:
        final = training.run(bar)
    assert torch.equal(training.input, before)
    assert torch.equal(final, training.noise())


# Sizes.


@quietly
def test_pictures_keep_their_size_and_the_noise_is_brought_to_it(seer, tmp_path):
    for number, (height, width) in enumerate([(16, 16), (24, 40), (33, 20), (16, 16)] * 3):
        path = tmp_path / "in" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = painted(12, 1, number)[number, :, 0, 0]
        Image.fromarray(np.broadcast_to(tone, (height, width, 3)).astype(np.uint8)).save(path)
    shield = UnlearnableClusters(key=1, surrogate=seer, image_size=16, **SMALL)
    release = protect_folder(shield, tmp_path / "in", tmp_path / "out")
    before, after = FolderPictures(tmp_path / "in", "nothing"), FolderPictures(tmp_path / "out", "nothing")
    assert [before.shape(row) for row in range(12)] == [after.shape(row) for row in range(12)]
    protection = release.protection
    assert protection.crop_ == 224 / 256
    reader = reader_of(seer, crop=224 / 256)
    row = next(row for row in range(12) if before.shape(row) == (3, 24, 40))
    cluster = nearest(reader.read(before.pixels([row]), [""]), protection.centres_)[0]
    levels = np.rint(protection.noise_[cluster].astype(np.float64) * 255)
    places = np.arange(24) * 16 // 24, np.arange(40) * 16 // 40
    stretched = levels[:, places[0]][:, :, places[1]]
    assert np.array_equal(after.pixels([row])[0], np.clip(before.pixels([row])[0] + stretched, 0, 255))
    with pytest.raises(DataError, match=r"this noise is made for one size"):
        protect_folder(replace(shield, resize="refuse"), tmp_path / "in", tmp_path / "no")


@quietly
def test_pictures_of_another_size_are_refused_where_noise_is_not_to_be_brought_to_them(seer):
    shield = UnlearnableClusters(key=1, surrogate=seer, resize="refuse", **SMALL)
    protection = shield.fit(painted(12))
    with pytest.raises(DataError, match=r"image 0 has shape \[3, 20, 20\] and the noise \[3, 16, 16\]"):
        protection.transform(painted(12, side=20))
    with pytest.raises(DataError, match=r"image 0 is not of the noise's size, 12x12"):
        replace(shield, image_size=12).fit(painted(12))


@quietly
def test_a_few_pictures_of_a_folder_are_in_memory_at_a_time(seer, tmp_path, monkeypatch):
    from unwrite.shield.engine import pictures as engine

    for number, picture in enumerate(painted(24)):
        path = tmp_path / "in" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(path)
    monkeypatch.setattr(engine, "MOST_ROWS", 4)
    most, decoded = [], FolderPictures.pixels
    monkeypatch.setattr(FolderPictures, "pixels", lambda self, rows: most.append(len(rows)) or decoded(self, rows))
    protect_folder(
        UnlearnableClusters(key=1, surrogate=seer, train_on="all", **SMALL), tmp_path / "in", tmp_path / "out"
    )
    assert max(most) == 4
    assert sum(most[:6]) == 24  # features first, once


def test_views_are_cut_at_random_places_and_flipped_half_of_the_time(seer):
    pixels = np.zeros((64, 3, 40, 20), dtype=np.uint8)
    pixels[:] = (np.arange(40)[:, None] * 4 + np.arange(20)[None] * 4).astype(np.uint8)
    shield = UnlearnableClusters(key=1, surrogate=seer, **SMALL)
    pictures = ArrayPictures(pixels, None, "nothing")
    reader = reader_of(seer, side=16, crop=0.8)
    training = GeneratorTraining(
        shield, reader, pictures, np.zeros(64, dtype=int), np.zeros((3, 12), dtype=np.float32), 0
    )
    torch.manual_seed(0)
    views = training.views(np.arange(64))
    assert views.shape == (64, 3, 16, 16)
    right = (views[:, 0, 0, -1] > views[:, 0, 0, 0]).float().mean()
    assert 0.3 < right < 0.7
    tops = torch.round(views[:, 0, 0].min(1).values * 255 / 4).unique()
    assert len(tops) > 10  # 24 + 4 places
    middle = training.views(np.arange(64), centred=True)
    expected = torch.from_numpy(pixels[:1, :, 12:28, 2:18]).float() / 255
    assert torch.allclose(middle, expected.expand(64, -1, -1, -1))


# The surrogate of a saved protection.


@quietly
def test_a_protection_is_used_with_the_surrogate_it_was_fitted_with(seer, tmp_path):
    shield = UnlearnableClusters(key=123454321, surrogate=seer, **SMALL)
    protection = shield.fit(painted(12))
    folder = protection.save(tmp_path / "kept")
    assert Protection.load(folder, 123454321, surrogate=seer).transform(painted(12)).shape == (12, 3, 16, 16)
    with pytest.raises(ModelError, match=r"the surrogate Seer has other weights than the one that this protection"):
        Protection.load(folder, 123454321, surrogate=Seer(1).eval()).transform(painted(12))
    assert set(contents(folder)) == {"protection.json", "state.safetensors"}
    assert protection.surrogate_ == reader_of(seer).key


@quietly
def test_a_surrogate_is_read_once_a_protection(monkeypatch):
    made = []

    def surrogate(**sizes):
        made.append(sizes)
        return Linear(**sizes)

    protection = UnlearnableClusters(key=1, surrogate=surrogate, **SMALL).fit(make_pictures()[0])
    pixels = make_pictures()[0]
    first = protection.transform(pixels)
    assert np.array_equal(protection.transform(pixels), first)
    assert made == [{"num_classes": 2, "channels": 3, "image_size": 8}] * 2


def test_it_is_a_value_with_its_surrogate(seer):
    one = UnlearnableClusters(key=1, surrogate=PictureFeatures(seer, "fc"))
    assert one == UnlearnableClusters(key=1, surrogate=PictureFeatures(seer, "fc"))
    assert hash(one) == hash(replace(one))
    assert one != replace(one, surrogate=PictureFeatures(seer, "output"))
    assert pickle.loads(pickle.dumps(one)).surrogate.at == "fc"


# The official loop.


class OfficialTwin(nn.Module):
    """The surrogate that the official loop was run with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 7, stride=7), nn.Linear(5, 2)
        filled(self)

    def forward(self, pixels):
        return self.fc(torch.relu(self.conv(pixels)).mean((2, 3)) * 8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_four_steps_of_a_generator_are_the_official_ones(norm, monkeypatch):
    official = OFFICIAL[norm]
    length = official["epsilon"] / np.sqrt(3 * 224 * 224)
    shield = UnlearnableClusters(
        key=1,
        n_clusters=2,
        norm=norm,
        eps=16 / 255 if norm == "linf" else length,
        train_on="all",
        epochs=4,
        lr=1e-3,
        width=4,
        blocks=2,
        surrogate=PictureFeatures(OfficialTwin().eval(), mean=(0.45,), std=(0.25,)),
    )
    pixels = ((torch.arange(3 * 3 * 224 * 224) * 7919) % 251).view(3, 3, 224, 224).to(torch.uint8).numpy()
    pictures = ArrayPictures(pixels, None, "nothing")
    centres = np.array([[0.1, 2.0, 0.0, -1.0, 0.5], [3.0, 0.0, 1.0, 0.2, 0.1]], dtype=np.float32)
    torch.manual_seed(5)
    reader = FeatureReader(shield.surrogate, 3, 224, 1.0, "cpu")
    training = GeneratorTraining(shield, reader, pictures, np.zeros(3, dtype=int), centres, 0)
    assert [training.input[0, 0, 0, 0].item(), training.input[0, 2, 223, 223].item()] == official["input"]
    filled(training.generator)
    losses, loss = [], GeneratorTraining.loss
    monkeypatch.setattr(method, "_random_views", lambda shown, side: shown)
    monkeypatch.setattr(
        GeneratorTraining, "loss", lambda self, views, noise: losses.append(loss(self, views, noise)) or losses[-1]
    )
    with progress(4, "x") as bar:
        training.run(bar)
    assert [one.item() for one in losses] == pytest.approx(official["losses"], rel=1e-4)
    drawn = training.generator(training.input)
    values = [drawn[0, c, y, x].item() for c, y, x in ((0, 0, 0), (1, 100, 57), (2, 223, 223), (0, 5, 200))]
    assert values == pytest.approx(official["perturbation"], abs=1e-3)
    assert drawn.mean().item() == pytest.approx(official["mean"], abs=1e-3)
    assert drawn.square().mean().sqrt().item() == pytest.approx(official["rms"], abs=1e-3)
