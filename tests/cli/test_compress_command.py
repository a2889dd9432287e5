"""unwrite compress: a smaller copy of an image classifier, and one line for every refusal."""

import json

import pytest
import torch
from cli_runs import refused
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from helpers.nets import settled
from unwrite.cli import main
from unwrite.compress import UDFC, load_compressed


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets") / "resnet"
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "num_labels": 4}
    settled(ResNetForImageClassification(ResNetConfig(**sizes))).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)
    return folder


def test_writes_what_the_library_makes(net, tmp_path, capsys):
    main(["compress", str(net), "--prune", "0.5", "--bits", "4", "--out", str(tmp_path / "small")])
    shown = capsys.readouterr().out
    whole = ResNetForImageClassification.from_pretrained(net)
    expected, report = UDFC(prune_ratio=0.5, bits=4).apply(whole.eval(), (3, 32, 32))
    again, pixels = load_compressed(tmp_path / "small"), torch.rand(2, 3, 32, 32)
    assert torch.equal(again(pixels).logits, expected(pixels).logits)
    assert "16/32 " in shown
    assert "resnet.encoder.stages.1.layers" in shown
    assert f"{report.nbytes_before / 1e6:.3g} MB to {report.nbytes / 1e6:.3g} MB" in shown
    assert "a picture of 3x32x32" in shown
    assert max(map(len, shown.splitlines()[:-2])) <= 80
    assert (tmp_path / "small" / "preprocessor_config.json").is_file()


def test_json_says_the_same_and_fields_are_flags(net, tmp_path, capsys):
    arguments = ["compress", str(net), "--bits", "none", "--alpha2", "0.5", "--criterion", "l1", "--json"]
    main([*arguments, "--out", str(tmp_path / "small")])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["settings"]["alpha2"], shown["settings"]["criterion"], shown["settings"]["bits"]) == (0.5, "l1", None)
    assert shown["flops"]["now"] < shown["flops"]["before"]
    assert [layer["kept"] for layer in shown["layers"] if not layer["why_whole"]] == [11, 22]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prune", "1"], "--prune is 1.0. Give a share from 0 to below 1."),
        (["--bits", "1"], "--bits is 1. Give a whole number from 2 to 16"),
        (["--bits", "six"], "--bits is 'six'; it must be int."),
        (["--prune", "0.99"], "--prune of 0.99 leaves none of the 16 channels of resnet.encoder.stages.0.layers.0.layer.0.convolution"),
        (["--criterion", "l3"], "--criterion is 'l3'"),
        (["--alpha3", "1"], "unknown field of udfc '--alpha3'"),
    ],
)  # fmt: skip
def test_refuses_in_one_line_and_writes_nothing(net, tmp_path, capsys, more, words):
    assert words in refused(capsys, ["compress", str(net), "--out", str(tmp_path / "small"), *more])
    assert not (tmp_path / "small").exists()


def test_refuses_a_place_that_is_taken_and_a_net_without_statistics(net, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert "Choose another --out" in refused(capsys, ["compress", str(net), "--out", str(tmp_path / "mine")])
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **shape)).save_pretrained(tmp_path / "vit")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "vit")
    said = refused(capsys, ["compress", str(tmp_path / "vit"), "--out", str(tmp_path / "small")])
    assert "has no batch normalisation" in said
