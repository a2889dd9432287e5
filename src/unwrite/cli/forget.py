"""unwrite forget: unlearn, save, audit, as one run folder that can be stopped and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from ..errors import MethodError, noticing
from ..runs import Run, hash_json
from .inputs import DEFAULT_METHOD, AuditRequest, ForgetRequest, Ready
from .outcome import UNCHANGED, UNMET, finish, kept_notices, moved_weights, say_if_unchanged, say_outcomes
from .output import console, print_json, quiet_libraries, say_where
from .pictures import DEFAULT_FOR_IMAGES, By, ImageForgetRequest, ImageReady, PictureRequest
from .sources import DataRequest, Dtype, ModelRequest, Turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import LoraConfig
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from ..audit import Report
    from ..forget import StopWhenForgotten


def forget(
    *,
    model: str,
    out: Path,
    forget: str | None = None,
    images: str | None = None,
    forgotten: Annotated[tuple[str, ...] | None, Parameter(name="--by", consume_multiple=True)] = None,
    retain: str | None = None,
    holdout: str | None = None,
    test: str | None = None,
    oracle: str | None = None,
    weights: str | None = None,
    size: int | None = None,
    columns: str | None = None,
    turns: Turns = "all",
    method: str | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    lora: int | None = None,
    stop_at: float | None = None,
    suite: str = "basic",
    attacks: tuple[str, ...] | None = None,
    require: str | None = None,
    dtype: Dtype = "float32",
    device: str = "auto",
    base: str | None = None,
    allow_overlap: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
    **fields: Annotated[str, Parameter(help="The method's own fields, such as --beta 0.1 (see unwrite methods).")],
) -> None:
    """Make a model forget, save it, and audit it. Ends with status 3 if not one weight has changed, with 1 if a requirement is not met.

    Texts are given by --forget, pictures by --images with --by.

    Args:
        model: bundled name, local folder, .gguf file or Hub id; of images a folder or Hub id of transformers, or module:function with --weights.
        out: the run folder to write.
        forget: rows to forget: a JSONL, CSV or Parquet file, a Hub data set, or a set that ships (landmarks, authors).
        images: a folder of classes, FOLDER/class/picture, or of train and test, each a folder of classes; or a data set on disk (Parquet files, or
            saved by datasets). It is only read.
        forgotten: of images, what is forgotten: class NAME, identity NAME or file NAME; several with commas, or LIST.txt with one a line.
            An identity is a folder inside the class, or else the file's name up to its last _ or - (anna_03.jpg is of anna).
        retain: rows to keep; of images, all that are neither forgotten nor held back.
        holdout: rows like the forget set that the model never saw (membership attacks); of images a folder of classes, or a
            share held back, such as 0.1, the same for one seed: only if the model never saw it.
        test: of images, what to measure on: a folder of classes, or a share held back, as holdout.
        oracle: of images, a model trained without what is forgotten, to measure beside; of module:function its safetensors file.
        weights: of images, the safetensors file of what module:function builds.
        size: of images, height and width that module:function takes; the pictures' own unless given.
        columns: which column is what, where their names don't say: question=text,answer=labels.
        turns: of a chat, all assistant turns or the last alone.
        method: see unwrite methods; smooth for texts and neg-grad-plus for images unless given.
        epochs: passes over the forget set, or over what the method trains on.
        lr: learning rate.
        batch_size: forget rows a step (each with a retain row), 8 unless given; of images, as the method has it.
        accumulate: steps whose gradients are added up before the weights move.
        max_length: tokens a row may have, in training and audit; 512 (or the suite's) unless given.
        seed: of everything random.
        lora: train LoRA adapters of this rank instead of the weights.
        stop_at: stop once the forget answers' probability is this share of before, such as 0.1.
        suite: what the audit measures.
        attacks: what the audit tries to bring the answers back with: all that the rows allow unless given, such as relearn,quantise; none for none.
        require: bounds that the audit's figures must keep, such as forget_probability<=0.1x,utility>=0.95x,relearn<=0.15 (x: times what it was before).
        dtype: of the weights.
        device: cpu, cuda, or auto.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        allow_overlap: warn instead of refusing rows in forget and retain alike.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the model.
        resume: go on with the unfinished run in OUT.
        overwrite: replace an earlier run of this command in OUT; nothing else is ever replaced.
        json: print the result as JSON.
    """
    texts = {
        "--retain": retain,
        "--columns": columns,
        "--turns": None if turns == "all" else turns,
        "--accumulate": accumulate,
        "--max-length": max_length,
        "--lora": lora,
        "--stop-at": stop_at,
        "--suite": None if suite == "basic" else suite,
        "--attacks": attacks,
        "--dtype": None if dtype == "float32" else dtype,
        "--base": base,
        "--allow-overlap": allow_overlap or None,
        "--allow-pickle": allow_pickle or None,
        "--trust-remote-code": trust_remote_code or None,
    }
    pictures = {"--test": test, "--oracle": oracle, "--weights": weights, "--size": size}
    request: ForgetRequest | ImageForgetRequest
    if _of_images(forget, images, texts, pictures):
        assert images is not None
        request = ImageForgetRequest(
            pictures=PictureRequest(folder=images, by=_kind_and_names(forgotten), holdout=holdout, test=test),
            model=model,
            weights=weights,
            size=size,
            oracle=oracle,
            device=device,
            require=require,
            method=method or DEFAULT_FOR_IMAGES,
            fields=fields,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
        )
    else:
        assert forget is not None
        if forgotten is not None:  # of texts, the field of a method, such as smooth's
            fields = {"by": ",".join(forgotten), **fields}
        request = ForgetRequest(
            data=DataRequest(
                forget=forget, retain=retain, holdout=holdout, columns=columns, turns=turns, allow_overlap=allow_overlap
            ),
            model=ModelRequest(
                name=model,
                dtype=dtype,
                device=device,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
                base=base,
            ),
            audit=AuditRequest(suite=suite, attacks=attacks, require=require, max_length=max_length),
            method=method or DEFAULT_METHOD,
            fields=fields,
            epochs=epochs,
            lr=lr,
            batch_size=8 if batch_size is None else batch_size,
            accumulate=accumulate,
            seed=seed,
            lora=lora,
            stop_at=stop_at,
        )
    with noticing() as notices:
        run, report = _run(request, out, resume, overwrite, notices)
    if json:
        print_json({"run": str(out), "status": run.record["status"], "report": report.json()})
    else:
        console().print(report.table())
        say_outcomes(report)
        if "stopped" in run.record:
            console().print(f"training ended: {run.record['stopped']}")
        say_where(out / "report.html", out if isinstance(request, ForgetRequest) else None)
    if run.record["status"] == "unchanged":
        sys.exit(UNCHANGED)
    if not report.met:
        sys.exit(UNMET)


def _of_images(
    forget: str | None, images: str | None, texts: Mapping[str, object], pictures: Mapping[str, object]
) -> bool:
    """Whether pictures are to be forgotten.

    Args:
        texts, pictures: the flags that only one of both has, with what was given.

    Raises:
        MethodError: neither or both, or a flag of the other.
    """
    if (forget is None) == (images is None):
        both = (
            "are two different things to forget" if forget is not None else "say what to forget, and neither is given"
        )
        raise MethodError(f"--forget (texts) and --images (pictures) {both}. Give one of them.")
    others, kind, given = (pictures, "images", "--forget") if images is None else (texts, "texts", "--images")
    if odd := [flag for flag, value in others.items() if value is not None]:
        raise MethodError(f"{odd[0]} is for {kind}, and {given} is given. Leave one of them out.")
    return images is not None


def _kind_and_names(words: tuple[str, ...] | None) -> tuple[By, str]:
    """What --by says of pictures: a kind, and names with commas between them.

    Raises:
        MethodError: neither, or another kind.
    """
    kinds = get_args(By)
    if words is None or len(words) < 2 or words[0] not in kinds:
        said = "" if words is None else f" {' '.join(words)}"
        raise MethodError(
            f"--by{said} says no kind with names. Write class NAME, identity NAME or file NAME, or a .txt list."
        )
    kind: By = next(one for one in kinds if one == words[0])
    return kind, ",".join(words[1:])


def _run(
    request: ForgetRequest | ImageForgetRequest, out: Path, resume: bool, overwrite: bool, notices: list[str]
) -> tuple[Run, Report]:
    """Checks everything, and only then makes the run folder and carries out the request in it."""
    request.check()
    arguments = request.arguments()
    earlier = Run.check(out, arguments, resume=resume, overwrite=overwrite)
    quiet_libraries()
    ready = request.ready()
    if earlier is not None and resume:
        ready.check_same(earlier.record)
    run = Run.start(out, arguments, resume=resume, overwrite=overwrite)
    try:
        run.update(**ready.record)
        resumed = earlier is not None and resume
        if isinstance(ready, ImageReady):
            return run, _carry_out_images(run, ready, notices, resumed)
        return run, _carry_out(run, ready, notices, resumed)
    except KeyboardInterrupt:
        run.update(status="stopped", notices=kept_notices(run, notices))
        console().print("Stopped. Go on with the same command and --resume.")
        raise
    except BaseException as error:
        # What failed before its first step leaves nothing that blocks the folder.
        if not run.discard_if_empty():
            run.update(status="failed", error=f"{type(error).__name__}: {error}", notices=kept_notices(run, notices))
        raise


def _carry_out(run: Run, ready: Ready, notices: list[str], resumed: bool) -> Report:
    import copy

    from ..audit import evaluate
    from ..models import save

    request, split, before = ready.request, ready.split, ready.loaded.model
    stop = _stop(ready)
    unlearned = ready.method.apply(
        copy.deepcopy(before),
        split.forget,
        split.retain,
        holdout=split.holdout,
        processing_class=ready.loaded.tokenizer,
        args=training(request, run, resumed),
        peft_config=_lora(request.lora),
        callbacks=[log_to(run), *([] if stop is None else [stop])],
        allow_overlap=request.data.allow_overlap,
    )
    moved = moved_weights(before, unlearned)
    say_if_unchanged(request.method, moved)
    save(
        unlearned,
        run.folder / "model",
        tokenizer=ready.loaded.tokenizer,
        provenance={
            "method": repr(ready.method),
            "arguments": hash_json(request.arguments()),
            "source": dict(ready.loaded.source),
        },
        merge=request.lora is not None and hasattr(unlearned, "merge_and_unload"),
    )
    report = evaluate(
        unlearned,
        split,
        tokenizer=ready.loaded.tokenizer,
        suite=request.audit.suite,
        before=before,
        attacks=ready.attacks,
        require=request.audit.requirements,
        batch_size=request.audit.batch_size,
        max_length=request.audit.max_length,
    )
    run.drop_checkpoints()
    return finish(run, report, notices, moved, **({} if stop is None else {"stopped": stop.reason}))


def _carry_out_images(run: Run, ready: ImageReady, notices: list[str], resumed: bool) -> Report:
    from ..audit import evaluate
    from ..models import save

    request, split, loaded = ready.request, ready.split, ready.loaded
    unlearned = ready.method.apply(
        loaded.model,
        split.forget,
        split.retain,
        holdout=split.holdout,
        args=request.training(run.folder / "checkpoints", resumed),
        callbacks=[log_to(run)],
        copy=True,
    )
    bare = loaded.bare(unlearned)
    moved = moved_weights(loaded.model, unlearned)
    say_if_unchanged(request.method, moved)
    save(
        bare,
        run.folder / "model",
        tokenizer=loaded.processor,
        provenance={
            "method": repr(ready.method),
            "arguments": hash_json(request.arguments()),
            "source": dict(loaded.source),
        },
    )
    report = evaluate(
        unlearned,
        split,
        before=loaded.model,
        oracle=None if ready.oracle is None else ready.oracle.model,
        require=request.requirements,
    )
    run.drop_checkpoints()
    return finish(run, report, notices, moved)


def _stop(ready: Ready) -> StopWhenForgotten | None:
    """The callback of --stop-at, or None."""
    target, split = ready.request.stop_at, ready.split
    if target is None:
        return None
    from ..forget import StopWhenForgotten

    guard = {"retain": split.retain} if split.retain is not None else {}
    length = ready.request.audit.max_length
    return StopWhenForgotten(ready.loaded.tokenizer, {"forget": split.forget}, guard, target=target, max_length=length)


def training(request: ForgetRequest, run: Run, resumed: bool = False) -> dict[str, Any]:
    """Training arguments from the flags that were given, with checkpoints in the run folder."""
    flags = {
        "learning_rate": request.lr,
        "num_train_epochs": request.epochs,
        "per_device_train_batch_size": request.batch_size,
        "gradient_accumulation_steps": request.accumulate,
        "max_length": request.audit.max_length,
        "seed": request.seed,
    }
    return {name: value for name, value in flags.items() if value is not None} | {
        "output_dir": str(run.folder / "checkpoints"),
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "resume_from_checkpoint": resumed or None,
        "use_cpu": request.model.place == "cpu",
    }


def _lora(rank: int | None) -> LoraConfig | None:
    if rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def log_to(run: Run) -> TrainerCallback:
    """A trainer callback that writes every logged line to the run's metrics.jsonl."""
    from transformers import TrainerCallback

    class LogToRun(TrainerCallback):
        """Writes every logged line to the run's metrics.jsonl."""

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: Mapping[str, float] | None = None,
            **_: Any,
        ) -> None:
            if state.is_world_process_zero and logs:
                run.log({"step": state.global_step, **logs})

    return LogToRun()
