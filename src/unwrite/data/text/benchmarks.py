"""TOFU, MUSE, WMDP and KnowUnDo as their authors publish them, from the Hub or a local folder of the same layout.

    TOFU      locuslab/TOFU               configurations forget10, retain90, holdout10, forget10_perturbed, ...
    MUSE      muse-bench/MUSE-News|Books  configurations verbmem, knowmem, privleak, raw, scal, sust; parts are splits
    WMDP      cais/wmdp                   configurations wmdp-bio, wmdp-chem, wmdp-cyber; split test
    KnowUnDo  zjunlp/KnowUnDo             configurations copyright, privacy; splits unlearn, retention

A local folder either is a copy of the repository (its README.md names the configurations) or holds
`<configuration>.jsonl` and `<configuration>/<split>.jsonl` (also .json, .csv, .parquet, and Hub shards such as
`forget-00000-of-00001.parquet`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import hub
from ...errors import DataError, unknown
from ..stored import stored_rows
from .examples import Example, Examples, ForgetSplit, excerpt
from .reading import load, read

TOFU_SHARES = {"forget01": "99", "forget05": "95", "forget10": "90"}
MUSE_ROOTS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
WMDP_SUBSETS = ("bio", "chem", "cyber")
KNOWUNDO_DOMAINS = ("copyright", "privacy")
TABLES = (".jsonl", ".json", ".csv", ".parquet")


def tofu(forget: str = "forget10", root: str | Path = "locuslab/TOFU") -> ForgetSplit:
    """TOFU's split (arXiv 2401.06121), its forget rows with paraphrases and wrong answers.

    evaluation: "retain_perturbed", "real_authors" and "world_facts", what model utility is made of.

    Args:
        forget: forget01, forget05 or forget10, with retain99, 95 or 90 and the holdout of the same size.
        root: a Hub id, or a local folder of the same layout; there, a missing holdout is left out.

    Raises:
        DataError: an unknown `forget`, or a part that can't be loaded.
    """
    if forget not in TOFU_SHARES:
        raise DataError(unknown("TOFU forget set", forget, TOFU_SHARES))
    holdout = f"holdout{forget[-2:]}"
    return ForgetSplit(
        forget=_with_perturbed(_examples(root, forget), _examples(root, f"{forget}_perturbed")),
        retain=_examples(root, f"retain{TOFU_SHARES[forget]}"),
        holdout=_examples(root, holdout) if has_part(root, holdout) else None,
        evaluation={
            "retain_perturbed": _examples(root, "retain_perturbed"),
            "real_authors": _examples(root, "real_authors_perturbed"),
            "world_facts": _examples(root, "world_facts_perturbed"),
        },
        # Rows are told apart by their question, and TOFU doesn't promise that no two authors share one.
        allow_overlap=True,
        name=f"tofu {forget}",
    )


def _with_perturbed(rows: Examples, perturbed: Examples) -> Examples:
    """The training rows, in their order, each with the further columns of its own row in the perturbed file.

    A question may stand there for two authors, so rows are joined by question and answer; an answer that differs
    between the files is joined by its question where only one row has that, or by its place in files of equal order.
    """
    exact, similar = _by(perturbed, _question_and_answer), _by(perturbed, lambda row: row.question)
    counts, pairs = Counter(row.question for row in rows), {_question_and_answer(row) for row in rows}
    parallel = [row.question for row in rows] == [row.question for row in perturbed]
    joined, missing = [], []
    for row in rows:
        if same := exact.get(_question_and_answer(row)):
            other = same.pop(0) if len(same) > 1 else same[0]  # rows that are equal in both files, in their order
        elif len(similar.get(row.question, ())) == counts[row.question] == 1:
            other = similar[row.question][0]
        elif parallel and _question_and_answer(perturbed[row.index]) not in pairs:
            other = perturbed[row.index]
        else:
            missing.append(row)
            continue
        joined.append(replace(other, answer=row.answer, source=row.source))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows of {rows.name} have no row of their own in {perturbed.name} "
            f'(first: "{excerpt(missing[0].question or missing[0].answer)}"). Use both files of one release.'
        )
    return Examples(joined, rows.name)


def _question_and_answer(row: Example) -> tuple[str | None, str]:
    return row.question, row.answer


def _by(rows: Examples, key: Callable[[Example], Hashable]) -> dict[Hashable, list[Example]]:
    groups: dict[Hashable, list[Example]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


@dataclass(frozen=True)
class Muse:
    """The parts of MUSE for one corpus (arXiv 2407.06460).

    Args:
        verbmem: {"forget"}; question is the beginning of a text, answer its true continuation.
        knowmem: {"forget", "retain", "forget_icl", "retain_icl"}; the last two are the examples in the prompt.
        privleak: {"forget", "retain", "holdout"}; plain texts.
        raw: {"forget", "holdout", "retain1", "retain2"}; retain1 is for training, retain2 for evaluation.
        scal, sust: {"forget_1" ... "forget_4"}, growing and consecutive forget sets; News only.
    """

    corpus: str
    verbmem: Mapping[str, Examples]
    knowmem: Mapping[str, Examples]
    privleak: Mapping[str, Examples]
    raw: Mapping[str, Examples]
    scal: Mapping[str, Examples] = field(default_factory=dict)
    sust: Mapping[str, Examples] = field(default_factory=dict)

    @property
    def split(self) -> ForgetSplit:
        """What methods and audits take: raw forget, retain1 and holdout; the rest, by name, for evaluation.

        The raw holdout and forget texts of the benchmark may share boilerplate rows; that only warns.
        """
        return self._split(self.raw["forget"])

    def fold(self, kind: str, number: int) -> ForgetSplit:
        """The split with forget set `number` (1 to 4) of "scal" or "sust".

        Raises:
            DataError: there is no such fold.
        """
        folds = {"scal": self.scal, "sust": self.sust}.get(kind, {})
        if f"forget_{number}" not in folds:
            there = ", ".join(folds) or "none"
            raise DataError(f"MUSE {self.corpus} has no {kind} fold {number} (there are: {there}). Take News, 1 to 4.")
        return self._split(folds[f"forget_{number}"])

    def _split(self, forget: Examples) -> ForgetSplit:
        parts = {"verbmem": self.verbmem, "knowmem": self.knowmem, "privleak": self.privleak}
        evaluation = {f"{kind}_{name}": rows for kind, part in parts.items() for name, rows in part.items()}
        return ForgetSplit(
            forget=forget,
            retain=self.raw["retain1"],
            holdout=self.raw["holdout"],
            evaluation={**evaluation, "retain2": self.raw["retain2"]},
            allow_overlap=True,
            name=f"muse {self.corpus}",
        )


def muse(corpus: str = "news", root: str | Path | None = None) -> Muse:
    """MUSE's parts for the "news" or "books" corpus.

    Args:
        root: a Hub id or a local folder of the same layout; muse-bench/MUSE-News or -Books by default.

    Raises:
        DataError: an unknown corpus, or a part that can't be loaded.
    """
    if corpus not in MUSE_ROOTS:
        raise DataError(unknown("MUSE corpus", corpus, MUSE_ROOTS))
    root = root or MUSE_ROOTS[corpus]

    def part(config: str, splits: Iterable[str]) -> dict[str, Examples]:
        return {split.replace("_qa", ""): _examples(root, config, split) for split in splits}

    folds = [f"forget_{number}" for number in range(1, 5)] if corpus == "news" else []
    return Muse(
        corpus=corpus,
        verbmem=part("verbmem", ["forget"]),
        knowmem=part("knowmem", ["forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"]),
        privleak=part("privleak", ["forget", "retain", "holdout"]),
        raw=part("raw", ["forget", "holdout", "retain1", "retain2"]),
        scal=part("scal", folds),
        sust=part("sust", folds),
    )


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its choices; `answer` is the right one's number, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


def wmdp(subset: str = "bio", root: str | Path = "cais/wmdp") -> list[ChoiceQuestion]:
    """WMDP's questions on hazardous knowledge (arXiv 2403.03218): what an unlearned model should no longer know.

    Args:
        subset: bio, chem or cyber.
        root: a Hub id or a local folder of the same layout.

    Raises:
        DataError: an unknown subset, or rows without a question, at least two choices, and an answer among them.
    """
    if subset not in WMDP_SUBSETS:
        raise DataError(unknown("WMDP subset", subset, WMDP_SUBSETS))
    config = f"wmdp-{subset}"
    subject = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}[subset]
    items, bad = [], []
    for number, row in enumerate(table(root, config, "test"), start=1):
        question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
        if not isinstance(question, str) or not question.strip():
            bad.append(f"row {number}: no question")
        elif not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            bad.append(f"row {number}: needs a list of at least two choices")
        elif not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            bad.append(f"row {number}: answer {answer!r} is not the number of a choice (0 to {len(choices) - 1})")
        else:
            items.append(ChoiceQuestion(question, tuple(choices), answer, subject))
    if bad:
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(f"{len(bad)} rows of {root}:{config} can't be used: {'; '.join(bad[:10])}{more}.")
    return items


def knowundo(domain: str = "copyright", root: str | Path = "zjunlp/KnowUnDo") -> ForgetSplit:
    """KnowUnDo's split (arXiv 2407.01920): what must be forgotten of a domain, and what may be kept of it.

    A part of the benchmark is one object with two lists of `text` (the question) and `labels` (its answer): `train`,
    from which is unlearned, and `val`, on which it is measured. The benchmark's own code trains the target model on
    all four lists.

    forget, retain: the `train` lists of the unlearn and retention parts.
    evaluation: "forget_val" and "retain_val", their `val` lists.

    Args:
        domain: copyright or privacy.
        root: a Hub id, or a local folder with `<domain>/unlearn.json` and `<domain>/retention.json`.

    Raises:
        DataError: an unknown domain, or a part that can't be loaded or isn't of that form.
    """
    if domain not in KNOWUNDO_DOMAINS:
        raise DataError(unknown("KnowUnDo domain", domain, KNOWUNDO_DOMAINS))
    parts = {}
    for split in ("unlearn", "retention"):
        lists = table(root, domain, split)
        name = f"{Path(root).name}:{domain}@{split}"
        columns = list(dict.fromkeys(column for row in lists for column in row))
        if len(lists) != 1 or not {"train", "val"} <= set(columns):
            raise DataError(
                f"{name} isn't one object with the lists train and val (columns: {', '.join(columns)}; "
                f"{len(lists)} rows). Use the published files."
            )
        for part in ("train", "val"):
            rows = lists[0][part]
            parts[split, part] = read(rows, name=f"{name} {part}", columns={"question": "text", "answer": "labels"})
    return ForgetSplit(
        forget=parts["unlearn", "train"],
        retain=parts["retention", "train"],
        evaluation={"forget_val": parts["unlearn", "val"], "retain_val": parts["retention", "val"]},
        # As in TOFU, nothing promises that no question stands in both.
        allow_overlap=True,
        name=f"knowundo {domain}",
    )


def _examples(root: str | Path, config: str, split: str = "train") -> Examples:
    name = f"{Path(root).name}:{config}" + (f"@{split}" if split != "train" else "")
    return read(table(root, config, split), name=name)


def table(root: str | Path, config: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split of one configuration, through `datasets.load_dataset`."""
    folder = local(root)
    if folder is None or "configs:" in _card(folder):
        return list(stored_rows(load(str(folder or root), config, split)))
    files = _files(folder, config, split)
    if not files:
        endings = ", ".join(TABLES)
        raise DataError(
            f"{folder} has no {config}{'' if split == 'train' else '/' + split} (looked for {config}, {config}/{split} "
            f"with {endings}). Give a folder laid out as the Hub repository."
        )
    kind = {".jsonl": "json"}.get(files[0].suffix.lower(), files[0].suffix.lower()[1:])
    return list(stored_rows(load(kind, None, "train", data_files=[str(file) for file in files])))


def has_part(root: str | Path, config: str) -> bool:
    """Whether a local folder has this configuration; a Hub repository is taken to have all."""
    folder = local(root)
    if folder is None:
        return True
    return f"config_name: {config}\n" in _card(folder) or bool(_files(folder, config, "train"))


def local(root: str | Path) -> Path | None:
    """The folder `root` names, None for a Hub id.

    Raises:
        DataError: `root` is neither.
    """
    if isinstance(root, str) and hub.is_explicit(root) and hub.repository(root):
        return None
    folder = Path(root).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(root, Path) or hub.repository(root) is None:
        raise DataError(f"{root} is neither a folder nor a Hub id like org/name.")
    return None


def _card(folder: Path) -> str:
    readme = folder / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


def _files(folder: Path, config: str, split: str) -> list[Path]:
    """`config/split.*` and its shards, else `config.*` where there are no splits."""
    inside = folder / config
    stems = [(inside, split)] if split != "train" else [(inside, split), (folder, config)]
    # WMDP's single test split may also lie flat.
    stems += [(folder, config)] if split == "test" else []
    for place, stem in stems:
        pattern = re.compile(re.escape(stem) + r"(-\d+-of-\d+)?(" + "|".join(map(re.escape, TABLES)) + ")")
        files = sorted(file for file in place.glob(f"{stem}*") if pattern.fullmatch(file.name))
        if files:
            return [file for file in files if file.suffix == files[0].suffix]
    return []
