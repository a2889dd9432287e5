"""A model that knows the lists: its conditionals against enumeration, and samplers on it against the closed forms."""

import itertools
import math

import pytest
import torch

from unwrite import diffusion
from unwrite.diffusion import (
    RCR,
    AdaBlock,
    Ascending,
    AscendingBlocks,
    Confidence,
    CreditDecoding,
    CreditThreshold,
    DrawnBlocks,
    EndLast,
    EOSReject,
    Factor,
    Fading,
    FixedBlocks,
    Gumbel,
    LearnedSelect,
    LeftToRight,
    LocalLeap,
    Margin,
    MaskPredictor,
    NegativeEntropy,
    NoEnd,
    Nucleus,
    Origin,
    Prophet,
    RandomNeighbours,
    RandomOrder,
    ReMDM,
    Sampler,
    Threshold,
    TopK,
    Uniform,
)
from unwrite.diffusion.parallelbench import TASKS, IdealListModel, ListTokens, accuracy, bound, load, threshold_accuracy
from unwrite.errors import MethodError, ModelError

TOKENS = ListTokens(tuple("ABCDEFZ"), longest=6)  # small, so that 20,000 rows are
RUNS = 20_000  # a sigma is at most .0035
FEWER, FOUR_SIGMA = 4000, 4 * math.sqrt(0.25 / 4000)
OPERATIONS = (
    "copy", "sort", "reverse", "shuffle", "insert_index", "insert_random", "remove_index", "remove_random", "replace_index",
    "replace_random",
)  # fmt: skip


def predictor(**options):
    model = IdealListModel(TOKENS, **options)
    return MaskPredictor(model, TOKENS.mask_id, (), probe=False)


def frame(operation, items, index=2):
    word = "Z" if operation.startswith(("insert", "replace")) else None
    return TOKENS.prompt(operation, items, word, index if operation.endswith("index") else None)


def written(operation, n, runs=RUNS, model=None, **parts):
    """[runs, m] what a sampler writes for one list of n items."""
    asked = frame(operation, "ABCDEF"[:n])
    settings = {"gen_length": asked.length, "blocks": FixedBlocks(None), **parts}
    out = Sampler(**settings)(model or predictor(), None, [asked.prompt] * runs)
    return torch.tensor(out.answers)


def in_steps(n, k, temperature):
    """Random positions, k a step."""
    return {"steps": n // k, "score": RandomOrder(), "commit": TopK(), "propose": Gumbel(temperature)}


def right(operation, n, answers):
    """Share of the rows that are one of the operation's right answers."""
    possible = torch.tensor([TOKENS.ids(answer) for answer in right_answers(operation, "ABCDEF"[:n])])
    return float((answers[:, None] == possible).all(-1).any(-1).double().mean())


def right_answers(operation, items, index=2):
    """All of them, by the meaning of the words."""
    kind, _, how = operation.partition("_")
    items = list(items)
    if kind == "copy":
        return [items]
    if kind == "sort":
        return [sorted(items)]
    if kind == "reverse":
        return [items[::-1]]
    if kind == "shuffle":
        return [list(order) for order in itertools.permutations(items)]
    places = range(len(items) + (kind == "insert")) if how == "random" else [index]
    if kind == "insert":
        return [[*items[:place], "Z", *items[place:]] for place in places]
    if kind == "remove":
        return [items[:place] + items[place + 1 :] for place in places]
    return [[*items[:place], "Z", *items[place + 1 :]] for place in places]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_logits_are_the_conditionals_of_all_right_answers(operation):
    """Every way to reveal part of any right answer of a list of four, in one batch."""
    items = list("DBCA")
    answers = right_answers(operation, items)
    asked, model = frame(operation, items), IdealListModel(TOKENS, noise=0.0)
    rows, expected = [], []
    for answer in answers:
        for shown in itertools.product((False, True), repeat=len(answer)):
            fitting = [a for a in answers if all(a[i] == answer[i] for i, one in enumerate(shown) if one)]
            cells = [TOKENS.ids([item])[0] if one else TOKENS.mask_id for item, one in zip(answer, shown, strict=True)]
            rows.append(asked.prompt + cells)
            table = torch.zeros(len(answer), TOKENS.size, dtype=torch.float64)
            for a in fitting:
                table[torch.arange(len(a)), TOKENS.ids(a)] += 1 / len(fitting)
            expected.append((table, torch.tensor(shown)))
    found = model(torch.tensor(rows)).logits[:, len(asked.prompt) :].softmax(-1)
    for row, (table, shown) in enumerate(expected):
        assert torch.allclose(found[row][~shown], table[~shown], atol=1e-12)


def test_a_shuffle_that_must_change_leaves_the_list_itself_out():
    items = "ABC"
    answers = [list(order) for order in itertools.permutations(items) if "".join(order) != items]
    asked, model = frame("shuffle", items), IdealListModel(TOKENS, noise=0.0, changed=True)
    for shown in ({}, {0: "A"}, {0: "B"}, {2: "C"}, {1: "B"}):
        cells = [TOKENS.ids([shown[place]])[0] if place in shown else TOKENS.mask_id for place in range(3)]
        found = model(torch.tensor([asked.prompt + cells])).logits[0, len(asked.prompt) :].softmax(-1)
        fitting = [a for a in answers if all(a[place] == item for place, item in shown.items())]
        for place in set(range(3)) - set(shown):
            for item in items:
                p = sum(a[place] == item for a in fitting) / len(fitting)
                assert float(found[place, TOKENS.ids([item])[0]]) == pytest.approx(p, abs=1e-12)


def test_written_one_by_one_such_a_shuffle_always_changes():
    answers = written("shuffle", 3, 2000, predictor(changed=True), **in_steps(3, 1, 1.0))
    assert right("shuffle", 3, answers) == 1
    assert not (answers == torch.tensor(TOKENS.ids("ABC"))).all(1).any()


def test_rows_of_all_operations_and_lengths_are_written_together():
    asked = [frame(operation, "ABCDEF"[:n]) for operation in OPERATIONS for n in (3, 4)]
    for length in {one.length for one in asked}:
        some = [one for one in asked if one.length == length]
        assert len({len(one.prompt) for one in some}) > 1 or length in (2, 5)
        sampler = Sampler(gen_length=length, blocks=FixedBlocks(None), commit=TopK())
        out = sampler(predictor(), None, [one.prompt for one in some])
        names = {place: name for name, place in TOKENS.operations.items()}
        for one, answer in zip(some, out.answers, strict=True):
            items = [TOKENS.items[i - TOKENS.first_item] for i in one.prompt[3:]]
            assert answer in [TOKENS.ids(a) for a in right_answers(names[one.prompt[0]], items)]


def test_where_nothing_can_be_right_any_more_the_nearest_answers_count():
    """Two cells hold the new item: the third goes on as if one of them did."""
    asked = frame("replace_random", "ABC")
    new = TOKENS.ids("Z")[0]
    model = IdealListModel(TOKENS, noise=0.0)
    found = model(torch.tensor([[*asked.prompt, new, new, TOKENS.mask_id]])).logits[0, -1].softmax(-1)
    assert float(found[TOKENS.ids("C")[0]]) == pytest.approx(1, abs=1e-12)


def test_noise_breaks_ties_and_moves_no_probability():
    asked = frame("shuffle", "ABCD")
    canvas = torch.tensor([asked.prompt + [TOKENS.mask_id] * 4] * 400)
    cells = IdealListModel(TOKENS).__call__(canvas).logits[:, len(asked.prompt) :]
    assert float((cells.softmax(-1)[..., TOKENS.ids("ABCD")] - 0.25).abs().max()) < 1e-5  # five sigma of 1e-6
    chosen = torch.bincount(cells.argmax(-1).flatten(), minlength=TOKENS.size)[TOKENS.ids("ABCD")]
    assert int(chosen.sum()) == 1600
    assert int(chosen.min()) > 320  # 400 +- 17, so more than four sigma


def test_the_same_seed_gives_the_same_noise_and_each_call_other_noise():
    asked = frame("shuffle", "ABCD")
    canvas = torch.tensor([asked.prompt + [TOKENS.mask_id] * 4])
    one, two = IdealListModel(TOKENS, seed=3), IdealListModel(TOKENS, seed=3)
    first = one(canvas).logits
    assert torch.equal(first, two(canvas).logits)
    assert not torch.equal(first, one(canvas).logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 0.375), (4, 0.09375)])
def test_shuffles_come_out_right_as_often_as_the_paper_says(k, expected, temperature):
    found = right("shuffle", 4, written("shuffle", 4, **in_steps(4, k, temperature)))
    assert found == pytest.approx(expected, abs=0.01 if k > 1 else 0)
    assert expected == accuracy("shuffle", 4, k)


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 0.5), (3, 0.0), (6, 0.0)])
def test_greedy_replacements_come_out_right_until_three_a_step(k, expected):
    runs = RUNS if k == 2 else 2000  # the others are certain
    found = right("replace_random", 6, written("replace_random", 6, runs, **in_steps(6, k, 0.0)))
    assert found == pytest.approx(expected, abs=0.015 if k == 2 else 0)  # four sigma
    assert expected == accuracy("replace_random", 6, k, greedy=True)


def test_one_drawn_shot_at_six_replacements():
    found = right("replace_random", 6, written("replace_random", 6, **in_steps(6, 6, 1.0)))
    assert found == pytest.approx(0.4019, abs=0.01)
    assert accuracy("replace_random", 6, 6) == pytest.approx(0.4019, abs=5e-5)


@pytest.mark.parametrize("k", [2, 3])
def test_drawn_replacements_follow_the_closed_form(k):
    found = right("replace_random", 6, written("replace_random", 6, FEWER, **in_steps(6, k, 1.0)))
    assert found == pytest.approx(accuracy("replace_random", 6, k), abs=FOUR_SIGMA)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_shuffles_accuracy_is_two_to_the_minus_bound(k):
    found = right("shuffle", 6, written("shuffle", 6, FEWER, **in_steps(6, k, 1.0)))
    assert found == pytest.approx(2 ** -bound("shuffle", 6, k), abs=FOUR_SIGMA)
    for n in (2, 3, 4, 6, 12):
        if n % k == 0:
            assert accuracy("shuffle", n, k) == pytest.approx(2 ** -bound("shuffle", n, k), abs=1e-9)


@pytest.mark.parametrize(("gamma", "expected"), [(0.80, 0.0), (0.84, 1.0)])
def test_a_threshold_must_be_above_five_sixths_to_replace_one_of_six(gamma, expected):
    answers = written("replace_random", 6, 500, commit=Threshold(gamma))
    assert right("replace_random", 6, answers) == expected == threshold_accuracy("replace_random", 6, gamma)


@pytest.mark.parametrize("away", [-1e-9, 1e-9])
def test_the_boundary_is_at_the_confidence_of_the_old_items(away):
    """(n - 1) / n to nine digits; at the boundary itself, where the conventions differ, rounding would decide."""
    answers = written("replace_random", 4, 50, predictor(noise=0.0), commit=Threshold(0.75 + away))
    assert (
        right("replace_random", 4, answers) == threshold_accuracy("replace_random", 4, 0.75 + away) == float(away > 0)
    )


@pytest.mark.parametrize("gamma", [0.3, 0.45, 0.6])
def test_thresholded_shuffles_follow_the_closed_form(gamma):
    found = right("shuffle", 4, written("shuffle", 4, FEWER, commit=Threshold(gamma)))
    assert found == pytest.approx(threshold_accuracy("shuffle", 4, gamma), abs=FOUR_SIGMA)


@pytest.mark.parametrize("operation", ["copy", "sort", "reverse", "insert_index", "remove_index", "replace_index"])
@pytest.mark.parametrize("score", [RandomOrder(), LeftToRight(), Confidence(), Margin(), NegativeEntropy()])
@pytest.mark.parametrize("commit", [TopK(), Threshold(0.5), Factor(1.9)])
def test_what_is_determined_is_right_with_any_strategy(operation, score, commit):
    length = frame(operation, "ABCDEF").length
    for steps in (2, length):
        parts = {"steps": steps, "score": score, "commit": commit, "propose": Gumbel(1.0)}
        assert right(operation, 6, written(operation, 6, 8, **parts)) == 1


EVERYTHING = {
    "AdaBlock": {"blocks": AdaBlock(2, delimiters=(TOKENS.first_item,))},
    "AscendingBlocks": {"blocks": AscendingBlocks(2), "quota": Ascending(), "commit": TopK(), "steps": 2},
    "CreditDecoding": {"logits": CreditDecoding()},
    "CreditThreshold": {"logits": CreditDecoding(), "commit": CreditThreshold()},
    "Dream's": {"quota": Fading(), "commit": TopK(0.5), "propose": Nucleus(), "steps": 3},
    "DrawnBlocks": {"blocks": DrawnBlocks((1, 2, 3))},
    "End tokens": {"logits": NoEnd(), "score": EndLast(), "quota": Uniform(), "commit": TopK()},
    "EOSReject": {"score": EOSReject(ends=(TOKENS.first_item,))},
    "LearnedSelect": {"commit": LearnedSelect(torch.logit), "steps": 3},
    "LocalLeap": {"commit": LocalLeap()},
    "Origin": {"commit": Origin(), "steps": 3},
    "Prophet": {"stop": Prophet(region="all_masked"), "commit": TopK(), "steps": 6},
    "RandomNeighbours": {"commit": RandomNeighbours()},
    "RCR": {"commit": RCR(), "steps": 3},
    "ReMDM": {"commit": ReMDM(), "steps": 3},
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_copy_is_right_with_every_decoder_there_is(name):
    parts = {"propose": Gumbel(1.0), **EVERYTHING[name]}
    assert right("copy", 6, written("copy", 6, 8, **parts)) == 1


def test_every_part_that_decides_what_is_written_has_copied():
    kinds = tuple(getattr(diffusion, kind) for kind in ("Blocks", "Logits", "Proposal", "Score", "Quota", "CommitRule"))
    exported = [getattr(diffusion, name) for name in diffusion.__all__]
    known = {part for part in exported if isinstance(part, type) and issubclass(part, (*kinds, diffusion.Stop))}
    used = {type(part) for parts in EVERYTHING.values() for part in parts.values()}
    strategies = {FixedBlocks, RandomOrder, LeftToRight, Confidence, Margin, NegativeEntropy, Threshold, Factor, Gumbel}
    assert known - {*kinds, diffusion.Stop} == (used | strategies) - {int}


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_change_the_order_and_not_the_chance(block):
    """One by one in any blocks every order is right; and k a step lose as much from left to right as at random."""
    parts = {"blocks": FixedBlocks(block), "commit": TopK(), "propose": Gumbel(1.0)}
    assert right("shuffle", 6, written("shuffle", 6, 100, steps=6, **parts)) == 1
    found = right("shuffle", 6, written("shuffle", 6, 1000, steps=6 // block, score=LeftToRight(), **parts))
    assert found == pytest.approx(accuracy("shuffle", 6, block), abs=4 * math.sqrt(0.25 / 1000))


def test_every_letters_sample_has_a_frame_whose_answer_is_its_gold():
    tokens = ListTokens()
    for operation in OPERATIONS:
        for sample in load(f"letters/{operation}"):
            asked = tokens.frame(sample)
            assert asked.length == sample.cells
            assert len(asked.prompt) == 3 + len(sample.items)
            items = [tokens.items[i - tokens.first_item] for i in asked.prompt[3:]]
            assert items == list(sample.items)
            gold = tokens.ids([item.strip('"') for item in sample.gold[1:-1].split(", ")])
            assert tokens.text(gold) == sample.gold


def test_sorting_whole_names_is_sorting():
    assert TASKS["waiting_line/sort_fullname"].operation == "sort_fullname"
    sample = load("waiting_line/sort_fullname")[0]
    tokens = ListTokens(tuple(sorted(sample.items)))
    assert tokens.frame(sample).prompt[0] == tokens.operations["sort"]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ListTokens(("b", "a")), MethodError, "alphabetical order"),
        (lambda: ListTokens(("a", "a")), MethodError, "there twice"),
        (lambda: ListTokens(('"', "a")), MethodError, "holds a quote, comma or bracket"),
        (lambda: TOKENS.prompt("copy", []), MethodError, "use at least 1"),
        (lambda: TOKENS.prompt("shuffle", ["A"]), MethodError, "use at least 2"),
        (lambda: TOKENS.prompt("remove_random", ["A"]), MethodError, "use at least 2"),
        (lambda: TOKENS.prompt("copy", ["AB"]), MethodError, "no token of its own"),
        (lambda: TOKENS.prompt("copi", ["A"]), MethodError, "Did you mean 'copy'"),
        (lambda: TOKENS.prompt("remove_index", ["A", "B"], index=2), MethodError, "outside 0 to 1"),
        (lambda: TOKENS.prompt("insert_index", ["A", "B"], "C", 3), MethodError, "outside 0 to 2"),
        (lambda: TOKENS.prompt("insert_index", list("ABCDEFZ"), "C", 7), MethodError, "outside 0 to 6"),
        (lambda: TOKENS.prompt("replace_index", ["A", "B"], "C"), MethodError, "with the index None"),
        (lambda: TOKENS.prompt("insert_random", ["A", "B"], "C", 1), MethodError, "with the index 1"),
        (lambda: TOKENS.prompt("insert_random", ["A", "B"]), MethodError, "with the word None"),
        (lambda: TOKENS.prompt("copy", ["A", "B"], "C"), MethodError, "with the word 'C'"),
        (lambda: TOKENS.frame(load("letters/repeat_each")[0]), MethodError, "not written in list tokens"),
        (lambda: TOKENS.frame(load("waiting_line/sort_lastname")[0]), MethodError, "not written in list tokens"),
        (lambda: TOKENS.frame(load("puzzle/sudoku_n4_12")[0]), MethodError, "not written in list tokens"),
        (lambda: IdealListModel(noise=0.1), MethodError, "use 0 to 1e-3"),
        (lambda: IdealListModel(TOKENS)(torch.tensor([[0, 0, 0, 0]])), ModelError, "no list operation"),
        (lambda: IdealListModel(TOKENS)(torch.tensor([[2, 0, 0, 20, 1, 1]])), ModelError, "Check gen_length"),
    ],
)
def test_refuses_what_has_no_meaning(call, error, says):
    with pytest.raises(error, match=says):
        call()
