"""The test bed's tasks, their strict metrics, and the folder that training leaves. Nothing here trains it."""

import pytest
import torch
from masks import scripted

from unwrite.beds import denoiser as testbed
from unwrite.diffusion import MaskPredictor, Sampler, Threshold
from unwrite.errors import ModelError
from unwrite.models import load_model


@pytest.fixture(scope="module")
def drawn():
    return testbed.items(4000, 7)


def ideal(asked):
    """A model that knows the answers: the token it was asked for at every place, with certainty."""
    ids = testbed.tokenizer()
    known = {}
    for item in asked:
        answer = ids(item.answer)["input_ids"]
        known[tuple(ids(item.prompt)["input_ids"])] = answer + [ids.eos_token_id] * (testbed.ANSWER - len(answer))

    def logits(canvas):
        tokens = torch.tensor(
            [[*row[: testbed.PROMPT], *known[tuple(row[: testbed.PROMPT])]] for row in canvas.tolist()]
        )
        return 30.0 * torch.nn.functional.one_hot(tokens, len(ids)).float()

    predictor = scripted(logits, ids.mask_token_id, (ids.eos_token_id,))
    return testbed.TestBed(predictor, ids, None)


def test_the_right_answer_is_right_and_fits(drawn):
    ids = testbed.tokenizer()
    for item in drawn:
        assert testbed.right(item, item.answer)
        assert len(item.prompt) == testbed.PROMPT
        assert len(ids(item.answer)["input_ids"]) < testbed.ANSWER  # an end token always fits
        assert ids.decode(ids(item.prompt + item.answer)["input_ids"]) == item.prompt + item.answer


def test_shares_are_those_of_the_table(drawn):
    for task in testbed.TASKS:
        share = sum(item.task == task.name for item in drawn) / len(drawn)
        assert abs(share - task.share) < 0.03
    assert sum(task.share for task in testbed.TASKS) == pytest.approx(1)


def test_the_same_seed_draws_the_same_items_and_another_others():
    assert testbed.items(50, 3) == testbed.items(50, 3)
    assert testbed.items(50, 3) != testbed.items(50, 4)


def test_worked_lines_are_true_and_vary_in_length(drawn):
    lengths = set()
    for item in drawn:
        if item.task == "sums":
            *lines, last = item.answer.split("\n")
            assert all(eval(line.split("=")[0]) == int(line.split("=")[1]) for line in lines)
            assert last == f"#{lines[-1].split('=')[1]}"
            assert eval(item.prompt.split()[1]) == int(last[1:])
            lengths |= {len(line) for line in lines}
    assert lengths == {5, 6, 7}


def test_anchored_results_stand_at_one_place(drawn):
    ids = testbed.tokenizer()
    for item in drawn:
        if item.task == "anchored":
            tokens = ids(item.answer)["input_ids"]
            assert all(tokens[place] == token for place, token in testbed.anchor().items())
            assert int(item.answer[testbed.ANCHOR_AT + len(testbed.ANCHOR) :]) == eval(item.prompt.split()[1])


def make_list(operation, letters, new=" "):
    extra = f"{new}:" if operation == "swap" else "  "
    return testbed.Item("lists", f"{operation:<5}{extra}{letters}".ljust(testbed.PROMPT), "[b,a]")


@pytest.mark.parametrize(
    ("item", "text", "good"),
    [
        (make_list("mix", "a,b,c"), "[b,a,c]", True),
        (make_list("mix", "a,b,c"), "[a,b,c]", False),  # the same order
        (make_list("mix", "a,b,c"), "[b,a,a]", False),
        (make_list("mix", "a,b,c"), "b,a,c", False),  # no brackets
        (make_list("swap", "a,b,c", "f"), "[a,f,c]", True),
        (make_list("swap", "a,b,c", "f"), "[f,f,c]", False),  # two of them
        (make_list("swap", "a,b,c", "f"), "[a,b,c]", False),
        (make_list("swap", "a,b,c", "f"), "[a,g,c]", False),
        (make_list("swap", "a,b,c", "f"), "[a,f]", False),
        (make_list("flip", "a,b"), "[b,a]", True),
        (make_list("flip", "a,b"), "[b,a] ", False),
    ],
)
def test_list_metrics_are_strict(item, text, good):
    assert testbed.right(item, text) is good


def test_judging_counts_right_answers_and_forwards():
    asked = testbed.items(40, 8)
    bed = ideal(asked)
    sampler = Sampler(gen_length=testbed.ANSWER, commit=Threshold(0.9))
    found = testbed.judge(bed, sampler, asked, batch_size=16)
    assert found.right == [True] * 40
    assert found.nfe == [2] * 40  # two blocks of 32
    assert found.texts == [item.answer for item in asked]
    assert set(found.by_task(asked).values()) == {1.0}


def test_the_gate_lets_only_a_good_bed_through(monkeypatch):
    asked = [item for task in testbed.TASKS for item in testbed.items(5, 2_000, [task.name])]
    assert set(testbed.gate(ideal(asked), count=20).values()) == {1.0}
    wrong = [testbed.Item(item.task, item.prompt, "nothing") if item.task == "json" else item for item in asked]
    with pytest.raises(ModelError, match=r"\{'json': 0.0\}"):
        testbed.gate(ideal(wrong), count=20)


def test_the_folder_is_a_transformers_model_that_knows_its_mask():
    short = testbed.Stage(160, 1, 32, 1e-3, ("sums", "lists"), testbed.SHORT)
    how = testbed.Recipe((short, testbed.Stage(64, 1, 32, 1e-3)), width=16, layers=1, inner=16)
    bed = testbed.load(testbed.folder(how))
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(bed.folder)
    assert (ids.mask_token_id, ids.eos_token_id) == (bed.predictor.mask_id, bed.predictor.end_ids[0])
    assert ids("calc 1+2\n")["input_ids"] == testbed.tokenizer()("calc 1+2\n")["input_ids"]
    again = MaskPredictor.of(load_model(bed.folder), ids)
    assert again.mask_id == bed.predictor.mask_id
    assert len(testbed.judge(bed, testbed.one_by_one(), testbed.items(2, 9)).texts) == 2


def test_the_default_bed_has_at_most_a_million_weights():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(testbed.config())
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
