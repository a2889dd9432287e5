"""unwrite compress: an image classifier with fewer channels and fewer bits a weight, made without data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import noticing, renamed
from .fields import fill, parse
from .listing import plain_table
from .output import console, print_json, quiet_libraries

if TYPE_CHECKING:
    from ..compress.nets.report import CompressedLayerReport, NetReport
    from ..compress.nets.udfc import UDFC


def compress(
    folder: str,
    *,
    out: Path,
    prune: float = 0.3,
    bits: str = "6",
    overwrite: bool = False,
    json: bool = False,
    **fields: Annotated[
        str, Parameter(help="Other fields of the method, such as --alpha2 0.008 or --per-channel true.")
    ],
) -> None:
    """Write a smaller copy of an image classifier: channels taken out, weights rounded, both repaired without data (UDFC).

    Args:
        folder: a folder that transformers saved, with its image processor, or an id of the Hub. It is only read.
        out: the folder to write; load it with unwrite.compress.load_compressed.
        prune: share of the channels taken out of every layer that allows it, 0 to below 1.
        bits: of a weight, 2 to 16, or none for weights as they are.
        overwrite: replace an earlier compressed net in OUT; nothing else is ever replaced.
        json: print the result as JSON.
    """
    from ..compress.nets.storing import need_compressed_place, save_compressed
    from ..models.image_models import load_image_model

    with renamed(prune_ratio="prune"):
        method = _method(prune, bits, fields)
        need_compressed_place(out, overwrite)
        quiet_libraries()
        loaded = load_image_model(folder)
        inner = loaded.bare(loaded.model)
        with noticing() as notices:
            model, report = method.apply(inner, _picture_shape(loaded.prepare), in_place=True)
    save_compressed(model, report, out, overwrite=overwrite, processor=loaded.processor)
    size = sum(file.stat().st_size for file in out.iterdir() if file.suffix == ".safetensors")
    if json:
        print_json({"out": str(out), "notices": notices, "file": size, **_summary(report)})
        return
    console().print(plain_table(["kept", "kB", "MFLOP", "layer"], map(_row, report.layers)))
    console().print(
        f"size    {report.nbytes_before / 1e6:.3g} MB to {report.nbytes / 1e6:.3g} MB, {_times(report.nbytes_before, report.nbytes)}; "
        f"the file has {size / 1e6:.3g} MB"
    )
    console().print(
        f"FLOPs   {report.flops_before / 1e6:.4g} M to {report.flops / 1e6:.4g} M a picture of {'x'.join(map(str, report.example_shape))}"
    )
    console().print(f"out     {out}", soft_wrap=True)
    console().print("Measure it on your own pictures before you use it: nothing here has seen one.")


def _method(prune: float, bits: str, fields: dict[str, str]) -> UDFC:
    from ..compress.nets.udfc import UDFC

    method: UDFC = fill(UDFC, "udfc", fields, prune_ratio=prune, bits=parse("bits", bits, int | None))
    return method


def _picture_shape(prepare: Any) -> tuple[int, int, int]:
    """What the classifier's own image processor makes of a picture."""
    from PIL import Image

    channels, height, width = prepare(Image.new("RGB", (256, 256))).shape
    return channels, height, width


def _row(layer: CompressedLayerReport) -> list[str]:
    return [
        f"{layer.kept_count}/{layer.channels}",
        f"{layer.bits_before / 8e3:.3g} to {layer.bits / 8e3:.3g}",
        f"{layer.flops_before / 1e6:.3g} to {layer.flops / 1e6:.3g}",
        layer.name,
    ]


def _summary(report: NetReport) -> dict[str, Any]:
    layers = [
        {
            "layer": layer.name,
            "channels": layer.channels,
            "kept": layer.kept_count,
            "bits": layer.code_bits,
            "why_whole": layer.reason,
            "negative_share": layer.negative_share,
            "asleep_share": layer.asleep_share,
        }
        for layer in report.layers
    ]
    return {
        "settings": report.settings,
        "bytes": {"before": report.nbytes_before, "now": report.nbytes},
        "flops": {"before": report.flops_before, "now": report.flops},
        "layers": layers,
    }


def _times(before: int, now: int) -> str:
    return f"{before / max(now, 1):.3g} times smaller"
