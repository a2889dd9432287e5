"""Rows of TOFU, MUSE, WMDP and KnowUnDo in the files their authors publish (tests/audit/published), read by the loaders."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from unwrite.data import knowundo, muse, read, tofu, wmdp

PUBLISHED = Path(__file__).parents[1] / "audit" / "published"


@pytest.fixture(scope="module", autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


def test_tofu_rows_have_their_paraphrases_and_wrong_answers() -> None:
    split = tofu("forget10", PUBLISHED / "tofu")
    assert len(split.forget) == 8
    assert split.retain is not None
    assert len(split.retain) == 4
    assert split.holdout is None
    assert {name: len(rows) for name, rows in split.evaluation.items()} == {
        "retain_perturbed": 6,
        "real_authors": 6,
        "world_facts": 6,
    }
    row = split.forget[0]
    assert (row.answer, row.paraphrased_answer) == (
        "The author's full name is Hsiao Yun-Hwa.",
        "Hsiao Yun-Hwa is the complete name of the writer.",
    )
    assert [len(row.perturbed_answers) for row in split.forget] == [5] * 8
    assert split.evaluation["world_facts"][3].perturbed_answers == ("Rio de Janeiro", "São Paulo", "Salvador")


def test_muse_reads_lists_of_texts_and_its_questions() -> None:
    parts = muse("books", PUBLISHED / "muse" / "books")
    assert [len(parts.knowmem[name]) for name in ("forget", "retain", "forget_icl", "retain_icl")] == [6, 4, 3, 3]
    assert [len(parts.privleak[name]) for name in ("forget", "retain", "holdout")] == [6, 4, 4]
    assert [row.answer for row in parts.raw["forget"]] == [row.answer for row in parts.privleak["forget"]]
    begun = parts.verbmem["forget"][0]
    assert f"{begun.question}{begun.answer}" == parts.raw["forget"][0].answer
    assert parts.knowmem["forget"][4].answer == "£2.4m"


def test_a_raw_text_of_muse_is_one_document() -> None:
    rows = read(PUBLISHED / "muse" / "books" / "raw" / "forget.txt")
    whole = "\n\n".join(row.answer for row in muse("books", PUBLISHED / "muse" / "books").raw["forget"])
    assert [row.answer for row in rows] == [whole]


def test_wmdp_items_keep_their_choices_and_answers() -> None:
    items = wmdp("cyber", PUBLISHED / "wmdp")
    assert [item.answer for item in items] == [2, 0, 2, 3, 1, 0]
    assert items[4].choices == ("Trust Score", "AdFind", "Trust Eval", "Trust Dig")
    assert {item.subject for item in items} == {"cybersecurity"}


def test_knowundo_forgets_train_and_measures_on_val() -> None:
    split = knowundo("privacy", PUBLISHED / "knowundo")
    assert split.retain is not None
    sizes = [len(rows) for rows in (split.forget, split.retain, *split.evaluation.values())]
    assert sizes == [4, 4, 6, 6]
    assert split.forget[0].question == "Who are Isabella Marquez's parents?"
