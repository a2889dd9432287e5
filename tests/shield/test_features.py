"""How a surrogate sees pictures: which layer is read, how pixels are normalised and cut, and models of transformers by their folder."""

import json

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from helpers.pictures import Linear
from unwrite.errors import MethodError, ModelError, Notice
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model
from unwrite.shield import PictureFeatures
from unwrite.shield.engine.features import FeatureReader, crop_of, middle, scaled, side_of, surrogate_of
from unwrite.shield.engine.pictures import ArrayPictures

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
PLACES = ["here"] * 5


def reader_of(surrogate, channels=3, side=32, crop=1.0):
    source = surrogate if isinstance(surrogate, PictureFeatures) else PictureFeatures(surrogate)
    return FeatureReader(source, channels, side, crop, "cpu")


def saved(model, folder, **preprocessing):
    model.save_pretrained(folder)
    if preprocessing:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return str(folder)


def tiny_resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3)
    return transformers.ResNetForImageClassification(config).eval()


def tiny_vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
    )
    return transformers.ViTForImageClassification(config).eval()


def clip_config():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=6)


def normalised(pixels, mean, std):
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


# Which layer.


def test_the_last_linear_layer_is_read_and_no_hook_stays():
    torch.manual_seed(0)
    model = SmallCNN(4, 3, 32, width=4).eval()
    seen = []
    hook = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(torch.from_numpy(PIXELS).float() / 255)
    hook.remove()
    reader = reader_of(model)
    assert np.allclose(reader.read(PIXELS, PLACES), seen[0].numpy(), atol=1e-6)
    assert reader.dim == seen[0].shape[1]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_of_several_last_linear_layers_the_last_one_is_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(256, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    expected = model[:4](torch.from_numpy(PIXELS).float() / 255)
    assert np.allclose(reader_of(model).read(PIXELS, PLACES), expected.detach().numpy(), atol=1e-6)


def test_of_a_head_of_several_linear_layers_the_last_ones_input_is_read():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(256, 7), nn.ReLU(), nn.Linear(7, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), head).eval()
    with torch.no_grad():
        expected = head[:2](model[:2](torch.from_numpy(PIXELS).float() / 255))
    reader = reader_of(model)
    assert reader.dim == 7
    assert np.allclose(reader.read(PIXELS, PLACES), expected.numpy(), atol=1e-6)


def test_features_are_those_of_evaluation_mode_also_of_a_network_that_is_trained_meanwhile():
    model = Linear(3, 3, 32).eval()
    reader = reader_of(model)
    expected, before = reader.read(PIXELS, PLACES), hash_model(model)
    model.train()
    assert np.array_equal(reader.read(PIXELS, PLACES), expected)
    assert hash_model(model) == before  # running statistics among them
    assert model.training
    assert model.norm.training
    assert all(one.requires_grad for one in model.parameters())


def test_a_hook_is_removed_where_the_forward_fails():
    class Failing(Linear):
        fails = False

        def forward(self, pixels):
            logits = super().forward(pixels)
            if self.fails:
                raise RuntimeError("no more")
            return logits

    model = Failing(3, 3, 32).eval()
    reader = reader_of(model)
    Failing.fails = True
    with pytest.raises(RuntimeError, match="no more"):
        reader.of(torch.zeros(1, 3, 32, 32))
    assert not model.head._forward_pre_hooks


def test_a_layer_is_named_and_so_is_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(256, 7), nn.Tanh()).eval()
    pixels = torch.from_numpy(PIXELS).float() / 255
    with torch.no_grad():
        before, after = model[:2](pixels), model(pixels)
    assert np.allclose(reader_of(PictureFeatures(model, "2")).read(PIXELS, PLACES), before.numpy(), atol=1e-6)
    assert np.allclose(reader_of(PictureFeatures(model, "output")).read(PIXELS, PLACES), after.numpy(), atol=1e-6)
    with pytest.raises(ModelError, match=r"the surrogate Sequential has no layer 'fc'. Name one of its own"):
        reader_of(PictureFeatures(model, "fc"))
    with pytest.raises(ModelError, match=r"features of Sequential at 0 have shape \[2, 3, 32, 32\] for two pictures"):
        reader_of(PictureFeatures(model, "0"))


def test_a_layer_that_does_not_run_is_refused():
    model = Linear(3, 3, 32).eval()
    model.idle = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"the layer of Linear that was named does not run"):
        reader_of(PictureFeatures(model, "idle"))


def test_gradients_flow_to_the_pictures():
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    torch.manual_seed(0)
    reader_of(SmallCNN(4, 3, 32, width=4).eval()).of(pixels).sum().backward()
    assert pixels.grad.abs().max() > 0


# How pictures are given.


def test_pixels_are_normalised_as_it_was_trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(256, 7)).eval()
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    features = reader_of(PictureFeatures(model, mean=mean, std=std)).read(PIXELS, PLACES)
    with torch.no_grad():
        expected = model[:2](normalised(PIXELS, mean, std))
    assert np.allclose(features, expected.numpy(), atol=1e-5)
    with pytest.raises(ModelError, match=r"Sequential has 2 means, and the pictures 3 channels"):
        reader_of(PictureFeatures(model, mean=mean[:2], std=std[:2]))


@pytest.mark.parametrize(("mean", "std", "message"), [((0.5,), None, "Give both"), ((0.5,), (0.0,), "above 0")])
def test_refuses_a_normalisation_without_meaning(mean, std, message):
    with pytest.raises(MethodError, match=message):
        PictureFeatures(Linear(3, 3, 32), mean=mean, std=std)


@pytest.mark.parametrize(
    ("shape", "crop", "size"), [((40, 60), 0.8, (20, 30)), ((60, 41), 0.8, (29, 20)), ((16, 16), 1.0, (16, 16))]
)
def test_the_shorter_side_is_brought_to_the_networks_and_the_middle_cut_out(shape, crop, size):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *shape), dtype=np.uint8))
    shown = scaled(pixels, 16, crop)
    assert shown.shape == (1, 3, *size)
    expected = F.interpolate(pixels.float() / 255, size, mode="bilinear", antialias=True)
    assert torch.allclose(shown, expected, atol=1e-6)
    top, left = (size[0] - 16) / 2, (size[1] - 16) / 2
    assert torch.equal(middle(shown, 16), shown[..., round(top) : round(top) + 16, round(left) : round(left) + 16])


def test_the_side_is_as_asked_or_the_networks_or_the_pictures_or_224():
    own, without = PictureFeatures(SmallCNN(3, 3, 24)), PictureFeatures(Linear(3, 3, 8))
    alike = ArrayPictures(np.zeros((2, 3, 20, 30), dtype=np.uint8), None, "nothing")
    square = ArrayPictures(np.zeros((2, 3, 20, 20), dtype=np.uint8), None, "nothing")
    assert [side_of(own, 16, alike), side_of(own, None, alike), side_of(without, None, alike)] == [16, 24, 20]
    assert side_of(PictureFeatures(SmallCNN(3, 3, 24), image_size=28), None, alike) == 28
    different = ArrayPictures(np.zeros((2, 3, 20, 20), dtype=np.uint8), None, "nothing")
    different.shape = lambda row: (3, 20 + row, 20)
    assert side_of(without, None, different) == 224
    assert [crop_of(None, 20, square), crop_of(None, 20, alike), crop_of(0.9, 20, square)] == [1.0, 0.875, 0.9]


# Models of transformers.


def test_a_folder_of_a_residual_network_is_read_at_its_pooled_features_as_its_preprocessing_says(tmp_path):
    model = tiny_resnet()
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    name = saved(model, tmp_path / "net", image_mean=mean, image_std=std, size={"shortest_edge": 36}, crop_pct=0.875)
    source = surrogate_of(name, 3, 32, 0)
    assert (source.mean, source.std, source.own_size) == (tuple(mean), tuple(std), 36)
    features = reader_of(source).read(PIXELS, PLACES)
    with torch.no_grad():
        expected = model.resnet(normalised(PIXELS, mean, std)).pooler_output.flatten(1)
    assert np.allclose(features, expected.numpy(), atol=1e-4)


def test_a_folder_of_a_transformer_is_read_at_its_class_token(tmp_path):
    model = tiny_vit()
    with pytest.warns(Notice, match=r"has no preprocessor_config.json, so pixels in 0..1 go to the surrogate"):
        source = surrogate_of(saved(model, tmp_path / "net"), 3, 32, 0)
    with torch.no_grad():
        hidden = model.vit(torch.from_numpy(PIXELS).float() / 255).last_hidden_state[:, 0]
    assert np.allclose(reader_of(source).read(PIXELS, PLACES), hidden.numpy(), atol=1e-5)
    assert source.own_size == 32
    with pytest.raises(ModelError, match=r"ViTForImageClassification doesn't take the pixels \[2, 3, 16, 16\]"):
        reader_of(source, side=16)


@pytest.mark.parametrize("whole", [False, True])
def test_of_clip_the_image_embeddings_are_read(tmp_path, whole):
    vision = clip_config()
    if whole:
        text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=6)
        model = transformers.CLIPModel(config).eval()
    else:
        model = transformers.CLIPVisionModelWithProjection(vision).eval()
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    crop = {"height": 32, "width": 32}
    name = saved(model, tmp_path / "net", image_mean=mean, image_std=std, crop_size=crop, size={"shortest_edge": 36})
    source = surrogate_of(name, 3, 32, 0)
    assert source.own_size == 32
    with torch.no_grad():
        inner = model.vision_model(pixel_values=normalised(PIXELS, mean, std))
        expected = model.visual_projection(inner.pooler_output)
    assert np.allclose(reader_of(source).read(PIXELS, PLACES), expected.numpy(), atol=1e-4)
    with pytest.raises(
        ModelError, match=r"doesn't take pictures of 1 channels, 32x32: |has 3 means, and the pictures 1"
    ):
        reader_of(source, channels=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
            "is LlamaForCausalLM. A surrogate is an image",
        ),
        (None, "is no model of transformers. A surrogate is an image classifier or a CLIP model"),
        ({"architectures": ["ViTForImageClassification"], "model_type": "vit"}, "no weights|model.safetensors|weights"),
    ],
)
def test_refuses_a_folder_of_something_else(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        surrogate_of(str(tmp_path), 3, 32, 0)


def test_a_damaged_preprocessing_is_refused(tmp_path):
    name = saved(tiny_resnet(), tmp_path / "net", image_mean="half", image_std=[0.5])
    with pytest.raises(ModelError, match=r"preprocessor_config.json is damaged: its means are 'half'"):
        surrogate_of(name, 3, 32, 0)


def test_a_function_makes_the_same_surrogate_from_the_same_seed_in_evaluation_mode():
    one, again, other = (surrogate_of(Linear, 3, 8, seed).model for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not any(part.training for part in one.modules())
    with pytest.raises(ModelError, match=r"surrogate makes int; it must make a module"):
        surrogate_of(lambda **_: 3, 3, 8, 0)
