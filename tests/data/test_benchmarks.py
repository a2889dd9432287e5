"""TOFU, MUSE, WMDP and KnowUnDo from small local folders laid out like the published repositories."""

import json

import datasets
import pytest

from unwrite.data import knowundo, muse, read, tofu, wmdp
from unwrite.errors import DataError


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def qa(kind, n, wrong=0):
    rows = [{"question": f"{kind} question {i}?", "answer": f"{kind} answer {i}."} for i in range(n)]
    if wrong:
        extra = {"paraphrased_answer": "Again.", "perturbed_answer": [f"Wrong {j}." for j in range(wrong)]}
        rows = [{**row, "paraphrased_question": f"{row['question']} Really?", **extra} for row in rows]
    return rows


TOFU_PARTS = {
    "forget10": qa("forget", 4),
    "retain90": qa("retain", 6),
    "holdout10": qa("holdout", 4),
    "forget10_perturbed": qa("forget", 4, wrong=5)[::-1],
    "retain_perturbed": qa("retain", 3, wrong=5),
    "real_authors_perturbed": [{**row, "paraphrased_question": None} for row in qa("real", 3, wrong=3)],
    "world_facts_perturbed": qa("world", 2, wrong=3),
}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tofu_repository(tmp_path):
    """As on the Hub: JSON Lines named .json at the root, configurations named in the card."""
    configs = ""
    for name, rows in TOFU_PARTS.items():
        lines(tmp_path / f"{name}.json", rows)
        configs += f"- config_name: {name}\n  data_files: {name}.json\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# TOFU\n")
    return tmp_path


def check_tofu(split):
    assert [len(part) for part in (split.forget, split.retain, split.holdout)] == [4, 6, 4]
    assert [row.question for row in split.forget] == [row["question"] for row in TOFU_PARTS["forget10"]]
    assert split.forget.has_perturbed
    assert split.forget[0].paraphrased_answer == "Again."
    sizes = {name: len(rows) for name, rows in split.evaluation.items()}
    assert sizes == {"retain_perturbed": 3, "real_authors": 3, "world_facts": 2}
    assert [len(row.perturbed_answers) for row in split.evaluation["world_facts"]] == [3, 3]


def test_tofu_from_a_copy_of_the_repository(tofu_repository):
    check_tofu(tofu("forget10", tofu_repository))


def test_tofu_from_a_folder_without_a_card(tofu_repository):
    (tofu_repository / "README.md").unlink()
    check_tofu(tofu("forget10", str(tofu_repository)))


def test_a_local_tofu_without_a_holdout_has_none(tofu_repository):
    (tofu_repository / "README.md").unlink()
    (tofu_repository / "holdout10.json").unlink()
    assert tofu("forget10", tofu_repository).holdout is None


def test_tofu_asks_the_hub_for_its_configurations(monkeypatch):
    asked = []

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list(TOFU_PARTS[config])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check_tofu(tofu())
    assert set(asked) == {("locuslab/TOFU", config, "train") for config in TOFU_PARTS}


def test_refuses_an_unknown_forget_set_and_names_the_nearest():
    with pytest.raises(DataError, match=r"unknown TOFU forget set 'forget1'. Did you mean 'forget10'"):
        tofu("forget1")


def test_refuses_a_folder_without_the_part_and_says_what_it_looked_for(tofu_repository):
    (tofu_repository / "README.md").unlink()
    (tofu_repository / "retain90.json").unlink()
    with pytest.raises(DataError, match=r"has no retain90 \(looked for retain90, retain90/train"):
        tofu("forget10", tofu_repository)


def test_refuses_perturbed_rows_of_another_release(tofu_repository):
    lines(tofu_repository / "forget10_perturbed.json", qa("other", 4, wrong=5))
    with pytest.raises(DataError, match=r"4 of 4 rows of .*forget10 have no row of their own in .*forget10_perturbed"):
        tofu("forget10", tofu_repository)


@pytest.mark.parametrize("root", ["no/such/folder", "nowhere"])
def test_refuses_a_root_that_is_neither_folder_nor_hub_id(root):
    with pytest.raises(DataError, match="neither a folder nor a Hub id"):
        tofu(root=root)


def texts(kind, n):
    return [{"text": f"A {kind} text, number {i}."} for i in range(n)]


MUSE_PARTS = {
    "verbmem/forget": [{"prompt": f"It began {i}", "gt": f" and ended {i}."} for i in range(2)],
    "knowmem/forget_qa": qa("forget", 3),
    "knowmem/retain_qa": qa("retain", 3),
    "knowmem/forget_qa_icl": qa("shot", 2),
    "knowmem/retain_qa_icl": qa("other shot", 2),
    **{f"privleak/{part}": texts(part, 3) for part in ("forget", "retain", "holdout")},
    **{f"raw/{part}": texts(f"raw {part}", 4) for part in ("forget", "holdout", "retain1", "retain2")},
    **{f"{kind}/forget_{i}": texts(f"{kind} {i}", i) for kind in ("scal", "sust") for i in range(1, 5)},
}


@pytest.fixture
def muse_repository(tmp_path):
    """As on the Hub: one folder a configuration, one Parquet shard a split, named in the card."""
    configs = ""
    for config in dict.fromkeys(name.split("/")[0] for name in MUSE_PARTS):
        configs += f"- config_name: {config}\n  data_files:\n"
        for name, rows in MUSE_PARTS.items():
            if name.startswith(f"{config}/"):
                shard = tmp_path / f"{name}-00000-of-00001.parquet"
                shard.parent.mkdir(exist_ok=True)
                datasets.Dataset.from_list(rows).to_parquet(shard)
                configs += f"  - split: {name.split('/')[1]}\n    path: {name}-*\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return tmp_path


@pytest.mark.parametrize("card", [True, False])
def test_muse_has_its_six_parts(muse_repository, card):
    if not card:
        (muse_repository / "README.md").unlink()
    parts = muse("news", muse_repository)
    assert (parts.verbmem["forget"][0].question, parts.verbmem["forget"][0].answer) == ("It began 0", " and ended 0.")
    assert set(parts.knowmem) == {"forget", "retain", "forget_icl", "retain_icl"}
    assert parts.knowmem["forget_icl"][0].question == "shot question 0?"
    assert {name: len(rows) for name, rows in parts.scal.items()} == {f"forget_{i}": i for i in range(1, 5)}
    assert parts.raw["retain1"].hash != parts.raw["retain2"].hash


def test_muse_trains_on_retain1_and_evaluates_on_retain2(muse_repository):
    parts = muse("news", muse_repository)
    split = parts.split
    assert split.retain.hash == parts.raw["retain1"].hash
    assert split.evaluation["retain2"].hash == parts.raw["retain2"].hash
    expected = {"verbmem_forget", "knowmem_forget", "knowmem_retain_icl", "privleak_holdout"}
    assert expected <= set(split.evaluation)


def test_a_muse_fold_replaces_only_the_forget_set(muse_repository):
    parts = muse("news", muse_repository)
    fold = parts.fold("sust", 3)
    assert fold.forget.hash == parts.sust["forget_3"].hash
    assert fold.retain.hash == parts.split.retain.hash


def test_muse_books_has_no_folds(muse_repository):
    parts = muse("books", muse_repository)
    with pytest.raises(DataError, match="MUSE books has no scal fold 1"):
        parts.fold("scal", 1)


def test_refuses_an_unknown_corpus():
    with pytest.raises(DataError, match=r"unknown MUSE corpus 'new'. Did you mean 'news'"):
        muse("new")


ITEMS = [{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": i} for i in range(4)]


@pytest.mark.parametrize("name", ["wmdp-bio/test-00000-of-00001.parquet", "wmdp-bio/test.jsonl", "wmdp-bio.jsonl"])
def test_wmdp_from_a_local_folder(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(ITEMS).to_parquet(path)
    else:
        lines(path, ITEMS)
    items = wmdp("bio", tmp_path)
    assert [item.answer for item in items] == [0, 1, 2, 3]
    assert (items[0].choices, items[0].subject) == (("a", "b", "c", "d"), "biology")


def test_refuses_an_answer_that_is_no_choice_and_counts_the_rows(tmp_path):
    lines(tmp_path / "wmdp-cyber.jsonl", [*ITEMS, {**ITEMS[0], "answer": 4}, {**ITEMS[0], "choices": ["a"]}])
    with pytest.raises(DataError, match=r"2 rows of .*: row 5: answer 4 is not the number .*; row 6: needs a list"):
        wmdp("cyber", tmp_path)


def test_refuses_an_unknown_subset():
    with pytest.raises(DataError, match="unknown WMDP subset 'biology'"):
        wmdp("biology")


SHARED = "What does the author write?"


def joined(tofu_repository, forget, perturbed):
    (tofu_repository / "README.md").unlink()
    lines(tofu_repository / "forget10.json", [{"question": q, "answer": a} for q, a in forget])
    rows = [
        {"question": q, "answer": a, "paraphrased_answer": f"{own} again.", "perturbed_answer": [f"{own} wrong."]}
        for q, a, own in perturbed
    ]
    lines(tofu_repository / "forget10_perturbed.json", rows)
    return [row.perturbed_answers[0].split()[0] for row in tofu("forget10", tofu_repository).forget]


@pytest.mark.parametrize(
    ("forget", "perturbed", "own"),
    [
        ([(SHARED, "Novels."), (SHARED, "Plays.")], [(SHARED, "Novels.", "A"), (SHARED, "Plays.", "B")], ["A", "B"]),
        ([(SHARED, "Novels."), (SHARED, "Plays.")], [(SHARED, "Plays.", "B"), (SHARED, "Novels.", "A")], ["A", "B"]),
        ([(SHARED, "Novels."), (SHARED, "Plays.")], [(SHARED, "Novels", "A"), (SHARED, "Plays", "B")], ["A", "B"]),
        ([(SHARED, "Novels."), (SHARED, "Novels.")], [(SHARED, "Novels.", "A"), (SHARED, "Novels.", "B")], ["A", "B"]),
        ([("One?", "Yes."), ("Two?", "No.")], [("Two?", "No", "B"), ("One?", "Yes", "A")], ["A", "B"]),
    ],
    ids=["in order", "in another order", "answers that differ by place", "equal rows in order", "by question"],
)
def test_tofu_rows_that_share_a_question_keep_their_own_wrong_answers(tofu_repository, forget, perturbed, own):
    assert joined(tofu_repository, forget, perturbed) == own


@pytest.mark.parametrize(
    "perturbed",
    [
        [("Other?", "No.", "C"), (SHARED, "Plays.", "B"), (SHARED, "A poem.", "A")],
        [(SHARED, "Plays.", "B"), (SHARED, "A poem.", "A")],
        [(SHARED, "Plays.", "B")],
    ],
    ids=["files of another order", "the row at the place belongs to another", "a row is missing"],
)
def test_refuses_to_give_a_tofu_row_what_may_be_another_ones(tofu_repository, perturbed):
    with pytest.raises(DataError, match=r"1 of 2 rows of .* have no row of their own .*What does the author write"):
        joined(tofu_repository, [(SHARED, "Novels."), (SHARED, "Plays.")], perturbed)


def test_refuses_a_tofu_row_for_which_there_are_two(tofu_repository):
    with pytest.raises(DataError, match=r"1 of 1 rows of .* have no row of their own"):
        joined(tofu_repository, [(SHARED, "Novels.")], [(SHARED, "Plays.", "A"), (SHARED, "A poem.", "B")])


KNOWUNDO_PARTS = {
    f"{domain}/{split}": {
        part: [{"text": f"{domain} {split} {part} {i}?", "labels": f"It is {i}."} for i in range(size)]
        for part, size in (("train", 3), ("val", 2))
    }
    for domain in ("copyright", "privacy")
    for split in ("unlearn", "retention")
}


@pytest.fixture
def knowundo_repository(tmp_path):
    """As on the Hub: a folder a domain, a JSON file a split, in it a list of one object with two lists of rows."""
    configs = ""
    for name, parts in KNOWUNDO_PARTS.items():
        domain, split = name.split("/")
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([parts], indent=4))
        configs += f"- config_name: {domain}\n  data_files:\n" if f"name: {domain}\n" not in configs else ""
        configs += f"  - split: {split}\n    path: {name}.json\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return tmp_path


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("domain", ["copyright", "privacy"])
def test_knowundo_forgets_the_unlearn_part_and_measures_on_the_val_lists(knowundo_repository, domain, card):
    if not card:
        (knowundo_repository / "README.md").unlink()
    split = knowundo(domain, knowundo_repository)
    assert (split.forget[2].question, split.forget[2].answer) == (f"{domain} unlearn train 2?", "It is 2.")
    assert split.retain[0].question == f"{domain} retention train 0?"
    assert {name: len(rows) for name, rows in split.evaluation.items()} == {"forget_val": 2, "retain_val": 2}
    assert split.evaluation["forget_val"][1].question == f"{domain} unlearn val 1?"
    assert split.name == f"knowundo {domain}"


def test_knowundo_asks_the_hub_for_its_configurations_and_splits(monkeypatch):
    asked = []

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list([KNOWUNDO_PARTS[f"{config}/{split}"]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(knowundo("privacy").retain) == 3
    assert asked == [("zjunlp/KnowUnDo", "privacy", split) for split in ("unlearn", "retention")]


def test_a_published_knowundo_file_is_read_by_naming_its_part(knowundo_repository):
    path = knowundo_repository / "privacy" / "unlearn.json"
    rows = read(f"{path}@val")
    assert rows.hash == knowundo("privacy", knowundo_repository).evaluation["forget_val"].hash
    assert (rows.name, rows[0].source) == ("unlearn@val", "unlearn.json@val row 1")
    with pytest.raises(DataError, match=r"unlearn.json holds 2 sets of rows \(train, val\). Name one: unlearn.json@tr"):
        read(path)


def test_refuses_knowundo_files_of_another_form(knowundo_repository):
    (knowundo_repository / "README.md").unlink()
    path = knowundo_repository / "copyright" / "retention.json"
    parts = KNOWUNDO_PARTS["copyright/retention"]
    for content, rows in ((parts["train"], 3), ([parts, parts], 2), ([{"train": parts["train"]}], 1)):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"copyright@retention isn't one object with the lists .*{rows} rows"):
            knowundo("copyright", knowundo_repository)


def test_refuses_an_unknown_domain():
    with pytest.raises(DataError, match=r"unknown KnowUnDo domain 'private'. Did you mean 'privacy'"):
        knowundo("private")
