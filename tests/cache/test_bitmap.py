"""Packed numbers come out as they went in, bit by bit as the published code packs them, and bytes are those of the formula."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from unwrite.cache.engine.bitmap import TILE, BitmapTensor, pack_bitmap
from unwrite.cache.engine.pruning import Recent, prune_keys, prune_per_token, prune_values
from unwrite.cache.engine.sparse_attention import sparse_pv, sparse_qk
from unwrite.errors import MethodError

OFFICIAL = json.loads(Path(__file__).with_name("official_mustafar.json").read_text(encoding="utf-8"))
AXES = ("tokens", "channels")


def numbers(heads, tokens, dim):
    """The numbers that the published code was run on; many tie."""
    h, t, d = torch.meshgrid(torch.arange(heads), torch.arange(tokens), torch.arange(dim), indexing="ij")
    return (((h * 7919 + t * 104729 + d * 1299709 + t * d * 31) % 2003 - 1001) / 512).half()


def sparse(sparsity, shape=(2, 3, 128, 64), dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    zero = torch.rand(shape, generator=generator) < sparsity
    return torch.randn(shape, generator=generator).to(dtype).masked_fill(zero, 0)


def digest(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.97, 1.0])
def test_unpacking_gives_what_was_packed_bit_by_bit(axis, dtype, sparsity):
    x = sparse(sparsity, dtype=dtype)
    assert torch.equal(pack_bitmap(x, axis).to_dense(), x)


@pytest.mark.parametrize("axis", AXES)
def test_an_empty_tile_has_no_bits_and_a_full_one_all(axis):
    empty, full = (pack_bitmap(torch.full((1, 1, TILE, TILE), fill), axis) for fill in (0.0, 2.0))
    assert (empty.bitmaps == 0).all()
    assert (empty.offsets == 0).all()
    assert empty.stream.numel() == 0
    assert (full.bitmaps == -1).all()
    assert (full.offsets.diff() == 32).all()


@pytest.mark.parametrize("axis", AXES)
def test_the_first_number_of_a_tile_is_the_most_significant_bit(axis):
    x = torch.zeros(TILE, TILE)
    x[0, 0], x[0, 1], x[0, 63] = 1.0, 2.0, 3.0  # the first token, or the first channel
    packed = pack_bitmap((x if axis == "channels" else x.T)[None, None], axis)
    assert packed.bitmaps[0, 0, 0] == -4611686018427387903
    assert packed.offsets[0, 0, :3].tolist() == [0, 4, 4]
    assert packed.stream.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_what_is_no_number_is_kept_and_infinity_spoils_nothing_beside_it():
    x = torch.zeros(1, 1, TILE, TILE)
    x[0, 0, 3, 5], x[0, 0, 3, 6], x[0, 0, 60, 63] = torch.inf, torch.nan, -torch.inf
    for axis in AXES:
        torch.testing.assert_close(pack_bitmap(x, axis).to_dense(), x, equal_nan=True, rtol=0, atol=0)


def test_channels_that_make_no_whole_tile_are_filled_up():
    x = sparse(0.5, (2, 3, 64, 80))
    for axis in AXES:
        assert torch.equal(pack_bitmap(x, axis).to_dense(), x)
    assert pack_bitmap(x, "channels").bitmaps.shape[2] == 2 * 64


@pytest.mark.parametrize("axis", AXES)
def test_appending_is_packing_the_whole(axis):
    x = torch.cat([sparse(0.2, (2, 3, 64, 64)), sparse(0.8, (2, 3, 128, 64), seed=1)], 2)
    whole, grown = pack_bitmap(x, axis), pack_bitmap(x[:, :, :64], axis).append(pack_bitmap(x[:, :, 64:], axis))
    for one, other in zip(whole, grown, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert grown.tokens == 192


@pytest.mark.parametrize("axis", AXES)
def test_rows_are_those_of_the_packed_rows(axis):
    x = torch.stack([sparse(part, (3, 64, 64)) for part in (0.1, 0.5, 0.9)])
    picked = torch.tensor([2, 0, 0])
    for one, other in zip(pack_bitmap(x, axis).rows(picked), pack_bitmap(x[picked], axis), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bytes_are_those_of_the_formula_and_of_the_storages(axis, dtype):
    x = sparse(0.7, (2, 3, 192, 128), dtype)
    packed = pack_bitmap(x, axis)
    tiles = x.unflatten(2, (-1, TILE)).transpose(-1, -2) if axis == "tokens" else x.unflatten(-1, (-1, TILE))
    filled = (((tiles != 0).sum(-1) + 7) // 8 * 8).sum().item()
    streams = 2 * 3
    formula = 12 * x.numel() // TILE + filled * x.element_size() + streams * (4 + 4)
    assert packed.nbytes() == formula
    assert packed.nbytes() == sum(one.untyped_storage().nbytes() for one in packed)


@pytest.mark.parametrize(("non_zeros", "size"), [(16, 44), (19, 60), (24, 60), (32, 76), (33, 92)])
def test_a_tile_of_16_bit_numbers_has_the_cards_bytes(non_zeros, size):
    x = (torch.arange(TILE) < non_zeros).half().expand(TILE, TILE)[None, None]
    assert pack_bitmap(x.contiguous(), "channels").nbytes() == TILE * size + 8


@pytest.mark.parametrize("axis", AXES)
def test_gaussian_numbers_at_70_percent_take_45_percent_of_their_bytes(axis):
    x = torch.randn(1, 2, 4096, 128, generator=torch.Generator().manual_seed(0)).half()
    ratio = pack_bitmap(prune_per_token(x, 0.7), axis).nbytes() / (2 * x.numel())
    assert 0.44 <= ratio <= 0.50
    assert ratio == pytest.approx(0.455, abs=0.015)


def test_products_are_those_of_dense_tensors_for_every_head_group():
    for heads in (3, 9, 12):
        x = sparse(0.6, (2, 3, 128, 80), torch.float64)
        query, weights = torch.randn(2, heads, 5, 80).double(), torch.rand(2, heads, 5, 128).double()
        wide = x.repeat_interleave(heads // 3, 1)
        torch.testing.assert_close(sparse_qk(query, pack_bitmap(x, "tokens")), query @ wide.transpose(-1, -2))
        torch.testing.assert_close(sparse_pv(weights, pack_bitmap(x, "channels")), weights @ wide)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_pruning_and_packing_are_the_published_codes_bit_by_bit(sparsity):
    theirs, x = OFFICIAL[str(sparsity)], numbers(2, 192, 128)
    pruned = prune_per_token(x, sparsity, official=True)
    assert digest(x * (pruned != 0)) == theirs["pruned"]  # theirs multiplies, so that zeros have signs
    assert (pruned == 0).sum() == theirs["zeros"]
    for axis, kind in zip(AXES, ("key", "value"), strict=True):
        one = [pack_bitmap(part[None], axis) for part in (pruned[:, :64], pruned[:, 64:])]
        packed, expected = one[0].append(one[1]), theirs[kind]
        assert packed.bitmaps[0, 0, :4].tolist() == expected["first bitmaps"]
        assert packed.offsets[0, :, -1].tolist() == expected["ends"]
        assert digest(packed.bitmaps[0]) == expected["bitmaps"]
        assert digest(packed.offsets[0]) == expected["offsets"]
        assert digest(packed.stream) == expected["stream"]


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_channelwise_and_structured_pruning_are_the_published_codes(sparsity):
    theirs, x = OFFICIAL[str(sparsity)], numbers(2, 192, 128)
    channel = prune_values(x[None], "channel", sparsity, True, None, 32, 0)[0]
    assert digest(x * (channel != 0)) == theirs["channel"]
    queries = numbers(4, 40, 128).flip(-1)[None, :, -32:].float()
    assert (
        digest(prune_keys(x[None].float(), "structured", sparsity, False, Recent(queries, None), 0)[0].half())
        == theirs["think"]
    )


def test_where_streams_begin_is_the_published_table_also_behind_a_second_block():
    pruned = prune_per_token(numbers(2, 192, 128), 0.7, official=True)
    for axis, kind in zip(AXES, ("key", "value"), strict=True):
        one, other = (pack_bitmap(part[None], axis) for part in (pruned[:, :64], pruned[:, 64:]))
        assert one.append(other).starts[0].tolist() == OFFICIAL["0.7"][kind]["starts"]


def test_what_can_not_be_packed_is_refused():
    x = torch.zeros(1, 1, TILE, TILE)
    with pytest.raises(MethodError, match="65 tokens don't make whole tiles"):
        pack_bitmap(torch.zeros(1, 1, 65, TILE), "tokens")
    with pytest.raises(MethodError, match="unknown axis 'rows'"):
        pack_bitmap(x, "rows")
    for other in (pack_bitmap(x, "channels"), pack_bitmap(x.expand(2, 1, -1, -1), "tokens")):
        with pytest.raises(MethodError, match="can't follow"):
            pack_bitmap(x, "tokens").append(other)
    assert isinstance(other, BitmapTensor)
