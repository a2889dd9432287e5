"""On a trained model in float32, drafting changes no token: SmolLM2-135M, 64 tokens after each of 200 prompts.

What is drafted runs whole (no cost model, but where a test says so), and every text is compared with what `generate` writes
without drafts, one prompt at a time. Forwards of different shapes round differently, so a text may leave greedy's where the
two largest logits are closer than `TIE`; that is reported as a warning, and anything else fails.

The plain texts take about 20 minutes on one core. They are kept in the user's cache, and a run that was interrupted goes on
from there.
"""

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tabular import Scripted

from unwrite.beds.texts import encoded, prompts
from unwrite.decode import ADED, RSD, DraftModel, DraftTree, PromptLookup, RecyclingTable, TokenRecycling
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.decode.engine.tree import depths_of
from unwrite.errors import ModelError
from unwrite.models import anatomy, load
from unwrite.models.bundled import gguf_file
from unwrite.runs import cache_dir, hash_json, hash_model, lock

PROMPTS, FEW, SAMPLED = 200, 40, 20
NEW = 64
BATCH = 8
TIE = 1e-3  # the margin, in logits, below which the order of float32 sums may decide
WRITE_EVERY = 20
CHAIN = 6  # the oracle's: 1 + 9 * (CHAIN + 1) == NEW

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


@dataclass
class Target:
    """The model, its prompts, and what it writes after them without drafts.

    Args:
        rows: ids of every prompt, explanations and copies in turn.
        texts: [prompts][NEW] greedy ids; margins: [prompts, NEW] logits between the best and the second.
        sampled: [SAMPLED][NEW] ids, each drawn from the seed that is its prompt's number.
    """

    model: torch.nn.Module
    rows: list[list[int]]
    texts: list[list[int]]
    margins: torch.Tensor
    sampled: list[list[int]]

    @cached_property
    def ahead(self):
        """{the bytes of a text so far: the greedy tokens to come}."""
        return {
            np.array(row + text[:n]).tobytes(): text[n:]
            for row, text in zip(self.rows, self.texts, strict=True)
            for n in range(NEW)
        }


@dataclass
class Call:
    """One call of `generate`: the prompts' numbers, their new ids, and the engine's statistics."""

    places: list[int]
    texts: list[list[int]]
    stats: object


# `UNWRITE_CACHE` is set anew for every test; fixtures of the module are made before that and see the user's own.
@pytest.fixture(scope="module")
def target():
    try:
        gguf_file("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))
    loaded = load("smollm2-135m")
    model = loaded.model.eval()
    assert model.dtype == torch.float32
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = None
    rows = encoded(loaded.tokenizer, questions(PROMPTS))
    texts, margins = plain(model, rows)
    return Target(model, rows, texts.tolist(), margins, plain(model, rows[:SAMPLED], sampled=True)[0].tolist())


@pytest.fixture(scope="module")
def draft(target):
    """An early exit after three of thirty blocks: often wrong, sometimes right."""
    return anatomy(target.model).truncate(3).eval()


def questions(count):
    """Explanations and copies in turn, of different packages."""
    kinds = [list(dict.fromkeys(prompts(half, kind, count)))[: count // 2] for half, kind in ((1, "free"), (0, "copy"))]
    asked = [question for pair in zip(*kinds, strict=True) for question in pair]
    assert len(asked) == count
    return asked


def options(sampled=False):
    return {"do_sample": True, "temperature": 0.8, "top_p": 0.9} if sampled else {"do_sample": False}


def plain(model, rows, sampled=False):
    """(ids, margins), [prompts, NEW] each, from the cache as far as they are there."""
    made_by = [torch.__version__, transformers.__version__]
    folder = cache_dir("identity", hash_json([hash_model(model), rows, NEW, options(sampled), made_by]))
    file = folder / "texts.safetensors"
    with lock(folder / "lock"):
        empty = {"ids": torch.zeros(0, NEW, dtype=torch.long), "margins": torch.zeros(0, NEW)}
        known = load_file(file) if file.exists() else empty
        while (start := len(known["ids"])) < len(rows):
            fresh = [_plain(model, rows[i], i, sampled) for i in range(start, min(start + WRITE_EVERY, len(rows)))]
            for name, values in zip(("ids", "margins"), zip(*fresh, strict=True), strict=True):
                known[name] = torch.cat([known[name], torch.stack(values)])
            save_file(known, folder / "new")
            (folder / "new").replace(file)
    return known["ids"], known["margins"]


def _plain(model, row, seed, sampled):
    torch.manual_seed(seed)
    ids = torch.tensor([row])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        **options(sampled),
    )
    best = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(row) :], best[:, 0] - best[:, 1]


def write(target, places, strategy, sampled=False):
    """Decodes the prompts of these numbers in one call, padded on the left."""
    rows = [target.rows[place] for place in places]
    width = max(map(len, rows))
    out = target.model.generate(
        torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        max_new_tokens=NEW,
        custom_generate=strategy,
        return_dict_in_generate=True,
        **options(sampled),
    )
    return Call(list(places), out.sequences[:, width:].tolist(), out.stats)


def singly(target, places, strategy):
    return [write(target, [place], strategy) for place in places]


def in_batches(target, places, strategy):
    return [write(target, places[start : start + BATCH], strategy) for start in range(0, len(places), BATCH)]


def exact(target, calls):
    """The calls that wrote greedy's own texts; what left one elsewhere than at a near tie fails, there it warns."""
    margins, same = {}, []
    for call in calls:
        left = {place: text for place, text in zip(call.places, call.texts, strict=True) if text != target.texts[place]}
        same += [] if left else [call]
        for place, text in left.items():
            assert len(text) == NEW
            at = next(i for i in range(NEW) if text[i] != target.texts[place][i])
            margins[place, at] = float(target.margins[place, at])
    report = [f"prompt {place}, token {at}: margin {margin:.1e}" for (place, at), margin in margins.items()]
    assert max(margins.values(), default=0) < TIE, report
    if report:
        warnings.warn(f"{len(report)} texts leave greedy's at a near tie: {'; '.join(report)}")
    return same


def told(target, draw):
    """A strategy whose drafts are drawn in the knowledge of the tokens to come: draw(root, right) -> tree.

    Nothing is known of a text that has left greedy's.
    """
    return Scripted(
        lambda committed, budget: draw(int(committed[-1]), target.ahead.get(committed.tobytes(), [])), cost_model=False
    )


def oracle(root, right):
    return DraftTree.chain(root, right[:CHAIN])


def junk(vocab, nodes=5):
    """Trees of random shape in which no node carries the token that greedy has at its depth."""
    generator = np.random.default_rng(0)

    def draw(root, right):
        parents = random_parents(generator, int(generator.integers(1, nodes + 1)))
        right = np.array([*right, *[0] * nodes])
        wrong = (right[depths_of(parents) - 1] + generator.integers(1, vocab, len(parents))) % vocab
        return DraftTree.of([root, *wrong[1:]], parents)

    return draw


def mixed(vocab, nodes=24, corrupted=0.3):
    """Trees of random shape. At most one child of each node, any of them, carries greedy's token of its depth.

    So right tokens stand below wrong ones too, where they must not be accepted.
    """
    generator = np.random.default_rng(0)

    def draw(root, right):
        parents = random_parents(generator, int(generator.integers(1, nodes + 1)))
        tokens, depths = generator.integers(vocab, size=len(parents)), depths_of(parents)
        tokens[0] = root
        for parent in set(parents[1:].tolist()):
            child = generator.choice(np.flatnonzero(parents == parent))
            if depths[child] <= len(right) and generator.random() >= corrupted:
                tokens[child] = right[depths[child] - 1]
        return DraftTree.of(tokens, parents)

    return draw


def random_parents(generator, nodes):
    """[nodes + 1] parents among the few nodes before: chains as well as bushes."""
    reach = int(generator.integers(1, 9))
    return np.array([-1, *(int(generator.integers(max(0, i - reach), i)) for i in range(1, nodes + 1))])


def test_an_oracles_chain_of_six_commits_seven_tokens_a_forward(target):
    calls = exact(target, singly(target, range(PROMPTS), told(target, oracle)))
    assert {call.stats.forwards for call in calls} == {1 + (NEW - 1) // (CHAIN + 1)}
    assert {call.stats.tokens_per_forward for call in calls} == {CHAIN + 1}


@pytest.mark.parametrize("way", [singly, in_batches])
def test_wrong_trees_leave_the_text_and_the_number_of_forwards_as_they_are(target, way):
    places = range(FEW) if way is singly else range(FEW, PROMPTS)
    calls = exact(target, way(target, places, told(target, junk(target.model.vocab_size))))
    assert {(call.stats.forwards, call.stats.accepted) for call in calls} == {(NEW, 0)}
    assert min(call.stats.drafted for call in calls) >= NEW - 2  # nothing at the last step, which has no room


@pytest.mark.parametrize("way", [singly, in_batches])
def test_trees_of_right_and_wrong_tokens_leave_the_text_as_it_is(target, way):
    places = range(FEW) if way is singly else range(FEW, PROMPTS)
    calls = exact(target, way(target, places, told(target, mixed(target.model.vocab_size))))
    assert min(call.stats.accepted for call in calls) > 0
    assert max(call.stats.forwards for call in calls) < NEW


@pytest.mark.parametrize("cost_model", [False, True], ids=["whole template", "what pays"])
def test_token_recycling_leaves_the_text_as_it_is(target, cost_model):
    table = RecyclingTable(target.model.vocab_size)
    places = range(FEW, PROMPTS) if cost_model else range(FEW)
    calls = exact(target, singly(target, places, TokenRecycling(table=table, cost_model=cost_model)))
    assert sum(call.stats.accepted for call in calls) > 0
    assert cost_model or max(max(call.stats.rows) for call in calls) == 81


OTHERS = {
    "prompt lookup": lambda draft: PromptLookup(cost_model=False),
    "aded": lambda draft: ADED(cost_model=False),
    "chain": lambda draft: DraftModel(draft_model=draft, cost_model=False),
    "rsd-c": lambda draft: RSD(draft_model=draft, mode="C", cost_model=False),
    "rsd-s": lambda draft: RSD(draft_model=draft, mode="S", cost_model=False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_strategy_leaves_the_text_as_it_is(target, draft, name):
    calls = exact(target, singly(target, range(FEW), OTHERS[name](draft)))
    assert sum(call.stats.accepted for call in calls) > 0


@pytest.mark.parametrize("kind", [TokenRecycling, PromptLookup])
def test_sampled_text_is_generates_own_at_the_same_seed(target, kind):
    drafted = 0
    for place, text in enumerate(target.sampled):
        torch.manual_seed(place)
        call = write(target, [place], kind(cost_model=False), sampled=True)
        assert call.texts == [text], place
        drafted += call.stats.accepted
    assert drafted > 0
