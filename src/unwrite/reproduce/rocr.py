"""ROCR on a real small model: is a person forgotten in every form of the question, or only in the one that was trained on?

Claim looked at (arXiv 2506.07795): GA, NPO and refusal tuning forget the form they are trained on; ROCR, which is given the name
alone, forgets across forms, in seconds, and keeps the rest. SmolLM2-135M is asked what it knows of famous people; the baselines
train on the questions alone, until half of a token's probability is left, at a rate chosen on Isaac Newton, who is not reported. DPO stands for refusal tuning, whose plain
form made his answers likelier in five steps, for it teaches a refusal and not to withhold an answer that has begun.

So small a model answers neither choices nor letter by letter; the forms are the questions, the same in other words, blanks, and
questions turned round. The paper's utility benchmarks and the full ORT are not here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..audit.suites.forms import reductions, variation
from ..beds.budget import Budget
from ..beds.people import (
    FORMS_ASKED,
    SUBSTITUTE,
    TARGETS,
    PeopleBed,
    mistaken,
    people_bed,
    people_split,
    probabilities,
)
from ..data.text.forms import FORMS, FormItem, FormsSplit
from ..forget import NPO, StopWhenForgotten
from ..forget.base import Method
from ..forget.engine.text.named_prompts import chat_prompts, states_at
from ..forget.gradient_ascent import GradientAscent
from ..forget.refusal import DPO
from ..forget.rocr import ROCR
from ..models.key_statistics import KeyStatistics
from ..models.low_rank import edits_of
from ..runs import model_key
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = (4, 5, 6)
OURS = "ROCR"
FIELDS: dict[str, Any] = {"layers": LAYERS}  # the paper has everything else
BASELINES: dict[str, Method] = {
    "GA": GradientAscent(),
    "NPO": NPO(retain_loss="none"),
    "DPO": DPO(retain_loss="none"),
}
RATE, STEPS = 2e-5, 5
LEFT = 0.5  # of the questions' probability a token; about 0.1 of a whole answer's
KEPT_FORM = "qa"
TINY_TOKENS = 2000
By = Mapping[str, Sequence[float]]


@dataclass
class FormsTable:
    """Probabilities of the true answers.

    Args:
        asked: {(method, person): {form: one figure a fact}}; the method "nothing" is the model as it is.
        kept: {(method, person): figures of the people who are never forgotten}.
        others: {person: the same as `asked`, where ROCR was applied to somebody else}.
        wrong: {form: how likely somebody else's objects are before}.
        unasked: {form: figures before, in the forms that are left out}, of the first person.
        chosen: share of the first person's choices that the model answers by the right letter, before.
        seconds: {(method, person): of one application}.
        misses: how far the name is from where ROCR led it, where that must be exact; relative.
        undone: whether every edit was taken back to the bit.
    """

    asked: dict[tuple[str, str], By] = field(default_factory=dict)
    kept: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    others: dict[str, By] = field(default_factory=dict)
    wrong: dict[str, list[float]] = field(default_factory=dict)
    unasked: dict[str, list[float]] = field(default_factory=dict)
    chosen: float = nan
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    misses: list[float] = field(default_factory=list)
    undone: bool = True

    def people(self, method: str) -> list[str]:
        """Who was forgotten by a method."""
        return [person for name, person in self.asked if name == method]

    def gone(self, method: str, person: str) -> dict[str, float]:
        """Which share of each form's probability is gone."""
        return reductions(self.asked[method, person], self.asked["nothing", person])

    def shares(self, method: str, person: str) -> list[float]:
        """The same, in the forms' order."""
        return [*self.gone(method, person).values()]

    def varies(self, method: str, person: str) -> float:
        """How differently these forms were forgotten; not a number where nothing is gone on average."""
        gone = self.shares(method, person)
        value = variation(gone)
        return nan if value is None or fmean(gone) <= 0 else value

    def keeps(self, method: str, person: str) -> float:
        """Which share of the probability is left of what is known of others."""
        return fmean(self.kept[method, person]) / fmean(self.kept["nothing", person])

    def row(self, method: str) -> tuple[float | str, ...]:
        """The figures of one method, means over people; "-" for the variation where nothing is gone."""
        people = self.people(method)
        gone = [self.gone(method, person) for person in people]
        varies = [self.varies(method, person) for person in people]
        values = [fmean(one[form] for one in gone) for form in FORMS_ASKED]
        values += [fmean(varies), fmean(self.keeps(method, person) for person in people)]
        values.append(fmean(self.seconds[method, person] for person in people))
        return tuple("-" if isnan(value) else round(value, 3) for value in values)


def asked_of(bed: PeopleBed, model: PreTrainedModel, items: Sequence[FormItem]) -> dict[str, list[float]]:
    """How likely the answers are, form by form."""
    pairs = list(zip(items, probabilities(model, bed.tokenizer, items), strict=True))
    named = {form: [value for item, value in pairs if item.form == form] for form in FORMS}
    return {form: values for form, values in named.items() if values}


def measured(bed: PeopleBed, people: Sequence[str], steered: Sequence[str], tiny: bool = False) -> FormsTable:
    """Every method on every person, each from the same model.

    Args:
        steered: for whom the modes that train a state are measured, too.
    """
    table, splits = FormsTable(), {person: people_split(person) for person in people}
    asked = {person: [item for item in split.items if item.form in FORMS_ASKED] for person, split in splits.items()}
    kept_items = [item for item in splits[people[0]].kept_items if item.form == KEPT_FORM]
    own = [probabilities(bed.model, bed.tokenizer, kept_items)]
    wrong = [item for split in splits.values() for item in mistaken(split.items)]
    table.wrong = asked_of(bed, bed.model, wrong)
    rest = [item for item in splits[people[0]].items if item.form not in FORMS_ASKED]
    table.unasked = asked_of(bed, bed.model, rest)
    table.chosen = _chosen(bed, [item for item in rest if item.letters])
    rows = bed.ordinary[: TINY_TOKENS // 50] if tiny else bed.ordinary
    statistics = KeyStatistics.fit(bed.model, rows, LAYERS)

    def note(name: str, person: str, model: PreTrainedModel, seconds: float) -> None:
        table.asked[name, person] = asked_of(bed, model, asked[person])
        first = name == "nothing"
        table.kept[name, person] = own[0] if first else probabilities(model, bed.tokenizer, kept_items)
        table.seconds[name, person] = seconds

    for i, person in enumerate(people):
        note("nothing", person, bed.model, 0.0)
        for name, method in BASELINES.items():
            start = time.perf_counter()
            model = _trained(bed, method, splits[person], 1 if tiny else STEPS)
            note(name, person, model, time.perf_counter() - start)
        modes: dict[str, dict[str, Any]] = {OURS: {"substitute": SUBSTITUTE}}
        if person in steered:
            modes |= {f"{OURS}, {mode}": {"mode": mode} for mode in ("reject", "noise")}
        for name, fields in modes.items():
            before, start = model_key(bed.model), time.perf_counter()
            ROCR(target=person, **{**FIELDS, **fields}).edit(bed.model, bed.tokenizer, statistics)
            note(name, person, bed.model, time.perf_counter() - start)
            if name == OURS:
                other = people[(i + 1) % len(people)]
                table.others[other] = asked_of(bed, bed.model, asked[other])
            edits_of(bed.model)[-1].undo()
            table.undone &= model_key(bed.model) == before
        table.misses.append(_missed(bed, person))
    return table


def _chosen(bed: PeopleBed, choices: Sequence[FormItem]) -> float:
    every = [item.answered(letter) for item in choices for letter in item.letters]
    values, right = iter(probabilities(bed.model, bed.tokenizer, every)), []
    for item in choices:
        of = {letter: next(values) for letter in item.letters}
        right.append(max(of, key=of.__getitem__) == item.answer)
    return fmean(right)


def _trained(bed: PeopleBed, method: Method, split: FormsSplit, steps: int) -> PreTrainedModel:
    """A baseline on the questions alone, until they are as forgotten as ROCR makes them, or so many steps."""
    args = {
        "learning_rate": RATE,
        "max_steps": steps,
        "warmup_epochs": 0.0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": len(split.forget),
        "use_cpu": True,
        "seed": 0,
    }
    stop = StopWhenForgotten(bed.tokenizer, {"questions": split.forget}, target=LEFT, every=1)
    model: PreTrainedModel = method.apply(
        bed.load(), split.forget, processing_class=bed.tokenizer, args=args, callbacks=[stop]
    )
    return model.eval()


def _missed(bed: PeopleBed, person: str) -> float:
    """How far the name's state is from the substitute's where nothing stands in the way, relative to that."""
    contexts = ("Tell me about",)
    exact = ROCR(
        target=person, substitute=SUBSTITUTE, layers=LAYERS, contexts=contexts, nullspace_threshold=inf, l2=0.0
    )
    goal = exact.goals(bed.model, bed.tokenizer)[:, 0]
    edit = exact.edit(bed.model, bed.tokenizer)
    state = states_at(bed.model, chat_prompts(person, contexts, bed.tokenizer), (), LAYERS[-1]).output[0]
    edit.undo()
    return float((state - goal).norm() / goal.norm())


def run(budget: Budget) -> Claim:
    """Three people; five, and the modes that train a state, with the medium budget and up."""
    tiny, small = budget.size == "tiny", budget.size in ("tiny", "small")
    people = TARGETS[: 2 if tiny else 3 if small else len(TARGETS)]
    bed = people_bed()
    table = measured(bed, people, () if small else people, tiny)
    checks = _checks(table)
    rows = {name: table.row(name) for name in dict.fromkeys(name for name, _ in table.asked)}
    return Claim(
        slug="rocr",
        claim="GA, NPO and refusal tuning forget the form of question they are trained on; ROCR forgets across forms, in seconds "
        "a target, and keeps the rest (Llama-3-8B and Mistral-7B, ORT, arXiv 2506.07795)",
        setting=f"SmolLM2-135M, {len(people)} famous people, four facts each; baselines trained on the questions; share of the "
        "true answers' probability that is gone",
        columns=(*FORMS_ASKED, "variation", "others keep", "seconds"),
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=budget.seeds[:1],
        extra={
            "people": list(people),
            "forms that count": list(FORMS_ASKED),
            "probability before": {
                form: round(fmean(v for person in people for v in table.asked["nothing", person][form]), 4)
                for form in FORMS_ASKED
            },
            "probability before, forms left out": {form: fmean(values) for form, values in table.unasked.items()},
            "choices answered by the right letter, of four": round(table.chosen, 3),
            "somebody else's object before": {form: round(fmean(values), 4) for form, values in table.wrong.items()},
        },
    )


def _setups(table: FormsTable) -> list[Check]:
    """Whether there is something to forget, and whether the baselines forget what they train on."""
    people, checks = table.people(OURS), []
    for form in FORMS_ASKED:
        true = fmean(value for person in people for value in table.asked["nothing", person][form])
        ratio = true / fmean(table.wrong[form])
        checks.append(
            Check("set-up", f"{form}: the true answer is at least twice as likely as somebody else's", ratio, ">=", 2)
        )
    for name in BASELINES:
        values = [table.gone(name, person)["qa"] for person in people]
        checks.append(
            Check.by_seed("set-up", f"{name} takes at least half of the questions' answers", values, ">=", 0.5)
        )
    return checks


def _checks(table: FormsTable) -> tuple[Check, ...]:
    """The card's conditions; intervals are the range over people."""
    people, checks = table.people(OURS), _setups(table)
    own = [fmean(table.shares(OURS, person)) for person in people]
    elsewhere = [
        fmean(reductions(table.others[person], table.asked["nothing", person])[form] for form in FORMS_ASKED)
        for person in people
    ]
    least = [min(table.varies(name, person) for name in BASELINES) for person in people]
    checks += [
        Check(
            "mechanism",
            "without ridge and projection the name is led where it should be, to 1e-3",
            max(table.misses),
            "<=",
            1e-3,
        ),
        Check("mechanism", "every edit is taken back to the bit", table.undone),
        Check.by_seed(
            "claim",
            "ROCR's reduction varies less over the forms than that of any baseline",
            [other - table.varies(OURS, person) for other, person in zip(least, people, strict=True)],
            ">",
            0,
        ),
        Check.by_seed("claim", "ROCR takes at least half of the answers' probability, over the forms", own, ">=", 0.5),
        Check.by_seed(
            "control",
            "the same edit of somebody else takes less",
            [one - other for one, other in zip(own, elsewhere, strict=True)],
            ">",
            0,
        ),
    ]
    for name in BASELINES:
        gone = {person: table.gone(name, person) for person in people}
        rest = [fmean(gone[p][form] for form in FORMS_ASKED if form != "qa") / gone[p]["qa"] for p in people]
        checks.append(
            Check.by_seed(
                "claim", f"{name}: the other forms lose less than half as much as the questions", rest, "<", 0.5
            )
        )
    checks += [
        Check.by_seed(
            "claim",
            "ROCR keeps nine tenths of what is known of others",
            [table.keeps(OURS, p) for p in people],
            ">=",
            0.9,
        ),
        Check.by_seed(
            "claim", "one edit takes less than 10 seconds", [table.seconds[OURS, p] for p in people], "<", 10
        ),
    ]
    return tuple(checks)


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is gone in the questions and in the blanks, for the best known baseline and for ROCR."""
    qa, cloze = FORMS_ASKED.index("qa"), FORMS_ASKED.index("cloze")
    ga, ours = ((figure(rows, name, qa), figure(rows, name, cloze)) for name in ("NPO", OURS))
    return f"gone of answers to questions and blanks: NPO {ga[0]} and {ga[1]}, ROCR {ours[0]} and {ours[1]}"
