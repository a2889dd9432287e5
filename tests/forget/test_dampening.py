"""Dampening: the card's closed forms and identities (arXiv 2308.07707), on images and on texts, and what is refused."""

import copy
import dataclasses
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import make_examples, make_llama
from unwrite.data import Images
from unwrite.data.text.encoding import encode_all, pad
from unwrite.errors import DataError, MethodError, ModelError, Notice, noticing
from unwrite.forget import dampening
from unwrite.forget.dampening import (
    ASSD,
    LFSSD,
    SSD,
    Potion,
    RandomDampening,
    dampen,
    percentile_of_share,
    selection,
)
from unwrite.forget.engine.cost import Cost
from unwrite.forget.engine.importance_ratio import ratios
from unwrite.models.curvature import Importances, importances, importances_with_forget
from unwrite.runs import hash_model

pytestmark = pytest.mark.filterwarnings("ignore:.*selects [0-9]+% of")
CLASSES = 4
METHODS = [SSD(alpha=1.0), LFSSD(alpha=1.0), ASSD(), Potion(tries=40), RandomDampening(alpha=1.0)]


def rows(labels, first=0, seed=0):
    """8x8 images whose class is a brighter quarter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(labels)
    pixels = 0.4 * torch.rand(len(labels), 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = divmod(label, 2)
        pixels[row, 0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.2
    index = torch.arange(first, first + len(labels))
    return Images(pixels, labels=labels, index=index, classes=tuple("abcd"))


FORGET, RETAIN = rows([0] * 20, seed=1), rows([1, 2, 3] * 20, first=100, seed=2)


def layers(outputs=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, outputs)
    )


@pytest.fixture(scope="module")
def fitted():
    model, data = layers(), RETAIN.joined(FORGET)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(model(data.pixels), data.labels).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture
def net(fitted):
    return copy.deepcopy(fitted)


def right(model, data):
    with torch.no_grad():
        return (model(data.pixels).argmax(1) == data.labels).float().mean().item()


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def small(method, **fields):
    return copy.replace(method, importance_batch=8, **fields) if hasattr(copy, "replace") else _replaced(method, fields)


def _replaced(method, fields):
    from dataclasses import replace

    return replace(method, importance_batch=8, **fields)


def both(method, model, forget=FORGET, retain=RETAIN):
    """(I_D, I_f) as the method takes them, by a pass over each set."""
    kept, wanted = (method.importances_of(model, data) for data in (retain, forget))
    return kept.joined(wanted), wanted


@pytest.mark.parametrize(
    ("alpha", "lam", "expected"),
    [(10, 1, [1, -0.1, 0.005, 0]), (10, 5, [1, -0.5, 0.025, 0]), (0.1, 200, [1, -2, 0.5, 0])],
)
def test_dampening_has_the_cards_closed_form(alpha, lam, expected):
    theta, every, wanted = (torch.tensor(v) for v in ([1, -2, 0.5, 4], [1.0, 1, 1, 0], [5.0, 20, 100, 3]))
    torch.testing.assert_close(
        dampen(theta, every, wanted, alpha, lam), torch.tensor(expected).float(), rtol=1e-7, atol=0
    )


def test_nothing_over_nothing_is_never_selected():
    zero = torch.zeros(2)
    assert dampen(torch.tensor([3.0, -0.0]), zero, zero, 0.0, 1.0).tolist() == [3.0, -0.0]


@pytest.mark.parametrize("method", [SSD, LFSSD, RandomDampening], ids=lambda method: method.__name__)
def test_an_infinite_alpha_leaves_the_model_bit_identical(method, net):
    before = hash_model(net)
    with pytest.warns(UserWarning, match="selects none"):
        small(method(alpha=math.inf)).apply(net, FORGET, RETAIN)
    assert hash_model(net) == before


def test_lambda_zero_sets_exactly_the_selected_weights_to_zero(net):
    method, before = small(SSD(alpha=1.0, lam=0.0)), weights(net)
    every, wanted = both(method, net)
    method.apply(net, FORGET, RETAIN)
    for name, after in net.named_parameters():
        chosen = wanted.tensors[name] > every.tensors[name]
        assert (after[chosen] == 0).all()
        assert torch.equal(after[~chosen], before[name][~chosen])


@pytest.mark.parametrize("method", [*METHODS, SSD(alpha=0.0, lam=7.0)], ids=lambda method: type(method).__name__)
def test_no_weight_grows_and_those_not_selected_stay_bit_identical(method, net):
    method, before = small(method), weights(net)
    found = method.select(net, FORGET, RETAIN)
    method.apply(net, FORGET, RETAIN)
    assert found.selected > 0
    changed = 0
    for name, after in net.named_parameters():
        assert (after.abs() <= before[name].abs()).all()
        changed += int((after != before[name]).sum())
    assert changed <= found.selected


def test_lambda_below_alpha_bounds_every_factor_by_their_ratio(net):
    found = small(SSD(alpha=1.5, lam=0.6)).select(net, FORGET, RETAIN)
    assert all(layer.least <= layer.mean < 0.4 for layer in found.layers if layer.selected)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_forgetting_all_data_selects_nothing(alpha, net, tmp_path):
    before, method = hash_model(net), small(SSD(alpha=alpha))
    method.importances_of(net, FORGET).save(tmp_path / "all")
    with pytest.warns(UserWarning, match="selects none"):
        small(SSD(alpha=alpha, stored=str(tmp_path / "all"))).apply(net, FORGET)
    assert hash_model(net) == before


@pytest.mark.parametrize("kind", [SSD, LFSSD, ASSD])
@pytest.mark.parametrize("factor", [4.0, 0.125])
def test_the_result_does_not_depend_on_the_losss_scale(kind, factor, net):
    @dataclass(frozen=True, kw_only=True)
    class Scaled(kind):
        def _loss(self, data):
            inner = super()._loss(data)

            def scaled(model, batch):
                return factor * inner(model, batch)

            return scaled

    fields = {} if kind is ASSD else {"alpha": 1.0}
    plain = small(kind(**fields)).apply(net, FORGET, RETAIN, copy=True)
    assert hash_model(plain) != hash_model(net)
    scaled = small(Scaled(**fields, cache=False)).apply(net, FORGET, RETAIN, copy=True)
    assert hash_model(scaled) == hash_model(plain)


def test_batches_of_one_give_the_mean_of_single_rows_squared_gradients_and_larger_ones_do_not(net):
    names = dict(net.named_parameters())

    def loss(parameters, pixels, label):
        return F.cross_entropy(torch.func.functional_call(net, parameters, (pixels[None],)), label[None])

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(names, FORGET.pixels, FORGET.labels)
    expected = {name: grad.square().mean(0) for name, grad in grads.items()}
    single = SSD(importance_batch=1).importances_of(net, FORGET).tensors
    eight = SSD(importance_batch=8).importances_of(net, FORGET).tensors
    for name, value in expected.items():
        torch.testing.assert_close(single[name], value, rtol=1e-5, atol=1e-6 * float(value.max()))
    assert sum(float(t.sum()) for t in eight.values()) < 0.9 * sum(float(t.sum()) for t in expected.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_statistics_modes_gradients_and_random_state_stay_as_they_were(method, net):
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    random, before = torch.get_rng_state(), hash_model(net)
    small(method).apply(net, FORGET, RETAIN)
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not net.training
    assert hash_model(net) != before


@pytest.fixture
def backwards(monkeypatch):
    calls = []
    inner = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: calls.append(1) or inner(*args, **more))
    return calls


def test_every_batch_is_gone_back_through_once_and_no_optimiser_steps(net, backwards, monkeypatch):
    def never(*args, **more):
        raise AssertionError("an optimiser was made")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", never)
    cost = Cost()
    small(SSD(alpha=1.0)).apply(net, FORGET, RETAIN, cost=cost)
    assert len(backwards) == math.ceil(20 / 8) + math.ceil(60 / 8)
    assert cost.forwards == 3 * (20 + 60)


def test_importances_of_retain_rows_are_read_from_disk_the_second_time_at_the_same_cost(net, backwards):
    costs, results = [Cost(), Cost(), Cost()], []
    for cost, cache in zip(costs, (True, True, False), strict=True):
        backwards.clear()
        results.append(hash_model(small(SSD(alpha=1.0, cache=cache)).apply(net, FORGET, RETAIN, copy=True, cost=cost)))
        assert len(backwards) == (11 if cost is not costs[1] else 3)
    assert len(set(results)) == 1
    assert len({cost.forwards for cost in costs}) == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_other_weights_data_losses_or_batches_are_never_served_from_the_cache(method, net):
    fresh = hash_model(small(method, cache=False).apply(net, FORGET, RETAIN, copy=True))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[5].weight.mul_(1.5)
    for one in METHODS:
        small(one).apply(other, FORGET, RETAIN, copy=True)
        one.apply(net, FORGET, RETAIN, copy=True)
        small(one).apply(net, FORGET, rows([1, 2, 3] * 20, first=100, seed=3), copy=True)
    assert hash_model(small(method).apply(net, FORGET, RETAIN, copy=True)) == fresh


def test_all_data_are_the_retain_batches_and_then_the_forget_batches(net):
    from unwrite.forget.engine.importance import image_loss

    def split(data):
        return [(data[i : i + 8].pixels, data[i : i + 8].target) for i in range(0, len(data), 8)]

    every, wanted = importances_with_forget(net, split(RETAIN), split(FORGET), image_loss)
    found = small(SSD(alpha=1.0)).select(net, FORGET, RETAIN)
    assert found == selection(net, every, wanted, 1.0)
    assert found.selected > 0


@pytest.mark.parametrize(("share", "percentile"), [(0.01, 100 - math.log(2)), (0.1, 97.602), (0.0, 100.0)])
def test_percentile_of_a_share_has_the_worked_values(share, percentile):
    assert percentile_of_share(share) == pytest.approx(percentile, abs=1e-3)


@pytest.mark.parametrize("forget", [1, 5, 40])
def test_assd_selects_the_share_its_percentile_says_to_within_one_weight(forget):
    generator = torch.Generator().manual_seed(forget)
    model = nn.Linear(50, 40, bias=False)
    every = Importances({"weight": torch.rand(40, 50, generator=generator, dtype=torch.float64) + 0.1}, 100, 10, 0)
    wanted = Importances({"weight": torch.rand(40, 50, generator=generator, dtype=torch.float64)}, forget, 1, 0)
    alpha = ASSD()._alpha(None, every, wanted)
    share = math.log1p(100 * forget / 100) / 100
    assert abs(selection(model, every, wanted, alpha).selected - share * 2000) <= 1


def test_percentile_leaves_ratios_out_that_are_no_numbers():
    every = Importances({"w": torch.tensor([1.0, 2.0, 0.0, 0.0])}, 2, 2, 0)
    wanted = Importances({"w": torch.tensor([3.0, 2.0, 0.0, 1.0])}, 1, 1, 0)
    assert sorted(ratios(every, wanted)) == [1.0, 3.0]
    with pytest.raises(MethodError, match="no weight has an importance on all data"):
        ratios(Importances({"w": torch.zeros(2)}, 1, 1, 0), Importances({"w": torch.zeros(2)}, 1, 1, 0))


@pytest.mark.parametrize("method", [LFSSD(alpha=1.0), SSD(alpha=1.0)], ids=lambda method: type(method).__name__)
def test_permuted_labels_change_ssd_and_not_lfssd(method, net):
    wrong = Images(FORGET.pixels, labels=torch.arange(20) % 3, index=FORGET.index, classes=FORGET.classes)
    plain, other = (hash_model(small(method).apply(net, data, RETAIN, copy=True)) for data in (FORGET, wrong))
    assert (plain == other) == isinstance(method, LFSSD)


def test_ssd_forgets_a_class_where_as_many_weights_at_random_places_do_not(net):
    assert right(net, FORGET) == right(net, RETAIN) == 1
    model = small(SSD(alpha=2.0, lam=0.1)).apply(net, FORGET, RETAIN, copy=True)
    control = small(RandomDampening(alpha=2.0, lam=0.1)).apply(net, FORGET, RETAIN, copy=True)
    assert right(model, FORGET) < 0.1
    assert right(model, RETAIN) > 0.9
    assert right(control, FORGET) > 0.5


def test_the_control_has_the_same_factors_in_every_tensor_at_other_places(net):
    before = weights(net)
    factors = {}
    for name, method in (("ssd", SSD(alpha=1.0)), ("random", RandomDampening(alpha=1.0))):
        model = small(method).apply(net, FORGET, RETAIN, copy=True).double()
        factors[name] = {key: value / before[key].double() for key, value in model.named_parameters()}
    for key in factors["ssd"]:
        mine, theirs = (factors[which][key].flatten() for which in ("ssd", "random"))
        torch.testing.assert_close(mine.sort().values, theirs.sort().values, rtol=1e-5, atol=1e-5)
    assert not torch.equal(factors["ssd"]["1.weight"], factors["random"]["1.weight"])


def test_the_controls_places_are_a_function_of_its_seed(net):
    def made(seed):
        method = small(RandomDampening(alpha=1.0, control_seed=seed))
        return hash_model(method.apply(net, FORGET, RETAIN, copy=True))

    assert made(0) == made(0) != made(1)


def test_the_report_counts_what_is_selected_and_leaves_the_model_as_it_is(net):
    before, state = weights(net), hash_model(net)
    method = small(SSD(alpha=1.0, lam=0.9))
    found = method.select(net, FORGET, RETAIN)
    assert hash_model(net) == state
    every, wanted = both(method, net)
    method.apply(net, FORGET, RETAIN)
    assert [layer.name for layer in found.layers] == list(before)
    for layer in found.layers:
        chosen = wanted.tensors[layer.name] > every.tensors[layer.name]
        beta = (0.9 * every.tensors[layer.name] / wanted.tensors[layer.name])[chosen]
        assert (layer.weights, layer.selected) == (chosen.numel(), int(chosen.sum()))
        assert layer.least == pytest.approx(beta.min().item(), rel=1e-5)
        assert layer.mean == pytest.approx(beta.mean().item(), rel=1e-5)
    assert found.share == found.selected / sum(value.numel() for value in before.values())


def test_an_alpha_that_no_ratio_can_reach_is_told_before_the_first_pass(net, monkeypatch):
    monkeypatch.setattr(dampening, "importances", lambda *_, **__: pytest.fail("a pass was made"))
    message = r"SSD at alpha 10 can select no weight: with 3 of 11 batches to forget, none matters more than 3.67 times"
    with pytest.warns(Notice, match=message), pytest.raises(pytest.fail.Exception):
        small(SSD(alpha=10.0)).apply(net, FORGET, RETAIN)


@pytest.mark.parametrize("alpha", [math.inf, 3.6, None])
def test_an_alpha_within_reach_is_not_told(net, alpha):
    with noticing() as said:
        small(SSD(alpha=alpha)).apply(net, FORGET, RETAIN)
    assert not any("can select no weight" in line for line in said)


@pytest.mark.parametrize("method", [SSD(), LFSSD(), RandomDampening()], ids=lambda method: type(method).__name__)
def test_on_few_rows_the_default_alpha_is_the_percentile_and_says_so(net, method):
    before = hash_model(net)
    with noticing() as said:
        found = small(method).select(net, FORGET, RETAIN)
        small(method).apply(net, FORGET, RETAIN)
    name = type(method).__name__
    assert said == [
        f"{name} takes alpha {found.alpha:.3g}, ASSD's percentile: at the paper's 10 it would select no weight, with 3 "
        "of 11 batches to forget."
    ]
    assert 0 < found.alpha < 11 / 3
    assert found.selected > 0
    assert hash_model(net) != before


def test_where_the_papers_alpha_selects_weights_it_is_the_default(net):
    method = small(SSD())
    every = method.importances_of(net, RETAIN).joined(method.importances_of(net, FORGET))
    wanted = method.importances_of(net, FORGET)
    few = {name: tensor * 0.01 for name, tensor in every.tensors.items()}
    work = method.work(net, FORGET)
    with noticing() as said:
        assert method._alpha(work, dataclasses.replace(every, tensors=few), wanted) == 10.0
    assert said == []


@pytest.mark.filterwarnings("default")
def test_a_selection_of_more_than_a_fifth_warns(net):
    with pytest.warns(UserWarning, match=r"SSD selects \d\d% of 1708 weights at alpha 0.01.*Raise alpha"):
        small(SSD(alpha=0.01)).apply(net, FORGET, RETAIN)


def test_stored_importances_stand_for_the_training_data(net, tmp_path):
    method = small(LFSSD(alpha=1.0))
    kept, wanted = (method.importances_of(net, data) for data in (RETAIN, FORGET))
    kept.joined(wanted).save(tmp_path / "all")
    with_data = method.apply(net, FORGET, RETAIN, copy=True)
    without = small(LFSSD(alpha=1.0, stored=str(tmp_path / "all"))).apply(net, FORGET, copy=True)
    assert hash_model(with_data) == hash_model(without) != hash_model(net)


def test_refuses_stored_importances_of_another_kind_batch_size_or_model(net, tmp_path):
    small(SSD()).importances_of(net, RETAIN).save(tmp_path / "ssd")
    at = str(tmp_path / "ssd")
    with pytest.raises(ModelError, match=r"holds the mean of each batch's square; LFSSD needs .*absolute"):
        small(LFSSD(stored=at)).apply(net, FORGET)
    with pytest.raises(ModelError, match=r"60 rows in 8 batches, which are not of 128 rows"):
        SSD(stored=at).apply(net, FORGET)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    with pytest.raises(ModelError, match=r"of another model: 1.weight is \[24, 64\], not \[6, 64\]"):
        small(SSD(stored=at)).apply(wide, FORGET)
    with pytest.raises(ModelError, match="holds no importances"):
        SSD(stored=str(tmp_path / "nothing")).apply(net, FORGET)


def test_parameters_without_gradient_are_never_touched(net):
    net[1].requires_grad_(False)
    before = weights(net)
    small(SSD(alpha=0.5)).apply(net, FORGET, RETAIN)
    assert all(torch.equal(before[f"1.{name}"], value) for name, value in net[1].named_parameters())
    assert not torch.equal(before["5.weight"], net[5].weight)
    assert not net[1].weight.requires_grad


def test_regressors_are_dampened_whether_they_give_a_column_or_a_number_a_row():
    kept, gone = (Images(r.pixels, targets=r.pixels.mean((1, 2, 3)), index=r.index) for r in (RETAIN, FORGET))
    column = layers(1).eval()
    numbers = nn.Sequential(copy.deepcopy(column), nn.Flatten(0))
    found = [[*small(SSD(alpha=1.0)).importances_of(model, gone).tensors.values()] for model in (column, numbers)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    before = hash_model(column)
    small(SSD(alpha=1.0)).apply(column, gone, kept)
    assert hash_model(column) != before
    with pytest.raises(DataError, match="Potion stops by accuracy"):
        Potion().apply(column, gone, kept)


POISON = Images(FORGET.pixels, labels=torch.full((20,), 0), index=FORGET.index, classes=FORGET.classes)


def test_potion_finds_the_first_share_at_which_the_labels_are_gone_from_the_original_weights(net):
    method = small(Potion(rho=0.2, lam=0.1))
    every, wanted = both(method, net)
    values = np.sort((torch.cat([(wanted.tensors[n] / t).flatten() for n, t in every.tensors.items()])).numpy())
    share = 20 / 80 / 25
    for _ in range(500):
        alpha = np.percentile(values[np.isfinite(values)].astype(np.float64), 100 - math.log(1 + 100 * share))
        model = copy.deepcopy(net)
        with torch.no_grad():
            for name, theta in model.named_parameters():
                theta.copy_(dampen(theta, every.tensors[name], wanted.tensors[name], float(alpha), 0.1))
        if right(model, POISON) <= 0.2:
            break
        share *= 1.1
    assert share > 20 / 80 / 25
    healed = method.apply(net, POISON, RETAIN, copy=True)
    for mine, theirs in zip(healed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert right(healed, POISON) <= 0.2


def test_potion_with_nothing_to_lower_takes_the_first_share_and_counts_its_tries(net):
    cost = Cost()
    small(Potion(rho=1.0)).apply(net, FORGET, RETAIN, cost=cost)
    assert cost.forwards == 3 * 80 + 2 * 20


def test_potion_that_gives_up_says_so_and_keeps_the_last_share(net):
    with pytest.warns(UserWarning, match=r"Potion tried 2 shares, up to 0.011, and 100.0% of .* rho=0.0 allows 0.0%"):
        small(Potion(rho=0.0, tries=2)).apply(net, FORGET, RETAIN)


def test_the_search_of_potion_leaves_nothing_behind_when_only_the_selection_is_asked_for(net):
    before = hash_model(net)
    assert small(Potion()).select(net, FORGET, RETAIN).selected > 0
    assert hash_model(net) == before


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_language_models_are_dampened_in_place_and_no_weight_grows(method, forget, retain, tokenizer, tiny_llama):
    before = weights(tiny_llama)
    method = small(method)
    found = method.select(tiny_llama, forget, retain, processing_class=tokenizer)
    assert method.apply(tiny_llama, forget, retain, processing_class=tokenizer) is tiny_llama
    changed = sum(int((value != before[name]).sum()) for name, value in tiny_llama.named_parameters())
    assert 0 < changed <= found.selected
    assert all((value.abs() <= before[name].abs()).all() for name, value in tiny_llama.named_parameters())


def test_text_importances_are_of_the_mean_over_rows_of_each_rows_mean_token(forget, tokenizer, tiny_llama):
    found = SSD(importance_batch=16).importances_of(tiny_llama, forget, processing_class=tokenizer)
    each = []
    for row in encode_all(forget, tokenizer):
        batch = pad([row], 0)
        each.append(tiny_llama(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    torch.stack(each).mean().backward()
    for name, parameter in tiny_llama.named_parameters():
        expected = parameter.grad.square()
        torch.testing.assert_close(found.tensors[name], expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("method", [LFSSD(), Potion()], ids=lambda method: type(method).__name__)
def test_padding_is_in_no_norm_of_the_logits(method, forget, tokenizer, tiny_llama):
    encoded = sorted(encode_all(forget, tokenizer), key=lambda row: len(row.input_ids))
    together, alone = ([encoded[0], encoded[-1]], [[encoded[0]], [encoded[-1]]])
    assert len(encoded[0].input_ids) < len(encoded[-1].input_ids)
    loss = method._loss(together)

    def values(part):
        batch = pad(part, 0)
        return loss(tiny_llama, ({k: batch[k] for k in ("input_ids", "attention_mask")}, batch["labels"])).detach()

    torch.testing.assert_close(values(together), torch.cat([values(part) for part in alone]))
    logits = tiny_llama(input_ids=torch.tensor([encoded[0].input_ids])).logits[0].detach()
    norms = logits.square().sum(-1) if isinstance(method, LFSSD) else logits.norm(dim=-1)
    torch.testing.assert_close(values(together)[0], norms.mean())


def test_tied_weights_are_dampened_once(forget, retain, tokenizer):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = make_llama().config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    method = small(SSD(alpha=1.0, lam=0.5))
    before = weights(model)
    kept, wanted = (method.importances_of(model, data, processing_class=tokenizer).tensors for data in (retain, forget))
    method.apply(model, forget, retain, processing_class=tokenizer)
    name = "model.embed_tokens.weight"
    every = 3 / 5 * kept[name] + 2 / 5 * wanted[name]  # of 3 and 2 batches
    expected = dampen(before[name], every, wanted[name], 1.0, 0.5)
    torch.testing.assert_close(model.lm_head.weight, expected, rtol=1e-6, atol=1e-9)
    assert (
        Counter(layer.name for layer in method.select(model, forget, retain, processing_class=tokenizer).layers)[
            "lm_head.weight"
        ]
        == 0
    )


def test_half_precision_keeps_what_is_not_selected_and_underflows_no_importance(forget, retain, tokenizer, tiny_llama):
    model = tiny_llama.to(torch.bfloat16)
    method, before = small(SSD(alpha=1.0)), weights(model)
    found = method.importances_of(model, forget, processing_class=tokenizer)
    assert all(tensor.dtype == torch.float32 for tensor in found.tensors.values())
    method.apply(model, forget, retain, processing_class=tokenizer)
    assert all(value.dtype == torch.bfloat16 for value in model.parameters())
    assert all((value.abs() <= before[name].abs()).all() for name, value in model.named_parameters())


def test_refuses_adapters(forget, retain, tokenizer, tiny_llama):
    from peft import LoraConfig

    with pytest.raises(MethodError, match="SSD rewrites weights and trains no adapters"):
        SSD().apply(tiny_llama, forget, retain, processing_class=tokenizer, peft_config=LoraConfig())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SSD, "alpha", -1.0),
        (SSD, "alpha", math.nan),
        (SSD, "lam", -0.1),
        (SSD, "lam", math.inf),
        (ASSD, "importance_batch", 0),
        (Potion, "rho", 1.1),
        (Potion, "rho", math.nan),
        (Potion, "tries", 0),
    ],
)
def test_refuses_fields_without_meaning(kind, field, value):
    with pytest.raises(MethodError, match=rf"{field} is {value}; it must be"):
        kind(**{field: value})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_refuses_to_go_without_retain_rows_or_stored_importances(method, net, tokenizer, tiny_llama):
    with pytest.raises(DataError, match=r"no retain set. Give retain, or stored importances"):
        method.apply(net, FORGET)
    with pytest.raises(DataError, match="no retain set"):
        method.apply(tiny_llama, make_examples("forget", 4), processing_class=tokenizer)


def test_refuses_a_model_that_does_not_fit_the_data_before_anything_changes():
    model = layers(7).eval()
    before = hash_model(model)
    with pytest.raises(ModelError, match="7 outputs and the data 4 classes"):
        SSD().apply(model, FORGET, RETAIN)
    assert hash_model(model) == before


def test_importances_are_not_finite_where_the_model_is_not(net):
    from unwrite.errors import NotFinite

    with torch.no_grad():
        net[5].weight[0, 0] = math.nan
    with pytest.raises((NotFinite, ModelError)):
        small(SSD()).apply(net, FORGET, RETAIN)


def test_the_same_importances_come_out_for_the_same_model(net):
    one, other = (
        importances(
            net, [(FORGET.pixels, FORGET.labels)], lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")
        )
        for _ in range(2)
    )
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())
