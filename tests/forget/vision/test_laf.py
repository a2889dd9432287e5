"""LAF: closed forms of its losses, the official numbers, and that no label is ever read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_toys import small_net, small_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.batch import PairedBatch
from unwrite.forget.engine.images.batch import ImagePart
from unwrite.forget.vision.laf import (
    LAF,
    Unlearning,
    alignment_loss,
    cosine_distance,
    extractor_loss,
    fit_feature_vae,
    saturating,
    squared_error,
    vae_loss,
)
from unwrite.nets import SmallCNN
from unwrite.nets.feature_vae import FeatureVAE, Reconstruction
from unwrite.runs import hash_model

OFFICIAL = json.loads((Path(__file__).parent / "official_laf.json").read_text())
SHORT = {"num_train_epochs": 2, "per_device_train_batch_size": 4}
FEW = {"extractor_lr": 1e-3, "alignment_lr": 1e-3, "vae_epochs": 1}


def wave(*shape, at=0.0):
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * numbers + at).reshape(shape).float()


@pytest.fixture(scope="module")
def sets():
    return small_sets()


@pytest.fixture
def net():
    return small_net()


def work_of(net, sets, **args):
    return LAF(**FEW).work(net, *sets[:2], args=args or SHORT)


def chain(phase):
    """The phases of one step."""
    while phase is not None:
        yield phase
        phase = phase.then


@pytest.mark.parametrize(("error", "value"), [(0.0, 1.0), (1.0, 1.648721), (float("inf"), math.e), (1e30, math.e)])
def test_phi_rises_from_one_to_e(error, value):
    assert saturating(torch.tensor(error, dtype=torch.float64)).item() == pytest.approx(value, abs=1e-6)


def test_the_gradient_of_phi_is_finite_everywhere():
    error = torch.tensor([0.0, 1.0, 1e20], requires_grad=True)
    saturating(error).sum().backward()
    assert error.grad.tolist() == pytest.approx([1.0, math.exp(0.5) / 4, 0.0])


def test_extractor_loss_at_perfect_reconstruction_is_the_difference_of_the_numbers_of_rows():
    assert extractor_loss(torch.zeros(7), torch.zeros(4)).item() == 3
    assert extractor_loss(torch.zeros(7), torch.full((4,), 1e30)).item() == pytest.approx(7 - 4 * math.e)


def test_alignment_of_a_model_with_itself_is_minus_rows_log_rows():
    assert alignment_loss(torch.zeros(32), torch.zeros(32), 20.0).item() == pytest.approx(-110.9035, abs=1e-4)


@pytest.mark.parametrize("tau", [0.5, 5.0, 1e6])
def test_alignment_pulls_each_retain_row_by_one_and_forget_rows_by_their_softmax(tau):
    retain = torch.rand(5, dtype=torch.float64, requires_grad=True)
    forget = torch.rand(3, dtype=torch.float64, requires_grad=True)
    alignment_loss(retain, forget, tau).backward()
    assert retain.grad.tolist() == [1.0] * 5
    torch.testing.assert_close(forget.grad, -(5 / tau) * torch.softmax(forget.detach() / tau, 0))
    if tau == 1e6:
        torch.testing.assert_close(forget.grad, torch.full_like(forget, -5 / (tau * 3)), rtol=1e-5, atol=0)


def test_cosine_distance_is_zero_for_a_scaled_vector_and_defined_for_a_zero_one():
    features = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    before = torch.tensor([[3.0, 6.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    assert cosine_distance(features, before).tolist() == pytest.approx([0, 1, 2, 1], abs=1e-6)


def test_kl_is_zero_for_a_standard_normal_and_weighs_a_fortieth():
    same = torch.zeros(3, 4, dtype=torch.float64)
    code = torch.zeros(3, 2, dtype=torch.float64)
    assert vae_loss(Reconstruction(same, same, code, code + 1)).item() == pytest.approx(0, abs=1e-7)
    # mu = 2: the KL of each of the two dimensions is mu^2 / 2
    assert vae_loss(Reconstruction(same, same, code + 2, code + 1)).item() == pytest.approx(0.025 * 4, abs=1e-7)
    assert vae_loss(Reconstruction(same + 1, same, code, code + 1)).item() == pytest.approx(4, abs=1e-7)


def test_vae_and_losses_are_the_official_ones():
    vae = FeatureVAE(256, 8)
    with torch.no_grad():
        for number, parameter in enumerate(vae.parameters()):
            parameter.copy_(0.1 * wave(*parameter.shape, at=number))
    noise, e, f = wave(6, 8, at=9.0), wave(6, 256, at=3.0), wave(6, 256, at=4.0) + 0.2
    seen, forget = vae(e, noise), vae(f, noise)
    assert seen.output[0, :5].tolist() == pytest.approx(OFFICIAL["output"], abs=1e-6)
    assert vae_loss(seen).item() == pytest.approx(OFFICIAL["vae loss"], rel=1e-5)
    assert vae_loss(seen._replace(output=e)).item() == pytest.approx(OFFICIAL["kl only"], rel=1e-5)
    assert extractor_loss(squared_error(seen), squared_error(forget)).item() == pytest.approx(OFFICIAL["ue"], abs=1e-5)
    aligned = alignment_loss(cosine_distance(e, f), cosine_distance(f, e * 0.5 + wave(6, 256, at=7.0)), 5.0)
    assert aligned.item() == pytest.approx(OFFICIAL["ra"], rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "linear"])
def test_a_vae_learns_its_features_and_is_a_function_of_the_seed(kind):
    generator = torch.Generator().manual_seed(0)
    features = torch.sigmoid(torch.randn(96, 2, generator=generator) @ torch.randn(2, 12, generator=generator))
    index = torch.arange(96)
    first, trained, again, other = (
        fit_feature_vae(features, index, seed, epochs=epochs, decoder_out=kind)
        for seed, epochs in ((0, 0), (0, 20), (0, 20), (1, 20))
    )
    noise = torch.zeros(96, 8)
    assert squared_error(trained(features, noise)).mean() < 0.7 * squared_error(first(features, noise)).mean()
    assert hash_model(trained) == hash_model(again) != hash_model(other)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_permuting_all_labels_changes_nothing(net, sets):
    """Permuted within both sets, and across the random state of the caller."""
    ours = LAF(**FEW).apply(net, *sets, args=SHORT, copy=True)
    other = [replace(rows, labels=rows.labels[torch.randperm(len(rows))]) for rows in sets]
    assert any(not torch.equal(a.labels, b.labels) for a, b in zip(sets, other, strict=True))
    torch.rand(3)
    assert hash_model(LAF(**FEW).apply(net, *other, args=SHORT, copy=True)) == hash_model(ours)
    assert hash_model(ours) != hash_model(net)


def test_repair_reads_labels_of_the_retain_set_alone(net, sets):
    forget, retain = sets
    repaired = LAF(**FEW, repair=True)
    ours = hash_model(repaired.apply(net, forget, retain, args=SHORT, copy=True))
    of_forget = replace(forget, labels=forget.labels.flip(0))
    of_retain = replace(retain, labels=retain.labels.roll(1))
    assert hash_model(repaired.apply(net, of_forget, retain, args=SHORT, copy=True)) == ours
    assert hash_model(repaired.apply(net, forget, of_retain, args=SHORT, copy=True)) != ours


def test_repair_moves_the_head_alone(net, sets):
    plain = LAF(**FEW).apply(net, *sets, args=SHORT, copy=True)
    repaired = LAF(**FEW, repair=True).apply(net, *sets, args=SHORT, copy=True)
    for (name, one), other in zip(repaired.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other) == (not name.startswith("head"))
    # The losses that forget read features alone, so without repair the head is what it was.
    assert torch.equal(plain.head.weight, net.head.weight)


def test_rates_of_zero_leave_the_model_identical(net, sets):
    before = hash_model(net)
    LAF(extractor_lr=0, alignment_lr=0, vae_epochs=1).apply(net, *sets, args=SHORT)
    assert hash_model(net) == before


@pytest.mark.parametrize(("rows", "steps"), [((8, 32), 2), ((32, 8), 2), ((6, 8), 2), ((8, 8), 2)])
def test_an_epoch_has_as_many_steps_as_the_smaller_set_has_batches(net, rows, steps):
    torch.manual_seed(0)
    data = Images(torch.rand(40, 1, 8, 8), labels=torch.arange(40) % 4)
    sets = data.subset(range(rows[0])), data.subset(range(rows[0], sum(rows)))
    seen = []

    class Counting(LAF):
        def phases(self, work):
            found = super().phases(work)
            last = list(chain(found[0]))[-1]
            inner = last.loss

            def counted(batch):
                seen.append((len(batch["forget"].index), len(batch["retain"].index)))
                return inner(batch)

            object.__setattr__(last, "loss", counted)
            return found

    Counting(**FEW).apply(net, *sets, args={**SHORT, "num_train_epochs": 1})
    assert len(seen) == steps
    assert all(forget == retain for forget, retain in seen)


def test_vaes_and_teacher_stay_as_they_were(net, sets):
    kept = []

    class Keeping(LAF):
        def phases(self, work):
            found = super().phases(work)
            losses = found[0].loss.__self__
            kept.append((losses, hash_model(losses.of_all), hash_model(losses.of_forget)))
            return found

    teacher = net.state_dict()
    teacher = {name: value.clone() for name, value in teacher.items()}
    unlearned = Keeping(**FEW).apply(net, *sets, args=SHORT, copy=True)
    ((losses, of_all, of_forget),) = kept
    assert isinstance(losses, Unlearning)
    assert of_all != of_forget
    assert (hash_model(losses.of_all), hash_model(losses.of_forget)) == (of_all, of_forget)
    assert all(parameter.grad is None for vae in (losses.of_all, losses.of_forget) for parameter in vae.parameters())
    assert all(torch.equal(value, teacher[name]) for name, value in net.state_dict().items())
    assert hash_model(unlearned) != hash_model(net)


def test_the_two_optimisers_keep_separate_moments(net, sets):
    """With one Adam for both the weights are others; by hand, see test_musts_laf.py. Running statistics are frozen."""
    method, args = LAF(**FEW), {**SHORT, "num_train_epochs": 1, "per_device_train_batch_size": 8}

    class Merged(LAF):
        def phases(self, work):
            first = super().phases(work)[0]
            assert first.then is not None
            return [replace(first, then=replace(first.then, optimiser=first.optimiser))]

    apart = method.apply(net, *sets, args=args, copy=True)
    args |= {"num_train_epochs": 3}
    assert hash_model(Merged(**FEW).apply(net, *sets, args=args, copy=True)) != hash_model(
        method.apply(net, *sets, args=args, copy=True)
    )
    for name, value in apart.state_dict().items():
        assert "running" not in name or torch.equal(value, net.state_dict()[name])
    # The first step of Adam moves each weight by its rate, once for each optimiser of its own.
    moved = max(
        float((one - two).detach().abs().max()) for one, two in zip(apart.parameters(), net.parameters(), strict=True)
    )
    assert moved == pytest.approx(2e-3, rel=1e-2)


def test_h_learns_all_rows_or_the_retain_set(net, sets, monkeypatch):
    fits = []

    def counted(features, index, seed, **how):
        fits.append(sorted(index.tolist()))
        return fit_feature_vae(features, index, seed, **how)

    monkeypatch.setattr("unwrite.forget.vision.laf.fit_feature_vae", counted)
    for data in ("all", "retain"):
        LAF(**FEW, vae_data=data).phases(work_of(net, sets))
    forget, retain = (sorted(rows.index.tolist()) for rows in sets)
    assert fits == [sorted(forget + retain), forget, retain, forget]


def test_the_extractor_loss_draws_by_epoch_and_row_alone(net, sets):
    work = work_of(net, sets)
    losses = LAF(**FEW).phases(work)[0].loss.__self__

    def value(epoch):
        parts = [ImagePart(rows.index, rows.pixels, rows.target, epoch) for rows in sets]
        for part in parts:
            part.features = work.layout.observe(part.pixels).features
        return losses.extractor(PairedBatch(parts[0], None, parts[1])).terms["extractor"].total({}).item()

    torch.manual_seed(5)
    first = value(0)
    torch.manual_seed(6)
    assert value(0) == first != value(1)


class Features(nn.Module):
    """A linear layer on pixels, so that all is quick, before a head."""

    def __init__(self):
        super().__init__()
        self.extractor = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh())
        self.head = nn.Linear(24, 3)

    def forward(self, pixels):
        return self.head(self.extractor(pixels - 0.5))


@pytest.fixture(scope="module")
def trained():
    """Three classes of noisy 4x4 patterns, learnt; class 0 is forgotten."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(144) % 3
    patterns = torch.rand(3, 1, 4, 4, generator=generator)
    noise = 0.15 * torch.randn(144, 1, 4, 4, generator=generator)
    data = Images((patterns[labels] + noise).clamp(0, 1), labels=labels)
    torch.manual_seed(0)
    net = Features()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(data.pixels), data.labels).backward()
        optimiser.step()
    forget = data.where(data.labels == 0, "forget")
    return net.eval(), (forget, data.where(data.labels != 0, "retain"))


@torch.no_grad()
def accuracy(net, rows):
    return float((net(rows.pixels).argmax(1) == rows.labels).float().mean())


def forgotten(trained, epochs=35, **fields):
    """(forget, retain) accuracy afterwards."""
    net, sets = trained
    fields = {"extractor_lr": 1e-2, "alignment_lr": 1e-2, "tau": 20.0, "latent": 4, "decoder_out": "linear"} | fields
    unlearned = LAF(**fields).apply(net, *sets, args={"num_train_epochs": epochs}, copy=True)
    return [accuracy(unlearned, rows) for rows in sets]


def test_forgets_a_class_without_labels_and_keeps_the_others(trained):
    net, sets = trained
    assert [accuracy(net, rows) for rows in sets] == [1.0, 1.0]
    forget, retain = forgotten(trained)
    assert forget < 0.15
    assert retain > 0.9


def test_where_the_alignment_pulls_weakly_forgetting_needs_the_extractor_loss(trained):
    """tau = 100; see the next test for the published temperature."""
    fields = {"tau": 100.0, "extractor_lr": 2e-2, "alignment_lr": 5e-3}
    assert forgotten(trained, 60, **fields)[0] < 0.3
    assert forgotten(trained, 60, **fields | {"extractor_lr": 0.0})[0] > 0.7


def test_at_the_published_temperature_the_alignment_forgets_these_rows_by_itself(trained):
    """So here the card's ablation of the extractor loss doesn't hold: -log sum exp(c_f / tau) turns forget features too."""
    forget, retain = forgotten(trained, extractor_lr=0.0)
    assert forget < 0.15
    assert retain > 0.9


def test_without_the_alignment_the_published_decoder_ruins_the_rest(trained):
    fields = {"decoder_out": "sigmoid", "extractor_lr": 1e-2}
    assert forgotten(trained, 25, **fields | {"alignment_lr": 0.0})[1] < 0.5
    assert forgotten(trained, 25, **fields | {"alignment_lr": 1e-2})[1] > 0.9


def test_repair_brings_retain_accuracy_back(trained):
    torn = {"decoder_out": "sigmoid", "extractor_lr": 1e-2, "alignment_lr": 0.0}
    before = forgotten(trained, 25, **torn)[1]
    assert before < 0.9
    assert forgotten(trained, 25, **torn, repair=True, repair_epochs=20, repair_lr=1e-2)[1] > before + 0.1


def test_warns_of_a_forget_set_smaller_than_a_batch(net, sets):
    with pytest.warns(UserWarning, match="the forget set has 8 rows, fewer than a batch of 32"):
        LAF(**FEW).apply(net, *sets, args={"num_train_epochs": 1})


def test_works_on_regressors(sets):
    torch.manual_seed(0)
    data = Images(torch.rand(20, 1, 8, 8), targets=torch.rand(20))
    net = SmallCNN(num_classes=1, width=2)
    before = hash_model(net)
    LAF(**FEW, repair=True).apply(net, data.subset(range(8)), data.subset(range(8, 20)), args=SHORT)
    assert hash_model(net) != before


def test_training_is_in_evaluation_mode_unless_asked(net, sets):
    before = net.blocks[0].norm.running_mean.clone()
    LAF(**FEW).apply(net, *sets, args=SHORT)
    assert torch.equal(net.blocks[0].norm.running_mean, before)
    LAF(**FEW).apply(net, *sets, args={**SHORT, "mode": "train"})
    assert not torch.equal(net.blocks[0].norm.running_mean, before)


def test_refuses_what_has_no_meaning(net, sets):
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(MethodError, match=r"tau is .*; it must be a finite number, above 0"):
            LAF(tau=tau)
    with pytest.raises(MethodError, match="latent is 0"):
        LAF(latent=0)
    with pytest.raises(MethodError, match="extractor_lr is -1"):
        LAF(extractor_lr=-1)
    with pytest.raises(MethodError, match=r"unknown decoder_out 'tanh'"):
        LAF(decoder_out="tanh")
    with pytest.raises(MethodError, match=r"unknown vae_data 'forget'"):
        LAF(vae_data="forget")
    with pytest.raises(DataError, match="LAF needs a retain set"):
        LAF().apply(net, sets[0])
    with pytest.raises(DataError, match="the features of row 7 are not finite"):
        fit_feature_vae(torch.tensor([[1.0], [float("nan")]]), torch.tensor([5, 7]), 0)
    net.head.requires_grad_(False)
    with pytest.raises(MethodError, match="nothing to repair"):
        LAF(**FEW, repair=True).apply(net, *sets, args=SHORT)
