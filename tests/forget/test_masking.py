"""Weights outside a mask do not move, whatever the optimiser remembers, for texts and images alike."""

import pytest
import torch
from forgetting import SGD

from unwrite.data.images.images import Images
from unwrite.errors import ModelError
from unwrite.forget import NPO, GradientAscent
from unwrite.forget.engine.masking import KeepMask
from unwrite.nets.small_vision import SmallCNN


def masks(model, share=0.5):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(p.shape, generator=generator) < share for name, p in model.named_parameters()}


def moved(model, before, found):
    inside = sum(int((p.detach() != before[n])[found[n]].sum()) for n, p in model.named_parameters())
    outside = sum(int((p.detach() != before[n])[~found[n]].sum()) for n, p in model.named_parameters())
    return inside, outside


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
def test_of_an_image_model_only_the_mask_moves_under_momentum_and_decay(optim):
    model = SmallCNN(3, 1, 8, 4)
    rows = Images(torch.rand(24, 1, 8, 8), labels=torch.arange(24) % 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = {"optim": optim, "weight_decay": 0.1, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    found = masks(model)
    GradientAscent().apply(model, rows, args=args, callbacks=[KeepMask(found)])
    inside, outside = moved(model, before, found)
    assert inside > 100
    assert outside == 0


def test_of_a_language_model_only_the_mask_moves(forget, retain, tokenizer, tiny_llama):
    before = {name: p.detach().clone() for name, p in tiny_llama.named_parameters()}
    found = masks(tiny_llama)
    args = {**SGD, "max_steps": 2, "optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2}
    NPO().apply(tiny_llama, forget, retain, processing_class=tokenizer, args=args, callbacks=[KeepMask(found)])
    inside, outside = moved(tiny_llama, before, found)
    assert inside > 100
    assert outside == 0


def test_a_mask_of_everything_changes_nothing_about_training():
    rows = Images(torch.rand(24, 1, 8, 8), labels=torch.arange(24) % 3)
    torch.manual_seed(0)
    model = SmallCNN(3, 1, 8, 4)
    plain = GradientAscent().apply(model, rows, copy=True)
    masked = GradientAscent().apply(model, rows, copy=True, callbacks=[KeepMask(masks(model, 2.0))])
    for ours, theirs in zip(masked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_mask_that_does_not_fit_is_refused():
    rows = Images(torch.rand(24, 1, 8, 8), labels=torch.arange(24) % 3)
    for name, mask in (("nonsense", torch.ones(1).bool()), ("head.bias", torch.ones(2).bool())):
        with pytest.raises(ModelError, match=f"the mask names {name}"):
            GradientAscent().apply(SmallCNN(3, 1, 8, 4), rows, callbacks=[KeepMask({name: mask})])
