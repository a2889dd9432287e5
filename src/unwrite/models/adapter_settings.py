"""What an adapter's configuration asks for, checked before peft carries it out: its patterns and its sizes.

An adapter may name the modules it changes by regular expressions, and one expression can keep the machine busy for longer than the sun
will shine. Whether a given one does nobody can read off it, so all are tried on the model's names by another process, which is stopped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError

__all__ = ["SECONDS", "check_settings"]

SECONDS = 5  # for all names of the model
_PLAIN = re.compile(r"[\w.\-]*")  # a name, which peft takes as an expression all the same
_SIZES = ("r", "init_r", "target_r", "num_virtual_tokens", "token_dim", "encoder_hidden_size", "bottleneck_size")
# What peft makes of each kind of pattern.
_FORMS = {
    "target_modules": "{}", "exclude_modules": "{}", "layers_pattern": r".*\.{}\.(\d+)\.", "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
}  # fmt: skip
_TRY = "import json, re, sys\nwork = json.load(sys.stdin)\nfor form in work['forms']:\n    for name in work['names']:\n        re.match(form, name)"


def check_settings(
    folder: Path, config: Mapping[str, Any], names: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuses an adapter whose patterns take too long, or whose sizes are not those of its tensors.

    Args:
        config: its adapter_config.json.
        names: of the base model's modules.
        shapes: of the adapter's tensors, none where they aren't known.

    Raises:
        ModelError: it names the setting.
    """
    file = folder / "adapter_config.json"
    largest = max((size for shape in shapes.values() for size in shape), default=None)
    for name, value in _sizes(config):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"{file}: {name} is {value!r:.40}, not a whole number. Save the adapter again.")
        if largest is not None and value > largest:
            raise ModelError(
                f"{file}: {name} is {value:,}, and the largest dimension of its tensors is {largest:,}. Does the file belong to them?"
            )
    patterns = [(name, pattern) for name, pattern in _patterns(config) if not _PLAIN.fullmatch(pattern)]
    forms = []
    for name, pattern in patterns:
        try:
            re.compile(pattern)
            forms.append(_FORMS[name].format(pattern))
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise ModelError(
                f"{file}: {name} is no regular expression ({str(error).splitlines()[0]}). Save the adapter again."
            ) from None
    if forms and not _end(forms, names):
        raise ModelError(
            f"{file}: a pattern takes more than {SECONDS} s on the {len(names)} names of the model ({patterns[0][0]}: "
            f"{patterns[0][1]!r:.80}). Don't load this adapter, or name its modules one by one."
        )


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number that says how large a tensor becomes, but null."""
    yield from ((name, config[name]) for name in _SIZES if config.get(name) is not None)
    ranks = config.get("rank_pattern")
    if isinstance(ranks, Mapping):
        yield from ((f"rank_pattern of {name!r:.60}", value) for name, value in ranks.items())


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _FORMS:
        value = config.get(name)
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping) or (name == "layers_pattern" and isinstance(value, list)):
            yield from ((name, pattern) for pattern in value if isinstance(pattern, str))


def _end(forms: Sequence[str], names: Sequence[str]) -> bool:
    """Whether all patterns are through all names within the time."""
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps({"forms": list(forms), "names": list(names)}).encode(),
            timeout=SECONDS,
            check=False,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return True
