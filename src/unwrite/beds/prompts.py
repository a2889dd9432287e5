"""The prompts that decoding is measured on: six kinds of task, five of each for tuning and five for what is reported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from ..runs import hash_json

KINDS = ("chat", "summarise", "edit", "code", "extract", "translate")


@dataclass(frozen=True)
class Prompt:
    """One user message. use: "tune" or "report"."""

    kind: str
    use: str
    text: str


def prompts(use: str) -> list[Prompt]:
    """The shipped prompts of a use, in the order of `KINDS`."""
    lines = files("unwrite.beds").joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Prompt(**json.loads(line)) for line in lines if line.strip()]
    return [row for kind in KINDS for row in rows if row.kind == kind and row.use == use]


def prompts_hash() -> str:
    """Of all prompts, tuning ones too."""
    return hash_json([vars(row) for use in ("tune", "report") for row in prompts(use)])
