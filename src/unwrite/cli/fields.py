"""A method's fields as command-line flags: read from the dataclass, checked by its types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .. import catalog
from ..errors import MethodError, setting, unknown


def build(slug: str, flags: Mapping[str, str]) -> Any:
    """The method `slug` with the given fields; of one around another, what it has no field for is of the method inside.

    Raises:
        MethodError: an unknown method or field (with the nearest name), or a value of another type.
    """
    cls = catalog.method(slug).load()
    if not holds_method(cls):
        return fill(cls, slug, flags)
    own = {flag: text for flag, text in flags.items() if _named(flag) in _names(cls)}
    rest = {flag: text for flag, text in flags.items() if flag not in own}
    outer = fill(cls, slug, own)
    if not rest:
        return outer
    inside = type(outer.chosen)
    known = {*_names(cls), *_names(inside)}
    if odd := next((flag for flag in rest if _named(flag) not in known), None):
        within = f"{slug} or the {inside.__name__} in it"
        raise MethodError(unknown(f"field of {within}", setting(_named(odd)), map(setting, sorted(known))))
    return dataclasses.replace(outer, inner=fill(inside, inside.__name__, rest))


def holds_method(cls: type) -> bool:
    """Whether it is a method around another, which its field `inner` names."""
    return "inner" in _names(cls) and hasattr(cls, "chosen")


def _names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _named(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def build_strategy(slug: str, flags: Mapping[str, str]) -> Any:
    """The decoding strategy `slug` with the given fields; refuses as `build` does."""
    return fill(catalog.strategy(slug).load(), slug, flags)


def build_shield(slug: str, flags: Mapping[str, str], key: int) -> Any:
    """The shield `slug` with its key and the given fields; refuses as `build` does."""
    return fill(catalog.shield(slug).load(), slug, flags, key=key)


def build_defence(text: str) -> Any:
    """The defence that a text names: its name in the catalogue, a number that stands for one field, and others by name.

    >>> build_defence("jpeg10").quality, build_defence("at:norm=l2:eps=0.5").eps
    (10, 0.5)

    Raises:
        MethodError: an unknown name or field (with the nearest), a number behind a defence that has none, a value of another type.
    """
    name, *given = text.split(":")
    slug = name if name in catalog.defences() else name.rstrip("0123456789")
    cls = catalog.defence(slug).load()
    number = name.removeprefix(slug)
    if number and not cls.field_of_number(int(number)):
        raise MethodError(
            f"{name!r} has a number, and {slug} has none. Name its fields: unwrite shield defences {slug}"
        )
    flags = {}
    for part in given:
        field, equals, value = part.partition("=")
        if not equals:
            raise MethodError(f"{part!r} of {text!r} is no field. Write {slug}:name=value, with a field's name.")
        flags[field] = value
    return fill(cls, slug, flags, **(cls.field_of_number(int(number)) if number else {}))


def build_cache(text: str) -> Any:
    """The settings of a cache that a text names: its name in the catalogue, then its fields.

    A part without a name goes on with the value before it, where a field holds several numbers.

    Raises:
        MethodError: an unknown name or field (with the nearest), a value of another type.
    """
    slug, _, given = text.partition(":")
    cls = catalog.cache(slug).load()
    flags: dict[str, str] = {}
    for part in given.split(",") if given else ():
        field, equals, value = part.partition("=")
        if equals:
            name = field.strip()
            flags[name] = value
        elif flags:
            flags[name] += f",{part}"
        else:
            raise MethodError(f"{part!r} of {text!r} is no field. Write {slug}:name=value,name=value.")
    return fill(cls, slug, flags)


def fill(cls: type, slug: str, flags: Mapping[str, str], **given: Any) -> Any:
    """A dataclass from texts, `slug` its name in messages; refuses as `build` does.

    Args:
        given: fields that have a flag of the command's own, as values.
    """
    hints = typing.get_type_hints(cls)
    names = _names(cls) - given.keys()
    values = {}
    for flag, text in flags.items():
        name = _named(flag)
        if name not in names:
            raise MethodError(unknown(f"field of {slug}", setting(name), map(setting, names)))
        values[name] = parse(name, str(text), hints[name])
    return cls(**given, **values)


def parse(name: str, text: str, hint: Any) -> Any:
    """One value from its text, by the field's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if text == "none" else parse(name, text, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if text not in args:
            raise MethodError(f"{setting(name)} is {text!r}; use one of {', '.join(map(repr, args))}.")
        return text
    if origin is tuple:
        return _lines(name, text) if args[0] is str else tuple(parse(name, part, args[0]) for part in text.split(","))
    if hint is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise MethodError(f"{setting(name)} is {text!r}; use true or false.")
        return text.lower() in ("true", "yes", "1")
    if hint in (int, float, str, Path):
        try:
            value = hint(text)
            if value != value:  # NaN, which is above and below nothing
                raise ValueError
            return value
        except ValueError:
            raise MethodError(f"{setting(name)} is {text!r}; it must be {hint.__name__}.") from None
    if hasattr(hint, "forgets"):  # a method inside another, by its name, with its defaults
        return catalog.method(text).load()()
    for reader in ("load", "of"):  # a file of one's own before a published name
        if hasattr(hint, reader):
            return getattr(hint, reader)(text)
    raise MethodError(
        f"{setting(name)} can't be given on the command line. Leave it out, or call the library from Python."
    )


def _lines(name: str, text: str) -> tuple[str, ...]:
    path = Path(text)
    if not path.is_file():
        raise MethodError(f"{setting(name)} is {text!r}; give a text file with one sentence a line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MethodError(f"{setting(name)} is {text!r}, which is no UTF-8 text that can be read ({error}).") from None
    return tuple(line.strip() for line in lines if line.strip())
