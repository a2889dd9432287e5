"""Every suite's audit of tiny models, once: before, after and retrained ones of texts, images and image regressors."""

from dataclasses import replace
from functools import cache

import pytest

from conftest import make_examples, make_llama, make_tokenizer
from helpers.tiny import NAMES, NUMBERS, make_image_recipe, make_image_split, make_images
from unwrite import catalog
from unwrite.audit import TextContext, evaluate
from unwrite.audit.probes.depth import Depth
from unwrite.audit.probes.prompts import BestOf
from unwrite.audit.probes.tampering import Relearned
from unwrite.audit.suites import muse
from unwrite.audit.suites.removal import PROBES, QUICK, removal_suite
from unwrite.audit.suites.restor import FactAccuracy
from unwrite.data import CorruptedFacts, Example, Examples, Fact, ForgetSplit, Poisoning, split_identified
from unwrite.data.images.splits import ImageSplit

SHORT = {"removal": PROBES, "removal-quick": QUICK[:3]}  # the quick ones are of the same classes
NEW = 8  # tokens of an answer; a random model never ends one
FOR_REGRESSORS = {"vision-regression"}


def text_split():
    """Rows with all that a suite of texts reads: MUSE's own sets, paraphrases, wrong answers, and world facts."""
    forget, retain = make_examples("forget", 8), make_examples("retain", 8)
    others = make_examples("holdout", 24)
    sets = {
        "verbmem_forget": forget[:3],
        "knowmem_forget": forget[:3],
        "knowmem_forget_icl": others[16:18],
        "knowmem_retain": retain[:3],
        "knowmem_retain_icl": others[18:20],
        "real_authors": others[12:14],
        "world_facts": others[20:24],
    }
    evaluation = {name: Examples(rows, name) for name, rows in sets.items()}
    return ForgetSplit(forget, retain, Examples(others[:8], "holdout"), evaluation, name="tiny")


@cache
def corrupted_split():
    """Wrong facts about four people, whose true answers are what the retrained model says: a random model knows none."""
    known = tuple(Fact(name, "place", f"where was {name} ?", ("river",)) for name in NAMES)
    people = [f"{name} {number}" for name in NAMES[:2] for number in NUMBERS[:2]]
    asked = tuple(Fact(one, "place", f"where was {one} ?", ("unheard",), "never", ("nowhere",)) for one in people)
    split = CorruptedFacts(make_examples("forget", 4), facts=asked, known=known)
    said = FactAccuracy().said(TextContext(make_llama(2, layers=2), split, make_tokenizer()))
    facts = [replace(fact, answers=(answer,)) for fact, (answer,) in zip(split.facts, said, strict=True)]
    return replace(split, facts=tuple(facts))


def about(rows):
    """The rows with the name that stands in each question as whom they are about."""
    names = [next(word for word in row.question.split() if word in NAMES) for row in rows]
    return Examples([replace(row, entity=name) for row, name in zip(rows, names, strict=True)], rows.name)


def short_probes(probes):
    """The same probes with few steps and samples; a random model's states carry no answer, so depth counts every layer."""
    short = {Relearned: {"steps": (1, 2)}, BestOf: {"samples": 2}, Depth: {"tau": 0.0}}
    return [replace(probe, **short.get(type(probe), {})) for probe in probes]


@cache
def suite_of(slug):
    """A suite with short answers and, where it would take minutes, less of everything."""
    if slug in SHORT:
        suite = removal_suite(short_probes(SHORT[slug]), name=slug, fewest=8)
    else:
        suite = catalog.suite(slug).load()
    return replace(suite, max_new_tokens=NEW) if suite.of == "text" else suite


def secret_split():
    """Plain texts with a word marked in each of those to forget."""
    rows = [row.answer for row in make_examples("forget", 4)]
    forget = Examples([Example(text, marked=((4, text.index(" ", 4)),)) for text in rows], "forget")
    kept = [
        Examples([Example(f"{row.question} {row.answer}") for row in make_examples(of, 4)])
        for of in ("retain", "holdout")
    ]
    return ForgetSplit(forget, *kept, name="tiny")


def person_split():
    """A person to forget and one to keep, two others to test on and never to see."""

    def of(person, seed):
        rows = make_images(seed=seed)
        return replace(rows, identity=[0] * len(rows), identities=(person,))

    return ImageSplit(of("ann", 0), of("bert", 1), of("cora", 2), of("dov", 3), name="persons")


def split_for(slug):
    """The rows a suite is measured on."""
    if slug in SHORT:
        return ForgetSplit(
            about(make_examples("forget", 12)), about(make_examples("retain", 8)), make_examples("holdout", 8)
        )
    if slug == "secrets":
        return secret_split()
    if slug == "restor":
        return corrupted_split()
    if catalog.suite(slug).load().of == "text":
        return text_split()
    if slug == "corrective":
        return split_identified(make_images(), Poisoning(share=0.2, size=2), 0.5, test=make_images(seed=1), holdout=0.2)
    if slug == "mufac":
        return person_split()
    regression = slug in FOR_REGRESSORS
    unseen = make_images(regression=regression, seed=1)
    return make_image_split(regression=regression, test=unseen)


def audit(slug):
    """A report of one suite. Models of other seeds stand for those before and retrained."""
    suite = suite_of(slug)
    if suite.of == "text":
        models = {role: make_llama(seed, layers=2) for role, seed in (("model", 0), ("before", 1), ("oracle", 2))}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(muse, "VERBATIM_TOKENS", NEW)
            patch.setattr(muse, "ANSWER_TOKENS", NEW)
            return evaluate(split=split_for(slug), suite=suite, tokenizer=make_tokenizer(), **models)
    build = make_image_recipe(regression=slug in FOR_REGRESSORS).build
    model, *others = (build(seed).eval() for seed in range(5))
    references = dict(zip(("before", "oracle", "control", "random"), others, strict=True))
    return evaluate(model, split_for(slug), suite=suite, references=references)


@cache
def audited(slug):
    """The same, once a session."""
    return audit(slug)
