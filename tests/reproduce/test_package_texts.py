"""The bed of installed packages' texts: no package in two splits, nothing shared, and a training that ends where validation does."""

import math

import pytest
import torch

from unwrite.beds import package_texts
from unwrite.beds.language import EncodedRows
from unwrite.beds.package_texts import SCALES, SPLITS, PackageTexts, in_turn, names_of, stopped_recipe, without_shared
from unwrite.data.text.encoding import Encoded
from unwrite.models import load_model, trained
from unwrite.models.recipe import CausalTraining
from unwrite.reproduce.freshness import _closure

LONG = "A paragraph that is long enough to count as shared, whatever spaces and lines it has been written with."


def test_a_package_is_of_one_split():
    names = [name for split in SPLITS for name in names_of(split)]
    assert len(names) == len({*names}) > 50
    assert "unwrite" not in names


def test_what_shares_a_paragraph_with_a_training_text_is_left_out():
    texts = {
        "train": [f"One.\n\n{LONG}"],
        "validation": [f"Two.\n\n{LONG.replace(' ', '  ')}\n\nMore.", "Three."],
        "test": ["Four.", "Three.", LONG],
    }
    clean = without_shared(texts)
    assert clean == {"train": texts["train"], "validation": ["Three."], "test": ["Four.", "Three."]}


def test_packages_take_turns_and_a_text_stands_once(monkeypatch):
    piles = {"a": ["a1", "a2", "a3"], "b": ["b1", "a2"], "c": []}
    monkeypatch.setattr(package_texts, "_texts_of", lambda name: iter(piles[name]))
    assert list(in_turn(["a", "b", "c"], 5, 100)) == ["a1", "b1", "a2", "a3"]
    assert list(in_turn(["a", "b", "c"], 1, 100)) == ["a1", "b1"]
    assert list(in_turn(["a", "b", "c"], 5, 3)) == ["a1", "b1"]


def test_the_tiny_bed_has_blocks_of_one_length_and_a_model_that_learnt():
    bed = PackageTexts(SCALES["tiny"])
    assert all(len(row.input_ids) == 32 and row.labels == row.input_ids for rows in bed.blocks.values() for row in rows)
    assert all(len(rows) > 10 for rows in bed.blocks.values())
    model, rows = bed.load(), bed.blocks["validation"]
    assert package_texts.validation_loss(model, rows) < math.log(len(bed.tokenizer)) - 0.3
    assert PackageTexts(SCALES["tiny"]).base == bed.base  # found again


def rows_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, 50, (count, 8), generator=generator).tolist()
    return EncodedRows([Encoded(ids, list(ids), index) for index, ids in enumerate(drawn)])


@pytest.fixture
def config(tiny_llama):
    return tiny_llama.config


@pytest.mark.parametrize(
    ("losses", "looked_at", "best"), [([3, 2, 2.5, 1], 3, 2), ([3, 2, 1, 0.5], 4, 4), ([1, 2], 2, 1)]
)
def test_the_training_ends_with_the_first_epoch_that_is_no_better_and_keeps_the_best(
    losses, looked_at, best, config, monkeypatch
):
    seen = []

    def loss(model, rows):
        seen.append(model.model.norm.weight.detach().clone())
        return float(losses[len(seen) - 1])

    monkeypatch.setattr(package_texts, "validation_loss", loss)
    recipe = stopped_recipe(config, rows_of(4, 1), CausalTraining(len(losses), 1e-2, 8))
    model = load_model(trained(recipe, rows_of(16, 0), range(16), 0))
    assert len(seen) == looked_at
    assert torch.equal(model.model.norm.weight, seen[best - 1])


def test_a_killed_training_goes_on_to_the_same_weights(config, monkeypatch):
    recipe = stopped_recipe(config, rows_of(4, 1), CausalTraining(3, 1e-2, 8))
    calls, kill_at = [], [0]

    def falling(model, rows):
        calls.append(1)
        if len(calls) == kill_at[0]:
            raise KeyboardInterrupt
        return 9.0 - len(calls)

    monkeypatch.setattr(package_texts, "validation_loss", falling)
    whole = trained(recipe, rows_of(16, 0), range(16), 0)
    monkeypatch.setenv("UNWRITE_CACHE", str(whole.parent / "another"))
    calls.clear()
    kill_at[0] = 2
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, rows_of(16, 0), range(16), 0)
    again = trained(recipe, rows_of(16, 0), range(16), 0)
    assert len(calls) == 4  # one more than without the kill: the first epoch's is known
    for one, other in zip(load_model(whole).parameters(), load_model(again).parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_stands_on_beds_that_no_other_result_loses():
    assert _closure(["unwrite.beds.package_texts"], "beds") == {
        "unwrite.beds.package_texts",
        "unwrite.beds.language",
        "unwrite.beds.texts",
    }
