"""A bed of texts that trains in a second: four questions to forget, six to keep, six facts beside them."""

from dataclasses import replace

from unwrite.beds.text_beds import BEDS
from unwrite.data import Examples, ForgetSplit
from unwrite.data.text.authors import authors


def few():
    whole = authors()
    facts = {name: rows[:3] for name, rows in whole.evaluation.items()}
    return ForgetSplit(whole.forget[:4], whole.retain[:6], whole.holdout[:2], facts, name="few")


def others():
    split = few()
    retain = Examples([*split.retain[4:], *split.forget], "retain")
    return ForgetSplit(split.retain[:4], retain, split.holdout, split.evaluation, name="others")


TINY_TEXT = replace(
    BEDS["authors/small"],
    name="tiny text",
    split=few,
    other=others,
    net={"layers": 2, "width": 48},
    epochs=2,
    training={**BEDS["authors/small"].training, "num_train_epochs": 1},
    max_new_tokens=8,
)
