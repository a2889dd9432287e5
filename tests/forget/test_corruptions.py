"""Corruptions of embeddings: exactly what each changes, in closed form and by count."""

import pytest
import torch

from unwrite.errors import ModelError
from unwrite.forget.engine.text.corruptions import _PARTS, Corruption


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", sorted(_PARTS))
def test_exactly_the_marked_tokens_times_dims_entries_change(name):
    before = torch.randn(40, 16, generator=generator())
    mask = torch.rand(40, generator=generator(1)) < 0.5
    after = Corruption(name, 3.0, 5)(before, mask, generator(2))
    changed = after != before
    assert (changed.sum(-1) == 5 * mask).all()
    if name.endswith("first_n"):
        assert not changed[:, 5:].any()
    assert torch.equal(Corruption(name, 3.0, 5)(before, mask, generator(2)), after)


def test_noise_has_mean_zero_and_the_strength_as_deviation_on_the_first_dimensions_alone():
    noise = Corruption("rand_noise_first_n", 7.0, 100)(torch.zeros(120, 128), torch.arange(120) < 100, generator())
    sample = noise[:100, :100]
    assert sample.std() == pytest.approx(7.0, rel=0.03)
    assert abs(sample.mean()) < 3 * 7.0 / 100
    assert not noise[:, 100:].any()
    assert not noise[100:].any()


def test_closed_forms():
    e, every = torch.tensor([[3.0, -5.0, 1.0, 2.0]]), torch.ones(1, dtype=torch.bool)

    def of(name, dims=2, strength=10.0, value=e):
        return Corruption(name, strength, dims)(value, every, generator()).tolist()[0]

    assert of("zero_out_top_k") == [0, 0, 1, 2]
    assert of("flip_sign_top_k") == [-3, 5, 1, 2]
    assert of("zero_out_first_n", 1) == [0, -5, 1, 2]
    assert of("add_value_first_n") == [13, 5, 1, 2]
    assert of("sub_value_first_n") == [-7, -15, 1, 2]
    assert of("add_value_least_k") == [3, 5, 11, 2]  # of smallest value, not size
    assert of("sub_value_top_k") == [-7, -5, 1, -8]
    for name in ("flip_sign_top_k", "flip_sign_first_n"):
        assert of(name, value=torch.tensor([of(name)])) == e.tolist()[0]


def test_random_dimensions_are_one_set_for_all_tokens():
    before = torch.zeros(9, 64)
    changed = Corruption("rand_noise_rand_n", 1.0, 3)(before, torch.ones(9, dtype=torch.bool), generator()) != 0
    assert (changed == changed[0]).all()
    assert changed[0].sum() == 3
    assert not changed[:, :3].all()


def test_setting_noise_leaves_unmarked_tokens_as_they_are():
    """The official code zeroes their first dimensions."""
    before = torch.ones(4, 6)
    after = Corruption("set_rand_noise_first_n", 2.0, 3)(before, torch.arange(4) < 2, generator())
    assert torch.equal(after[2:], before[2:])


def test_order_is_reversed_or_shuffled_whatever_the_marks():
    before, one = torch.arange(12.0).reshape(6, 2), torch.arange(6) == 0
    assert torch.equal(Corruption("reverse_order")(before, one, generator()), before.flip(0))
    shuffled = Corruption("shuffle")(before, one, generator())
    assert not torch.equal(shuffled, before)
    assert torch.equal(shuffled.sort(0).values, before)


def test_noise_is_the_same_in_every_format():
    e, every = torch.zeros(5, 4), torch.ones(5, dtype=torch.bool)
    whole, half = (
        Corruption("rand_noise_top_k", 2.0, 4)(e.to(t), every, generator()) for t in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16
    assert torch.equal(whole.bfloat16(), half)


def test_nothing_changes_at_strength_0_or_without_marks():
    e = torch.randn(5, 4, generator=generator())
    for name in (*_PARTS, "shuffle", "reverse_order"):
        assert Corruption(name, 0.0)(e, torch.ones(5, dtype=torch.bool), generator()) is e
        assert Corruption(name, 9.0)(e, torch.zeros(5, dtype=torch.bool), generator()) is e


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ModelError, match=r"the mask has .* marks for 3 tokens"):
        Corruption()(torch.zeros(3, 4), torch.ones(2, dtype=torch.bool), generator())
    with pytest.raises(ModelError, match=r"strength 1e\+06 leads out of the numbers of float16"):
        Corruption(strength=1e6)(torch.zeros(3, 4).half(), torch.ones(3, dtype=torch.bool), generator())
