"""unwrite shield attack: trains on protected pictures under each defence, and says what is right of clean ones."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, MethodError, noticing
from .fields import build_defence
from .listing import plain_table
from .output import console, print_json, quiet_libraries

if TYPE_CHECKING:
    from ..shield.attack_report import AttackReport
    from ..shield.attacking import Attacker
    from ..shield.defences.base import Defence
    from ..shield.engine.folders import FolderPictures
    from ..shield.engine.published import PublishedPictures

DEFENCES = "none,grey,jpeg10,at8,ueraser"


def attack(
    folder: Path,
    *,
    clean: Path,
    out: Path,
    original: Path | None = None,
    defences: str = DEFENCES,
    net: str = "small-resnet",
    epochs: int = 60,
    batch_size: int = 128,
    lr: float = 0.1,
    size: int | None = None,
    flip: bool = True,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Train on FOLDER under each defence and test on clean pictures. What was measured in OUT is not measured again.

    Args:
        folder: the protected pictures, FOLDER/class/picture.
        clean: pictures of the same classes that are in no training.
        out: the folder for attack.json and report.html.
        original: the pictures that FOLDER was made of, under the same names: adds a column without protection, and one under random
            noise of the same size.
        defences: with commas between, each a name, a number and fields as it has them: none,jpeg10,at8,at:norm=l2:eps=0.5 (see
            unwrite shield defences).
        net: what is trained; see unwrite shield em-noise for the names.
        epochs: of each training.
        batch_size: pictures a step.
        lr: the peak learning rate of SGD.
        size: to which all pictures are scaled, height and width; needed where they differ.
        flip: mirror half of the pictures while training.
        seed: of weights, order, crops and what defences draw.
        device: where to train.
        overwrite: replace another attack in OUT; nothing else is ever replaced.
        json: print the result as JSON.
    """
    from ..runs import claimed
    from ..shield.attack_report import cells_in, picture_rows
    from ..shield.attacking import Attacker, evaluate_protection

    chosen = _chosen(defences)
    attacker = Attacker(net=net, epochs=epochs, batch_size=batch_size, lr=lr, flip=flip, device=device)
    quiet_libraries()
    with noticing() as notices, claimed(out):
        sets, test = _read(folder, clean, original, size)
        attacked = {
            **{name: one.hash for name, one in sets.items()},
            "clean": test.hash,
            "training": _settings(attacker, sets),
            "seed": seed,
        }
        known = cells_in(out, attacked, overwrite)
        report = _begun(attacked, sets, test, attacker, {"folder": folder, "clean": clean, "original": original}, seed)
        kept = _Keeping(report, out, known)
        cells = evaluate_protection(sets, test, chosen, attacker=attacker, seed=seed, known=known, tell=kept.add)
        rows, amplified = picture_rows(sets["protected"], sets.get("unprotected"))
        report = kept.finished(cells, rows, amplified)
    if json:
        print_json({"out": str(out), **report.json(), "notices": notices})
        return
    _show(report, out)


class _Keeping:
    """Writes every figure as soon as it is measured, beside those measured before."""

    def __init__(self, report: AttackReport, out: Path, known: dict[str, Any]) -> None:
        self.report = replace(report, cells=tuple(known.values()))
        self.out = out

    def add(self, cell: Any) -> None:
        self.report = self.report.with_cell(cell)
        self.report.save(self.out)

    def finished(self, cells: list[Any], rows: Any, amplified: int | None) -> AttackReport:
        """The table asked for; what else was measured before stays in the file."""
        asked = {cell.key for cell in cells}
        rest = tuple(cell for cell in self.report.cells if cell.key not in asked)
        whole = replace(self.report, cells=(*cells, *rest), amplified=amplified)
        whole.save(self.out, rows)
        return replace(whole, cells=tuple(cells))


def _chosen(texts: str) -> dict[str, Defence]:
    names = [text.strip() for text in texts.split(",") if text.strip()]
    if not names:
        raise MethodError("--defences names none. Give at least one, such as none,jpeg10.")
    return {name: build_defence(name) for name in names}


def _read(
    folder: Path, clean: Path, original: Path | None, size: int | None
) -> tuple[dict[str, PublishedPictures], PublishedPictures]:
    """What is trained on, by its column, and the clean pictures, all of one size and as many channels."""
    from ..shield.attack_report import PROTECTED, RANDOM, UNPROTECTED
    from ..shield.attacking import mean_change, signed_class_noise
    from ..shield.engine.folders import FolderPictures
    from ..shield.engine.published import PublishedPictures

    if clean.resolve() in (folder.resolve(), original and original.resolve()):
        raise DataError(f"{clean} is trained on too. Give clean pictures that are in no training with --clean.")
    folders = [FolderPictures(one) for one in (folder, clean, original) if one is not None]
    channels = max(one.shape(0)[0] for one in folders)
    classes = folders[0].classes

    def read(one: FolderPictures, order: np.ndarray | None = None) -> PublishedPictures:
        return PublishedPictures(one, size=size, classes=classes, channels=channels, order=order)

    sets, test = {PROTECTED: read(folders[0])}, read(folders[1])
    if original is not None:
        before = read(folders[2], _matched(folders[0], folders[2]))
        if before.shape != sets[PROTECTED].shape:
            raise DataError(
                f"the pictures of {original} have shape {list(before.shape)} and those of {folder} {list(sets[PROTECTED].shape)}. Give the "
                "ones that they were made of."
            )
        levels = max(1, round(mean_change(sets[PROTECTED], before)))
        noise = signed_class_noise(len(classes), before.shape, levels, seed=0)
        sets |= {RANDOM: before.with_noise(noise), UNPROTECTED: before}
    return sets, test


def _matched(protected: FolderPictures, original: FolderPictures) -> np.ndarray:
    """For each protected picture, the place of the one it was made of: the same name but for the ending."""
    places = {str(PurePosixPath(original.relative(row)).with_suffix("")): row for row in range(len(original))}
    order = []
    for row in range(len(protected)):
        name = str(PurePosixPath(protected.relative(row)).with_suffix(""))
        if name not in places:
            raise DataError(
                f"{protected.place(row)} has no original: there is no {name} in {original.folder}. Give the folder that it was made of."
            )
        order.append(places[name])
    return np.array(order)


def _settings(attacker: Attacker, sets: dict[str, PublishedPictures]) -> dict[str, Any]:
    """Everything of the training but the defence."""
    from ..shield.defences.base import Defence

    one = sets["protected"]
    return {
        name: value
        for name, value in attacker.recipe(Defence(), one.shape, len(one.classes)).settings.items()
        if name != "defence"
    }


def _begun(
    attacked: dict[str, Any],
    sets: dict[str, PublishedPictures],
    test: PublishedPictures,
    attacker: Attacker,
    folders: dict[str, Path | None],
    seed: int,
) -> AttackReport:
    """The report before its first figure."""
    from ..shield.attack_report import AttackReport
    from ..shield.attacking import mean_change

    one = sets["protected"]
    channels, height, width = one.shape
    about = {
        **{name: str(path) for name, path in folders.items() if path is not None},
        "pictures": f"{len(one)} trained on, {len(test)} clean, {width}x{height} of {channels} channels, {len(one.classes)} classes",
        "training": f"{attacker.net}, {attacker.epochs} epochs of batches of {attacker.batch_size}, SGD {attacker.lr:g}, seed {seed}",
    }
    change = mean_change(one, sets["unprotected"]) if "unprotected" in sets else None
    guess = 100 * float(np.bincount(test.labels).max()) / len(test)
    return AttackReport(attacked, about, (), guess, change)


def _show(report: AttackReport, out: Path) -> None:
    cells = {(one.defence, one.published): f"{one.accuracy:.1f}" for one in report.cells}
    rows = [[defence, *(cells[defence, name] for name in report.published)] for defence in report.defences]
    print_ = console().print
    print_("right of clean pictures, %")
    print_(plain_table(["defence", *report.published], rows))
    print_(f"always naming the commonest class: {report.guess:.1f}")
    print_(report.sentence)
    print_(f"report  {out / 'report.html'}", soft_wrap=True)
    print_(f"more    unwrite shield attack ... --defences {DEFENCES},... --out {shlex.quote(str(out))}", soft_wrap=True)
