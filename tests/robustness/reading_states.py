"""Readers of runs, states and models, and of the command line, with their samples."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from .sampling import TESTS, Sample, line_of, written

RECORD = {
    "kind": "forget", "key": "ab" * 8, "arguments": {"seed": 0, "model": "m"}, "versions": {"torch": "2"}, "status": "done",
    "threads": {"torch": 1, "OMP_NUM_THREADS": "1"}, "started": 1.5, "source": {"name": "nosuch-model", "weights": "ab"},
    "model": {"weights": "cd"}, "notices": ["a"],
}  # fmt: skip


def _run(folder: Path) -> Any:
    from unwrite.errors import UnwriteError
    from unwrite.runs import Run, hash_json

    run = Run.open(folder)
    for step in (run.need_done, run.logged, lambda: Run.check(folder, {"seed": 0}, resume=True)):
        try:
            step()
        except UnwriteError:
            continue
    hash_json(run.record)
    return run.record["status"].encode()


def _run_models(folder: Path) -> Any:
    from unwrite.cli.sources import RunModels
    from unwrite.runs import Run

    return RunModels(run=Run.open(folder)).before()


def _metrics() -> list[Sample]:
    lines = b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo'
    return [{"run.json": json.dumps(RECORD).encode(), "metrics.jsonl": lines}]


def _reports() -> list[Sample]:
    from unwrite.audit.base import Score
    from unwrite.audit.report.parts import AttackResult, Sample
    from unwrite.audit.report.report import Report, write_json

    metric = {"name": "forget_rouge", "better": "lower", "about": "a", "panel": "forgotten"}
    kept = {"name": "utility", "better": "higher", "about": "b", "panel": "kept"}
    columns = {
        role: {"forget_rouge": Score("forget_rouge", value, [value, None]), "utility": Score("utility", 0.5)}
        for role, value in (("before", 0.9), ("after", 0.25))
    }
    attack = AttackResult(
        "relearn", "about", "steps", "steps", {"after": [{"steps": 0, "rouge": 0.1}, {"steps": 1, "rouge": 0.5}]}
    )
    sample = Sample("forget", "Where?", "Here.", {"after": "No."}, (("user", "a"),))
    report = Report("basic", "split", {"forget": 2}, [metric, kept], columns, [sample], [attack])
    return [written(lambda folder: write_json(folder / "report.json", report.json()))]


def _report(folder: Path) -> Any:
    from unwrite.audit.report.report import Report

    report = Report.load(folder)
    return report.table(), report.json(), report.csv()


def _report_page(folder: Path) -> Any:
    from unwrite.audit.report.report import Report

    return Report.load(folder).html()


def _scores() -> list[Sample]:
    from conftest import make_examples
    from unwrite.audit.suites.tofu import row_ids

    own = {
        "kind": "tofu truth ratios",
        "mean": "geometric",
        "scores": dict.fromkeys(row_ids(make_examples("forget", 2)), 0.5),
    }
    theirs = {"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}, "1": {"score": 0.25}}}}
    return [{"scores.json": json.dumps(value).encode()} for value in (own, theirs)]


def _retain_scores(folder: Path) -> Any:
    from conftest import make_examples
    from unwrite.audit.suites.tofu import read_retain_scores

    return read_retain_scores(folder / "scores.json", make_examples("forget", 2))


def _sweep_samples() -> list[Sample]:
    row = {"key": "k1", "method": "npo", "bed": "digits/class", "seed": 0, "metrics": {"a": 0.5}, "seconds": 1.0}
    lines = [SWEEP_HEADER, row, {**row, "key": "k2"}]
    return [{"rows.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}]


SWEEP_HEADER: dict[str, Any] = {"sweep": 1, "code": "ab", "versions": {"torch": "2"}, "commit": "c", "machine": "m"}


def _sweep(folder: Path) -> Any:
    from unwrite.bench.sweep_file import opened

    with opened(folder / "rows.jsonl", SWEEP_HEADER) as file:
        return {str(key): row for key, row in file.rows.items()}


def _bench(folder: Path) -> Any:
    from unwrite.cli.timings import stopped

    return stopped(folder / "bench.json", {"model": "m"}, 8, 4)


BENCH = {"model": "m", "complete": False, "cases": [{"batch": 8, "pairs": 4, "seconds": 1.0}]}


def _parallelbench() -> list[Sample]:
    from unwrite.diffusion.parallelbench.tasks import TASKS, load

    made = []
    for name in list(TASKS)[:2]:
        row = load(name, "test", len(TASKS[name].buckets))[0]
        made.append({"input": dict(row.inputs), "answer": row.answer, "metadata": {"length": 3}})
    return [{"samples.jsonl": json.dumps(one).encode() + b"\n"} for one in made]


def _parallelbench_of(folder: Path) -> Any:
    from unwrite.diffusion.parallelbench.tasks import TASKS, load

    return load(next(iter(TASKS)), file=folder / "samples.jsonl")


# States in safetensors


def _filters() -> list[Sample]:
    from unwrite.diffusion.parts.learn2pd import Filter

    source = {"model": "m", "mask_id": "1", "precision": "float32"}
    return [
        written(lambda folder, depth=depth: Filter(4, depth, source).save(folder / "own.safetensors"))
        for depth in (1, 2)
    ]


def _filter(folder: Path) -> Any:
    import torch

    from unwrite.diffusion.parts.learn2pd import Filter

    found = Filter.load(folder / "own.safetensors")
    assert bool(torch.isfinite(found(torch.rand(2, found.size))).all()), "not finite"


def _records() -> list[Sample]:
    import torch

    from unwrite.diffusion.parts.learn2pd import Records

    yes, whole = torch.ones(5, 4).bool(), torch.arange(5)
    one = Records(torch.rand(5, 4), yes, ~yes, whole, whole + 1, whole * 2, {"model": "m"})
    return [written(lambda folder: one.save(folder / "own.safetensors"))]


def _record(folder: Path) -> Any:
    import torch

    from unwrite.diffusion.parts.learn2pd import Records

    found = Records.load(folder / "own.safetensors")
    assert bool((found.confidence >= 0).all() and (found.confidence <= 1).all()), "confidence"
    assert {len(one) for one in (found.right, found.masked, found.prompt, found.block, found.step)} == {len(found)}
    return torch.where(found.right, found.confidence, 0).sum(), found.forwards_a_block() if len(found) else 0


def _recycling() -> list[Sample]:
    import numpy as np

    from unwrite.decode.token_recycling import RecyclingTable

    table = RecyclingTable.of(np.arange(12).reshape(6, 2) % 6)
    return [written(lambda folder: table.save(folder / "own.safetensors"))]


def _recycled(folder: Path) -> Any:
    from unwrite.decode.token_recycling import RecyclingTable, TreeTemplate

    table = RecyclingTable.load(folder / "own.safetensors")
    assert table.seen.shape == (table.vocab,)
    return table.unroll(0, TreeTemplate.of([[0]]))


def _trigrams() -> list[Sample]:
    from unwrite.decode.trigrams import TrigramTable

    table = TrigramTable.fit([[1, 2, 3, 4, 1, 2, 4]], 6)
    return [written(lambda folder: table.save(folder / "own.safetensors"))]


def _trigram(folder: Path) -> Any:
    from unwrite.decode.trigrams import TrigramTable

    table = TrigramTable.load(folder / "own.safetensors")
    table.add([1, 2, 3])
    return table.weight(1, 2, 3)


def _importances() -> list[Sample]:
    import torch

    from unwrite.models.curvature import Importances

    found = Importances({"a.weight": torch.rand(2, 3), "a.bias": torch.rand(2)}, 4, 2, 12.0, looped=("a.bias",))
    return [written(lambda folder: found.save(folder / "own"))]


def _importance(folder: Path) -> Any:
    from unwrite.models.curvature import Importances

    found = Importances.load(folder / "own")
    return found.count, found.joined(found)


def _resealed(folder: Path) -> None:
    from unwrite.runs import hash_file

    note = folder / "own" / "importances.json"
    value = json.loads(note.read_bytes())
    note.write_text(json.dumps({**value, "sha256": hash_file(folder / "own" / "importances.safetensors")}))


def _states() -> list[Sample]:
    from unwrite.models import save

    return [written(lambda folder: save(_net(), folder / "own"))]


def _net() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def _state(folder: Path) -> Any:
    import torch

    from unwrite.models import load_state

    net = load_state(_net(), folder / "own").eval()
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values()), "not finite"


# Models


@cache
def _model_files() -> Sample:
    from conftest import make_llama, make_tokenizer

    def write(folder: Path) -> None:
        make_llama(layers=1, hidden=16).save_pretrained(folder / "own")
        make_tokenizer().save_pretrained(folder / "own")

    return written(write)


def _load(folder: Path) -> Any:
    from unwrite.models import load

    return load(folder / "own")


def _adapters() -> list[Sample]:
    from peft import LoraConfig, get_peft_model

    from conftest import make_llama

    def write(folder: Path) -> None:
        model = make_llama(layers=1, hidden=16)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
            folder / "own"
        )
        config = json.loads((folder / "own/adapter_config.json").read_text())
        (folder / "own/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))

    base = {name.replace("own/", "own/base/"): data for name, data in _model_files().items()}
    return [{**base, **written(write)}]


def _guards() -> list[Sample]:
    from conftest import make_llama
    from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel

    def write(folder: Path) -> None:
        LogitDifferenceModel(
            make_llama(layers=1, hidden=16), make_llama(layers=1, hidden=16), 1.0, 0.5, True
        ).save_pretrained(folder / "own")

    return [{**written(write), "own/tokenizer.json": _model_files()["own/tokenizer.json"],
             "own/tokenizer_config.json": _model_files()["own/tokenizer_config.json"]}]  # fmt: skip


def _noted() -> list[Sample]:
    note = {"kind": "model", "weights": "ab" * 8, "versions": {"torch": "2"}, "provenance": {"a": [1, "b"]}}
    return [
        {**_model_files(), "own/unwrite.json": json.dumps({**note, **more}).encode()}
        for more in ({}, {"loader": "logit-difference"})
    ]


def _ggufs() -> list[Sample]:
    sys.path.append(str(TESTS / "models"))
    from gguf_files import write_gguf

    from helpers.architectures import tiny_model

    return [written(lambda folder: write_gguf(folder / "own.gguf", tiny_model("llama", layers=1)))]


def _gguf(folder: Path) -> Any:
    from unwrite.models.gguf_parts import opened, parts_of

    return [len(reader.tensors) for reader in opened(parts_of(folder / "own.gguf"))]


def _converted(folder: Path) -> Any:
    from unwrite.models.gguf import converted

    return converted(folder / "own.gguf")


TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] != 'assistant' else '<assistant> ' }}{{ m['content'] }}{{ ' </s> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def _template(folder: Path) -> Any:
    from conftest import make_tokenizer
    from unwrite.data import Example
    from unwrite.data.text.rendering import Spelling

    tokenizer = make_tokenizer()
    tokenizer.chat_template = line_of(folder)
    return Spelling(tokenizer).render(Example(answer="a book", question="who ?"))


# The command line


def _method(folder: Path) -> Any:
    from unwrite.cli.fields import build

    slug, *pairs = line_of(folder).split(" ")
    return build(slug, dict(pair.partition("=")[::2] for pair in pairs))


def _strategy(folder: Path) -> Any:
    from unwrite.cli.fields import build_strategy

    slug, *pairs = line_of(folder).split(" ")
    return build_strategy(slug, dict(pair.partition("=")[::2] for pair in pairs))


def _sampler(folder: Path) -> Any:
    from unwrite.cli.samplers import sampler_of

    return sampler_of(line_of(folder), 32)


def _contenders(folder: Path) -> Any:
    from unwrite.cli.sweep import contenders_of

    return contenders_of(line_of(folder))


def _catalogue(folder: Path) -> Any:
    from unwrite import catalog

    kind, _, name = line_of(folder).partition(" ")
    return {"method": catalog.method, "strategy": catalog.strategy, "part": catalog.part}.get(kind, catalog.loader)(
        name
    )
