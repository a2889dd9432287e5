"""Neuron Adjust and Key Space Detection on a small model with two skills: which of them goes, and what goes with it?

Claims looked at (arXiv 2503.21730): Key Space Detection takes over 80 % of the forgotten skill and less than 10 % of others; Neuron
Adjust takes less, and is better than pruning the neurons that a skill uses most. Each skill is forgotten in turn while the
other one is to stay. Beside them: the same share of random neurons pruned, the same neurons as Neuron Adjust's pruned, selective pruning,
a logistic regression on the last hidden state that refuses under the same rule, and a prompt that asks for a refusal.

Everything is decided before the first run: 3 % of the neurons as the paper has it for mathematics and code, and beside it, not in
the verdict and from the first seed alone, its 0.5 % for languages and 10 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..beds.budget import Budget
from ..beds.skills import SKILLS, SkillBed, skill_bed
from ..data import Examples
from ..data.text.encoding import encode_all, encode_prompt
from ..errors import DataError
from ..forget import ActivationStatistics, AdjustedNeuronsModel, KeySpaceDetection, NeuronAdjust
from ..forget.engine.stream import permutation
from ..forget.engine.text.adjusted_neurons import NeuronRules
from ..forget.neuron_adjust import chosen, neuron_table
from ..runs import hash_model
from ..scoring import generate_answers, score_answers
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PERCENT, OTHERS = 3.0, (0.5, 10.0)
KSD, LOGISTIC, PROMPT = "Key Space Detection", "logistic regression", "prompt"
ADJUST, RANDOM, SAME, SELECTIVE = "Neuron Adjust", "random pruning", "same neurons pruned", "selective pruning"
NEW = 8  # tokens of an answer
BATCH = 64
HELD_OUT = 0.25
ASKED_NOT_TO = "Never add numbers.", "Never print anything."  # by skill


@dataclass
class SkillTable:
    """What every arm answers rightly, by (arm, forgotten skill, seed).

    Args:
        forgotten, kept: shares of the forgotten and of the kept skill's questions answered exactly.
        texts: perplexity of the plain texts.
        refused: share of the plain texts that are refused where they go on from their first half; for arms that refuse.
        rates: (true, false) of what refuses, on the queries its factor was chosen on.
        probes: whether the box at alpha 1 takes in every probe.
        unchanged: whether the target's weights and logits were the same to the bit after all.
    """

    forgotten: dict[tuple[str, str, int], float] = field(default_factory=dict)
    kept: dict[tuple[str, str, int], float] = field(default_factory=dict)
    texts: dict[tuple[str, str, int], float] = field(default_factory=dict)
    refused: dict[tuple[str, str, int], float] = field(default_factory=dict)
    rates: dict[tuple[str, str, int], tuple[float, float]] = field(default_factory=dict)
    probes: bool = True
    unchanged: bool = True

    def lost(self, arm: str, which: str = "forgotten") -> list[float]:
        """Which share of what the bare model could is gone, one figure a skill and seed."""
        values: Mapping[tuple[str, str, int], float] = getattr(self, which)
        runs = [key for key in values if key[0] == arm]
        return [1 - values[key] / max(values["nothing", *key[1:]], 1e-9) for key in runs]

    def of(self, arm: str, which: str) -> list[float]:
        """An arm's figures."""
        return [value for key, value in getattr(self, which).items() if key[0] == arm]

    def row(self, arm: str) -> tuple[str, ...]:
        """An arm's figures, over skills and seeds."""
        columns = [
            self.of(arm, "forgotten"),
            self.lost(arm),
            self.of(arm, "kept"),
            self.lost(arm, "kept"),
            self.of(arm, "texts"),
        ]
        return (*(spread(values) for values in columns), spread(self.of(arm, "refused") or [0.0]))


def right(model: PreTrainedModel, bed: SkillBed, rows: Examples) -> list[bool]:
    """Whether each answer is exactly the right one."""
    prompts = [encode_prompt(row, bed.tokenizer) for row in rows]
    answers = generate_answers(model, bed.tokenizer, prompts, max_new_tokens=NEW, batch_size=BATCH)
    return [answer.strip() == row.answer for answer, row in zip(answers, rows, strict=True)]


def perplexity(model: PreTrainedModel, bed: SkillBed) -> float:
    """Of the plain texts, a token."""
    answers = score_answers(
        model, encode_all(bed.texts, bed.tokenizer), pad_id=bed.tokenizer.pad_token_id, batch_size=BATCH
    )
    values = [value for answer in answers for value in answer.token_nll]
    return exp(min(50.0, fmean(values)))


def halves(bed: SkillBed) -> list[list[int]]:
    """The first half of every plain text, as token ids."""
    rows = [row.input_ids for row in encode_all(bed.texts, bed.tokenizer)]
    return [row[: max(1, len(row) // 2)] for row in rows]


@torch.no_grad()
def last_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[prompts, hidden]: the state that gives the logits behind each prompt."""
    states, longest = [], max(map(len, prompts))
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in some])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in some])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True)
        states.append(output.hidden_states[-1][:, -1])
    return torch.cat(states)


@dataclass(frozen=True)
class Logistic:
    """Refuses a query whose last hidden state a logistic regression takes for the skill's.

    Args:
        score: states [queries, hidden] to how much each looks like the skill's, the lower the more.
        bound: the score up to which a query is refused.
        rates: shares of held-out forget and of retain queries that are refused.
    """

    score: Callable[[Tensor], Tensor]
    bound: float
    rates: tuple[float, float]

    @classmethod
    def fit(
        cls, model: PreTrainedModel, forget: Sequence[list[int]], retain: Sequence[list[int]], seed: int
    ) -> Logistic:
        """From the queries that Key Space Detection is given, some held out, by its rule of at most 5 % false alarms."""
        from sklearn.linear_model import LogisticRegression

        sides = []
        for part, queries in enumerate((forget, retain)):
            order = permutation(len(queries), seed, 11, part).tolist()
            count = max(1, round(HELD_OUT * len(queries)))
            sides.append((last_states(model, [queries[i] for i in order[count:]]), [queries[i] for i in order[:count]]))
        states = torch.cat([sides[0][0], sides[1][0]]).numpy()
        labels = [1] * len(sides[0][0]) + [0] * len(sides[1][0])
        regression = LogisticRegression(max_iter=1000).fit(states, labels)

        def score(states: Tensor) -> Tensor:
            return torch.from_numpy(1 - regression.predict_proba(states.numpy())[:, 1])

        held = [score(last_states(model, queries)) for _, queries in sides]
        bounds = sorted({*held[0].tolist()})
        allowed = [(float((held[0] <= b).double().mean()), b) for b in bounds if (held[1] <= b).double().mean() <= 0.05]
        true, bound = max(allowed, default=(0.0, -1.0))
        return cls(score, bound, (true, float((held[1] <= bound).double().mean())))

    def refuses(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each query is refused."""
        return (self.score(last_states(model, prompts)) <= self.bound).tolist()


@dataclass
class SkillTrial:
    """One skill forgotten while the other is kept, from one seed."""

    bed: SkillBed
    table: SkillTable
    forgotten: str
    seed: int

    def __post_init__(self) -> None:
        bed, self.kept = self.bed, next(skill for skill in SKILLS if skill != self.forgotten)
        self.model = bed.load()
        self.probes = {skill: bed.probe_rows(skill) for skill in SKILLS}
        self.asked = {skill: bed.asked_rows(skill) for skill in SKILLS}

    def run(self, percents: Sequence[float]) -> None:
        """Measures every arm; the target is as it was afterwards."""
        ids = torch.tensor([encode_prompt(self.asked[self.kept][0], self.bed.tokenizer)])
        weights, logits = hash_model(self.model), self.model(input_ids=ids).logits
        self.note("nothing", self.model)
        self.detect()
        self.regress()
        self.ask_not_to()
        for percent in percents:
            self.neurons(percent)
        self.table.unchanged &= weights == hash_model(self.model) and torch.equal(
            logits, self.model(input_ids=ids).logits
        )

    def note(self, arm: str, model: Any) -> None:
        """Asks both skills and reads the texts."""
        key = (arm, self.forgotten, self.seed)
        self.table.forgotten[key] = fmean(right(model, self.bed, self.asked[self.forgotten]))
        self.table.kept[key] = fmean(right(model, self.bed, self.asked[self.kept]))
        self.table.texts[key] = perplexity(model, self.bed)

    def _apply(self, method: Any) -> Any:
        forget, retain = self.probes[self.forgotten], self.probes[self.kept]
        return method.apply(
            self.model, forget, retain, processing_class=self.bed.tokenizer, args={"seed": self.seed, "use_cpu": True}
        )

    def detect(self) -> None:
        """Key Space Detection, its factor chosen on held-out queries; where none tells the skills apart it refuses nothing."""
        key = (KSD, self.forgotten, self.seed)
        queries = [encode_prompt(row, self.bed.tokenizer) for row in self.probes[self.forgotten]]
        whole = self._apply(KeySpaceDetection(alpha=1.0))
        self.table.probes &= all(self._refused(whole, queries))
        try:
            guard = self._apply(KeySpaceDetection(held_out=HELD_OUT))
        except DataError:
            self.note(KSD, self.model)
            self.table.rates[key], self.table.refused[key] = (0.0, 0.0), 0.0
            return
        self.note(KSD, guard)
        self.table.rates[key] = (guard.box.true_rate, guard.box.false_rate)
        self.table.refused[key] = fmean(self._refused(guard, halves(self.bed)))

    def _refused(self, guard: Any, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each prompt is answered by a refusal, by its first tokens, which no answer of the bed has."""
        said = self.bed.tokenizer.decode(list(guard.rules.refusal[:NEW]), skip_special_tokens=True)
        answers = generate_answers(guard, self.bed.tokenizer, prompts, max_new_tokens=NEW, batch_size=BATCH)
        return [answer == said for answer in answers]

    def regress(self) -> None:
        """The logistic regression; what it refuses is wrong, and the rest is the bare model's."""
        key, bed = (LOGISTIC, self.forgotten, self.seed), self.bed
        queries = [
            [encode_prompt(row, bed.tokenizer) for row in self.probes[skill]] for skill in (self.forgotten, self.kept)
        ]
        guard = Logistic.fit(self.model, queries[0], queries[1], self.seed)
        for values, skill in ((self.table.forgotten, self.forgotten), (self.table.kept, self.kept)):
            prompts = [encode_prompt(row, bed.tokenizer) for row in self.asked[skill]]
            pairs = zip(right(self.model, bed, self.asked[skill]), guard.refuses(self.model, prompts), strict=True)
            values[key] = fmean(good and not refused for good, refused in pairs)
        self.table.rates[key] = guard.rates
        self.table.texts[key] = self.table.texts["nothing", self.forgotten, self.seed]
        self.table.refused[key] = fmean(guard.refuses(self.model, halves(bed)))

    def ask_not_to(self) -> None:
        """The bare model, told in a system prompt not to use the skill."""
        key, said = (PROMPT, self.forgotten, self.seed), ASKED_NOT_TO[SKILLS.index(self.forgotten)]

        def told(rows: Examples) -> Examples:
            return Examples([replace(row, history=(("system", said),)) for row in rows], rows.name)

        self.table.forgotten[key] = fmean(right(self.model, self.bed, told(self.asked[self.forgotten])))
        self.table.kept[key] = fmean(right(self.model, self.bed, told(self.asked[self.kept])))
        self.table.texts[key] = self.table.texts["nothing", self.forgotten, self.seed]

    def neurons(self, percent: float) -> None:
        """Neuron Adjust, and what is pruned at the same share of neurons."""
        arms = {
            ADJUST: NeuronAdjust(percent=percent),
            SAME: NeuronAdjust(percent=percent, action="prune"),
            SELECTIVE: NeuronAdjust(percent=percent, action="prune", score="importance"),
        }
        for name, method in arms.items():
            self.note(named(name, percent), self._apply(method))
        self.note(named(RANDOM, percent), self._random(percent))

    def _random(self, percent: float) -> AdjustedNeuronsModel:
        rows = [row.input_ids for row in encode_all(self.probes[self.kept], self.bed.tokenizer)]
        measured = ActivationStatistics.fit(self.model, rows)
        draw = torch.Generator().manual_seed(self.seed)
        drawn = {i: torch.rand(mean.shape, generator=draw, dtype=torch.float64) for i, mean in measured.mean.items()}
        table = neuron_table(measured, measured, chosen(drawn, percent))
        return AdjustedNeuronsModel(self.model, table, NeuronRules(action="prune"))


def named(arm: str, percent: float = PERCENT) -> str:
    """An arm of neurons with its share."""
    return f"{arm}, {percent:g} %"


def run(budget: Budget) -> Claim:
    """Both skills in turn, three seeds; the model is trained once."""
    tiny = budget.size == "tiny"
    bed = skill_bed(train=48, probes=48, asked=8, texts=8, epochs=1) if tiny else skill_bed()
    seeds = budget.seeds[:1] if tiny else budget.seeds
    table = SkillTable()
    for seed in seeds:
        for skill in SKILLS[:1] if tiny else SKILLS:
            SkillTrial(bed, table, skill, seed).run((PERCENT,) if tiny or seed != seeds[0] else (PERCENT, *OTHERS))
    checks = _checks(table)
    rows = {arm: table.row(arm) for arm in dict.fromkeys(arm for arm, _, _ in table.forgotten)}
    return Claim(
        slug="skill",
        claim="Key Space Detection takes over 80 % of the forgotten skill and under 10 % of others; Neuron Adjust is weaker and better "
        "than selective pruning (Gemma-2B, Llama-2-7B, Llama-3-8B and 70B; GSM8K, MBPP, MLQA, MMLU; arXiv 2503.21730)",
        setting=f"a Llama of 0.7M weights that adds and prints, each skill forgotten in turn; {bed.probes} probes a skill, "
        f"{bed.asked} questions, exact answers; {len(seeds)} seeds",
        columns=("forgotten skill", "of it lost", "kept skill", "of it lost", "text perplexity", "texts refused"),
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=seeds,
        extra={
            "rates on held-out queries, true and false": {
                arm: [spread([one[i] for key, one in table.rates.items() if key[0] == arm]) for i in (0, 1)]
                for arm in (KSD, LOGISTIC)
            },
            "lost by skill": {
                arm: {
                    skill: round(fmean(_lost_of(table, arm, skill)), 3)
                    for skill in dict.fromkeys(k[1] for k in table.forgotten)
                }
                for arm in rows
            },
        },
    )


def _lost_of(table: SkillTable, arm: str, skill: str) -> list[float]:
    runs = [key for key in table.forgotten if key[:2] == (arm, skill)]
    return [1 - table.forgotten[key] / max(table.forgotten["nothing", *key[1:]], 1e-9) for key in runs]


def _checks(table: SkillTable) -> tuple[Check, ...]:
    """The card's conditions, a figure a skill and seed."""

    def ahead(arm: str, other: str, which: str = "forgotten", factor: float = 1.0) -> list[float]:
        pairs = zip(table.lost(arm, which), table.lost(other, which), strict=True)
        return [one - factor * another for one, another in pairs]

    adjust, random, selective = named(ADJUST), named(RANDOM), named(SELECTIVE)
    return (
        Check.by_seed(
            "set-up", "the model has both skills, nine answers of ten", table.of("nothing", "forgotten"), ">=", 0.9
        ),
        Check("mechanism", "at alpha 1 every probe is refused", table.probes),
        Check("mechanism", "weights and logits of the target are the same to the bit afterwards", table.unchanged),
        Check.by_seed(
            "claim", "Key Space Detection takes at least 80 % of the forgotten skill", table.lost(KSD), ">=", 0.8
        ),
        Check.by_seed(
            "claim", "Key Space Detection takes at most 10 % of the kept skill", table.lost(KSD, "kept"), "<=", 0.1
        ),
        Check.by_seed("claim", "it refuses at most 10 % of plain texts", table.of(KSD, "refused"), "<=", 0.1),
        Check.by_seed("control", "a prompt that asks for a refusal takes less", ahead(KSD, PROMPT), ">", 0),
        Check.by_seed(
            "claim",
            "Neuron Adjust takes more than twice what random pruning takes",
            ahead(adjust, random, factor=2.0),
            ">",
            0,
        ),
        Check.by_seed(
            "claim",
            "Neuron Adjust takes less of the kept skill than selective pruning",
            ahead(selective, adjust, "kept"),
            ">",
            0,
        ),
        Check.by_seed("claim", "Neuron Adjust takes less than Key Space Detection", ahead(KSD, adjust), ">", 0),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is lost of both skills by either method."""
    ksd, adjust = ([figure(rows, arm, column) for column in (1, 3)] for arm in (KSD, named(ADJUST)))
    return f"lost of forgotten and kept skill: KSD {ksd[0]} and {ksd[1]}, Neuron Adjust {adjust[0]} and {adjust[1]}"
