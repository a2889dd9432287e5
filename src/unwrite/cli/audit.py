"""unwrite audit: measure what a model still knows, beside the model before and an oracle."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import noticing
from ..runs import Run, claimed, need_free
from .inputs import AuditRequest, need_one_tokenizer
from .outcome import UNMET, say_outcomes
from .output import console, print_json, quiet_libraries, say_where
from .sources import DataRequest, ModelRequest, RunModels, Turns


def audit(
    model: str,
    *,
    forget: str,
    retain: str | None = None,
    holdout: str | None = None,
    columns: str | None = None,
    turns: Turns = "all",
    before: str | None = None,
    oracle: str | None = None,
    reference: Literal["retrained", "base"] = "retrained",
    suite: str = "basic",
    attacks: tuple[str, ...] | None = None,
    require: str | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    allow_overlap: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    device: str = "auto",
    base: str | None = None,
    json: bool = False,
) -> None:
    """Measure forgetting, utility and leakage. Ends with status 1 if a requirement is not met.

    Args:
        model: the unlearned model; or a run folder, whose model before is then the one of the run.
        forget: rows that should be gone, or a set that ships (landmarks, authors).
        retain: rows that should be kept.
        holdout: rows never seen by the model.
        columns: which column is what, where their names don't say: question=text,answer=labels.
        turns: of a chat, all assistant turns or the last alone.
        before: the model before unlearning.
        oracle: a model trained without the forget set.
        reference: what the oracle is: retrained, or base, the model from before it learnt any of the rows, which may stand in for one.
        suite: what to measure.
        attacks: what to try to bring the answers back with: all that the rows allow unless given, such as relearn,quantise; none for none.
        require: bounds that the audit's figures must keep, such as forget_probability<=0.1x,utility>=0.95x,relearn<=0.15 (x: times what it was before).
        batch_size: rows a forward pass.
        max_length: tokens a row may have; 512 (or the suite's) unless given.
        out: folder for report.html and report.json.
        overwrite: replace a report in OUT.
        allow_overlap: warn instead of refusing rows in forget and retain alike.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the models.
        device: cpu, cuda, or auto.
        base: of adapters, the model they stand on, where their own files may not choose that.
        json: print the report as JSON.
    """
    from ..audit import evaluate

    if out is not None:
        need_free(out / "report.json", out / "report.html", overwrite=overwrite)
    request = AuditRequest(suite=suite, attacks=attacks, require=require, batch_size=batch_size, max_length=max_length)
    request.check()
    quiet_libraries()
    options = {"device": device, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    with noticing() as notices:
        split = DataRequest(
            forget=forget, retain=retain, holdout=holdout, columns=columns, turns=turns, allow_overlap=allow_overlap
        ).read()
        chosen = request.attacks_on(split)
        loaded = _models(model, before, oracle, base, options)
        main = loaded.pop("after")
        for role, one in loaded.items():
            need_one_tokenizer(main, one, role)
        models = [main.model, *(one.model for one in loaded.values())]
        request.check_rows(split, main.tokenizer, models, references=tuple(loaded), attacks=chosen)
        with nullcontext() if out is None else claimed(out):
            if out is not None:  # another audit may have ended in it since
                need_free(out / "report.json", out / "report.html", overwrite=overwrite)
            report = evaluate(
                main.model,
                split,
                tokenizer=main.tokenizer,
                suite=suite,
                reference=reference,
                attacks=chosen,
                require=request.requirements,
                batch_size=batch_size,
                max_length=max_length,
                **{role: one.model for role, one in loaded.items()},
            )
            report = replace(report, notices=tuple(dict.fromkeys([*notices, *report.notices])))
            if out is not None:
                report.save(out)
    if json:
        print_json(report.json())
    else:
        console().print(report.table())
        say_outcomes(report)
        if out is not None:
            say_where(out / "report.html")
    if not report.met:
        sys.exit(UNMET)


def _models(
    model: str, before: str | None, oracle: str | None, base: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What is loaded, by role; of a run folder both of its models, as the run left them."""
    if (Path(model) / "run.json").exists():
        run = RunModels(run=Run.open(model).need_done(), options=options)
        models = {"after": run.after()} | ({"before": run.before()} if before is None else {})
    else:
        models = {"after": ModelRequest(name=model, base=_base_for(model, base), **options).load()}
    named = {"before": before, "oracle": oracle}
    return models | {
        role: ModelRequest(name=name, base=_base_for(name, base), **options).load()
        for role, name in named.items()
        if name
    }


def _base_for(name: str, base: str | None) -> str | None:
    """The base for what may be an adapter; a whole model beside one has none."""
    whole = Path(name).is_dir() and not (Path(name) / "adapter_config.json").exists()
    return None if whole else base
