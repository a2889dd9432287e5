"""Gradients a record: those of the record alone, however they are taken, and opacus's."""

import pytest
import torch
from private_training import Keyed, batch, keyed, llama, numbers, part

from conftest import make_llama
from unwrite.errors import MissingExtra, noticing
from unwrite.forget.private.dp2unlearning import row_losses
from unwrite.forget.private.gradients import gradients_by, trainable_weights


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_records_are_those_of_records_alone_tied_or_not(tied):
    model = make_llama(layers=2, hidden=16, tie_word_embeddings=tied)
    rows = batch()
    together = gradients_by(model, row_losses, "together")(rows)
    for row in range(6):
        model.zero_grad()
        alone = {name: value[row : row + 1] for name, value in rows.items()}
        mask = (alone["labels"] != -100).long()
        mask[:, : int(mask.argmax(1))] = 1
        model(input_ids=alone["input_ids"], attention_mask=mask, labels=alone["labels"]).loss.backward()
        for name, weight in model.named_parameters():
            assert torch.allclose(together[name][row], weight.grad, atol=2e-6), (row, name)
    assert ("lm_head.weight" in together) is not tied


@pytest.mark.parametrize("shape", ["tied", "adapters"])
def test_together_and_one_by_one_agree(shape):
    model = llama(shape)
    one, two = (gradients_by(model, row_losses, how)(batch()) for how in ("one by one", "together"))
    assert one.keys() == two.keys() == trainable_weights(model).keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6)


def test_a_model_that_cant_be_taken_together_is_taken_one_by_one_with_a_notice():
    class Stubborn(Keyed):
        def forward(self, x):
            return self.inner(x) * (1.0 if float(x.sum()) > -1e9 else 0.0)

    x, y = numbers()
    model = Stubborn()
    with noticing() as messages, pytest.warns(UserWarning, match="one by one"):
        taken = gradients_by(model, keyed, "auto")(part(x, y)([0, 1, 2]))
    assert len(messages) == 1
    alone = gradients_by(model, keyed, "one by one")(part(x, y)([0, 1, 2]))
    assert torch.equal(taken["inner.weight"], alone["inner.weight"])


def test_a_model_that_gives_other_gradients_together_is_taken_one_by_one_too():
    class Doubling(torch.autograd.Function):
        """As it is, but twice as much under vmap."""

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return gradient

        @staticmethod
        def vmap(info, in_dims, x):
            return 2 * x, in_dims[0]

    class Double(Keyed):
        def forward(self, x):
            return Doubling.apply(self.inner(x))

    model, rows = Double(), part(*numbers())([0, 1, 2])
    alone, together = (gradients_by(model, keyed, how)(rows)["inner.weight"] for how in ("one by one", "together"))
    assert not torch.allclose(alone, together)
    with pytest.warns(UserWarning, match="one by one"):
        assert torch.equal(gradients_by(model, keyed, "auto")(rows)["inner.weight"], alone)


def test_dropout_does_not_keep_a_model_from_being_taken_together():
    model = llama("whole")
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    with noticing() as messages:
        chosen = gradients_by(model, row_losses, "auto")
        torch.manual_seed(3)
        taken = chosen(batch())
    assert not messages
    assert [module.training for module in model.modules()] == modes
    torch.manual_seed(3)
    together = gradients_by(model, row_losses, "together")(batch())
    assert all(torch.equal(taken[name], value) for name, value in together.items())
    torch.manual_seed(4)
    assert not torch.equal(
        gradients_by(model, row_losses, "together")(batch())["lm_head.weight"], taken["lm_head.weight"]
    )


def test_opacus_says_how_to_get_it_where_it_is_not_there(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtra, match=r"pip install 'unwrite\[private\]'"):
        gradients_by(Keyed(), keyed, "opacus")


@pytest.mark.parametrize("shape", ["whole", "tied", "adapters"])
def test_gradients_are_opacuss(shape):
    pytest.importorskip("opacus", reason="compares with opacus")
    model = llama(shape)
    ours, theirs = (gradients_by(model, row_losses, how)(batch()) for how in ("together", "opacus"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=2e-6), name
    assert not any(hasattr(weight, "grad_sample") or weight.grad is not None for weight in model.parameters())
