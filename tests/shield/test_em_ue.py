"""Error-minimising noise: what a step is, what a round keeps to, when it ends, and how it is released."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.pictures import Linear, make_pictures
from unwrite.errors import DataError, MethodError, ModelError, Notice
from unwrite.runs import hash_model
from unwrite.shield import EMNoise
from unwrite.shield.em_noise import NoiseSearch, class_means
from unwrite.shield.engine.pictures import ArrayPictures
from unwrite.shield.engine.surrogates import built, error_rate, frozen, signed_steps, training_step

SMALL = {"surrogate": Linear, "rounds": 3, "alpha": 2 / 255, "batch_size": 8}
quietly = pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")


def search_of(shield, rows=24, **how):
    pixels, labels = make_pictures(rows=rows, **how)
    return NoiseSearch(shield, ArrayPictures(pixels, labels, "labels"))


class Identity(nn.Module):
    """Two pixels are the two logits."""

    def __init__(self, **_):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, pixels):
        return pixels.flatten(1) @ self.weight.T


@quietly
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_noise_stays_within_the_budget_and_the_release_is_bytes_of_the_same_labels(mode):
    pixels, labels = make_pictures(rows=24)
    before = labels.copy()
    protection = EMNoise(key=1, mode=mode, **SMALL).fit(pixels, labels)
    assert protection.noise_.shape == (24 if mode == "sample" else 3, 3, 8, 8)
    assert np.abs(protection.noise_).max() <= np.float32(8 / 255)
    protected = protection.transform(pixels, labels)
    assert protected.dtype == np.uint8
    assert np.array_equal(labels, before)


@quietly
def test_noise_of_classes_has_one_value_a_class():
    pixels, labels = make_pictures(rows=24)
    middle = np.full_like(pixels, 128)
    protection = EMNoise(key=1, mode="class", **SMALL).fit(pixels, labels)
    changes = protection.transform(middle, labels).astype(int) - 128
    assert len(np.unique(changes.reshape(24, -1), axis=0)) == 3
    assert all(np.array_equal(changes[row], changes[row + 3]) for row in range(21))


@quietly
def test_the_release_keeps_the_sign_of_the_noise_unless_the_official_one_is_asked_for():
    pixels, labels = make_pictures(rows=24)
    middle = np.full_like(pixels, 128)
    protection = EMNoise(key=1, mode="class", **SMALL).fit(pixels, labels)
    change = protection.transform(middle, labels).astype(int) - 128
    assert change.min() < 0 < change.max()
    assert change.mean() == pytest.approx(255 * protection.noise_.mean(), abs=0.1)
    legacy = replace(protection, shield=replace(protection.shield, legacy_positive_only=True))
    positive = legacy.transform(middle, labels).astype(int) - 128
    expected = np.floor(np.clip(protection.noise_[labels].astype(np.float64) * 255, 0, 255) + 1e-6)
    assert np.array_equal(positive, expected)
    assert positive.min() == 0


@pytest.mark.parametrize(("ascend", "expected"), [(False, [0.1, -0.1]), (True, [-0.1, 0.1])])
def test_one_step_goes_by_the_sign_of_the_losss_gradient(ascend, expected):
    """W = I, x = (0.5, 0.5), y = 0: p - e0 = (-0.5, 0.5)."""
    model = Identity()
    pixels = torch.full((1, 1, 1, 2), 0.5)
    with frozen(model):
        moved = signed_steps(
            model, pixels, torch.tensor([0]), torch.zeros_like(pixels), eps=0.2, alpha=0.1, steps=1, ascend=ascend
        )
    assert moved.flatten().tolist() == pytest.approx(expected)


def test_on_a_linear_softmax_a_step_is_the_known_gradients_sign_and_lowers_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    pixels, labels = 0.2 + 0.6 * torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    weight = model[1].weight.detach()
    wrong = (pixels.flatten(1) @ weight.T).softmax(1) - F.one_hot(labels, 3)
    with frozen(model):
        moved = signed_steps(model, pixels, labels, torch.zeros_like(pixels), eps=0.2, alpha=0.01, steps=1)
        losses = [F.cross_entropy(model(pixels + sign * moved), labels).item() for sign in (1, 0, -1)]
    assert torch.equal(moved.sign().flatten(1), -(wrong @ weight).sign())
    assert losses == sorted(losses)


def test_a_step_stays_within_the_budget_and_begins_where_the_picture_can_be():
    model = Identity()
    pixels = torch.tensor([[[[0.99, 0.01]]]])
    with frozen(model):
        first = signed_steps(model, pixels, torch.tensor([0]), torch.zeros_like(pixels), eps=0.05, alpha=0.04, steps=1)
        third = signed_steps(model, pixels, torch.tensor([0]), torch.zeros_like(pixels), eps=0.05, alpha=0.04, steps=3)
        beyond = signed_steps(
            model, pixels, torch.tensor([1]), torch.tensor([[[[0.05, -0.05]]]]), eps=0.05, alpha=0.04, steps=1
        )
    assert first.flatten().tolist() == pytest.approx([0.04, -0.04])  # kept as noise, though 1.03 is no pixel
    assert third.flatten().tolist() == pytest.approx([0.05, -0.05])
    assert beyond.flatten().tolist() == pytest.approx(
        [-0.03, 0.03], rel=1e-5
    )  # from 1 and 0, where the picture was held


def test_no_steps_leave_the_noise():
    search = search_of(EMNoise(key=1, steps=0, random_start=True, **SMALL))
    before = search.noise.clone()
    search.train(2)
    search.search()
    assert torch.equal(search.noise, before)
    assert 0 < before.abs().max() <= np.float32(8 / 255)
    assert before.min() < -0.02 < 0.02 < before.max()


def test_a_classs_noise_is_the_mean_of_its_members_in_the_batch():
    eps = 8 / 255
    noise = torch.full((3, 1, 2, 2), 0.01)
    moved = torch.stack([torch.full((1, 2, 2), eps), torch.full((1, 2, 2), -eps), torch.full((1, 2, 2), 0.02)])
    class_means(noise, moved, torch.tensor([2, 2, 0]), eps)
    assert noise[2].abs().max() == 0
    assert torch.equal(noise[0], torch.full((1, 2, 2), 0.02))
    assert torch.equal(noise[1], torch.full((1, 2, 2), 0.01))  # not in the batch


def test_the_search_moves_noise_alone_and_training_weights_and_statistics_alone():
    search = search_of(EMNoise(key=1, steps=2, **SMALL))
    weights, noise = hash_model(search.model), search.noise.clone()
    search.search()
    assert hash_model(search.model) == weights
    assert not torch.equal(search.noise, noise)
    assert search.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in search.model.parameters())
    running, head, noise = (
        search.model.norm.running_mean.clone(),
        search.model.head.weight.clone(),
        search.noise.clone(),
    )
    search.train(1)
    assert not torch.equal(search.model.norm.running_mean, running)
    assert not torch.equal(search.model.head.weight, head)
    assert torch.equal(search.noise, noise)


def test_a_training_steps_gradient_is_clipped():
    model = Linear(3, 3, 8)
    before = model.head.weight.detach().clone()
    pixels, labels = make_pictures(rows=24)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    training_step(model, optimiser, torch.from_numpy(pixels).float(), torch.from_numpy(labels), 1e-3)
    moved = [parameter.grad for parameter in model.parameters()]
    assert torch.cat([one.flatten() for one in moved]).norm() == pytest.approx(1e-3, rel=1e-3)
    assert 0 < (model.head.weight - before).norm() <= 1.001e-3


def test_it_ends_once_the_error_is_low_enough():
    pixels, labels = make_pictures(rows=24)
    protection = EMNoise(key=1, surrogate=Linear, rounds=40, steps=5, lr=0.05, stop=0.05).fit(pixels, labels)
    assert protection.converged_
    assert protection.error_ <= 0.05
    assert protection.rounds_ < 40


def test_it_ends_after_its_rounds_and_says_that_it_has_not_converged():
    pixels, labels = make_pictures(rows=24)
    with pytest.warns(
        Notice, match=r"has not converged after 2 rounds: the surrogate's error is 0\.\d+, and 0 was to be reached"
    ):
        protection = EMNoise(key=1, surrogate=Linear, rounds=2, train_steps=1, lr=1e-6, steps=0, stop=0.0).fit(
            pixels, labels
        )
    assert (protection.converged_, protection.rounds_) == (False, 2)
    assert protection.error_ > 0


def test_the_error_is_of_the_noise_that_is_returned():
    shield = EMNoise(key=1, **SMALL)
    search = search_of(shield)
    search.train(3)
    search.search()
    pixels = torch.from_numpy(search.pictures.pixels(range(24))).float() / 255
    with torch.no_grad(), frozen(search.model):
        wrong = (search.model(pixels + search.noise).argmax(1) != torch.from_numpy(search.labels)).float().mean().item()
    assert search.error(search.searched) == pytest.approx(wrong)
    assert error_rate(search.model, [(pixels, torch.from_numpy(search.labels))]) != wrong


def test_error_maximising_noise_raises_the_error_of_a_surrogate_that_has_learnt():
    pixels, labels = make_pictures(rows=24)
    shield = EMNoise(
        key=1,
        surrogate=Linear,
        rounds=30,
        steps=5,
        alpha=4 / 255,
        eps=32 / 255,
        lr=0.05,
        direction="maximise",
        stop=0.9,
    )
    protection = shield.fit(pixels, labels)
    assert protection.converged_
    assert protection.error_ >= 0.9
    assert replace(shield, stop=None).stop_error == 0.99


@pytest.mark.parametrize(("mode", "steps", "stop", "share"), [("sample", 20, 0.01, 1.0), ("class", 1, 0.1, 0.2)])
def test_what_is_left_open_is_the_official_setting_of_the_mode(mode, steps, stop, share):
    shield = EMNoise(key=1, mode=mode)
    assert (shield.step_count, shield.stop_error, shield.searched_share) == (steps, stop, share)


def test_classes_are_searched_on_a_share_of_each_in_whole_batches_and_trained_on_all():
    search = search_of(EMNoise(key=1, mode="class", **SMALL), rows=60)
    assert np.bincount(search.labels[search.searched]).tolist() == [4, 4, 4]
    assert [len(at) for at in search._batches(np.arange(12), whole=True)] == [8]
    assert [len(at) for at in search._batches(np.arange(5), whole=True)] == [5]
    assert [len(at) for at in search._batches(np.arange(12))] == [8, 4]
    epoch = [next(search.training) for _ in range(7)]
    assert len(np.unique(np.concatenate(epoch))) == 56
    assert not np.array_equal(np.concatenate(epoch), np.sort(np.concatenate(epoch)))


def test_samples_are_gone_through_in_their_order_and_training_goes_on_where_it_was():
    search = search_of(EMNoise(key=1, **SMALL), rows=20)
    assert np.concatenate([next(search.training) for _ in range(3)]).tolist() == list(range(20))
    assert next(search.training).tolist() == list(range(8))


@quietly
def test_a_pictures_noise_is_given_to_that_picture_alone():
    pixels, labels = make_pictures(rows=12)
    protection = EMNoise(key=1, **SMALL).fit(pixels, labels)
    with pytest.raises(DataError, match=r"image 0 is not the one that its noise was made for"):
        protection.transform(pixels[::-1].copy(), labels[::-1].copy())
    with pytest.raises(DataError, match=r"image 12 has no noise: this protection is of 12 pictures"):
        protection.transform(np.concatenate([pixels, pixels[:1]]), np.append(labels, 0))
    assert np.array_equal(protection.transform(pixels[:5], labels[:5]), protection.transform(pixels, labels)[:5])


@quietly
def test_pictures_of_another_size_are_refused():
    pixels, labels = make_pictures(rows=12)
    protection = EMNoise(key=1, mode="class", **SMALL).fit(pixels, labels)
    with pytest.raises(DataError, match=r"image 0 has shape \[3, 6, 6\] and the noise \[3, 8, 8\]"):
        protection.transform(pixels[..., :6, :6], labels)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"surrogate": 3}, MethodError, "surrogate is 3; give a net's name, or a function that builds one"),
        ({"surrogate": "smal-cnn"}, MethodError, "unknown net 'smal-cnn'. Did you mean 'small-cnn'"),
        ({"steps": 2.5}, MethodError, "steps is 2.5; it must be a whole number, at least 0"),
        ({"rounds": 0}, MethodError, "rounds is 0; it must be a whole number, at least 1"),
        ({"share": 0.0}, MethodError, "share is 0.0; it must be above 0 and at most 1"),
        ({"stop": 1.5}, MethodError, "stop is 1.5; it must be at least 0 and at most 1"),
        ({"device": "tpu9"}, MethodError, "device is 'tpu9'; it must be a device of torch"),
    ],
)
def test_refuses_settings_without_meaning(fields, error, message):
    with pytest.raises(error, match=message):
        EMNoise(key=1, **fields)


def test_a_surrogate_of_other_outputs_is_refused():
    with pytest.raises(
        ModelError, match=r"the surrogate Identity gives \[2, 2\] for two pictures of 3 classes. It must give \[2, 3\]"
    ):
        built(Identity, 3, (1, 1, 2), 0)


@quietly
def test_a_net_of_the_catalogue_is_a_surrogate_by_its_name():
    pixels, labels = make_pictures(rows=6)
    protection = EMNoise(key=1, mode="class", surrogate="small-cnn", rounds=1, train_steps=1).fit(pixels, labels)
    assert np.abs(protection.noise_).max() > 0
    assert type(built("small-resnet", 3, (3, 40, 48), 0)).__name__ == "SmallResNet"


@quietly
def test_noise_lowers_the_surrogates_loss_and_noise_of_the_same_size_does_not():
    """The mechanism: what the surrogate relies on is the noise."""
    search = search_of(
        EMNoise(key=1, mode="class", surrogate=Linear, rounds=6, steps=3, alpha=2 / 255, share=1.0, lr=0.05, stop=0.0),
        rows=30,
    )
    search.run()
    pixels = torch.from_numpy(search.pictures.pixels(range(30))).float() / 255
    labels = torch.from_numpy(search.labels)
    noise = search.noise[labels]
    random = (8 / 255) * torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad(), frozen(search.model):
        loss = {
            name: F.cross_entropy(search.model(pixels + d), labels).item()
            for name, d in {"none": 0, "random": random, "noise": noise}.items()
        }
    assert loss["noise"] < 0.8 * min(loss["none"], loss["random"])


def test_a_round_trains_on_perturbed_pictures_and_gives_each_class_the_mean_of_its_members_steps():
    shield = EMNoise(key=1, mode="class", random_start=True, share=1.0, **{**SMALL, "batch_size": 24})
    search, twin = search_of(shield), search_of(shield)
    pixels, labels = torch.from_numpy(search.pictures.pixels(range(24))).float() / 255, torch.from_numpy(search.labels)
    at = next(twin.training)  # shuffled by the key, as the other's is
    training_step(twin.model, twin.optimiser, pixels[at] + twin.noise[labels[at]], labels[at], shield.clip)
    search.train(1)
    assert hash_model(search.model) == hash_model(twin.model)
    expected = twin.noise.clone()
    with frozen(twin.model):
        moved = signed_steps(
            twin.model, pixels, labels, twin.noise[labels], eps=shield.eps, alpha=shield.alpha, steps=1
        )
    class_means(expected, moved, labels, shield.eps)
    search.search()
    assert torch.allclose(search.noise, expected, atol=1e-6)


def test_noise_goes_to_the_nearest_level_and_is_cut_off_in_the_official_release():
    noise = np.array([0.7, 1.2, -3.0, 8.0, -0.6], dtype=np.float32) / 255
    assert EMNoise(key=1)._levels(noise).tolist() == [1, 1, -3, 8, -1]
    assert EMNoise(key=1, legacy_positive_only=True)._levels(noise).tolist() == [0, 1, 0, 8, 0]
