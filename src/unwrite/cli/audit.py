"""unwrite audit: measure what a model still knows, beside the model before and an oracle."""

from __future__ import annotations

from pathlib import Path

from .output import console, print_json, quiet_libraries


def audit(
    model: str,
    *,
    forget: str,
    retain: str | None = None,
    holdout: str | None = None,
    before: str | None = None,
    oracle: str | None = None,
    suite: str = "basic",
    attacks: tuple[str, ...] = (),
    batch_size: int = 16,
    out: Path | None = None,
    overwrite: bool = False,
    allow_overlap: bool = False,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure forgetting, utility and leakage.

    Args:
        model: the unlearned model.
        forget: rows that should be gone, or a set that ships (landmarks, authors).
        retain: rows that should be kept.
        holdout: rows never seen by the model.
        before: the model before unlearning.
        oracle: a model trained without the forget set.
        suite: what to measure.
        attacks: also try these: relearn, quantise.
        batch_size: rows a forward pass.
        out: folder for report.html and report.json.
        overwrite: replace a report in OUT.
        allow_overlap: warn instead of refusing rows in forget and retain alike.
        device: cpu, cuda, or auto.
        json: print the report as JSON.
    """
    from ..audit import Quantise, Relearn, evaluate
    from ..errors import MethodError, unknown
    from ..models import load
    from ..runs import need_free
    from .forget import pick_device, read_split

    if out is not None:
        need_free(out / "report.json", out / "report.html", overwrite=overwrite)
    known = {"relearn": Relearn, "quantise": Quantise}
    for name in attacks:
        if name not in known:
            raise MethodError(unknown("attack", name, known))
    quiet_libraries()
    split = read_split({"forget": forget, "retain": retain, "holdout": holdout, "allow_overlap": allow_overlap})
    place = pick_device(device)
    loaded = load(model, device=place)
    others = {k: load(name, device=place).model for k, name in (("before", before), ("oracle", oracle)) if name}
    report = evaluate(
        loaded.model,
        split,
        tokenizer=loaded.tokenizer,
        suite=suite,
        attacks=[known[name]() for name in attacks],
        batch_size=batch_size,
        **others,
    )
    if out is not None:
        report.save(out)
    if json:
        print_json(report.json())
        return
    console().print(report.table())
    if out is not None:
        console().print(f"report  {out / 'report.html'}")
