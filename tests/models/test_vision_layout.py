"""The parts of image models are found by watching a forward, whatever the family calls them."""

from __future__ import annotations

import copy
import importlib.util
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from unwrite.errors import ModelError
from unwrite.models.vision_layout import logits_of, vision_layout
from unwrite.nets import SmallCNN, SmallResNet, SmallViT


def resnet(kind="basic"):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type=kind, num_labels=7)
    return ResNetForImageClassification(config)


def vit():
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=7,
    )
    return ViTForImageClassification(config)


def convnext():
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=7)
    )


def chain():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


class Lenet(nn.Module):
    """Features from a linear layer, and a head of two linear layers beside them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.embed = nn.Linear(144, 20)
        self.head = nn.Sequential(nn.Linear(20, 12), nn.Dropout(), nn.Linear(12, 6))

    def forward(self, pixels):
        e = self.embed(F.relu(self.conv(pixels)).flatten(1))
        return self.head(e), e


class InPlaceResidual(nn.Module):
    """Adds its shortcut in place and ends in a ReLU module, so that its output is its last child's output."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm(self.conv2(self.relu(self.conv1(x))))
        out += x
        return self.relu(out)


class Normalised(nn.Module):
    """Any model behind a normalising layer."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, pixels):
        return self.net(pixels - self.mean)


BUILDS = {
    "cnn": SmallCNN,
    "small resnet": lambda: SmallResNet(10, 3, 32),
    "small vit": SmallViT,
    "chain": chain,
    "lenet": Lenet,
    "resnet": resnet,
    "bottleneck": lambda: resnet("bottleneck"),
    "vit": vit,
    "convnext": convnext,
    "wrapped": lambda: Normalised(SmallResNet()),
}
SIZES = {"small resnet": (3, 32), "resnet": (3, 32), "bottleneck": (3, 32), "vit": (3, 16), "convnext": (3, 32)}


@pytest.fixture(params=BUILDS, scope="module")
def named(request):
    torch.manual_seed(0)
    model = BUILDS[request.param]().eval()
    channels, size = SIZES.get(request.param, (1, 8))
    return request.param, model, vision_layout(model), torch.rand(3, channels, size, size)


@pytest.mark.parametrize(
    ("name", "head", "dim", "outputs"),
    [
        ("cnn", ("head",), 384, 10),
        ("small resnet", ("head",), 96, 10),
        ("small vit", ("head",), 64, 10),
        ("chain", ("8",), 16, 5),
        ("lenet", ("head.0", "head.2"), 20, 6),
        ("resnet", ("classifier.1",), 16, 7),
        ("vit", ("classifier",), 32, 7),
        ("convnext", ("classifier",), 32, 7),
        ("wrapped", ("net.head",), 96, 10),
    ],
)
def test_the_head_is_what_makes_the_logits(name, head, dim, outputs):
    layout = vision_layout(BUILDS[name]())
    assert (layout.head_linears, layout.features_dim, layout.num_outputs) == (head, dim, outputs)


def test_the_head_of_the_features_is_the_logits(named):
    _, model, layout, pixels = named
    seen = layout.observe(pixels)
    assert seen.features.shape == (3, layout.features_dim)
    torch.testing.assert_close(layout.head_module(seen.features), seen.logits, rtol=0, atol=0)
    torch.testing.assert_close(seen.logits, logits_of(model, pixels), rtol=0, atol=0)


def test_every_weight_is_in_one_block(named):
    name, model, layout, _ = named
    owned = [entry for block in layout.blocks for entry in block.state]
    assert len(owned) == len(set(owned))
    assert set(owned) == set(model.state_dict()), name


def test_changing_a_block_changes_nothing_before_it(named):
    """Blocks are in the order of the forward, and nothing goes around one of them."""
    name, model, layout, pixels = named
    whole = layout.observe(pixels).blocks
    for number, block in enumerate(layout.blocks[:-1]):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for entry in block.state:
                if entry in dict(other.named_parameters()):
                    other.get_parameter(entry).add_(0.5)
        now = layout.of(other).observe(pixels).blocks
        equal = [torch.equal(a, b) for a, b in zip(whole, now, strict=True)]
        assert equal == [i < number for i in range(len(whole))], (name, block.modules)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("cnn", ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]),
        ("small resnet", ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]),
        ("small vit", ["patches", "blocks.0", "blocks.1", "blocks.2", "blocks.3 norm", "head"]),
        ("chain", ["0 1", "3", "6", "8"]),
        (
            "resnet",
            [
                "resnet.embedder",
                "resnet.encoder.stages.0.layers.0",
                "resnet.encoder.stages.0.layers.1",
                "resnet.encoder.stages.1.layers.0",
                "classifier.1",
            ],
        ),
        ("wrapped", ["net.stem", "net.blocks.0", "net.blocks.1", "net.blocks.2", "net.head"]),
    ],
)
def test_blocks_are_the_residual_blocks_or_the_layers(name, blocks):
    assert [" ".join(block.modules) for block in vision_layout(BUILDS[name]()).blocks] == blocks


def test_a_transformers_vit_has_a_block_a_layer():
    layers = [block for block in vision_layout(vit()).blocks if "vit.layers" in block.modules[0]]
    assert len(layers) == 3


def test_a_shortcut_added_in_place_is_seen():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), InPlaceResidual(4), InPlaceResidual(4), nn.Flatten(), nn.Linear(144, 3))
    assert [block.modules for block in vision_layout(model).blocks] == [("0",), ("1",), ("2",), ("4",)]


def test_the_last_blocks_end_with_the_head():
    layout = vision_layout(SmallCNN())
    assert layout.last(1) == ("head.weight", "head.bias")
    assert {name.split(".")[1] for name in layout.last(2)} == {"3", "weight", "bias"}
    assert set(layout.last(5)) == set(layout.model.state_dict())
    with pytest.raises(ModelError, match="there are 5 blocks, so there is no last 6"):
        layout.last(6)


def test_convolutions_and_norms_are_named():
    layout = vision_layout(SmallResNet())
    assert len(layout.convolutions) == 9
    assert all(layout.model.get_parameter(name).ndim == 4 for name in layout.convolutions)
    assert len(layout.norms) == 9
    assert layout.with_statistics == layout.norms


def test_layer_norms_keep_no_statistics():
    layout = vision_layout(vit())
    assert layout.with_statistics == ()
    assert len(layout.without_statistics) == 7


def test_batch_norms_without_running_statistics_are_told_apart():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 3)
    )
    assert vision_layout(model).without_statistics == ("1",)


def test_a_regressor_that_returns_one_value_a_row_has_one_output():
    class Squeezed(SmallCNN):
        def forward(self, pixels):
            return super().forward(pixels)[:, 0]

    model = Squeezed(num_classes=1)
    assert vision_layout(model).num_outputs == 1
    assert logits_of(model, torch.rand(3, 1, 8, 8)).shape == (3, 1)


def test_looking_leaves_the_model_as_it_was():
    torch.manual_seed(3)
    model = SmallResNet()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    vision_layout(model)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not model.head.weight.requires_grad


def test_frozen_weights_change_nothing():
    model = SmallResNet()
    free = vision_layout(model).blocks
    assert vision_layout(model.requires_grad_(False)).blocks == free


def test_gradients_flow_through_features_and_blocks():
    model = SmallCNN().eval()
    seen = vision_layout(model).observe(torch.rand(2, 1, 8, 8))
    (seen.features.sum() + seen.blocks[0].sum()).backward()
    assert model.blocks[0].conv.weight.grad is not None
    assert model.head.weight.grad is None


def test_a_layout_holds_for_a_copy():
    model = SmallCNN().eval()
    layout = vision_layout(model)
    fresh = SmallCNN().eval()
    pixels = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(layout.of(fresh).observe(pixels).logits, fresh(pixels))
    with pytest.raises(ModelError, match=r"this layout is of: head\.weight is \[3, 384\], not \[10, 384\]"):
        layout.of(SmallCNN(num_classes=3))


def test_an_adapter_is_looked_through():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(vit(), LoraConfig(target_modules=["query", "q_proj"], modules_to_save=[]))
    assert vision_layout(model).head_linears == ("classifier",)


@pytest.mark.parametrize(
    "made", [lambda logits: (logits, 1), lambda logits: {"logits": logits}, lambda logits: [logits]]
)
def test_logits_are_found_in_what_a_model_returns(made):
    net = SmallCNN().eval()

    class Odd(nn.Module):
        def forward(self, pixels):
            return made(net(pixels))

    pixels = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(logits_of(Odd(), pixels), net(pixels))


def test_refuses_a_model_that_returns_no_logits():
    with pytest.raises(ModelError, match=r"Conv2d returns a tensor \[2, 3, 6, 6\] for 2 images"):
        logits_of(nn.Conv2d(1, 3, 3), torch.rand(2, 1, 8, 8))


def test_refuses_a_model_that_ends_in_a_softmax():
    with pytest.raises(ModelError, match=r"no linear layer of Sequential takes \[rows, dim\] to its logits \[2, 5\]"):
        vision_layout(nn.Sequential(chain(), nn.Softmax(1)))


def test_refuses_a_model_whose_input_it_cannot_guess():
    class Fussy(nn.Linear):
        def forward(self, pixels):
            raise ValueError("only 17x3 will do")

    with pytest.raises(ModelError, match=r"no input for Fussy could be guessed \(.*only 17x3 will do\). Pass pixels"):
        vision_layout(Fussy(2, 2))


def test_refuses_pixels_the_model_does_not_take():
    with pytest.raises(
        ModelError, match=r"SmallViT doesn't take the pixels \[2, 1, 9, 9\]: this net takes images of 8x8"
    ):
        vision_layout(SmallViT(), torch.rand(2, 1, 9, 9))


def test_pixels_may_be_given():
    sizes = itertools.product((1,), (8, 11))
    assert {vision_layout(SmallCNN(), torch.rand(2, c, s, s)).head for c, s in sizes} == {"head"}


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_models_are_understood(name):
    import timm

    layout = vision_layout(timm.create_model(name, num_classes=7))
    assert layout.num_outputs == 7
    assert {entry for block in layout.blocks for entry in block.state} == set(layout.model.state_dict())
