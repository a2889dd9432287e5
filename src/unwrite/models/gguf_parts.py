"""GGUF models in several files: found whichever part is named, checked, and joined into one.

`NAME-00001-of-00003.gguf` is a part. Each says how many there are and which one it is (`split.count`, `split.no`) and
how many tensors the model has (`split.tensors.count`); the first carries what else is known of the model. What reads
only one file would take the first part for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .checkpoints import first_line
from .gguf_header import check_header

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField

__all__ = ["gguf_in", "join_parts", "opened", "parts_of", "whole_stem"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def gguf_in(folder: Path) -> Path | None:
    """The GGUF model of a folder that holds no other weights, or None; of several parts the first.

    Raises:
        ModelError: more than one GGUF model.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if not files or any(path.suffix in _WEIGHTS for path in folder.iterdir()):
        return None
    models: dict[str, Path] = {}
    for path in files:
        part = _PART.fullmatch(path.name)
        models.setdefault(f"{part['stem']}-of-{part['count']}" if part else path.name, path)
    if len(models) > 1:
        names = ", ".join(path.name for path in models.values())
        raise ModelError(f"{folder} holds {len(models)} GGUF models ({names}). Name the file to load.")
    return next(iter(models.values()))


def parts_of(path: Path) -> list[Path]:
    """All parts of the model whose part `path` is by its name, in order; the file alone where it is none.

    Raises:
        ModelError: a file that does not exist or does not start as GGUF does.
    """
    part = _PART.fullmatch(path.name)
    count = int(part["count"]) if part else 1
    paths = [path]
    if part is not None:
        paths = [path.with_name(f"{part['stem']}-{i:05d}-of-{part['count']}{path.suffix}") for i in range(1, count + 1)]
    missing = [one for one in paths if not one.is_file()]
    if missing and count > 1:
        raise ModelError(
            f"{missing[0]} is missing: {path.parent} has {count - len(missing)} of the {count} parts of this model. "
            "Put all of them into one folder."
        )
    if missing:
        raise ModelError(f"{path} does not exist.")
    for one in paths:
        with open(one, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{one} is not a GGUF file: it does not start with 'GGUF'. Download or copy it again.")
    return paths


def whole_stem(path: Path) -> str:
    """The name of the whole model that a file is, or is a part of, without ending."""
    part = _PART.fullmatch(path.name)
    return str(part["stem"]) if part else path.stem


def opened(paths: Sequence[Path]) -> list[GGUFReader]:
    """A `gguf.GGUFReader` of each part.

    Raises:
        ModelError: a damaged file, or parts that say something else of themselves than their names.
    """
    from gguf import GGUFReader

    readers = []
    for number, path in enumerate(paths):
        check_header(path)
        try:
            reader = GGUFReader(path)
        except Exception as error:  # the reader raises whatever a damaged file leads it to
            raise ModelError(f"{path} could not be read as a GGUF model: {first_line(error)}") from error
        try:
            says = int(_value(reader.fields, "split.no", 0)), max(1, int(_value(reader.fields, "split.count", 1)))
        except (TypeError, ValueError) as error:
            raise ModelError(f"{path} has a split.no or split.count that is no number ({error}).") from None
        if says != (number, len(paths)):
            raise ModelError(
                f"{path} says that it is part {says[0] + 1} of {says[1]}, not {number + 1} of {len(paths)}. Get all parts "
                "from one place, under the names they were published with (NAME-00001-of-00003.gguf and so on)."
            )
        readers.append(reader)
    return readers


def join_parts(readers: Sequence[GGUFReader], target: Path) -> None:
    """Writes the tensors of all parts, and what the first says of the model, as one GGUF file.

    Raises:
        ModelError: fewer or more tensors than the model has, or one that is there twice.
    """
    from gguf import GGUFWriter

    fields = readers[0].fields
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    names = [tensor.name for tensor in tensors]
    promised = int(_value(fields, "split.tensors.count", len(tensors)))
    if len(tensors) != promised or len(set(names)) != len(names):
        twice = next((f", {name} twice" for name in names if names.count(name) > 1), "")
        raise ModelError(
            f"the {len(readers)} parts beside {target.name} hold {len(tensors)} tensors{twice}, and the model has "
            f"{promised}. Get all parts from one place."
        )
    writer = GGUFWriter(target, str(_value(fields, "general.architecture", "")))
    for name, field in fields.items():
        if not name.startswith(("GGUF.", "split.")) and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _value(fields: Mapping[str, ReaderField], key: str, default: Any) -> Any:
    return fields[key].contents() if key in fields else default
