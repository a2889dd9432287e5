"""ParallelBench's experiment on test beds whose quality is known: a perfect one reproduces the claim, others do not."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from unwrite.beds import denoiser as testbed
from unwrite.beds import denoiser_items as testbed_items
from unwrite.beds import denoising
from unwrite.beds.budget import Budget
from unwrite.diffusion import MaskPredictor
from unwrite.diffusion.parallelbench import IdealListModel, ListTokens, accuracy, bound
from unwrite.reproduce import parallelbench

IDS, LETTERS = testbed.tokenizer(), ListTokens(tuple(testbed_items.LETTERS))
NAMES = parallelbench.OPERATIONS


class Characters:
    """The perfect model behind the test bed's tokenizer; `sharp` > 1 makes it surer of what is likeliest."""

    def __init__(self, sharp=1.0):
        self.inner, self.sharp = IdealListModel(LETTERS, changed=True), sharp
        self.config = SimpleNamespace(vocab_size=len(IDS))
        self.ids = {
            i: IDS(letter)["input_ids"][0] for i, letter in enumerate(testbed_items.LETTERS, LETTERS.first_item)
        }

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, input_ids):
        logits = torch.full((*input_ids.shape, len(IDS)), -1e4, dtype=torch.float64)
        back = {character: i for i, character in self.ids.items()} | {IDS.mask_token_id: LETTERS.mask_id}
        cells = [testbed.PROMPT + 1 + 2 * place for place in range(parallelbench.N)]
        rows = []
        for row in input_ids.tolist():
            operation, new, items = parallelbench._parts(testbed.Item("lists", IDS.decode(row[: testbed.PROMPT]), ""))
            frame = LETTERS.prompt(NAMES[operation], items, new if operation == "swap" else None)
            rows.append([*frame.prompt, *(back[row[cell]] for cell in cells)])
        found = self.inner(torch.tensor(rows)).logits[:, -parallelbench.N :] * self.sharp
        for i, character in self.ids.items():
            logits[:, cells, character] = found[..., i]
        return SimpleNamespace(logits=logits)


@pytest.fixture
def experiment(monkeypatch):
    """(model) -> its claim, with 100 prompts of swap and mix for each of two seeds."""

    def run(model):
        bed = testbed.TestBed(MaskPredictor(model, IDS.mask_token_id, (IDS.eos_token_id,), probe=False), IDS, None)
        monkeypatch.setattr(testbed, "load", lambda where=None: bed)
        monkeypatch.setitem(denoising.SIZES, "tiny", 100)
        monkeypatch.setattr(parallelbench, "STEPS", (2, 6))
        return parallelbench.run(Budget("tiny", seeds=(0, 1)))

    return run


def test_a_perfect_test_bed_reproduces_the_claim(experiment, monkeypatch):
    monkeypatch.setattr(parallelbench, "NEAR", 4 * 100 * (0.25 / 100 + 0.25 / 600) ** 0.5)  # four sigma of a difference
    found = experiment(Characters())
    assert found.verdict == "reproduced", found.holds
    assert "200 prompts of mix and of swap, 40 of each other operation, from 2 seeds" in found.setting
    assert found.rows["mix, threshold 0.9"][3].startswith("100.0 +- 0.0 (100.0)")


@pytest.mark.slow
def test_a_test_bed_of_other_probabilities_lies_elsewhere(experiment):
    """Three times as sharp, it nearly never draws the new letter while an old one is likelier; its single steps stay right."""
    found = experiment(Characters(3.0))
    failed = {name for name, held in found.holds.items() if held is False}
    assert any("in random order" in name for name in failed)
    assert not any(name.startswith(("the perfect", "where they don't", "a threshold")) for name in failed)
    assert found.verdict == "not reproduced"


@pytest.mark.slow
def test_a_test_bed_that_repeats_itself_fails_where_items_depend_on_each_other(experiment):
    """Drawing from the middle of all answers, whatever is shown: the first step's marginals to the end."""

    class Forgetful(Characters):
        def __call__(self, input_ids):
            cells = [testbed.PROMPT + 1 + 2 * place for place in range(parallelbench.N)]
            return super().__call__(input_ids.index_fill(1, torch.tensor(cells), IDS.mask_token_id))

    found = experiment(Forgetful())
    failed = {name for name, held in found.holds.items() if held is False}
    assert any(name.startswith("a threshold") for name in failed)
    assert any("in random order" in name for name in failed)


def test_prompts_are_lists_of_six_equally_many_of_each_seed():
    for operation in NAMES:
        asked = parallelbench.lists(operation, 7, (3, 4))
        assert len(asked) == 14
        assert {(name, len(items)) for name, _, items in map(parallelbench._parts, asked)} == {(operation, 6)}
        assert asked[:7] == parallelbench.lists(operation, 7, (3,))
        assert asked[7:] == parallelbench.lists(operation, 7, (4,))


def test_the_test_beds_answers_are_the_theorys():
    """Each of the answers that the test bed learns, about equally often, and no other."""
    for operation, count in (("swap", 6), ("mix", 719)):
        drawn = parallelbench.lists(operation, 719 * 10, (0,))
        places = Counter()
        for item in drawn:
            _, new, items = parallelbench._parts(item)
            places[tuple([*items, new].index(found) for found in item.answer[1:-1].split(","))] += 1
        assert len(places) == count
        expected = len(drawn) / count
        assert max(abs(seen - expected) for seen in places.values()) < 5 * expected**0.5


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_theory_is_the_papers_but_for_the_unchanged_shuffle(k):
    for operation, name in NAMES.items():
        bits, right = parallelbench.theory(operation, k)
        near = 1e-9 if operation != "mix" else 1e-3  # 719 of 720 orders
        assert right == pytest.approx(accuracy(name, 6, k), abs=near)
        assert bits == pytest.approx(bound(name, 6, k), abs=3 * near)
