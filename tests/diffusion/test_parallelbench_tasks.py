"""The benchmark's samples and what judges them, against its own stored files and metrics."""

import json
import sys
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace

import pytest

from unwrite.diffusion.parallelbench import TASKS, grade, language_tool, load, score, seed_of, sentence
from unwrite.diffusion.parallelbench import generators as make
from unwrite.diffusion.parallelbench.tasks import _other
from unwrite.diffusion.parallelbench.words import FIRST, LAST, LETTERS, TOPICS, WORDS
from unwrite.errors import DataError, MethodError

OFFICIAL = json.loads((Path(__file__).parent / "official_parallelbench.json").read_text())
LISTS = [name for name, task in TASKS.items() if task.operation]


@cache
def samples_of(name):
    """The task's own samples, drawn once for all that is asked about them."""
    return load(name)


def digest(values):
    return zlib.crc32(json.dumps(values).encode())


def test_seeds_are_the_published_ones():
    assert {name: seed_of(name) for name in OFFICIAL["seeds"]} == OFFICIAL["seeds"]
    assert seed_of("copy") == 31940
    assert seed_of("insert_index_list") == 49875


def test_the_same_seed_draws_the_same_samples_and_another_seed_others():
    for name in ("waiting_line/shuffle", "puzzle/sudoku_n4_12", "words_to_sentence/hard", "extras/math_op_l4"):
        assert load(name) == load(name)
        assert load(name) != load(name, offset=43)


@pytest.mark.parametrize("name", [name for name in LISTS if name.startswith("waiting_line/")])
def test_every_length_from_three_to_six_has_25_samples(name):
    assert Counter(sample.size for sample in samples_of(name)) == {3: 25, 4: 25, 5: 25, 6: 25}


def test_other_tasks_spread_their_samples_evenly_too():
    assert set(Counter(s.size for s in load("letters/copy")).values()) == {10}
    assert Counter(s.size for s in load("words/repeat_list")) == dict.fromkeys((2, 3, 4, 5, 6), 20)
    assert Counter(s.size for s in load("waiting_line_n15/reverse")) == {15: 100}
    assert Counter(s.size for s in load("extras/domino")) == dict.fromkeys(range(3, 13), 10)
    assert len(load("puzzle/sudoku_n4_12")) == 108


@pytest.mark.parametrize("name", LISTS)
def test_lists_hold_nothing_twice_and_a_new_word_is_new(name):
    for sample in samples_of(name):
        assert len(set(sample.items)) == len(sample.items)
        assert sample.inputs.get("word") not in sample.items
        assert sample.skeleton.count("[MASK]") == sample.cells == len(json.loads(sample.gold))


def test_people_of_one_queue_share_no_first_and_no_last_name():
    for name in ("waiting_line/copy", "waiting_line_n15/insert_random"):
        for sample in load(name):
            for part in zip(*(person.split() for person in sample.items), strict=True):
                assert len(set(part)) == len(sample.items)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.one_shot])
def test_the_example_is_never_the_sample(name):
    for sample in samples_of(name):
        shown, answered, asked = sample.messages
        assert shown["content"] != asked["content"]
        assert answered["role"] == "assistant"


def test_an_example_that_repeats_the_sample_is_drawn_again():
    """Two letters have two orders, so about half of the first draws are the sample itself."""
    maker = make.list_operation("copy", ("A", "B"), 2, 2)
    task = SimpleNamespace(maker=maker)
    random = Random(0)
    assert all(_other(task, random, draft).inputs != draft.inputs for draft in [maker(random) for _ in range(20)])


def test_examples_are_right_answers_to_their_own_prompts():
    for sample in load("waiting_line/reverse"):
        shown, answered, _ = sample.messages
        queue = next(line for line in shown["content"].splitlines() if line.startswith("["))
        assert json.loads(answered["content"]) == json.loads(queue)[::-1]


def test_training_samples_are_others_without_examples():
    train = load("letters/shuffle", "train", 200)
    assert all(len(sample.messages) == 1 for sample in train)
    assert not {sample.items for sample in train} & {sample.items for sample in load("letters/shuffle")}


@pytest.mark.parametrize("name", TASKS)
def test_gold_answers_are_right_by_their_own_metric(name):
    samples = samples_of(name)
    gold = [sample.gold for sample in samples]
    assert grade(samples, gold) == grade(samples, gold, strict=True) == 100.0
    assert isinstance(score(samples[0], gold[0]), float)  # the benchmark's math_op gives a bool, which its mean drops


def test_sorting_by_last_name_is_another_task_than_by_whole_name():
    whole, last = load("waiting_line/sort_fullname"), load("waiting_line/sort_lastname")
    assert [s.items for s in whole] == [s.items for s in last]
    assert sum(one.gold == two.gold for one, two in zip(whole, last, strict=True)) < 20
    for one, two in zip(whole, last, strict=True):
        assert json.loads(one.gold) == sorted(one.items)
        assert json.loads(two.gold) == sorted(two.items, key=lambda name: (name.split()[1], name))


def test_indices_count_from_0_and_an_insertion_may_be_at_the_end():
    inserted = load("waiting_line/insert_index")
    assert {s.inputs["index"] - s.size for s in inserted} >= {0, -1}
    for sample in inserted:
        result = [*sample.items]
        result.insert(sample.inputs["index"], sample.inputs["word"])
        assert json.loads(sample.gold) == result


def test_a_sudoku_has_twelve_cells_given_and_one_solution():
    puzzles = load("puzzle/sudoku_n4_12")
    assert len({s.inputs["sudoku"] for s in puzzles}) == 108
    for sample in puzzles[:20]:
        shown = sample.inputs["sudoku"].replace("\n", "")
        fitting = [g for g in make._grids() if all(p in ("0", str(v)) for p, v in zip(shown, g, strict=True))]
        assert shown.count("0") == 4
        assert len(fitting) == 1
    assert len(make._grids()) == 288  # a known number


def test_a_sentences_words_come_from_one_two_or_four_topics():
    home = {word: topic for topic, words in TOPICS.items() for word in words}
    for level, topics in (("easy", 1), ("medium", 2), ("hard", 4)):
        for sample in load(f"words_to_sentence/{level}"):
            assert len({home[word] for word in sample.answer["words"]}) == topics


def test_the_word_lists_are_as_long_as_the_benchmarks():
    assert (len(set(FIRST)), len(set(LAST)), len(set(WORDS)), len(LETTERS)) == (92, 192, 99, 26)


def test_the_stored_waiting_lines_come_out_again_place_by_place():
    """With names that sort, and repeat, like the benchmark's, all 2,000 stored samples and their examples."""
    stored = OFFICIAL["stored"]
    names = [f"{first} {last}" for first in stored["first"] for last in stored["last"]]
    for family, (low, high) in {"waiting_line": (3, 6), "waiting_line_n15": (15, 15)}.items():
        for operation, expected in stored["files"][family].items():
            own = f"{operation}_list" if operation.startswith(("insert", "remove", "replace")) else operation
            random = Random(seed_of(own))
            filled = {size: [] for size in range(low, high + 1)}
            each = 100 // len(filled)
            while sum(map(len, filled.values())) < 100:
                draft = make._operated(random, operation, names, low, high)
                if len(filled[draft.bucket]) < each:
                    filled[draft.bucket].append(draft)
            drafts = [draft for size in filled for draft in filled[size]]
            shown = [make._operated(random, operation, names, low, high) for _ in drafts]
            found = [[*map(draft_in_numbers, pair)] for pair in zip(drafts, shown, strict=True)]
            assert found[0] == expected["first"], (family, operation)
            assert digest(found) == expected["crc32"], (family, operation)


def draft_in_numbers(draft):
    return in_numbers(draft.inputs, draft.gold)


def in_numbers(inputs, gold):
    """[input, answer, word, index] of names like "012 045"."""

    def people(text):
        return [[int(part) for part in name.split()] for name in json.loads(text)]

    word = [int(part) for part in inputs["word"].split()] if "word" in inputs else None
    return [people(inputs["context"]), people(gold), word, inputs.get("index")]


@pytest.mark.parametrize("name", OFFICIAL["drawn"])
def test_what_the_benchmarks_generator_draws_from_these_words_is_drawn_here(name):
    fields = sorted(TASKS[name].maker(Random(0)).inputs)
    samples = load(name, prompt="|".join(f"{field}={{{field}}}" for field in fields))
    assert digest([[*(m["content"] for m in s.messages), s.gold] for s in samples]) == OFFICIAL["drawn"][name]


def corrupted(sample):
    """The right text, and what models make of it."""
    gold, lines = sample.gold, sample.gold.split("\n")
    items = make.parsed(gold)
    made = [
        gold,
        f"Sure! Here it is:\n{gold}",
        f"{gold}\nDone.",
        gold.replace('"', ""),
        gold.replace('"', "'"),
        "",
        "[]",
        '["]',
    ]
    made += [
        gold.replace(", ", ","),
        gold.replace(", ", " , "),
        gold.rstrip("]"),
        gold.lstrip("["),
        f"[{gold}]",
        gold.lower(),
    ]
    made += [
        gold.replace(",", ";"),
        f"{gold} {gold}",
        "[" + gold,
        gold.replace("\n", "\n\n"),
        gold.replace("\n", " "),
        gold[:-2],
    ]
    made += [
        "\n".join(reversed(lines)),
        "\n".join([*lines, lines[0]]),
        "\n".join(lines[1:]),
        f" {gold} ",
        gold.replace(", ", ", \n"),
    ]
    if items:
        word = sample.inputs.get("word", "Zed")
        made.append(make.list_text(sample.items))
        made += [
            make.list_text(other) for other in (items[::-1], items[1:], items[:-1], (*items, items[0]), (*items, word))
        ]
        made += [
            make.list_text(other) for other in ((word, *items), (*items[1:], items[0]), sorted(items), [*items, ""])
        ]
        made.append(make.list_text([items[0], *items[:-1]]))
        swapped = [items[1], items[0], *items[2:]] if len(items) > 1 else items
        made.append(make.list_text(swapped))
        for place in range(len(sample.items)):
            less = [*sample.items[:place], *sample.items[place + 1 :]]
            made += [make.list_text(less), make.list_text([*sample.items[:place], word, *sample.items[place + 1 :]])]
            made.append(make.list_text([*sample.items[:place], word, *sample.items[place:]]))
    return made


def judged(name, which):
    """Samples and texts that the benchmark's metrics and these were both asked about."""
    samples = load(name)
    return [(sample, text) for sample in samples[:: max(1, len(samples) // which)] for text in corrupted(sample)]


@pytest.mark.parametrize("name", OFFICIAL["scores"])
def test_metrics_agree_with_the_benchmarks(name):
    expected, pairs = OFFICIAL["scores"][name], judged(name, OFFICIAL["samples"])
    for kind, strict in (("loose", False), ("strict", True)):
        found = "".join(f"{score(sample, text, strict=strict):.0f}" for sample, text in pairs)
        assert found == expected[kind]
    assert {"0", "1"} <= set(expected["loose"])


def made_of(items, **more):
    return {"input": list(items), **more}


def test_a_shuffle_must_move_something():
    answer = made_of("ab")
    assert score("letters/shuffle", '["a", "b"]', answer) == 0
    assert score("letters/shuffle", '["b", "a"]', answer) == score("letters/shuffle", '["b", "a"]', answer, True) == 1
    assert score("letters/shuffle", "[b, a]", answer) == 1
    assert score("letters/shuffle", "[b, a]", answer, strict=True) == 0
    assert score("letters/shuffle", '["b", "b"]', answer) == 0


def test_a_removal_of_two_is_wrong():
    answer = made_of("abcd")
    assert score("letters/remove_random", '["a", "b"]', answer) == 0
    assert score("letters/remove_random", '["a", "b", "d"]', answer) == 1
    assert score("letters/remove_random", '["b", "a", "d"]', answer) == 0
    assert score("letters/remove_random", '["a", "b", "b"]', answer) == 0


def test_an_insertion_of_the_word_twice_is_wrong():
    answer = made_of("ab", word="x")
    assert score("letters/insert_random", '["x", "a", "x", "b"]', answer) == 0
    assert score("letters/insert_random", '["a", "x", "b"]', answer) == 1


def test_a_replacement_changes_one_item():
    answer = made_of("abc", word="x")
    assert score("letters/replace_random", '["a", "x", "c"]', answer) == 1
    assert score("letters/replace_random", '["x", "x", "c"]', answer) == 0
    assert score("letters/replace_random", '["a", "b", "c"]', answer) == 0


def test_a_latin_squares_rows_hold_every_symbol_once():
    """A fifth column passes the benchmark's own metric, which looks at sets of cells."""
    answer = {"symbols": list("ABCD")}
    square = ["A,B,C,D", "B,C,D,A", "C,D,A,B", "D,A,B,C"]
    assert score("puzzle/latin_square_n4", "\n".join(square), answer) == 1
    assert score("puzzle/latin_square_n4", "\n".join(f"{row},{row[0]}" for row in square), answer) == 0
    assert score("puzzle/latin_square_n4", "\n".join([square[0]] * 4), answer) == 0


def test_running_sums_have_a_strict_score():
    """The benchmark's strict list wants quotes, which the task's own answers have not."""
    sample = load("extras/cumsum")[0]
    assert score(sample, sample.gold, strict=True) == 1
    assert score(sample, f"It is {sample.gold}.") == 1
    assert score(sample, f"It is {sample.gold}.", strict=True) == 0


def test_a_long_number_is_compared_digit_by_digit():
    """The benchmark's loose metric writes the number as a float, whose digits end after the sixteenth."""
    answer = {"result": str(10**29 + 7)}
    assert score("extras/math_op_l2_plus", f"It is {10**29 + 7:,}.", answer) == 1
    assert score("extras/math_op_l2_plus", f"{10**29 + 8}", answer) == 0
    assert score("extras/math_op_l2_plus", f"{10**29 + 7}", answer, strict=True) == 1
    assert score("extras/math_op_l2_plus", "It is 3120.", {"result": "12"}) == 0


def test_a_sentence_needs_its_words_and_its_grammar():
    answer = {"words": ["boat", "storm"]}
    assert sentence("The boat left.", answer, lambda text: True)["score"] == 0
    assert sentence("Boat storm.", answer, lambda text: False) == {"inclusion": 0, "grammar": 0, "score": 0}
    assert sentence("The boat met a storm.", answer, lambda text: True)["score"] == 1
    assert sentence("", {"words": []}, lambda text: True)["grammar"] == 0
    assert TASKS["words_to_sentence/easy"].metric == "inclusion"  # not called the benchmark's score


def test_language_tool_is_asked_where_it_is_there(monkeypatch):
    class LanguageTool:
        def __init__(self, language):
            assert language == "en-US"

        def check(self, text):
            return ["a mistake"] if "boats is" in text else []

    module = ModuleType("language_tool_python")
    module.LanguageTool = LanguageTool
    monkeypatch.setitem(sys.modules, "language_tool_python", module)
    check = language_tool()
    assert check("The boat is late.")
    assert not check("The boats is late.")


def test_a_stored_file_is_read_with_its_examples(tmp_path):
    row = {
        "input": {
            "context": '["a", "b"]',
            "word": "x",
            "icl_examples": [
                {"input": {"context": '["c"]', "word": "y"}, "answer": {"example": '["y", "c"]'}, "metadata": {}}
            ],
        },
        "answer": {"input": ["a", "b"], "word": "x", "example": '["a", "x", "b"]'},
        "metadata": {"length": 2},
    }
    file = tmp_path / "insert_random.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (sample,) = load("waiting_line/insert_random", file=file, prompt="{word} into {context}")
    assert [m["content"] for m in sample.messages] == ['y into ["c"]', '["y", "c"]', 'x into ["a", "b"]']
    assert (sample.items, sample.cells, sample.size) == (("a", "b"), 3, 2)
    assert score(sample, sample.gold, strict=True) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"input": {}}', '{"input": {"context": "x"}, "answer": 3}'])
def test_refuses_a_file_that_holds_something_else(tmp_path, text):
    file = tmp_path / "copy.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(DataError, match=r"line 1 is no sample of waiting_line/copy"):
        load("waiting_line/copy", file=file, prompt="{context}")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load("waiting_line/cpy"), "Did you mean 'waiting_line/copy'"),
        (lambda: load("waiting_line/copy", "tset"), "Did you mean 'test'"),
        (lambda: load("waiting_line/copy", samples=30), "is no multiple"),
        (lambda: load("waiting_line/copy", prompt="{word}"), "asks for 'word'"),
        (lambda: make.list_operation("copy", LETTERS, 0, 3), "use 1 to 26"),
        (lambda: make.list_operation("shuffle", LETTERS, 1, 3), "use 2 to 26"),
        (lambda: make.list_operation("insert_random", LETTERS, 6, 26), "use 1 to 25"),
        (lambda: make.list_operation("copy", ("a", 'b"'), 1, 2), "holds a quote, comma or bracket"),
        (lambda: make.list_operation("copy", ("a", "b,"), 1, 2), "holds a quote, comma or bracket"),
        (lambda: make.list_operation("copy", ("a", "a"), 1, 2), "there twice"),
        (lambda: make.list_operation("rotate", LETTERS, 1, 2), "unknown operation"),
        (lambda: make.sudoku(3), "use 4 to 15"),
        (lambda: score("letters/copy", "[]"), "without an answer"),
        (lambda: score("letters/shuffle", "[]", '["a"]'), "needs its parts"),
        (lambda: score("letters/coppy", "[]", "[]"), "Did you mean 'letters/copy'"),
        (lambda: grade([], []), "Give one answer for each sample"),
    ],
)
def test_refuses_what_has_no_meaning(call, says):
    with pytest.raises(MethodError, match=says):
        call()


def test_says_what_to_do_without_language_tool(monkeypatch):
    monkeypatch.setitem(sys.modules, "language_tool_python", None)
    with pytest.raises(MethodError, match="needs Java"):
        language_tool()
