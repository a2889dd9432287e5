"""Noise of clusters: how clusters are made and generators trained, pictures of other sizes, and the official loop."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.cluster
import torch
from clustered import SMALL, Seer, painted, quietly, reader_of, training_of
from PIL import Image
from torch import nn

from helpers.formula import filled
from helpers.pictures import Linear, contents, make_pictures
from unwrite.errors import DataError, ModelError
from unwrite.runs.progress import progress
from unwrite.shield import PictureFeatures, Protection, UnlearnableClusters, protect_folder
from unwrite.shield import unlearnable_clusters as method
from unwrite.shield.engine.features import FeatureReader
from unwrite.shield.engine.folders import FolderPictures
from unwrite.shield.engine.pictures import ArrayPictures
from unwrite.shield.unlearnable_clusters import ClusterTraining, nearest

OFFICIAL = json.loads((Path(__file__).parent / "official_uc.json").read_text(encoding="utf-8"))["numbers"]


@pytest.fixture(scope="module")
def seer():
    return Seer().eval()


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
    views = ClusterTraining.views
    monkeypatch.setattr(
        ClusterTraining,
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
    training = ClusterTraining(
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
def test_a_surrogate_that_a_function_makes_follows_from_the_key_alone():
    """A protection that is loaded elsewhere makes it again, so nothing else may have a part in its weights."""
    hashes = []
    for key, state in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(state)
        hashes.append(UnlearnableClusters(key=key, surrogate=Linear, **SMALL).fit(make_pictures()[0]).surrogate_)
    assert hashes[0] == hashes[1] != hashes[2]


@quietly
def test_no_weight_takes_a_gradient_while_features_are_read_or_noise_is_trained_and_none_stays_frozen():
    states = []

    class Watched(Seer):
        def forward(self, pixels):
            states.append((self.training, self.norm.training, any(one.requires_grad for one in self.parameters())))
            return super().forward(pixels)

    surrogate = Watched().eval()
    protection = UnlearnableClusters(key=1, surrogate=PictureFeatures(surrogate, "fc"), **SMALL).fit(painted(24))
    training = training_of(protection.shield, surrogate, painted(24))
    states.clear()  # where no layer is named, finding it needs gradients
    with progress(3, "x") as bar:
        noise = training.run(bar)
    protection.transform(painted(24))
    surrogate.train()  # whose it is may train it meanwhile
    training.distance(noise)
    assert len(states) >= 5
    assert set(states) == {(False, False, False)}
    assert surrogate.training
    assert surrogate.norm.training
    assert all(one.requires_grad and one.grad is None for one in surrogate.parameters())


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
    training = ClusterTraining(shield, reader, pictures, np.zeros(3, dtype=int), centres, 0)
    assert [training.input[0, 0, 0, 0].item(), training.input[0, 2, 223, 223].item()] == official["input"]
    filled(training.generator)
    losses, loss = [], ClusterTraining.loss
    monkeypatch.setattr(method, "_random_views", lambda shown, side: shown)
    monkeypatch.setattr(
        ClusterTraining, "loss", lambda self, views, noise: losses.append(loss(self, views, noise)) or losses[-1]
    )
    with progress(4, "x") as bar:
        training.run(bar)
    assert [one.item() for one in losses] == pytest.approx(official["losses"], rel=1e-4)
    drawn = training.generator(training.input)
    values = [drawn[0, c, y, x].item() for c, y, x in ((0, 0, 0), (1, 100, 57), (2, 223, 223), (0, 5, 200))]
    assert values == pytest.approx(official["perturbation"], abs=1e-3)
    assert drawn.mean().item() == pytest.approx(official["mean"], abs=1e-3)
    assert drawn.square().mean().sqrt().item() == pytest.approx(official["rms"], abs=1e-3)
