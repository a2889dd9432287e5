"""unwrite demo: the main job on a real model, on any machine, in a few minutes.

SmolLM2-135M-Instruct forgets one landmark, keeps its neighbours and general knowledge, and is audited on questions
it was never trained on, with an attack that tries to bring the knowledge back.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import catalog
from ..errors import noticing
from ..runs import Run
from .inputs import AuditRequest, need_number
from .outcome import UNCHANGED, Moved, finish, moved_weights, say_if_unchanged
from .output import console, quiet_libraries, say_where
from .sources import ModelRequest

if TYPE_CHECKING:
    from ..audit import Report
    from ..data import ForgetSplit
    from ..models import Loaded

LEARNING_RATE = 2e-5
RETAIN_WEIGHT = 10.0  # the forget term is a sum over answer tokens, the retain term a mean
TARGET = 0.1
BATCH = 4  # rows of each kind a step: half of what unwrite forget takes, for what forgets is the number of steps
EPOCHS = 15
KEPT = 32
OUT = Path("runs/demo")
By = Literal["smooth", "npo"]  # the default of unwrite forget, and what it is made of
ANSWER_TOKENS = 40


def demo(
    *,
    out: Path = OUT,
    model: str = "smollm2-135m",
    base: str | None = None,
    method: By = "smooth",
    seed: int = 0,
    overwrite: bool = False,
    store: bool = False,
) -> None:
    """Make a real model forget a landmark, and prove it.

    Args:
        out: the run folder. In the default one an earlier demo is replaced; nothing else ever is.
        overwrite: replace an earlier demo in another folder, too.
        model: the model.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        method: what it is forgotten by.
        seed: of everything random.
        store: keep the figures in the package, for README.
    """
    need_number("--seed", seed, at_least=0, below=2**32)
    settings = {"model": model, "data": "landmarks", "method": method, "learning_rate": LEARNING_RATE, "seed": seed}
    settings |= {} if base is None else {"base": base}
    place: dict[str, Any] = {"kind": "demo", "resume": None, "overwrite": overwrite or out == OUT}
    Run.check(out, settings, **place)
    with noticing() as notices:
        loaded = _load(model, base)  # what can be refused is refused before anything is replaced
        run = Run.start(out, settings, **place)
        report, stopped, seconds = _carry_out(run, loaded, method, seed, notices)
    if store:
        _store(report, method, stopped, seconds)
    console().print(report.table())
    console().print(
        f"training ended: {stopped}; {seconds['unlearning']:.0f} s of unlearning, {seconds['audit']:.0f} s of audit"
    )
    where = (out / "report.html").resolve()
    say_where(where, out, _program())
    if run.record["status"] == "unchanged":
        sys.exit(UNCHANGED)


def _carry_out(run: Run, loaded: Loaded, by: By, seed: int, notices: list[str]) -> tuple[Report, str, dict[str, float]]:
    try:
        report, moved, stopped, seconds = _unlearn_and_audit(run, loaded, by, seed)
    except BaseException as error:
        if not run.discard_if_empty():
            run.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    run.drop_checkpoints()
    return finish(run, report, notices, moved, stopped=stopped, seconds=seconds), stopped, seconds


def short_split(split: ForgetSplit) -> ForgetSplit:
    """The split with every set but the forgotten one thinned to `KEPT` rows, so that the audit takes a minute or two."""

    def thinned(rows: Any) -> Any:
        return type(rows)([rows[i * len(rows) // KEPT] for i in range(KEPT)], rows.name) if len(rows) > KEPT else rows

    evaluation = {
        name: rows if name == "forget_paraphrases" else thinned(rows) for name, rows in split.evaluation.items()
    }
    return replace(split, retain=thinned(split.retain), evaluation=evaluation)


def announced(split: ForgetSplit, by: str) -> str:
    """What is about to be forgotten: how many questions, and that all are about one landmark."""
    from ..data.text.landmarks import LANDMARK

    return (
        f"forgetting one landmark, {LANDMARK}: {len(split.forget)} questions about it ({by}, stops at {TARGET:g} of "
        "their probability before) ..."
    )


def _store(report: Report, by: By, stopped: str, seconds: dict[str, float]) -> None:
    from importlib.resources import files

    from ..reproduce.freshness import DEMO, hashes
    from ..runs import versions, write_json
    from ..runs.provenance import commit, machine

    figures = {
        name: {role: report.value(name, role) for role in ("before", "after")}
        for name in report.columns["after"]
        if report.value(name, "before") is not None and report.value(name, "after") is not None
    }
    record = {
        "method": by,
        "figures": figures,
        "stopped": stopped,
        "seconds": seconds,
        "attacks": report.json()["attacks"],
    }
    record |= {"machine": machine(), "versions": versions(), "commit": commit(), "hashes": hashes(DEMO)}
    name = "demo.json" if by == "smooth" else f"demo-{by}.json"
    write_json(Path(str(files("unwrite").joinpath("bench", "results", name))), record)


def _program() -> str:
    import sys

    return "unwrite" if shutil.which("unwrite") else f"{Path(sys.executable).parent / 'unwrite'}"


def _load(name: str, base: str | None) -> Loaded:
    """The model, once it is known that it can read the rows."""
    from ..data import landmarks

    quiet_libraries()
    console().print(f"loading {name} ...")
    loaded = ModelRequest(name=name, device="cpu", base=base).load()
    AuditRequest().check_rows(landmarks(), loaded.tokenizer, [loaded.model], references=("before",))
    return loaded


def _unlearn_and_audit(
    run: Run, loaded: Loaded, by: By, seed: int
) -> tuple[Report, Moved | None, str, dict[str, float]]:
    from ..audit import Relearn, evaluate
    from ..data import landmarks
    from ..forget import NPO, Smooth, StopWhenForgotten
    from ..models import save
    from .forget import log_to

    split = landmarks()
    assert split.retain is not None
    tokenizer = loaded.tokenizer
    run.update(source=dict(loaded.source), data=split.hash)
    stop = StopWhenForgotten(
        tokenizer,
        {"forget": split.forget, "paraphrases": split.evaluation["forget_paraphrases"]},
        {"retain": split.retain[: 3 * len(split.forget)]},
        target=TARGET,
        every=5,
    )
    console().print(announced(split, by))
    start = time.monotonic()
    inner = NPO(retain_weight=RETAIN_WEIGHT)
    method = Smooth(inner) if by == "smooth" else inner
    unlearned = method.apply(
        copy.deepcopy(loaded.model),
        split.forget,
        split.retain,
        processing_class=tokenizer,
        args={
            "learning_rate": LEARNING_RATE,
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": BATCH,
            "warmup_epochs": 0,
            "lr_scheduler_type": "constant",
            "seed": seed,
            "use_cpu": True,
            "output_dir": str(run.folder / "checkpoints"),
        },
        callbacks=[stop, log_to(run)],
    )
    seconds = {"unlearning": time.monotonic() - start}
    moved = moved_weights(loaded.model, unlearned)
    say_if_unchanged(by, moved)
    save(
        unlearned,
        run.folder / "model",
        tokenizer=tokenizer,
        provenance={"method": repr(method), "history": stop.history},
    )
    console().print("auditing before and after, and trying to bring it back ...")
    start = time.monotonic()
    attack = Relearn(rows=len(split.forget) // 2, steps=6, every=2)
    suite = replace(catalog.suite("basic").load(), max_new_tokens=ANSWER_TOKENS)
    report = evaluate(
        unlearned,
        short_split(split),
        tokenizer=tokenizer,
        suite=suite,
        before=loaded.model,
        attacks=[attack],
        batch_size=32,
    )
    seconds["audit"] = time.monotonic() - start
    return report, moved, stop.reason, seconds
