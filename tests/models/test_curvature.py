"""Importances are those of the plain loops, whatever the model; the model is as it was; what is stored is found again."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from helpers.architectures import tiny_model, tokens
from unwrite.errors import DataError, MethodError, ModelError, NotFinite
from unwrite.models import curvature
from unwrite.models.curvature import (
    Importances,
    cross_entropy,
    fisher,
    importances,
    importances_with_forget,
    logit_norm,
    next_token,
    outputs,
    row_gradients,
    squared_error,
    squared_logit_norm,
    stored,
)
from unwrite.models.curvature.batches import rows_of, take
from unwrite.models.curvature.uses import Convolution

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
OFFICIAL = json.loads((Path(__file__).parent / "official_ssd.json").read_text())
CLASSES = 3


class Convolutions(nn.Module):
    """What a convolutional network may hold: strides, groups, dilation, one-sided padding, norms, in-place ReLUs."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(2, 4, (3, 2), padding="same", dilation=(2, 1))
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.groups = nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.row = nn.Conv1d(8, 6, 3, stride=2)
        self.head = nn.Linear(6, CLASSES)
        self.relu = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.wide(x)))
        x = self.relu(self.groups(self.grouped(x)) * self.scale)
        return self.head(self.row(x.flatten(2)).mean(-1))


class Recurrent(nn.Module):
    """A GRU, whose weights go into an operation of their own."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(16, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.gru(x.flatten(2).transpose(1, 2).reshape(len(x), 8, 16))[0][:, -1])


class TimeFirst(nn.Module):
    """A linear layer that sees time before the rows."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(2, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.first(x.flatten(2).permute(2, 0, 1)).tanh().mean(0))


class Twice(nn.Module):
    """One layer that is used twice, and one that the loss never sees."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(128, 128), nn.Linear(128, 2)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x):
        x = self.layer(self.layer(x.flatten(1)).tanh())
        self.unused(x)
        return self.head(x)


class BatchStatistics(nn.Module):
    """A norm over the batch even in evaluation mode: the rows are not on their own."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(128, track_running_stats=False), nn.Linear(128, CLASSES)

    def forward(self, x):
        return self.head(self.norm(x.flatten(1)) if len(x) > 1 else x.flatten(1) * self.norm.weight)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES))


def vit():
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=2,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


def resnet():
    config = ResNetConfig(
        num_channels=2, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return ResNetForImageClassification(config)


def convnext():
    config = ConvNextConfig(
        num_channels=2, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2, num_labels=CLASSES
    )
    return ConvNextForImageClassification(config)


KNOWN = {"convolutions": Convolutions, "mlp": mlp, "vit": vit, "resnet": resnet, "convnext": convnext, "twice": Twice}
LANGUAGE = ["llama", "llama tied", "gpt2", "gpt_neox", "opt", "qwen3", "phi3"]
UNKNOWN = {"recurrent": Recurrent, "time first": TimeFirst}


def images(*sizes, dtype=torch.float64, seed=1):
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 2, 8, 8, generator=made, dtype=dtype), torch.randint(0, CLASSES, (n,), generator=made))
        for n in sizes
    ]


def texts(*shapes):
    rows = []
    for n, length in shapes:
        ids = tokens(n, length, seed=n)
        labels = ids.clone()
        labels[:, :2] = -100
        rows.append(({"input_ids": ids}, labels))
    return rows


def built(kind):
    """(model, batches, loss) by name, in float64."""
    torch.manual_seed(0)
    arch = kind.split(" ")[0]
    if kind in LANGUAGE:
        tied = {"tie_word_embeddings": True} if kind.endswith("tied") else {}
        return tiny_model(arch, layers=2, **tied).double(), texts((4, 9), (3, 6), (1, 5)), next_token
    return {**KNOWN, **UNKNOWN}[kind]().double().eval(), images(7, 4, 1), cross_entropy


def names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def singles(batches):
    return [take(batch, len(batch[1]), i, 1) for batch in batches for i in range(len(batch[1]))]


def loop(model, batches, loss, power=torch.square, over=None):
    """The official loop: one backward a batch, squares added up, divided by the batches."""
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for batch in batches:
        model.zero_grad()
        loss(model, batch).mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += power(parameter.grad)
    model.zero_grad()
    return {name: total / (over or len(batches)) for name, total in found.items()}


def assert_same(found, expected, rel=1e-12, zero=1e-24):
    """Relative to each tensor's maximum; a gradient that is nothing but rounding (a key's bias) counts as zero."""
    assert list(found) == list(expected)
    floor = zero * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        wrong, scale = float((found[name] - tensor).abs().max()), float(tensor.abs().max())
        assert wrong <= max(rel * scale, floor), (name, wrong, scale)


# --- batch by batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KNOWN, *UNKNOWN, *LANGUAGE])
def test_by_batch_equals_the_official_loop(kind):
    model, batches, loss = built(kind)
    assert_same(importances(model, batches, loss).tensors, loop(model, batches, loss))


def test_loss_free_importances_take_absolute_gradients_and_no_labels():
    model, batches, _ = built("convolutions")
    other = [(x, y.flip(0)) for x, y in batches]
    found = importances(model, batches, squared_logit_norm, of="absolute")
    assert_same(found.tensors, loop(model, batches, squared_logit_norm, torch.abs))
    assert_same(importances(model, other, squared_logit_norm, of="absolute").tensors, found.tensors, rel=0)


def test_opposite_gradients_in_two_batches_cancel_in_the_sum_that_salun_takes():
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 2.0]])
    batches = [(x, 1.0), (x, -1.0)]
    found = importances(model, batches, lambda m, b: b[1] * m(b[0])[:, 0], of="gradient", over="sum")
    assert found.tensors["weight"].tolist() == [[0.0, 0.0]]
    single = importances(model, batches[:1], lambda m, b: b[1] * m(b[0])[:, 0], of="gradient", over="sum")
    assert single.tensors["weight"].tolist() == [[1.0, 2.0]]


def test_the_last_small_batch_counts_like_the_others():
    model, batches, loss = built("mlp")
    first, last = (importances(model, [batch], loss).tensors for batch in (batches[0], batches[2]))
    both = importances(model, [batches[0], batches[2]], loss).tensors
    assert_same(both, {name: (first[name] + last[name]) / 2 for name in first})


def test_forget_rows_from_the_shared_pass_are_those_of_their_own_pass():
    model, batches, loss = built("convolutions")
    for options in ({}, {"of": "absolute"}, {"each": "row"}, {"of": "gradient", "over": "sum"}):
        full, forget = importances_with_forget(model, batches[:2], batches[2:], loss, **options)
        assert_same(forget.tensors, importances(model, batches[2:], loss, **options).tensors, rel=0)
        alone = importances(model, batches, loss, **options)
        assert_same(full.tensors, alone.tensors)
        assert (full.rows, full.batches) == (alone.rows, alone.batches) == (12, 3)


def test_the_same_data_gives_the_same_importances():
    model, batches, loss = built("resnet")
    assert_same(importances(model, batches, loss).tensors, importances(model, batches, loss).tensors, rel=0)


def official_model():
    """Weights by a formula, so that they are the same everywhere."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )
    with torch.no_grad():
        for number, tensor in enumerate([*model.parameters(), model[1].running_mean]):
            tensor.copy_(torch.sin(torch.arange(tensor.numel()) * 1.7 + number).view_as(tensor) * 0.5)
        model[1].running_var.copy_(torch.tensor([0.5, 1.0, 2.0]))
    return model


def official_batches():
    pixels = torch.cos(torch.arange(10 * 36) * 0.37 + torch.arange(10 * 36) ** 2 * 0.011).view(10, 1, 6, 6)
    labels = torch.arange(10) * 7 % 4
    return list(zip(pixels.split(4), labels.split(4), strict=True))


@pytest.mark.parametrize(
    ("variant", "loss", "of"), [("ssd", cross_entropy, "square"), ("lfssd", squared_logit_norm, "absolute")]
)
def test_by_batch_gives_the_numbers_of_the_authors_code(variant, loss, of):
    found = importances(official_model(), official_batches(), loss, of=of).tensors
    expected = {name: torch.tensor(values).view_as(found[name]) for name, values in OFFICIAL[variant].items()}
    assert_same(found, expected, rel=1e-5)


# --- row by row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["square", "absolute"])
@pytest.mark.parametrize("kind", [*KNOWN, *LANGUAGE])
def test_by_row_equals_a_loop_over_single_rows_in_one_backward_a_batch(kind, of):
    model, batches, loss = built(kind)
    found = importances(model, batches, loss, each="row", of=of)
    power, zero = (torch.square, 1e-24) if of == "square" else (torch.abs, 1e-12)
    assert_same(found.tensors, loop(model, singles(batches), loss, power), zero=zero)
    assert found.looped == ()


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_known_goes_one_row_at_a_time_and_says_so(kind):
    model, batches, loss = built(kind)
    found = importances(model, batches, loss, each="row")
    assert_same(found.tensors, loop(model, singles(batches), loss))
    assert found.looped
    assert set(found.looped) <= set(names(model))


def test_rows_that_see_each_other_are_found_out():
    torch.manual_seed(0)
    model = BatchStatistics().double()
    batches = images(6, 2)
    found = importances(model, batches, cross_entropy, each="row")
    assert "norm.weight" in found.looped
    coupled = importances(
        mlp().double(), batches, lambda m, b: cross_entropy(m, b) + outputs(m, b).sum(1).prod(), each="row"
    )
    assert coupled.looped


def test_a_use_that_no_torch_function_shows_is_found_in_the_graph():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad * weight, (grad * x).sum(0)

    model, batches, _ = built("mlp")
    weight = model[4].bias

    def loss(model, batch):
        return F.cross_entropy(Hidden.apply(outputs(model, batch), weight), batch[1], reduction="none")

    found = importances(model, batches, loss, each="row")
    assert_same(found.tensors, loop(model, singles(batches), loss))
    assert found.looped == ("4.bias",)


def test_a_weight_changed_in_its_own_operation_is_not_taken_for_itself():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(128, CLASSES))

        def forward(self, x):
            weight = self.weight.float().double()  # a copy
            weight.mul_(2)
            return x.flatten(1) @ weight

    torch.manual_seed(0)
    model, batches = Doubled().double(), images(5, 3)
    assert_same(
        importances(model, batches, cross_entropy, each="row").tensors,
        loop(model, singles(batches), cross_entropy),
        1e-6,
    )


@pytest.mark.parametrize("uses", [1, 2])
def test_a_weight_that_is_shifted_and_reshaped_first_is_still_known_unless_used_twice(uses):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(2)), nn.Linear(128, CLASSES)

        def forward(self, x):
            weight = (1.0 + self.weight).view(2, 1).unsqueeze(-1)
            for _ in range(uses):
                x = (x * weight).tanh()
            return self.head(x.flatten(1))

    torch.manual_seed(0)
    model, batches = Shifted().double(), images(5, 3)
    found = importances(model, batches, cross_entropy, each="row")
    assert_same(found.tensors, loop(model, singles(batches), cross_entropy))
    assert found.looped == (() if uses == 1 else ("weight",))


def test_large_layers_are_taken_a_few_rows_at_a_time():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(2), nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 600), nn.Flatten(), nn.Tanh())
    model, batches = nn.Sequential(wide, nn.Linear(1200, CLASSES)).double(), images(19, 9)
    found = importances(model, batches, cross_entropy, each="row")
    assert_same(found.tensors, loop(model, singles(batches), cross_entropy))
    assert found.looped == ()


def test_a_batch_of_rows_is_not_a_row():
    model, batches, loss = built("mlp")
    by_row, by_batch = (importances(model, batches[:1], loss, each=each).tensors for each in ("row", "batch"))
    assert by_batch["1.weight"].sum() < 0.7 * by_row["1.weight"].sum()
    ones = singles(batches)
    assert_same(importances(model, ones, loss).tensors, importances(model, batches, loss, each="row").tensors)


def test_sums_are_means_times_rows_and_gradients_add_up_over_rows():
    model, batches, loss = built("mlp")
    mean, total = (importances(model, batches, loss, each="row", over=over).tensors for over in ("mean", "sum"))
    assert_same(total, {name: 12 * tensor for name, tensor in mean.items()})
    gradient = importances(model, batches, loss, each="row", of="gradient", over="sum").tensors
    assert_same(gradient, loop(model, singles(batches), loss, lambda grad: grad, over=1))


@pytest.mark.parametrize("loss", [squared_logit_norm, logit_norm, squared_error])
def test_any_loss_a_row_will_do(loss):
    model, batches, _ = built("convolutions")
    if loss is squared_error:
        batches = [(x, F.one_hot(y, CLASSES).double()) for x, y in batches]
    assert_same(importances(model, batches, loss, each="row").tensors, loop(model, singles(batches), loss))


@pytest.mark.parametrize("places", [1, 8])
def test_both_ways_to_take_a_convolution_apart_agree(places):
    torch.manual_seed(0)
    weight = torch.randn(6, 2, 3, 3)
    x, grad = torch.randn(5, 4, 2 * places + 1, 9), torch.randn(5, 6, places, 4)
    use = Convolution("", weight.shape, x, stride=(2, 2), groups=2)
    torch.testing.assert_close(use._grouped(x, grad).flatten(), use._unfolded(x, grad).flatten(), rtol=1e-4, atol=1e-4)


def test_float32_is_close_and_half_precision_is_accumulated_in_float32():
    model, batches, loss = built("convolutions")
    expected = loop(model, singles(batches), loss)
    model.float()
    single = [(x.float(), y) for x, y in batches]
    assert_same(
        {n: t.double() for n, t in importances(model, single, loss, each="row").tensors.items()}, expected, rel=1e-5
    )
    model.bfloat16()
    halves = [(x.bfloat16(), y) for x, y in batches]
    for each in ("row", "batch"):
        found = importances(model, halves, loss, each=each).tensors
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["convolutions", "recurrent", "llama tied"])
def test_row_gradients_are_those_of_single_rows_in_order(kind):
    model, batches, loss = built(kind)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, one).sum(), parameters)])
        for one in singles(batches)
    ]
    for block in (1, 3):
        blocks = list(row_gradients(model, batches, loss, block=block))
        assert max(len(part) for part in blocks) == block
        torch.testing.assert_close(torch.cat(blocks), torch.stack(expected), rtol=1e-10, atol=1e-12)


# --- over all labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convolutions", "vit", "recurrent"])
def test_fisher_is_the_mean_over_the_models_own_labels(kind):
    model, batches, _ = built(kind)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, _ in singles(batches):
        scores = outputs(model, (x,)).log_softmax(-1)[0]
        for label in range(CLASSES):
            grads = torch.autograd.grad(-scores[label], list(model.parameters()), retain_graph=True)
            for total, grad in zip(expected.values(), grads, strict=True):
                total += scores[label].exp().detach() * grad**2 / 12
    found = fisher(model, batches, outputs)
    assert_same(found.tensors, expected)
    assert found.of == "expected"


def test_fisher_of_a_logit_is_p_times_one_minus_p():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES)).double(), images(5)
    p = model(batches[0][0]).softmax(-1)
    found = fisher(model, batches, outputs).tensors["1.bias"]  # the bias has the logit's gradient
    torch.testing.assert_close(found, (p * (1 - p)).mean(0), rtol=1e-12, atol=0)


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_the_model_and_the_random_state_are_as_they_were():
    model, batches, loss = built("convolutions")
    model.train()
    model.groups.eval()
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()

    def broken(model, batch):
        raise ValueError("broken")

    for each in ("row", "batch"):
        found = importances(model, batches, loss, each=each)
        assert "head.bias" not in found.tensors
        with pytest.raises(ValueError, match="broken"):
            importances(model, batches, broken, each=each)
    next(row_gradients(model, batches, loss))
    fisher(model, batches, outputs)
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("take_them", [
    lambda model, batches: importances(model, batches, cross_entropy, each="row"),
    lambda model, batches: fisher(model, batches, outputs),
    lambda model, batches: list(row_gradients(model, batches, cross_entropy)),
])  # fmt: skip
def test_nothing_of_a_pass_stays_in_memory(take_them):
    """Autograd's graph is beyond Python's cycle collector: a hook that held what holds the graph would keep both."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, CLASSES)).eval()
    gone = []
    model[1].register_forward_hook(lambda module, args, out: gone.append(weakref.ref(args[0])))
    take_them(model, [(torch.randn(5, 20), torch.arange(5) % CLASSES)])
    gc.collect()
    assert gone
    assert [one for one in gone if one() is not None] == []


def test_gradients_are_taken_where_the_caller_has_turned_them_off():
    model, batches, loss = built("mlp")
    with torch.no_grad():
        assert importances(model, batches, loss, each="row").rows == 12


def test_cost_is_counted_in_forwards_of_a_row():
    model, batches, loss = built("mlp")
    assert importances(model, batches, loss).cost == 3 * 12
    checked = 2 * 5  # two rows, a forward and two backwards each
    assert importances(model, batches, loss, each="row").cost == 3 * 12 + checked
    assert fisher(model, batches[:1], outputs).cost == 7 * (1 + 2 * CLASSES) + checked
    assert importances(model, singles(batches), loss, each="row").cost == 3 * 12


def test_tied_weights_are_counted_once():
    model, batches, loss = built("llama tied")
    found = importances(model, batches, loss, each="row").tensors
    assert "lm_head.weight" not in found
    assert sum(t.numel() for t in found.values()) == sum(p.numel() for p in model.parameters())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", ["row", "batch"])
def test_importances_that_are_not_finite_are_refused_by_name_and_number(each):
    model, batches, loss = built("mlp")
    with torch.no_grad():
        model[4].bias[0] = torch.nan
    with pytest.raises(NotFinite, match=r"2048 of 2048 importances of 1\.weight are not finite"):
        importances(model, batches, loss, each=each)


@pytest.mark.parametrize("each", ["row", "batch"])
def test_no_rows_and_no_parameters_are_refused(each):
    model, batches, loss = built("mlp")
    with pytest.raises(DataError, match="no batches"):
        importances(model, [], loss, each=each)
    with pytest.raises(DataError, match="no rows"):
        importances(model, [(x[:0], y[:0]) for x, y in batches], loss, each=each)
    with pytest.raises(ModelError, match="no parameter with requires_grad"):
        importances(model.requires_grad_(False), batches, loss, each=each)
    with pytest.raises(DataError, match="no batches"):
        list(row_gradients(model.requires_grad_(True), [], loss))


def test_a_loss_that_is_not_one_a_row_is_refused():
    model, batches, loss = built("mlp")
    with pytest.raises(MethodError, match=r"shape \[\].*one loss a row"):
        importances(model, batches, lambda m, b: loss(m, b).mean())
    with pytest.raises(MethodError, match="does not depend on any parameter"):
        importances(model, batches, lambda m, b: loss(m, b).detach(), each="row")
    with pytest.raises(MethodError, match=r"\[rows, classes\]"):
        fisher(model, batches, lambda m, b: outputs(m, b)[:, 0])


def test_options_that_do_not_exist_are_refused():
    model, batches, loss = built("mlp")
    for option in ({"each": "token"}, {"of": "cube"}, {"over": "median"}):
        with pytest.raises(MethodError, match=r"has no meaning\. Known: "):
            importances(model, batches, loss, **option)
    with pytest.raises(MethodError, match="block=0"):
        next(row_gradients(model, batches, loss, block=0))


def test_rows_that_must_be_taken_apart_and_cannot_are_refused():
    model, batches, loss = built("recurrent")
    batch = (*batches[0], torch.ones(3))
    with pytest.raises(DataError, match=r"one of its tensors is \[3\]"):
        importances(model, [batch], loss, each="row")


def test_rows_are_taken_from_whatever_a_batch_is_made_of():
    batch = {
        "x": torch.arange(4.0),
        "more": (torch.ones(4, 2), ["a", "b", "c", "d"]),
        "scale": torch.tensor(2.0),
        "n": 1,
    }
    assert rows_of(batch) == 4
    part = take(batch, 4, 1, 2)
    assert part["x"].tolist() == [1, 2]
    assert part["more"][0].shape == (2, 2)
    assert part["more"][1] == ["b", "c"]
    assert (part["scale"], part["n"]) == (2.0, 1)


# --- kept -------------------------------------------------------------------------------------------------------------


def kept(model, batches, calls, **settings):
    def compute():
        calls.append(1)
        return importances(model, batches, cross_entropy)

    data = [tensor for batch in batches for tensor in batch]
    return stored(compute, model=model, data=data, settings={"loss": "cross entropy", **settings})


def test_stored_importances_are_computed_once_and_read_again():
    model, batches, _ = built("convolutions")
    calls = []
    first = kept(model, batches, calls)
    again = kept(model, batches, calls)
    assert len(calls) == 1
    assert_same(again.tensors, first.tensors, rel=0)
    assert (again.rows, again.batches, again.cost, again.of) == (first.rows, first.batches, first.cost, first.of)


def test_another_weight_statistic_datum_setting_or_choice_of_parameters_is_computed_anew():
    model, batches, _ = built("convolutions")
    calls = []
    kept(model, batches, calls)
    changes = [
        lambda: model.head.weight.data[0, 0].add_(1e-6),
        lambda: model.norm.running_mean[0].add_(1),
        lambda: batches[1][0][0, 0, 0, 0].add_(1),
        lambda: model.head.bias.requires_grad_(False),
    ]
    for number, change in enumerate(changes):
        change()
        kept(model, batches, calls)
        assert len(calls) == number + 2
    kept(model, batches, calls, batch_size=7)
    assert len(calls) == 6


def test_a_failed_computation_leaves_nothing_behind():
    model, batches, _ = built("convolutions")
    good = model.head.bias.detach().clone()
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    with pytest.raises(NotFinite):
        kept(model, batches, [])
    with torch.no_grad():
        model.head.bias.copy_(good)
    calls = []
    kept(model, batches, calls)
    assert calls == [1]


def test_what_is_saved_is_whole_or_refused(tmp_path):
    model, batches, loss = built("mlp")
    found = importances(model, batches, loss, each="row")
    folder = found.save(tmp_path / "kept")
    loaded = Importances.load(folder)
    assert_same(loaded.tensors, found.tensors, rel=0)
    assert loaded.each == "row"
    (folder / "importances.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(ModelError, match="damaged"):
        Importances.load(folder)
    with pytest.raises(ModelError, match="holds no importances"):
        Importances.load(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ModelError, match="something else"):
        found.save(tmp_path / "other")


def test_importances_of_two_kinds_or_models_are_not_joined():
    model, batches, loss = built("mlp")
    by_batch, by_row = importances(model, batches, loss), importances(model, batches, loss, each="row")
    with pytest.raises(ModelError, match="another kind"):
        by_batch.joined(by_row)
    with pytest.raises(ModelError, match="other parameters"):
        by_batch.joined(importances(built("resnet")[0], batches, loss))


def test_every_public_name_is_there():
    assert all(hasattr(curvature, name) for name in curvature.__all__)
