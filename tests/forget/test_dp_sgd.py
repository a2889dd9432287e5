"""Private training: clipping, noise, Poisson samples, and what a killed one goes on from."""

import math

import pytest
import torch
from private_training import Keyed, batch, keyed, llama, numbers, part
from scipy.stats import chi2
from torch import nn

from conftest import make_llama
from unwrite.errors import MethodError, ModelError, NotFinite
from unwrite.forget.private.accounting import epsilon_of
from unwrite.forget.private.chance import Chance
from unwrite.forget.private.dp2unlearning import row_losses
from unwrite.forget.private.dp_sgd import DPSGD, Spent, _Descent, clipped_sum, private_fit
from unwrite.forget.private.gradients import gradients_by, trainable_weights

PLAIN = DPSGD(epsilon=math.inf, clip=math.inf, decay=0.0, rate=0.1, batch=4)


def squared(forward, rows):
    return (forward(rows["x"])[:, 0] - rows["y"]).square()


def test_clipped_gradients_are_no_longer_than_the_bound_and_shorter_ones_stay():
    gradients = gradients_by(make_llama(layers=1, hidden=16), row_losses, "together")(batch())
    lengths = torch.stack([value.flatten(1).norm(dim=1) for value in gradients.values()]).norm(dim=0)
    bound = float(lengths.median())
    for row in range(6):
        alone = clipped_sum({name: value[row : row + 1] for name, value in gradients.items()}, bound)
        length = torch.stack([value.norm() for value in alone.values()]).norm()
        assert length <= bound + 1e-6
        assert length == pytest.approx(min(bound, float(lengths[row])), rel=1e-5)
    whole = clipped_sum(gradients, math.inf)
    assert all(torch.allclose(whole[name], value.sum(0), atol=1e-6) for name, value in gradients.items())


def test_sums_are_in_float32_whatever_the_weights_are_in():
    halves = {"w": torch.full((300, 1), 1 / 256, dtype=torch.bfloat16)}
    assert clipped_sum(halves, 10.0)["w"].dtype == torch.float32
    assert clipped_sum(halves, 10.0)["w"].item() == pytest.approx(300 / 256)


def test_without_noise_and_bound_it_is_sgd_on_the_same_samples():
    x, y = numbers()
    model, plan = Keyed(), Spent(q=1 / 3, sigma=0.0, steps=6, epsilon=math.inf, delta=1e-3)
    private_fit(model, part(x, y), 12, keyed, PLAIN, seed=2, plan=plan)
    plain, chance = Keyed(), Chance(2)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(6):
        chance.at(step)
        chosen = chance.chosen(12, 1 / 3)
        optimiser.zero_grad()
        (keyed(plain, part(x, y)(chosen)).sum() / 4).backward()
        optimiser.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_how_many_are_in_memory_at_once_changes_nothing(together):
    x, y = numbers()
    made = []
    for size in (together, 5):
        model, how = Keyed(), DPSGD(epsilon=3.0, batch=6, epochs=3, rate=0.1, together=size)
        private_fit(model, part(x, y), 12, keyed, how, seed=1)
        made.append(model.inner.weight)
    assert torch.allclose(*made, atol=1e-6)


@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_of_a_coordinate_has_the_deviation_that_was_accounted(secure):
    count, sigma, clip, size = 100_000, 1.7, 0.5, 8
    how = DPSGD(batch=size, clip=clip, rate=1.0, decay=0.0, secure=secure)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(count))
    descent = _Descent(model, {"weight": model.weight.detach()}, how, Spent(0.1, sigma, 1, 1.0, 1e-5))
    descent.step({"weight": torch.zeros(count)}, Chance(0, secure), check=True)
    moved = model.weight.detach().double()
    statistic = float(moved.square().sum()) / (sigma * clip / size) ** 2
    low, high = chi2.ppf([1e-6, 1 - 1e-6], count)
    assert low < statistic < high
    assert abs(float(moved.mean())) < 5 * sigma * clip / size / count**0.5


def test_samples_vary_in_size_hold_each_record_as_often_as_said_and_may_be_empty():
    for secure in (False, True):
        chance = Chance(0, secure)
        drawn = [chance.chosen(40, 0.05) for _ in range(600)]
        sizes = [len(one) for one in drawn]
        assert 0 in sizes
        assert len({*sizes}) > 3
        assert sum(sizes) / 600 == pytest.approx(2.0, abs=0.3)
        assert all(len({*one}) == len(one) for one in drawn)


def test_noise_tells_nothing_of_who_was_chosen_and_both_are_of_seed_and_step_alone():
    def drawn(seed, step):
        chance = Chance(seed)
        chance.at(step)
        return [tuple(torch.rand(4, generator=one).tolist()) for one in (chance.generator, chance._choices)]

    assert drawn(0, 3) == drawn(0, 3)
    draws = [one for seed, step in ((0, 3), (0, 4), (1, 3)) for one in drawn(seed, step)]
    assert len({*draws}) == 6


@pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")
def test_an_empty_batch_is_a_step_with_noise_that_counts():
    x, y = numbers()
    how = DPSGD(epsilon=1.0, batch=1, epochs=1, rate=0.1, decay=0.0)
    plan = how.plan(12)
    assert plan.steps == 12
    assert plan.epsilon == epsilon_of(1 / 12, plan.sigma, 12, plan.delta)
    samples = []

    class Nothing(Chance):
        def chosen(self, records, q):
            samples.append(q)
            return []

    model = Keyed()
    was = model.inner.weight.detach().clone()
    from unwrite.forget.private import dp_sgd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp_sgd, "Chance", Nothing)
        torch.manual_seed(0)
        spent = private_fit(model, part(x, y), 12, keyed, how, seed=0)
    assert samples == [1 / 12] * 12
    assert spent.steps == 12
    assert not torch.equal(model.inner.weight, was)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_training_goes_on_to_the_same_weights(optimiser, dtype, tmp_path, monkeypatch):
    x, y = numbers()
    x, y = x.to(dtype), y.to(dtype)
    how = DPSGD(epsilon=5.0, batch=4, epochs=4, rate=0.05, optimiser=optimiser)  # 12 steps, a checkpoint each third
    whole, model = Keyed().to(dtype), Keyed().to(dtype)
    private_fit(whole, part(x, y), 12, keyed, how, seed=1)
    step, done = _Descent.step, []

    def killed(self, total, source, *, check):
        done.append(check)
        if len(done) == 8:
            raise KeyboardInterrupt
        step(self, total, source, check=check)

    monkeypatch.setattr(_Descent, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        private_fit(Keyed().to(dtype), part(x, y), 12, keyed, how, seed=1, folder=tmp_path)
    private_fit(model, part(x, y), 12, keyed, how, seed=1, folder=tmp_path)
    assert len(done) == 8 + 6  # the steps after the last checkpoint, at 6
    assert [one.name for one in tmp_path.glob("step-*[0-9]")] == ["step-9"]
    assert torch.equal(whole.inner.weight, model.inner.weight)


def test_a_base_that_learns_nothing_is_said():
    x, y = numbers()
    how = DPSGD(epsilon=1.0, batch=4, epochs=1, rate=1e-30)
    with pytest.warns(UserWarning, match=r"did not lower the loss.*Raise rate or batch"):
        private_fit(Keyed(), part(x, y), 12, keyed, how, seed=0)


def test_weights_in_bfloat16_gather_steps_that_each_would_be_rounded_away():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    how = DPSGD(epsilon=math.inf, clip=math.inf, batch=1, rate=1e-3, decay=0.0)
    descent = _Descent(model, {"weight": model.weight.detach().float()}, how, Spent(0.5, 0.0, 8, 1.0, 1e-3))
    for step in range(8):
        descent.step({"weight": torch.ones(1)}, Chance(0), check=step == 0)
    assert model.weight.item() == pytest.approx(0.992, abs=2e-3)
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_adapters_that_are_left_behind_are_noticed(optimiser):
    x, y = numbers()
    how = DPSGD(epsilon=math.inf, clip=math.inf, batch=4, epochs=1, rate=0.01, optimiser=optimiser)
    private_fit(Keyed(), part(x, y), 12, keyed, how, seed=0)  # as it should be

    class Copying(Keyed):
        """Shows a copy of its weight, as a wrapper that merged does."""

        def get_parameter(self, target):
            return nn.Parameter(torch.zeros_like(super().get_parameter(target)))

    with pytest.raises(ModelError, match=r"inner\.weight did not move as the optimiser says"):
        private_fit(Copying(), part(x, y), 12, keyed, how, seed=0)


def test_frozen_weights_stay_to_the_bit_and_one_that_moves_is_noticed():
    x, y = numbers()

    class Drifting(Keyed):
        def forward(self, x):
            if self.training and not self.inner.bias.requires_grad:
                self.inner.bias.data += 1.0
            return self.inner(x)

    model = Keyed()
    model.inner.bias.requires_grad_(False)
    was = model.inner.bias.detach().clone()
    how = DPSGD(epsilon=4.0, batch=4, epochs=1, rate=0.1, per_sample="one by one")
    private_fit(model, part(x, y), 12, keyed, how, seed=0)
    assert torch.equal(model.inner.bias, was)
    drifting = Drifting()
    drifting.inner.bias.requires_grad_(False)
    with pytest.raises(ModelError, match="were not to be trained have moved"):
        private_fit(drifting, part(x, y), 12, keyed, how, seed=0)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2, track_running_stats=True)],
    ids=["batch", "batch without statistics", "instance with statistics"],
)
def test_a_normalisation_over_records_is_refused_and_named(norm):
    model = nn.Sequential(nn.Linear(3, 2), norm, nn.Linear(2, 1))
    with pytest.raises(ModelError, match=f"1 is {type(norm).__name__}, which mixes the records of a batch"):
        private_fit(model, part(*numbers()), 12, squared, DPSGD(batch=4), seed=0)


def test_refuses_nothing_to_train_and_a_gradient_that_is_no_number():
    model = Keyed().requires_grad_(False)
    with pytest.raises(ModelError, match="no weight that requires a gradient"):
        private_fit(model, part(*numbers()), 12, keyed, DPSGD(batch=4), seed=0)
    x, y = numbers()
    with pytest.raises(NotFinite, match=r"is no number\. Lower rate"):
        private_fit(Keyed(), part(x, y * math.nan), 12, keyed, PLAIN, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delta", 0.0), ("delta", 1.0), ("epochs", 0), ("batch", 0), ("rate", 0.0), ("rate", math.nan), ("decay", -1.0),
        ("clip", 0.0), ("clip", math.inf), ("together", 0), ("optimiser", "adam"), ("per_sample", "ghost"), ("epsilon", 0.0),
    ],
)  # fmt: skip
def test_a_setting_without_meaning_is_refused_by_name(field, value):
    with pytest.raises(MethodError, match=field):
        DPSGD(**{field: value})


def test_refuses_a_delta_of_one_over_the_records_and_a_batch_of_more():
    with pytest.raises(MethodError, match=r"below 1/100 = 0\.01"):
        DPSGD(delta=0.01).plan(100)
    assert DPSGD().plan(100).delta == pytest.approx(1e-3)
    assert DPSGD(batch=7, epochs=1).plan(20).steps == 3  # the nearest to 20 / 7
    with pytest.raises(MethodError, match="batch is 16, and there are 10 records"):
        DPSGD().plan(10)


@pytest.mark.parametrize("shape", ["whole", "adapters"])
@pytest.mark.parametrize("sigma", [0.0, 1.3])
def test_a_step_is_opacuss_with_its_sums_and_its_noise(shape, sigma):
    pytest.importorskip("opacus", reason="compares with opacus")
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    rows, clip, size = batch(), 0.5, 8
    theirs = GradSampleModule(llama(shape), loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.SGD([weight for weight in theirs.parameters() if weight.requires_grad], lr=0.1),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=size,
        generator=torch.Generator().manual_seed(4),
    )
    row_losses(theirs, rows).sum().backward()
    optimiser.step()

    model, before = llama(shape), dict(llama(shape).named_parameters())
    masters = {name: weight.detach() for name, weight in trainable_weights(model).items()}
    how = DPSGD(batch=size, clip=clip, rate=0.1, decay=0.0)
    total = clipped_sum(gradients_by(model, row_losses, "together")(rows), clip)
    _Descent(model, masters, how, Spent(0.1, sigma, 1, 1.0, 1e-5)).step(total, Chance(4), check=True)
    for (name, ours), other in zip(model.named_parameters(), theirs._module.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-6), name
        assert torch.equal(ours, before[name]) is not ours.requires_grad, name


def test_adapters_trained_by_opacuss_gradients_are_those_trained_together_and_nothing_else_moves():
    pytest.importorskip("opacus", reason="compares with opacus")
    rows, before, made = batch(), llama("adapters").state_dict(), []
    for way in ("together", "opacus"):
        model, how = llama("adapters"), DPSGD(epsilon=4.0, batch=3, epochs=3, rate=0.1, per_sample=way)
        private_fit(model, lambda chosen: {name: value[chosen] for name, value in rows.items()}, 6, row_losses, how, 1)
        made.append(model.state_dict())
    moved = {name for name, value in before.items() if not torch.equal(value, made[1][name])}
    assert moved == {name for name in before if "lora" in name}
    assert all(torch.allclose(value, made[1][name], atol=1e-5) for name, value in made[0].items())
