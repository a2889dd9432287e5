"""unwrite forget: unlearn, save, audit, as one run folder that can be stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import MethodError
from ..runs import Run, hash_json
from .fields import build
from .output import console, print_json, quiet_libraries


def forget(
    *,
    model: str,
    forget: str,
    out: Path,
    retain: str | None = None,
    holdout: str | None = None,
    method: str = "npo",
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int = 8,
    accumulate: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    lora: int | None = None,
    stop_at: float | None = None,
    suite: str = "basic",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    allow_overlap: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
    **fields: Annotated[str, Parameter(help="The method's own fields, such as --beta 0.1 (see unwrite methods).")],
) -> None:
    """Make a model forget, save it, and audit it.

    Args:
        model: bundled name, local folder, .gguf file or Hub id.
        forget: rows to forget: a JSONL, CSV or Parquet file, a Hub data set, or a set that ships (landmarks, authors).
        out: the run folder to write.
        retain: rows to keep.
        holdout: rows like the forget set that the model never saw (membership attacks).
        method: see unwrite methods.
        epochs: passes over the forget set.
        lr: learning rate.
        batch_size: forget rows a step (each with a retain row).
        accumulate: steps whose gradients are added up before the weights move.
        max_length: tokens a row may have; 512 unless given.
        seed: of everything random.
        lora: train LoRA adapters of this rank instead of the weights.
        stop_at: stop once the forget answers' probability is this share of before, such as 0.1.
        suite: what the audit measures.
        dtype: of the weights.
        device: cpu, cuda, or auto.
        allow_overlap: warn instead of refusing rows in forget and retain alike.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the model.
        resume: go on with the unfinished run in OUT.
        overwrite: replace an earlier run of this command in OUT; nothing else is ever replaced.
        json: print the result as JSON.
    """
    settings = {name: value for name, value in locals().items() if name not in ("resume", "overwrite", "json", "out")}
    chosen = build(method, fields)  # a wrong field is refused before anything is loaded
    if "text" not in chosen.forgets:
        raise MethodError(
            f"{method} forgets images, by {type(chosen).__name__}().apply in Python. See unwrite methods."
        )
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    run = Run.start(out, arguments, resume=resume, overwrite=overwrite)
    try:
        report = _carry_out(run, chosen, settings)
    except KeyboardInterrupt:
        run.update(status="stopped")
        console().print(f"Stopped. Go on with the same command and --resume, or delete {out}.")
        raise
    except BaseException as error:
        run.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    if json:
        print_json({"run": str(out), "report": report.json()})
        return
    console().print(report.table())
    console().print(f"report  {out / 'report.html'}\nchat    unwrite chat {out}")


def pick_device(device: str) -> str:
    """cuda where there is one, for "auto"."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def read_split(settings: dict[str, Any]) -> Any:
    """The split that --forget, --retain and --holdout name; a shipped set brings its own parts."""
    from ..data import split_from

    parts = (settings["forget"], settings["retain"], settings["holdout"])
    return split_from(*parts, allow_overlap=settings["allow_overlap"])


def training(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    """Training arguments from the flags that were given, with checkpoints in the run folder."""
    given = {
        "learning_rate": settings["lr"],
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["accumulate"],
        "max_length": settings["max_length"],
        "seed": settings["seed"],
    }
    checkpoints = run.folder / "checkpoints"
    last = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return {name: value for name, value in given.items() if value is not None} | {
        "output_dir": str(checkpoints),
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "resume_from_checkpoint": str(last[-1]) if last else None,
        "use_cpu": pick_device(settings["device"]) == "cpu",
    }


def _carry_out(run: Run, chosen: Any, settings: dict[str, Any]) -> Any:
    import copy
    import shutil

    import torch

    from ..audit import evaluate
    from ..forget import StopWhenForgotten
    from ..models import load, save

    quiet_libraries()
    split = read_split(settings)
    loaded = load(
        settings["model"],
        dtype=getattr(torch, settings["dtype"]),
        device=pick_device(settings["device"]),
        allow_pickle=settings["allow_pickle"],
        trust_remote_code=settings["trust_remote_code"],
    )
    before, tokenizer = loaded.model, loaded.tokenizer
    run.update(source=dict(loaded.source), data=split.hash)
    callbacks: list[Any] = [log_to(run)]
    if settings["stop_at"] is not None:
        guard = {"retain": split.retain} if split.retain is not None else {}
        callbacks.append(StopWhenForgotten(tokenizer, {"forget": split.forget}, guard, target=settings["stop_at"]))
    unlearned = chosen.apply(
        copy.deepcopy(before),
        split.forget,
        split.retain,
        holdout=split.holdout,
        processing_class=tokenizer,
        args=training(settings, run),
        peft_config=_lora(settings["lora"]),
        callbacks=callbacks,
        allow_overlap=settings["allow_overlap"],
    )
    provenance = {"method": repr(chosen), "arguments": hash_json(settings), "source": dict(loaded.source)}
    save(
        unlearned, run.folder / "model", tokenizer=tokenizer, provenance=provenance, merge=settings["lora"] is not None
    )
    report = evaluate(unlearned, split, tokenizer=tokenizer, suite=settings["suite"], before=before)
    report.save(run.folder)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    run.update(status="done")
    return report


def _lora(rank: int | None) -> Any:
    if rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def log_to(run: Run) -> Any:
    """A trainer callback that writes every logged line to the run's metrics.jsonl."""
    from transformers import TrainerCallback

    class LogToRun(TrainerCallback):
        """Writes every logged line to the run's metrics.jsonl."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and logs:
                run.log({"step": state.global_step, **logs})

    return LogToRun()
