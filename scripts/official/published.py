"""Scores the rows of tests/audit/published with the benchmarks' own code, and stores the figures for the tests.

    python scripts/official/published.py --tofu DIR --open-unlearning DIR --muse DIR --knowundo DIR --wmdp

Each folder is a checkout of the benchmark's repository at the commit in `SOURCES`; WMDP is scored by the installed
`lm_eval`. None of their code is kept here. Where it asks for what today's libraries lack (a renamed method, a package that
only other functions use), a stand-in is given, never another computation; `HOW` says which.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import json
import math
import os
import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.audit.published_models import PUBLISHED, SAID, model_of, rows_of, tokenizer_of  # noqa: E402

STORE = ROOT / "tests" / "audit" / "official_published.json"
SOURCES = {
    "tofu": ("locuslab/tofu", "bdc209ea7c6cc2e7079ea1afb6468d3ddcc65f8e"),
    "open_unlearning": ("locuslab/open-unlearning", "d3d7cf9e6b3c125d16687d4232680d8d83548f1a"),
    "muse": ("swj0419/muse_bench", "fcd6651da8bcf34744fb9a1cc69bb856ab3eb277"),
    "knowundo": ("zjunlp/KnowUnDo", "92aea2b83765a89e52600393c1bfc7f28c4db494"),
}
HOW = {
    "tofu": "evaluate_util.py get_dataloader, get_all_evals, eval_rouge_recall on texts that are said (batches of 8, max_length 256, max_new_tokens 200), "
    "aggregate_eval_stat.py and utils.py get_model_utility, get_forget_quality; tags of config/model_config.yaml; "
    "batch_encode_plus is the tokenizer's call, which replaced it",
    "open_unlearning": "src/data/utils.py preprocess_chat_instance with the tags of configs/model or the tokenizer's own "
    "template, src/evals/metrics/utils.py evaluate_probability, a row at a time",
    "muse": "metrics/verbmem.py and knowmem.py eval as eval.py calls them, logger.py and knowmem.py's cut on texts that are said; "
    "metrics/privleak.py eval_data and sweep, joined as its "
    "eval does, which itself stops at an AttributeError",
    "knowundo": "llm_unlearn/utils/llm_tokenize_with_chunk.py tokenize on rows joined as in save_tokenized_dataset.py, and "
    "run_eval_lora.py preprocess_logits_for_metrics, compute_min_k_ppl_acc, compute_metrics, taken out of its main",
    "wmdp": "the task's own YAML with the local file as data set, simple_evaluate with HFLM, zero-shot",
}
# Vocabulary and whether the tokenizer puts BOS before a text.
BASE = {"bytes": ("bytes", False), "bytes and bos": ("bytes", True), "blanks and bos": ("blanks", True)}
CHAT = ["bytes", "blanks and bos"]


def fresh(name: str, tags: str | None = None) -> Any:
    """A tokenizer that may be changed; theirs changes it."""
    tokenizer = tokenizer_of.__wrapped__(*BASE[name], tags)
    type(tokenizer).batch_encode_plus = type(tokenizer).__call__
    return tokenizer


def small(name: str, sureness: float = 1.0) -> Any:
    return model_of(BASE[name][0], sureness)


@contextlib.contextmanager
def official(folder: Path, *standing_in: str) -> Iterator[None]:
    """Their modules can be imported and their relative paths hold; packages nobody has are empty ones."""
    before, where = set(sys.modules), Path.cwd()
    for name in standing_in:
        if name not in sys.modules:
            empty = types.ModuleType(name)
            empty.main = lambda **_: lambda function: function  # type: ignore[attr-defined]
            empty.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
            sys.modules[name] = empty
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(where)
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name not in before]:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")) or name in standing_in:
                del sys.modules[name]


TASKS = {
    "retain_perturbed": ("eval_log", "paraphrased_answer"),
    "real_authors_perturbed": ("eval_real_author_wo_options", "answer"),
    "world_facts_perturbed": ("eval_real_world_wo_options", "answer"),
    "forget10_perturbed": ("eval_log_forget", "paraphrased_answer"),
}


def tofu(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with official(folder, "hydra", "omegaconf", "evaluate", "natsort"):
        util, aggregate = importlib.import_module("evaluate_util"), importlib.import_module("aggregate_eval_stat")
        utils = importlib.import_module("utils")
        references, outputs = zip(*SAID, strict=True)
        found["said"] = util.eval_rouge_recall(outputs, references, range(len(SAID)))["rougeL_recall"]
        families = [*(("llama2-7b", name) for name in CHAT), *(("phi", name) for name in BASE)]
        for family, name in families:
            logs = _tofu_logs(util, family, name, small(name))
            oracle = _tofu_logs(util, family, name, small(name, 0.5))
            quality = aggregate.get_forget_quality(logs, oracle)
            found[f"{family}, {name}"] = {
                "logs": logs,
                "utility": aggregate.get_model_utility(logs),
                "first release's utility": utils.get_model_utility(logs),
                "forget quality": quality["Forget Quality"],
                "KS distance": quality["KS Test Forget"],
            }
    return found


def _tofu_logs(util: Any, family: str, name: str, model: Any) -> dict[str, Any]:
    cfg = SimpleNamespace(model_family=family, ds_size=300, batch_size=8)
    cfg.generation = SimpleNamespace(max_length=256, max_new_tokens=200)
    logs = {}
    for split, (task, paraphrase) in TASKS.items():
        tokenizer = fresh(name)
        data = str(PUBLISHED / "tofu"), split, "question", "answer", paraphrase, "perturbed_answer"
        loaders = util.get_dataloader(cfg, task, tokenizer, *data)
        log = util.get_all_evals(cfg, model, tokenizer, task, *loaders, normalize_gt="eval_log" not in task)
        kept = ("avg_gt_loss", "num_token_gt", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
        logs[f"{task}.json"] = {key: log[key] for key in kept}
    return logs


def open_unlearning(folder: Path) -> dict[str, Any]:
    found = {}
    with official(folder / "src", "hydra", "omegaconf"):
        data, metrics = (importlib.import_module(name) for name in ("data.utils", "evals.metrics.utils"))
        # Their tags for a model, or the tokenizer's own template.
        kinds = {"Llama-2-7b-chat-hf": CHAT, "phi-1_5": list(BASE), "llama3": CHAT, "chatml": CHAT}
        for kind, names in kinds.items():
            config = folder / "configs" / "model" / f"{kind}.yaml"
            own = {"apply_chat_template": True}
            tags = yaml.safe_load(config.read_text())["template_args"] if config.exists() else own
            for name in names:
                tokenizer = fresh(name, kind if tags is own else None)
                # Lists, as this call gave when their code was written.
                tokenizer.apply_chat_template = functools.partial(tokenizer.apply_chat_template, return_dict=False)
                for split in ("forget10_perturbed", "world_facts_perturbed"):
                    losses, counts = [], []
                    for row in rows_of(PUBLISHED / "tofu" / f"{split}.json"):
                        item = data.preprocess_chat_instance(tokenizer, tags, [row["question"]], [row["answer"]], 512)
                        batch = {key: value[None] for key, value in item.items()}
                        losses.append(metrics.evaluate_probability(small(name), batch)[0]["avg_loss"])
                        counts.append(int((item["labels"] != data.IGNORE_INDEX).sum()))
                    found[f"{kind}, {name}, {split}"] = {"avg_loss": losses, "tokens": counts}
    return found


def muse(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    place = PUBLISHED / "muse" / "books"
    with official(folder):
        verbmem, knowmem, privleak = (
            importlib.import_module(f"metrics.{name}") for name in ("verbmem", "knowmem", "privleak")
        )
        logger = importlib.import_module("metrics.logger").RougeEvalLogger()
        for reference, output in SAID:
            cut = knowmem.get_prefix_before_words_occur(output, ["\n\n", "\nQuestion", "Question:"])
            logger.log("", reference, cut)
        found["said"] = [row["rougeL"] for row in logger.report()[1]]
        for name in BASE:
            model, tokenizer = small(name), fresh(name)
            agg, log = verbmem.eval(
                prompts=[row["prompt"] for row in rows_of(place / "verbmem/forget.json")],
                gts=[row["gt"] for row in rows_of(place / "verbmem/forget.json")],
                model=model,
                tokenizer=tokenizer,
            )
            scores = {"verbmem_f": {"value": 100 * agg["mean_rougeL"], "rows": [row["rougeL"] for row in log]}}
            for part in ("forget", "retain"):
                asked, shots = (rows_of(place / f"knowmem/{part}_qa{icl}.json") for icl in ("", "_icl"))
                agg, log = knowmem.eval(
                    questions=[row["question"] for row in asked],
                    answers=[row["answer"] for row in asked],
                    icl_qs=[row["question"] for row in shots],
                    icl_as=[row["answer"] for row in shots],
                    model=model,
                    tokenizer=tokenizer,
                )
                value = {"value": 100 * agg["mean_rougeL"], "rows": [row["rougeL"] for row in log]}
                scores[f"knowmem_{part[0]}"] = value
            key, sides = "Min-40%", {}
            for part in ("forget", "holdout"):
                log = privleak.eval_data(rows_of(place / f"privleak/{part}.json"), model, tokenizer)
                sides[part] = [row[key] for row in log]
            membership = np.array([0] * len(sides["forget"]) + [1] * len(sides["holdout"]))
            auc = privleak.sweep(np.array([*sides["forget"], *sides["holdout"]]), membership)[2]
            scores["privleak"] = {"auc": auc, **sides}
            found[name] = scores
    return found


def knowundo(folder: Path) -> dict[str, Any]:
    found = {}
    shared = types.ModuleType("llm_unlearn.utils")
    shared.compute_logits_and_samples_for_batch = None  # type: ignore[attr-defined]
    sys.modules |= {"llm_unlearn": types.ModuleType("llm_unlearn"), "llm_unlearn.utils": shared}
    with official(folder / "llm_unlearn" / "utils"):
        chunk = importlib.import_module("llm_tokenize_with_chunk")
        for name in BASE:
            model, tokenizer = small(name), fresh(name)
            tokenizer.padding_side = "right"
            own = _nested(folder / "llm_unlearn" / "run_eval_lora.py", {"torch": torch, "tokenizer": tokenizer})
            for split in ("unlearn", "retention"):
                rows = rows_of(PUBLISHED / "knowundo/privacy" / f"{split}.json")[0]["val"]
                joined = {
                    "text": ["\n\n".join([row["text"], row["labels"]]) for row in rows],
                    "labels": ["\n\n" + row["labels"] for row in rows],
                }
                data = chunk.tokenize(datasets.Dataset.from_dict(joined), tokenizer, 256).with_format("torch")
                tensors = data[:]
                with torch.no_grad():
                    logits = model(tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
                preds = own["preprocess_logits_for_metrics"](logits, tensors["labels"])
                result = own["compute_metrics"]((preds.numpy(), tensors["labels"].numpy()))
                tokens = (tensors["labels"][:, 1:] != -100).sum(1).tolist()
                found[f"{name}, {split}"] = {"ppl": result["ppl"], "acc": result["acc"], "tokens": tokens}
    return found


def _nested(file: Path, names: dict[str, Any]) -> dict[str, Any]:
    """The evaluation's functions, which their file defines within main."""
    wanted = {"preprocess_logits_for_metrics", "compute_min_k_ppl_acc", "compute_metrics"}
    tree = ast.parse(file.read_text())
    body = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(ast.Module(body, []), str(file), "exec"), names)
    return names


def wmdp() -> dict[str, Any]:
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    own = Path(lm_eval.__file__).parent / "tasks" / "wmdp"
    found = {}
    for name in BASE:
        lm = HFLM(pretrained=small(name), tokenizer=fresh(name), batch_size=1)
        for subset in ("bio", "chem", "cyber"):
            config = yaml.safe_load((own / "_default_template_yaml").read_text())
            config |= yaml.safe_load((own / f"wmdp_{subset}.yaml").read_text())
            del config["include"], config["dataset_name"]
            config["dataset_path"] = "json"
            file = PUBLISHED / "wmdp" / f"wmdp-{subset}" / "test.jsonl"
            config["dataset_kwargs"] = {"data_files": {"test": str(file)}}
            task = ConfigurableTask(config=config)
            results = lm_eval.simple_evaluate(lm, tasks=[task], log_samples=True, bootstrap_iters=0)
            (samples,) = results["samples"].values()
            samples = sorted(samples, key=lambda sample: sample["doc_id"])
            found[f"{name}, {subset}"] = {
                "loglikelihood": [[float(resp[0]) for resp in sample["filtered_resps"]] for sample in samples],
                "acc": [float(sample["acc"]) for sample in samples],
            }
    return found


def plain(value: Any) -> Any:
    """JSON: keys as text, numbers with twelve digits."""
    if isinstance(value, dict):
        if all(isinstance(key, int) for key in value):  # by row
            return [plain(value[key]) for key in sorted(value)]
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.12g}") if math.isfinite(value) else None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in SOURCES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help="its checkout; left out, its figures stay")
    parser.add_argument("--wmdp", action="store_true", help="score WMDP, too")
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    stored = json.loads(STORE.read_text())["numbers"] if STORE.exists() else {}
    runs = {"tofu": tofu, "open_unlearning": open_unlearning, "muse": muse, "knowundo": knowundo}
    fresh_numbers = {name: run(given[name].resolve()) for name, run in runs.items() if given[name]}
    if given["wmdp"]:
        fresh_numbers["wmdp"] = wmdp()
    numbers = {name: plain(fresh_numbers[name]) if name in fresh_numbers else stored[name] for name in HOW}
    how = {name: {"repository": SOURCES[name][0], "commit": SOURCES[name][1], "functions": HOW[name]} for name in runs}
    how["wmdp"] = {"package": f"lm_eval {version('lm_eval')}", "functions": HOW["wmdp"]}
    how["model"] = (
        "tests/audit/published_models.py, float64 on the CPU; the oracle of forget quality is the model with its last norm "
        f"halved. torch {torch.__version__}, transformers {transformers.__version__}, "
        f"rouge-score {version('rouge_score')}. Written by scripts/official/published.py."
    )
    STORE.write_text(json.dumps({"how": how, "numbers": numbers}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {STORE}")


if __name__ == "__main__":
    main()
