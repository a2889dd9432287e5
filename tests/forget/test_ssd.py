"""Dampening, further: what is selected, how importances scale, how often every batch is gone back through."""

import copy
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unwrite.data import Images
from unwrite.forget.dampening import ASSD, LFSSD, SSD, Potion, dampen, selection
from unwrite.forget.engine.cost import Cost
from unwrite.models.curvature import Importances
from unwrite.runs import hash_model

pytestmark = pytest.mark.filterwarnings("ignore:.*selects [0-9]+% of")
SIZE = 6  # rows a batch


@pytest.fixture(scope="module")
def sets():
    """(forget, retain): 14 rows of class 0 and 30 of the others, 4x4."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 14 + [1, 2, 3, 1, 2] * 6)
    pixels = 0.5 * torch.rand(44, 1, 4, 4, generator=generator)
    pixels[torch.arange(44), 0, labels] += 0.5
    data = Images(pixels, labels=labels, classes=tuple("abcd"))
    return data.where(labels == 0, "forget"), data.where(labels > 0, "retain")


@pytest.fixture(scope="module")
def trained(sets):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    optimiser, data = torch.optim.Adam(model.parameters(), lr=0.02), sets[1].joined(sets[0])
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(model(data.pixels), data.labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(True)


@pytest.fixture
def net(trained):
    return copy.deepcopy(trained)


@pytest.fixture
def backwards(monkeypatch):
    calls, inner = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: calls.append(1) or inner(*args, **more))
    return calls


def scaled(method, factor):
    """The method with its loss times a factor."""

    @dataclass(frozen=True, kw_only=True)
    class Scaled(type(method)):
        def _loss(self, data):
            inner = super()._loss(data)
            return lambda model, batch: factor * inner(model, batch)

    return Scaled(**{one.name: getattr(method, one.name) for one in fields(method)} | {"cache": False})


def small(kind, **settings):
    return kind(importance_batch=SIZE, **settings)


def test_the_cards_weights_are_selected_by_their_importances_and_told_with_their_factors():
    model = nn.Linear(4, 1, bias=False)
    every, wanted = (
        Importances({"weight": torch.tensor([values])}, 1, 1, 0) for values in ([1.0, 1, 1, 0], [5.0, 20, 100, 3])
    )
    (layer,) = selection(model, every, wanted, 10.0).layers
    assert (layer.selected, layer.weights, layer.least) == (3, 4, 0.0)
    assert layer.mean == pytest.approx((1 / 20 + 1 / 100 + 0) / 3)
    kept = dampen(torch.ones(4), every.tensors["weight"][0], wanted.tensors["weight"][0], 10.0, 0.0)
    assert kept.tolist() == [1, 0, 0, 0]  # so it is the last three
    assert selection(model, every, wanted, 0.1, 200.0).selected == 4


@pytest.mark.parametrize("kind", [SSD, LFSSD, ASSD, Potion])
def test_importances_grow_with_the_losss_factor_or_its_square(kind, net, sets):
    plain = small(kind)
    for factor in (3.0, 0.1):
        found, expected = (method.importances_of(net, sets[0]).tensors for method in (scaled(plain, factor), plain))
        power = factor**2 if plain.of == "square" else factor
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], power * tensor, rtol=1e-5, atol=1e-6 * float(tensor.max()) * power)
        assert (plain.of == "square") == (kind in (SSD, ASSD))


def test_a_bar_on_gradients_themselves_would_depend_on_the_losss_factor(net, sets):
    methods = small(SSD, alpha=1.5), scaled(small(SSD, alpha=1.5), 0.1)
    plain, other = (
        torch.cat([tensor.flatten() for tensor in one.importances_of(net, sets[0]).tensors.values()]) for one in methods
    )
    bar = plain.median()
    assert int((other > bar).sum()) < 0.5 * int((plain > bar).sum())
    selected = [one.select(net, *sets).selected for one in methods]
    assert selected[0] == selected[1] > 0


@pytest.mark.parametrize("method", [LFSSD(alpha=1.0), ASSD()], ids=lambda method: type(method).__name__)
def test_forgetting_all_data_by_a_variant_selects_nothing(method, net, sets, tmp_path):
    """All ratios are 1, of which every percentile is 1."""
    before, method = hash_model(net), replace(method, importance_batch=SIZE)
    method.importances_of(net, sets[0]).save(tmp_path / "all")
    with pytest.warns(UserWarning, match="selects none"):
        replace(method, stored=str(tmp_path / "all")).apply(net, sets[0])
    assert hash_model(net) == before


def test_passes_are_those_over_the_forget_set_and_over_all_data_or_fewer(net, sets, backwards, tmp_path):
    """With importances kept from all training data, |D|/b and |D_f|/b; with both sets at hand, forget batches count once."""
    forget, retain = sets
    f, r, both = (math.ceil(count / SIZE) for count in (len(forget), len(retain), len(forget) + len(retain)))
    method = small(SSD, alpha=1.0)
    method.importances_of(net, retain.joined(forget)).save(tmp_path / "all")
    assert len(backwards) == both == 8
    cost = Cost()
    replace(method, stored=str(tmp_path / "all")).apply(net, forget, copy=True, cost=cost)
    assert len(backwards) == both + f == 11
    assert cost.forwards == 3 * len(forget)
    backwards.clear()
    method.apply(net, forget, retain, copy=True)
    assert len(backwards) == f + r == 8


@pytest.mark.parametrize("forget", [1, 10, 50])
def test_assd_selects_its_share_of_the_finite_ratios_and_all_that_have_no_importance_elsewhere(forget):
    generator = torch.Generator().manual_seed(forget)
    every, wanted = torch.rand(2, 40, 50, generator=generator, dtype=torch.float64)
    every += 0.1
    every[0], wanted[0, 25:] = 0, 0  # 25 ratios are infinite, 25 no numbers
    model = nn.Linear(50, 40, bias=False)
    sides = [Importances({"weight": one}, rows, 1, 0) for one, rows in ((every, 100), (wanted, forget))]
    found = selection(model, *sides, ASSD()._alpha(None, *sides)).selected
    assert abs(found - 25 - math.log1p(100 * forget / 100) / 100 * 1950) <= 1


@pytest.mark.parametrize("kind", [LFSSD, SSD])
def test_labels_that_change_places_in_both_sets_change_ssd_alone(kind, net, sets):
    generator = torch.Generator().manual_seed(1)
    data = sets[1].joined(sets[0])
    moved = replace(data, labels=data.labels[torch.randperm(len(data), generator=generator)])
    others = [moved.subset(rows.index) for rows in sets]
    assert not torch.equal(others[0].labels, sets[0].labels)
    plain, other = (hash_model(small(kind, alpha=1.2).apply(net, *some, copy=True)) for some in (sets, others))
    assert hash_model(net) not in (plain, other)
    assert (plain == other) == (kind is LFSSD)
