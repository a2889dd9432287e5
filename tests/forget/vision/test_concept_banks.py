"""Concepts of images: banks, the bottleneck that reads them, and the locators; what they refuse."""

import pytest
import torch
from poisoned_marks import BANK, marks, pictures
from torch import nn
from transformers import CLIPConfig, CLIPModel

from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import ClipEncoder, ConceptBank, ConceptBottleneck
from unwrite.forget.engine.images.concepts import donor_of, embedded
from unwrite.forget.engine.images.locating import (
    gradcam,
    margin_grid,
    pasted,
    patches,
    peaks_of_map,
    resized,
    similarity_grid,
)
from unwrite.models.vision_layout import vision_layout

# Concepts


def test_a_bottleneck_on_marks_finds_each_class_by_its_own_mark():
    data, _ = pictures(200)
    embeddings = embedded(marks, data.pixels)
    bottleneck = ConceptBottleneck.fit(BANK, embeddings, data.labels, data.classes)
    assert [bottleneck.strongest(label)[0] for label in range(4)] == [0, 1, 2, 3]
    assert (bottleneck.logits(embeddings).argmax(1) == data.labels).float().mean() > 0.95


def test_of_two_classes_each_has_weights_of_its_own():
    data, _ = pictures(200)
    two = data.where(data.labels < 2)
    bottleneck = ConceptBottleneck.fit(BANK, embedded(marks, two.pixels), two.labels, ("row", "column"))
    assert bottleneck.weights.shape == (2, 4)
    assert [bottleneck.strongest(label)[0] for label in range(2)] == [0, 1]


def test_scores_are_margins_to_each_concepts_plane():
    bank = ConceptBank(("a", "b"), torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([5.0, -2.0]))
    assert torch.allclose(bank.scores(torch.tensor([[1.0, 1.0]])), torch.tensor([[12 / 5, 0.0]]))


def test_activation_vectors_point_to_pictures_with_the_concept():
    data, _ = pictures(200)
    examples = {
        name: (data.pixels[data.labels == n][:20], data.pixels[data.labels != n][:20])
        for n, name in enumerate(data.classes)
    }
    bank = ConceptBank.of_examples(marks, examples)
    rest = data.subset(range(100, 200))
    scores = bank.scores(embedded(marks, rest.pixels))
    assert bank.names == data.classes
    for label in range(4):
        assert ((scores[:, label] > 0) == (rest.labels == label)).float().mean() > 0.9


def test_clusters_are_directions_from_the_mean_patch():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0, 5], [5, 0, 0], [0, 5, 0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 50, 3, generator=g)).flatten(0, 1)
    bank = ConceptBank.of_patches(points, 3)
    assert bank.names == ("cluster 0", "cluster 1", "cluster 2")
    assert sorted(bank.scores(centres).argmax(1).tolist()) == [0, 1, 2]
    assert torch.allclose(bank.scores(points.mean(0)[None]), torch.zeros(1, 3), atol=1e-4)
    assert len(ConceptBank.of_patches(points[:2], 20).names) == 2


def test_a_clip_of_transformers_embeds_pictures_of_any_size_and_names(tokenizer):
    torch.manual_seed(0)
    text = {
        "vocab_size": 80,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).train()
    encoder = ClipEncoder(model, tokenizer)
    bank = ConceptBank.of_texts(encoder, ["red garden", "old river"])
    found = encoder(torch.rand(3, 1, 20, 20))
    assert found.shape == (3, 8)
    assert bank.vectors.shape == (2, 8)
    assert torch.allclose(bank.vectors.norm(dim=1), torch.ones(2))
    assert torch.equal(bank.vectors, ConceptBank.of_texts(encoder, ["red garden", "old river"]).vectors)
    assert model.training  # as it was
    pixels = torch.rand(2, 3, 32, 32)
    mean, deviation = (
        torch.tensor(one)[:, None, None]
        for one in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        expected = model.eval().get_image_features(pixel_values=(pixels - mean) / deviation).pooler_output
    assert torch.allclose(encoder(pixels), expected, atol=1e-6)


# Locators


def test_gradcam_is_the_closed_form_of_a_net_that_ends_in_a_mean():
    """Logits are w . mean of the map, so weights are w over the map's cells, and the map is their positive part."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 5, 3, padding=1, stride=2)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    net = Pooled().requires_grad_(False)
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    layout = vision_layout(Pooled(), pixels)
    cam = gradcam(layout.of(net), pixels, 0)
    with torch.no_grad():
        maps = net.conv(pixels)
        weight = (net.head.weight[0][None, :, None, None] * (maps > 0) / 16).mean((2, 3), keepdim=True)
        expected = torch.relu((weight * maps).sum(1))
        expected = expected / expected.amax((1, 2), keepdim=True)
    assert torch.allclose(cam, expected, atol=1e-6)


def test_a_maps_peak_is_the_middle_of_its_cell():
    """The official code's centre is half a cell too far: column * 32 + 32 for a cell that ends there."""
    maps = torch.zeros(2, 7, 7)
    maps[0, 0, 0] = maps[1, 6, 3] = 1
    assert peaks_of_map(maps, 224, 224) == [(16, 16), (208, 112)]


def test_a_margin_map_is_what_all_concepts_say_for_the_class():
    data, _ = pictures(200)
    forget = data.where(data.labels == 2)
    bottleneck = ConceptBottleneck.fit(BANK, embedded(marks, data.pixels), data.labels, data.classes)
    margins = margin_grid(marks, forget.pixels, bottleneck, 2, 7, 1)
    grid = similarity_grid(marks, forget.pixels, BANK.vectors, 7, 1)
    assert torch.allclose(margins, (grid * bottleneck.weights[2]).sum(-1), atol=1e-5)


# Refusals


def test_refuses_banks_without_meaning_and_patches_that_do_not_fit():
    with pytest.raises(DataError, match="stand more than once in the bank: a"):
        ConceptBank(("a", "a"), torch.eye(2))
    with pytest.raises(DataError, match="'b' has a vector of length 0"):
        ConceptBank(("a", "b"), torch.tensor([[1.0, 0], [0, 0]]))
    with pytest.raises(DataError, match="a bank of 3 concepts has vectors"):
        ConceptBank(("a", "b", "c"), torch.eye(2))
    with pytest.raises(DataError, match="'a' has 1 pictures with it"):
        ConceptBank.of_examples(marks, {"a": (torch.rand(1, 1, 8, 8), torch.rand(5, 1, 8, 8))})
    with pytest.raises(DataError, match="all patches are alike"):
        ConceptBank.of_patches(torch.ones(5, 3), 2)
    with pytest.raises(MethodError, match="a patch of 9 pixels doesn't fit into pictures of 8x8"):
        patches(torch.rand(1, 1, 8, 8), 9, 1)
    with pytest.raises(MethodError, match="can't be pasted into a picture of 8x8"):
        pasted(torch.rand(1, 8, 8), torch.rand(1, 9, 9), (0, 0))
    with pytest.raises(MethodError, match="there is one class alone"):
        donor_of(torch.ones(1, 3), 0, 0)


def test_refuses_gradcam_of_a_model_without_a_feature_map():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="no block with a feature map"):
        gradcam(vision_layout(net, torch.rand(2, 1, 4, 4)), torch.rand(2, 1, 4, 4), 0)


@pytest.mark.parametrize("size", [17, 26, 33, 60])
def test_a_white_picture_is_white_at_every_size(size):
    """Weights of single precision add up to a little more than 1, which is no pixel."""
    shown = resized(torch.ones(3, 32, 32), size)
    assert shown.shape == (3, size, size)
    assert shown.max() == 1
    assert torch.allclose(shown, torch.ones_like(shown))
