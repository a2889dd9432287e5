"""The control forgets in the last layer alone: what it says changes, what its features hold does not."""

import copy

import pytest
import torch
from edit_inputs import CLASSES, edit_net, edit_rows, edit_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import MethodError
from unwrite.forget.vision.head_only import HeadOnly


def same_below_the_head(one, other):
    return all(
        torch.equal(value, other.state_dict()[name])
        for name, value in one.state_dict().items()
        if not name.startswith("4.")
    )


def test_a_whole_class_is_never_said_again_and_all_other_logits_stay():
    before, (forget, retain) = edit_net(), edit_sets(whole_class=True)
    after = HeadOnly().apply(copy.deepcopy(before), forget, retain)
    pixels = edit_rows()[0]
    assert (after(pixels).argmax(1) != 1).all()
    others = [0, 2, 3]
    assert torch.equal(after(pixels)[:, others], before(pixels)[:, others])
    assert after[4].bias[1] == -1e4
    assert same_below_the_head(before, after)


def test_for_single_rows_only_the_last_layer_is_retrained_on_the_retain_set():
    before, (forget, retain) = edit_net(), edit_sets()
    after = HeadOnly().apply(copy.deepcopy(before), forget, retain)
    assert same_below_the_head(before, after)
    assert not torch.equal(before[4].weight, after[4].weight)
    loss = nn.functional.cross_entropy
    assert loss(after(retain.pixels), retain.labels) < loss(before(retain.pixels), retain.labels)


def test_what_the_old_head_knew_leaves_no_trace():
    forget, retain = edit_sets()
    one, other = edit_net(), edit_net()
    with torch.no_grad():
        other[4].weight.mul_(-3)
        other[4].bias.add_(1)
    ours, theirs = (HeadOnly().apply(net, forget, retain) for net in (one, other))
    assert torch.equal(ours[4].weight, theirs[4].weight)
    assert torch.equal(ours[4].bias, theirs[4].bias)


def test_the_forget_rows_are_not_looked_at_when_the_head_is_retrained():
    forget, retain = edit_sets()
    noise = Images(torch.rand(forget.pixels.shape), labels=forget.labels, index=forget.index, classes=forget.classes)
    ours, theirs = (HeadOnly().apply(edit_net(), rows, retain) for rows in (forget, noise))
    assert torch.equal(ours[4].weight, theirs[4].weight)


def test_a_trained_head_is_the_best_there_is():
    """Without decay and trained long, its gradient on the retain set is near zero."""
    forget, retain = edit_sets()
    args = {"num_train_epochs": 400, "learning_rate": 0.05, "per_device_train_batch_size": 64}
    after = HeadOnly().apply(edit_net(), forget, retain, args=args)
    nn.functional.cross_entropy(after(retain.pixels), retain.labels).backward()
    fresh = HeadOnly().apply(edit_net(), forget, retain, args={**args, "num_train_epochs": 1})
    nn.functional.cross_entropy(fresh(retain.pixels), retain.labels).backward()
    assert after[4].bias.grad.abs().max() < 0.1 * fresh[4].bias.grad.abs().max()


def test_a_head_without_a_bias_is_refused_where_a_class_is_to_be_closed():
    net, (forget, retain) = edit_net(), edit_sets(whole_class=True)
    net[4] = nn.Linear(27, CLASSES, bias=False)
    with pytest.raises(MethodError, match=r"no bias to close a class with. Use HeadOnly\(whole_class='retrain'\)"):
        HeadOnly().apply(net, forget, retain)
    assert HeadOnly(whole_class="retrain").apply(net, forget, retain) is net


def test_a_wrong_choice_is_refused():
    with pytest.raises(MethodError, match="whole_class is 'nothing'; use 'bias' or 'retrain'"):
        HeadOnly(whole_class="nothing")
