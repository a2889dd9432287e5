"""Edits by few vectors: taken back to the bit in every precision."""

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.errors import ModelError
from unwrite.models import LowRankEdit, anatomy
from unwrite.models.low_rank import Factors
from unwrite.runs import hash_model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_undoing_is_exact_for_changes_of_any_size_and_in_every_precision(dtype, size):
    model = make_llama().to(dtype)
    weight = anatomy(model).blocks[1].down.module.weight
    with torch.no_grad():
        weight[0, 0], weight[0, 1], weight[0, 2] = 0.0, -0.0, 1e-30
    before = hash_model(model)
    edit = LowRankEdit.started(model)
    scale = min(size, 1e3) if dtype == torch.float16 else size
    edit.add(Factors(1, random(32, 2) * scale, random(64, 2, seed=1)))
    assert hash_model(model) != before
    edit.undo()
    assert hash_model(model) == before


def test_an_edit_of_nothing_has_no_adapter(tmp_path):
    with pytest.raises(ModelError, match="an edit of nothing"):
        LowRankEdit.started(make_llama()).save_adapter(tmp_path / "adapter")
