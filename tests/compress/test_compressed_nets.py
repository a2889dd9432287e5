"""Codes, and a compressed net on disk: bit for bit what it was, in as few bytes as the report says."""

import json

import pytest
import torch

from helpers.nets import Chain, Flattened, Residual, settled
from unwrite.compress import UDFC, load_compressed, quantise, save_compressed
from unwrite.compress.nets.quantise import pack, unpack
from unwrite.errors import MethodError, ModelError, RunError

PICTURE = (3, 8, 8)


def test_codes_are_the_nearest_multiples_of_the_step():
    weight = torch.tensor([[-0.7, 0.24, 0.26], [0.0, 0.31, 0.7]])
    rounded = quantise(weight, 4)
    assert rounded.step.item() == pytest.approx(0.1)
    assert rounded.codes.tolist() == [[-7, 2, 3], [0, 3, 7]]
    assert (rounded.values - weight).abs().max() <= 0.05 + 1e-6
    rows = quantise(weight, 2, per_channel=True)
    assert rows.codes.tolist() == [[-1, 0, 0], [0, 0, 1]]
    assert rows.nbits == 6 * 2 + 2 * 32


def test_zeros_stay_zeros():
    rounded = quantise(torch.zeros(3, 2), 6)
    assert torch.equal(rounded.values, torch.zeros(3, 2))
    assert not rounded.codes.any()


@pytest.mark.parametrize("bits", range(2, 17))
def test_packed_codes_come_back(bits):
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (3, 37), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    codes[0, :2] = torch.tensor([-top, top])
    packed = pack(codes, bits)
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, codes.numel()).reshape(3, 37), codes)


def test_long_weights_are_packed_in_pieces(monkeypatch):
    monkeypatch.setattr("unwrite.compress.nets.quantise._GROUP", 16)
    codes = torch.arange(-50, 51, dtype=torch.int32) % 7 - 3
    assert torch.equal(unpack(pack(codes, 3), 3, 101), codes)


def test_unpacking_refuses_another_number_of_bytes():
    with pytest.raises(MethodError, match="5 bytes don't hold 7 codes of 6 bits"):
        unpack(torch.zeros(5, dtype=torch.uint8), 6, 7)


@pytest.mark.parametrize("net", [Chain, Flattened, Residual])
@pytest.mark.parametrize("settings", [{"bits": 5}, {"bits": None}, {"bits": 3, "per_channel": True}])
def test_a_net_comes_back_bit_for_bit(net, settings, tmp_path):
    smaller, report = UDFC(prune_ratio=0.5, **settings).apply(settled(net()), PICTURE)
    save_compressed(smaller, report, tmp_path / "net")
    again = load_compressed(tmp_path / "net", net())
    pixels = torch.rand(2, *PICTURE)
    assert torch.equal(again(pixels), smaller(pixels))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in smaller.state_dict().items())
    assert [(m.extra_repr()) for m in again.modules()] == [(m.extra_repr()) for m in smaller.modules()]


def test_the_file_is_as_large_as_the_report_says(tmp_path):
    smaller, report = UDFC(prune_ratio=0.25, bits=3).apply(settled(Chain(widths=(64, 64))), PICTURE)
    save_compressed(smaller, report, tmp_path / "net")
    file = (tmp_path / "net" / "compressed.safetensors").read_bytes()
    header = int.from_bytes(file[:8], "little")
    layers = len(report.layers)
    assert 0 <= len(file) - 8 - header - report.nbytes <= layers  # a layer's last byte may be part empty
    assert report.nbytes < report.nbytes_before / 9
    assert report.nbytes_before == sum(4 * p.numel() for p in Chain(widths=(64, 64)).parameters()) + 2 * (
        2 * 64 * 4 + 8
    )


def test_refuses_a_folder_with_other_things_and_replaces_only_when_asked(tmp_path):
    smaller, report = UDFC().apply(settled(Chain()), PICTURE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds other files"):
        save_compressed(smaller, report, tmp_path / "mine", overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        save_compressed(smaller, report, tmp_path / "mine" / "thesis.tex")
    save_compressed(smaller, report, tmp_path / "net")
    with pytest.raises(RunError, match="overwrite=True to replace"):
        save_compressed(smaller, report, tmp_path / "net")
    save_compressed(smaller, report, tmp_path / "net", overwrite=True)


def test_refuses_weights_that_changed_since(tmp_path):
    smaller, report = UDFC().apply(settled(Chain()), PICTURE)
    with torch.no_grad():
        smaller.head.weight.mul_(1.01)
    with pytest.raises(ModelError, match=r"head.weight is no longer what was quantised"):
        save_compressed(smaller, report, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def damaged(folder, **changes):
    note = json.loads((folder / "unwrite.json").read_text())
    (folder / "unwrite.json").write_text(json.dumps({**note, **changes}))


def test_refuses_what_is_no_such_net(tmp_path):
    smaller, report = UDFC(prune_ratio=0.5).apply(settled(Chain()), PICTURE)
    folder = save_compressed(smaller, report, tmp_path / "net")
    with pytest.raises(ModelError, match="holds no compressed net"):
        load_compressed(tmp_path, Chain())
    with pytest.raises(ModelError, match="how to build its net"):
        load_compressed(folder)
    with pytest.raises(ModelError, match=r"not of this Flattened: it lacks 'conv1.bias'"):
        load_compressed(folder, Flattened())
    with pytest.raises(ModelError, match=r"the net can't take 'conv1.weight'"):
        load_compressed(folder, Chain(widths=(2, 6)))
    good = (folder / "unwrite.json").read_text()
    for changes, words in (
        ({"bits": 1}, "bits or shapes"),
        ({"bits": None}, "codes of .* missing or not as many"),
        ({"shapes": {"conv1.weight": [4, -3]}}, "bits or shapes"),
        ({"shapes": {"conv1.weight": [4, 3, 3, 30]}}, "not as many"),
        ({"shapes": {"conv9.weight": [4]}}, "missing"),
    ):
        damaged(folder, **changes)
        with pytest.raises(ModelError, match=words):
            load_compressed(folder, Chain())
        (folder / "unwrite.json").write_text(good)
    (folder / "unwrite.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        load_compressed(folder, Chain())
