"""Image classifiers of transformers: found, made smaller, saved and loaded, with tiny random weights."""

import pytest
import torch
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from helpers.nets import settled
from unwrite.compress import UDFC, load_compressed, net_graph, save_compressed


def resnet(kind):
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 4}
    return settled(ResNetForImageClassification(ResNetConfig(layer_type=kind, **sizes)))


@pytest.mark.parametrize(("kind", "inner"), [("basic", 1), ("bottleneck", 2)])
def test_resnets_lose_the_inner_channels_of_every_block(kind, inner):
    net = resnet(kind)
    chains = [layer.name for layer in net_graph(net, (3, 32, 32)).chains]
    blocks = ["stages.0.layers.0", "stages.1.layers.0", "stages.1.layers.1"]
    assert chains == [f"resnet.encoder.{block}.layer.{n}.convolution" for block in blocks for n in range(inner)]
    smaller, report = UDFC(prune_ratio=0.5, bits=6).apply(net, (3, 32, 32))
    assert [layer.kept_count / layer.channels for layer in report.prunable] == [0.5] * len(chains)
    pixels = torch.rand(2, 3, 32, 32)
    assert smaller(pixels).logits.shape == (2, 4)
    close, _ = UDFC(prune_ratio=0, bits=16).apply(net, (3, 32, 32))
    assert torch.allclose(close(pixels).logits, net(pixels).logits, atol=1e-2)


def test_a_resnet_comes_back_from_its_folder_alone(tmp_path):
    smaller, report = UDFC(prune_ratio=0.5, bits=6).apply(resnet("basic"))
    save_compressed(smaller, report, tmp_path / "net")
    again, pixels = load_compressed(tmp_path / "net"), torch.rand(2, 3, 32, 32)
    assert type(again) is ResNetForImageClassification
    assert torch.equal(again(pixels).logits, smaller(pixels).logits)


def efficientnet():
    config = EfficientNetConfig(
        image_size=32, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, num_labels=4
    )
    return EfficientNetForImageClassification(config)


def mobilenet():
    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=4))


@pytest.mark.parametrize(
    ("build", "ends"), [(efficientnet, ("project_conv",)), (mobilenet, ("reduce_1x1", "conv_1x1"))]
)
def test_nets_of_depthwise_convolutions_lose_channels_only_where_a_plain_one_reads_them(build, ends):
    """Between a projection without activation and the next expansion, and before the head."""
    net = settled(build())
    smaller, report = UDFC(prune_ratio=0.25, bits=6).apply(net, (3, 32, 32))
    names = [layer.name.removesuffix(".convolution").rpartition(".")[2] for layer in report.prunable]
    assert set(names) == {*ends}
    grouped = [layer for layer in report.layers if "grouped" in layer.reason]
    assert len(grouped) >= 7
    assert all(layer.kept_count == layer.channels for layer in grouped)
    assert report.nbytes < report.nbytes_before / 3
    assert report.flops < report.flops_before
    assert torch.isfinite(smaller(torch.rand(1, 3, 32, 32)).logits).all()
