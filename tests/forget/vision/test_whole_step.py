"""Terms of a whole step, and normal draws that belong to rows."""

import math

import torch

from unwrite.forget.engine.images.whole_step import WholeStep, row_normals


def test_a_whole_steps_value_is_divided_by_nothing():
    values = torch.tensor([2.0, 3.0], requires_grad=True)
    total = WholeStep(values).total({"all.rows": torch.tensor(49.0)})
    total.backward()
    assert total.item() == 5
    assert values.grad.tolist() == [1.0, 1.0]


def test_the_noise_of_a_row_depends_on_seed_epoch_and_row_alone():
    index = torch.tensor([4, 9, -3])
    drawn = row_normals(index, 5, 1, 0)
    assert torch.equal(drawn.flip(0), row_normals(index.flip(0), 5, 1, 0))
    torch.manual_seed(99)
    assert torch.equal(drawn, row_normals(index, 5, 1, 0))
    assert not torch.equal(drawn, row_normals(index, 5, 1, 1))
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    many = row_normals(torch.arange(2000), 8, 0)
    assert abs(many.mean()) < 3 / math.sqrt(16_000)
    assert abs(many.std() - 1) < 3 / math.sqrt(32_000)
