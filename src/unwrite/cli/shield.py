"""unwrite shield: ways to make pictures useless for training, a protected copy of a folder of classes, and an attack on one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from .. import catalog
from ..errors import MethodError, noticing, renamed
from .fields import build_shield
from .listing import plain_table
from .output import console, label, print_json, quiet_libraries
from .shield_attack import attack

if TYPE_CHECKING:
    from ..catalog.records import DefenceRecord, ShieldRecord

DEFAULT = "cuda"
app = App(
    name="shield",
    help="Protect pictures against training: list the ways, write a protected copy of a folder, attack one.",
)
app.command(attack)


@app.default
def list_shields(by: str | None = None, *, json: bool = False) -> None:
    """List the ways to protect pictures, or show one: what it needs and costs, its fields and their defaults.

    Args:
        by: one of them; all without.
        json: print JSON instead of a table.
    """
    records = list(catalog.shields().values()) if by is None else [catalog.shield(by)]
    if json:
        print_json([dataclasses.asdict(record) for record in records])
    elif by is not None:
        _one(records[0])
    else:
        console().print(
            plain_table(["by", "needs", "does"], [[one.slug, ", ".join(one.needs), one.does] for one in records])
        )
        console().print("What one costs, and its fields: unwrite shield cuda")


@app.command
def defences(name: str | None = None, *, json: bool = False) -> None:
    """List what an attacker does against protected pictures, or show one with its fields.

    Args:
        name: one of them; all without.
        json: print JSON instead of a table.
    """
    records = list(catalog.defences().values()) if name is None else [catalog.defence(name)]
    if json:
        print_json([dataclasses.asdict(record) for record in records])
    elif name is not None:
        _one_defence(records[0])
    else:
        console().print(plain_table(["defence", "does"], [[one.slug, one.does] for one in records]))
        console().print("What one costs, and its fields: unwrite shield defences ueraser")


@app.command
def protect(
    folder: Path,
    *,
    out: Path,
    by: str = DEFAULT,
    key: str | None = None,
    key_file: Path | None = None,
    captions: Path | None = None,
    save: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
    **fields: Annotated[
        str, Parameter(help="The fields of the way to protect, such as --blur 0.3 (see unwrite shield cuda).")
    ],
) -> None:
    """Write a copy of a folder of classes whose pictures are useless for training. FOLDER itself is only read.

    Args:
        folder: holds a folder of pictures a class: FOLDER/class/picture; pictures with captions may lie anywhere in it.
        out: the folder to write: PNG files under the same names, and protection.json, which is not to be published.
        by: see unwrite shield.
        key: the secret, a whole number: the same key gives the same pictures. One that can be guessed protects nothing.
        key_file: a text file that holds the key, so that it is in no list of commands.
        captions: a table of captions, for a way that reads them: file,caption in its first line. Without it they are looked for in
            FOLDER: captions.csv, or a text file beside each picture.
        save: a folder for what was learnt of the pictures, as secret as the key, so that others can be protected alike (from Python).
        overwrite: replace an earlier protected copy in OUT, and what SAVE holds; nothing else is ever replaced.
        json: print the result as JSON.
    """
    from ..shield.base import need_place
    from ..shield.engine.releasing import protect_folder

    shield = build_shield(by, fields, _key(key, key_file))
    if save is not None:
        with renamed(folder="save"):
            need_place(save, overwrite)
    quiet_libraries()
    with noticing() as notices:
        release = protect_folder(shield, folder, out, captions=captions, overwrite=overwrite)
    if save is not None:
        release.protection.save(save, overwrite=overwrite)
    if json:
        facts = {**release.protection.facts, "pictures": release.pictures}
        print_json(
            {
                "out": str(out),
                "by": by,
                "budget": shield.budget,
                "change": release.change,
                "facts": facts,
                "notices": notices,
            }
        )
        return
    bound = "no bound" if shield.budget is None else f"at most {shield.budget}"
    classes = len(release.protection.facts["classes"])
    of = f" of {classes} classes" if classes else ""
    console().print(f"{release.pictures} pictures{of}, protected by {by}")
    console().print(f"change  {release.change:.1f} levels of 255 a value on average, {bound}")
    console().print(f"out     {out}", soft_wrap=True)
    console().print("Publish the pictures as PNG; keep the originals, the key and protection.json to yourself.")


@app.command(name="train-generator")
def train_noise_generator(
    folder: Path,
    *,
    encoders: str,
    out: Path,
    captions: Path | None = None,
    eps: float = 8 / 255,
    epochs: int = 500,
    batch_size: int = 128,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    direction: str = "minimise",
    truncation: bool = False,
    seed: int = 0,
    device: str = "cpu",
    checkpoints: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train the generator that t2ue makes noise with, on pictures with captions that need not be those to be protected.

    Args:
        folder: holds pictures anywhere in it.
        encoders: a CLIP model, which stays as it is: a folder, or an id of the Hub such as openai/clip-vit-base-patch32.
        out: the folder to write.
        checkpoints: a folder that keeps the last whole epoch, from which the same command goes on after a kill.
        captions: a table of captions, file,caption in its first line; several lines a picture are several captions. Without it
            they are looked for in FOLDER: captions.csv, or a text file beside each picture.
        eps: the budget, the largest change of a pixel in 0..1.
        epochs: passes over the pairs.
        batch_size: pairs a step.
        lr: the first learning rate.
        weight_decay: of the generator's weights.
        direction: "maximise" raises the loss: adversarial noise, another method than t2ue.
        truncation: cut off captions that are too long for the text encoder.
        seed: of all that is random.
        device: where both run.
        overwrite: replace a generator in OUT; nothing else is ever replaced.
    """
    from ..shield.engine.dual_encoders import ClipEncoders
    from ..shield.engine.generator_training import GeneratorTraining, how_it_was_trained, train_generator
    from ..shield.engine.noise_generators import need_generator_place, save_generator

    how = GeneratorTraining(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, direction=direction,  # type: ignore[arg-type]  # refused by name
        truncation=truncation, seed=seed, device=device,
    )  # fmt: skip
    need_generator_place(out, overwrite)
    quiet_libraries()
    generator = train_generator(folder, captions, ClipEncoders.load(encoders, device), how, eps=eps, folder=checkpoints)
    save_generator(generator, out, training=how_it_was_trained(how, encoders), overwrite=overwrite)
    weights = sum(one.numel() for one in generator.parameters())
    console().print(
        f"a generator of {weights:,} weights for a budget of {eps:.4g}, {generator.side} x {generator.side} pixels"
    )
    console().print(f"out     {out}", soft_wrap=True)


def _key(text: str | None, file: Path | None) -> int:
    """The key that was given; nothing that is refused is repeated."""
    if (text is None) == (file is None):
        reason = "there is no key" if text is None else "--key and --key-file both give a key"
        draw = f"{Path(sys.executable).name} -c 'import secrets; print(secrets.randbits(64))'"
        raise MethodError(f"{reason}. Give one of --key and --key-file; to draw one: {draw}")
    if file is not None:
        if not file.is_file():
            raise MethodError(f"there is no file {file}. Name one that holds the key, a whole number.")
        text = file.read_bytes()[:1000].decode("utf-8", "replace")
    assert text is not None
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 100:
        where = "--key" if file is None else str(file)
        raise MethodError(f"{where} holds no key: a key is a whole number from 0, in digits.")
    return int(digits)


def _one(record: ShieldRecord) -> None:
    _described(record, {"needs": ", ".join(record.needs)})
    console().print(f"unwrite shield protect FOLDER --by {record.slug} --key-file FILE --out FOLDER")


def _one_defence(record: DefenceRecord) -> None:
    _described(record, {})
    numbered = record.slug
    if record.load().field_of_number(8):
        numbered = f"{record.slug}8"  # a number behind the name stands for a field
    console().print(f"unwrite shield attack FOLDER --clean FOLDER --defences none,{numbered} --out FOLDER")


def _described(record: ShieldRecord | DefenceRecord, more: dict[str, str]) -> None:
    """Title, meaning, source, cost and fields."""
    from .describe import field_table, summary

    cls = record.load()
    print_ = console().print
    print_(label(record.slug, then=f"  {record.title}"))
    print_(summary(cls))
    print_()
    published = f"{record.paper} ({record.year})" if record.year else record.paper
    for name, words in {"published": published, **more, "cost": record.cost}.items():
        print_(label(f"{name:10}", then=words))
    print_()
    if dataclasses.fields(cls):
        print_(field_table(cls))
        print_()
