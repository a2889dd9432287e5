"""Every reader of what comes from outside, by name."""

from __future__ import annotations

import gzip
import json

from . import reading_data as data
from . import reading_states as states
from .sampling import Reader, Sample, as_json, flags


def _gzipped() -> list[Sample]:
    lines = "\n".join(map(json.dumps, data.PAIRS)).encode()
    return [{"rows.jsonl.gz": gzip.compress(lines, mtime=0)}]


def _lines() -> list[Sample]:
    return [{"rows.jsonl": "\n".join(map(json.dumps, table)).encode()} for table in data.TABLES]


_TENSORS, _NOTE = "own/model.safetensors", "own/config.json"

READERS: dict[str, Reader] = {
    # rows
    "jsonl": Reader(data.rows("rows.jsonl"), _lines),
    "json": Reader(data.rows("rows.json"), as_json("rows.json", *data.TABLES, data.SETS)),
    "csv": Reader(data.rows("rows.csv"), data._tables(",")),
    "tsv": Reader(data.rows("rows.tsv"), data._tables("\t")),
    "gzip": Reader(data.rows("rows.jsonl.gz"), _gzipped),
    "parquet": Reader(data.rows("rows.parquet"), data._parquet, 3),
    "texts": Reader(data.rows("texts"), data._texts),
    "saved set": Reader(data.rows("set"), data._saved, 30),
    "columns": Reader(data._columns, flags("question=text,answer=labels", "messages=chat,system=s", "text=a")),
    # images and arrays
    "indices txt": Reader(data._indices("rows.txt"), lambda: [{"rows.txt": b"1\n22\n\n3\n"}]),
    "indices json": Reader(data._indices("rows.json"), as_json("rows.json", [1, 2, 33])),
    "indices npy": Reader(data._indices("rows.npy"), data._npy([1, 2, 3])),
    "images": Reader(data._images, as_json("images.json", data.IMAGES, data.TARGETS)),
    "logits": Reader(data._logits, as_json("logits.json", {"logits": [[0.5, 1], [2, 3]], "labels": [0, 1]})),
    "pictures": Reader(data._picture_of, data._pictures),
    "picture metadata": Reader(data._metadata, data._metadata_samples),
    # runs
    "run.json": Reader(states._run, states._metrics),
    "run models": Reader(states._run_models, as_json("run.json", states.RECORD)),
    "report.json": Reader(states._report, states._reports),
    "report page": Reader(states._report_page, states._reports, 400, bounded=False),
    "retain scores": Reader(states._retain_scores, states._scores),
    "sweep file": Reader(states._sweep, states._sweep_samples),
    "bench file": Reader(states._bench, as_json("bench.json", states.BENCH)),
    "parallelbench": Reader(states._parallelbench_of, states._parallelbench),
    # states
    "filter": Reader(states._filter, states._filters),
    "records": Reader(states._record, states._records),
    "recycling table": Reader(states._recycled, states._recycling),
    "trigram table": Reader(states._trigram, states._trigrams),
    "importances": Reader(states._importance, states._importances, 2),
    "importances resealed": Reader(states._importance, states._importances, 2, mend=states._resealed),
    "state": Reader(states._state, states._states, 2),
    # models
    "model": Reader(states._load, lambda: [states._model_files()], 60, (_TENSORS, _NOTE, "own/generation_config.json")),
    "tokenizer": Reader(
        states._load, lambda: [states._model_files()], 60, ("own/tokenizer.json", "own/tokenizer_config.json")
    ),
    "adapter": Reader(states._load, states._adapters, 80, ("own/adapter_config.json", "own/adapter_model.safetensors")),
    "guard": Reader(states._load, states._guards, 80),
    "unwrite.json": Reader(states._load, states._noted, 60, ("own/unwrite.json",)),
    "gguf header": Reader(states._gguf, states._ggufs, 10),
    "gguf": Reader(states._converted, states._ggufs, 200),
    "chat template": Reader(states._template, flags(states.TEMPLATE), 5),
    # the command line
    "method": Reader(
        states._method, flags("npo beta=0.1 retain-loss=kl", "ssd alpha=5", "scrub decay=3,5,9", "uld layers=2")
    ),
    "strategy": Reader(states._strategy, flags("token-recycling k=8 template=2.2.2", "prompt-lookup", "aded k=4")),
    "sampler": Reader(states._sampler, flags("threshold(threshold=0.8)+fixed-blocks(size=16)+dual", "llada+prophet")),
    "contenders": Reader(
        states._contenders, flags("scrub,ssd:alpha=5,fine-tune:epochs=2,lr=0.01", "scrub:decay=3,5,9")
    ),
    "catalogue": Reader(states._catalogue, flags("method npo", "strategy token-recycling", "part threshold")),
}
