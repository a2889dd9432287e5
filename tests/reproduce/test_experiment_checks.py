"""What each experiment's checks make of figures: all hold where they should, and each can fail for its own reason."""

import json
import re
from importlib import import_module
from importlib.resources import files
from types import SimpleNamespace

import pytest

from unwrite.beds.authors import Ends, Point
from unwrite.beds.synthetic import Track
from unwrite.beds.texts import TimedDecoding
from unwrite.reproduce import (
    aded,
    muse,
    npo,
    rsd,
    token_recycling,
    uld,
)
from unwrite.reproduce.base import HEADLINE
from unwrite.reproduce.checks import verdict_of

RESULTS = files("unwrite").joinpath("results")
SLUGS = sorted(path.name[:-5] for path in RESULTS.iterdir() if path.name.endswith(".json"))


def failed(checks):
    return [check.text for check in checks if check.holds is not True]


# Headlines.


@pytest.mark.parametrize("slug", SLUGS)
def test_a_headline_is_made_of_the_stored_figures(slug):
    result = json.loads(RESULTS.joinpath(f"{slug}.json").read_text(encoding="utf-8"))
    module = import_module(f"unwrite.reproduce.{slug.replace('-', '_')}")
    assert module.headline(result["rows"], result["extra"]) == result["headline"]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_headline_fits_its_cell_with_the_longest_figures(slug):
    """Hours of measuring must not end in a refusal: figures of three digits, with exponents and signs."""
    result = json.loads(RESULTS.joinpath(f"{slug}.json").read_text(encoding="utf-8"))

    def longest(cell):
        if not isinstance(cell, str):
            return cell
        if " to " in cell:
            return "-12.3 (-14.5 to -10.1)"
        if " (" in cell:
            return "100.0 +- 0.0 (100.0)"
        return "1.23e-05 +- 0.1" if " +- " in cell else re.sub(r"^[\d.]+", "123.4", cell)

    rows = {name: [longest(cell) for cell in row] for name, row in result["rows"].items()}
    module = import_module(f"unwrite.reproduce.{slug.replace('-', '_')}")
    assert len(module.headline(rows, result["extra"])) <= HEADLINE


# Estimates.


def decoded(seconds, rates, texts=None):
    texts = texts or [[1] * 10 for _ in rates]
    return TimedDecoding(texts, list(rates), forwards=10, each=list(seconds))


def test_speed_is_tokens_a_second_over_plain_decodings():
    plain = decoded([4.0, 6.0], [1, 1])
    value, (low, high) = decoded([2.0, 2.0], [2, 2]).speed(plain)
    assert (value, low, high) == (2.5, 2.0, 3.0)


# Text methods.


def track(best_retain, end):
    return Track([2.0, 1.0, 3.0], [0.0, best_retain, end])


def tracks(npo_=0.1, both=0.1, ga=0.5, difference=0.5, end=1.0):
    return {"NPO": track(npo_, 1), "NPO+RT": track(both, 1), "GA": track(ga, end), "GradDiff": track(difference, 1)}


@pytest.mark.parametrize(
    ("differs", "fails"),
    [({}, None), ({"npo_": 0.6}, "than GA"), ({"both": 0.6}, "than GradDiff"), ({"end": 0.59}, "keeps growing")],
)
def test_npos_synthetic_comparisons(differs, fails):
    checks = npo._checks(1.0, [tracks(**differs), tracks(**differs)])
    assert [fails in text for text in failed(checks)] == ([True] if fails else [])
    assert npo._checks(1.0, [tracks(), tracks(**differs)])[0].holds is (None if "npo_" in differs else True)


def ends(quality=0.5, ga=0.01, difference=0.01, rouge=0.8, forget=0.15):
    points = {"NPO+RT": Point(forget, 0.9, quality), "GA": Point(0, ga, 0), "GradDiff": Point(0, difference, 0.1)}
    return Ends({name: [point] for name, point in points.items()}, {"NPO+RT": [rouge]}, twin=0.1, start_rouge=1.0)


@pytest.mark.parametrize(
    ("differs", "fails"),
    [
        ({}, None),
        ({"quality": 0.08}, "forget quality"),
        ({"ga": 0.2}, "GA's"),
        ({"difference": 0.2}, "GradDiff's"),
        ({"rouge": 0.6}, "ROUGE"),
        ({"forget": 0.21}, "forget probability"),
    ],
)
def test_npos_conditions_on_authors(differs, fails):
    texts = failed(npo._on_authors(ends(**differs)))
    assert [fails in text for text in texts] == ([True] if fails else [])


def muse_found(leak=-90.0, retrained=0.0, verbatim=1.0, utility=1.0, kept=3.0):
    def of(**more):
        return [{"verbmem_f": 80.0, "knowmem_f": 5.0, "privleak": 0.0, "knowmem_r": 10.0, **more}]

    found = {
        "target": of(privleak=leak),
        "retrain": of(privleak=retrained),
        "GA": of(verbmem_f=verbatim, knowmem_r=utility),
    }
    found |= {name: of(knowmem_r=kept) for name in ("GA_GDR", "NPO_GDR")}
    return found | {"NPO": of(knowmem_r=2.0)}


@pytest.mark.parametrize(
    ("differs", "last", "verdict"),
    [
        ({}, 1.0, "reproduced"),
        ({"leak": -10.0}, 1.0, "bed says nothing"),
        ({"retrained": 1.0}, 1.0, "untested here"),
        ({"verbatim": 20.0}, 1.0, "not reproduced"),
        ({"utility": 6.0}, 1.0, "partly"),
        ({"kept": 0.5}, 1.0, "partly"),
        ({}, 5.0, "partly"),
    ],
)
def test_muses_statements(differs, last, verdict):
    kept = {name: [[4.0, 3.0, 2.0, last]] for name in ("GA", "NPO")}
    assert verdict_of(muse._checks(muse_found(**differs), kept)) == verdict


def uld_found(forget=0.1, rouge=0.5, utility=0.99, ga=0.5, epoch=0.4):
    own = {"forget": forget, "rouge": rouge, "utility": utility, "epoch": epoch, "npo epoch": 1.0}
    return {"ULD": [own], "GA": [{"utility": ga}], "NPO": [{"utility": 0.5}]}


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"forget": 0.7}, "not reproduced"),
        ({"rouge": 1.0}, "partly"),
        ({"utility": 0.9}, "partly"),
        ({"ga": 0.95}, "not reproduced"),
        ({"epoch": 0.6}, "partly"),
    ],
)
def test_uld_that_forgets_nothing_is_not_partly_reproduced(differs, verdict):
    checks = uld._checks(uld_found(**differs), {"utility": 1.0}, {"forget": 0.1, "rouge": 0.5})
    assert verdict_of(checks) == verdict


# Decoding.


def aded_found(paying=5.0, whole=5.0, rate=2.0, static=1.0, lookup=1.0, control=1.0, other_text=False):
    def two(seconds, rates):
        return decoded([seconds] * 2, [rates] * 2)

    return {
        "greedy": two(10.0, 1.0),
        "ADED, corpus": two(whole, rate) if not other_text else decoded([whole] * 2, [rate] * 2, [[2] * 10] * 2),
        "ADED, corpus, nodes that pay": two(paying, 1.5),
        "ADED, static": two(10.0, static),
        "prompt lookup": two(10.0, lookup),
        "best-first, as many nodes": two(10.0, control),
    }


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"whole": 12.0}, "partly"),  # 0.83x of greedy
        ({"paying": 12.0}, "not reproduced"),
        ({"static": 2.5}, "partly"),
        ({"lookup": 2.5}, "partly"),
        ({"control": 2.5}, "not reproduced"),
        ({"other_text": True}, "untested here"),
    ],
)
def test_aded_slower_than_greedy_is_not_reproduced(differs, verdict):
    assert verdict_of(aded._checks(aded_found(**differs))) == verdict


def recycling(paying=5.0, hot_seconds=5.0, hot=3.0, cold=2.0, lookup=1.5):
    figures = {
        "greedy": (10.0, 1.0),
        "recycling, hot": (hot_seconds, hot),
        "recycling, hot, nodes that pay": (paying, 1.5),
        "recycling, cold": (10.0, cold),
        "prompt lookup": (10.0, lookup),
    }
    return {name: {"free": decoded([seconds] * 2, [rate] * 2)} for name, (seconds, rate) in figures.items()}


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"hot_seconds": 12.0}, "partly"),
        ({"paying": 12.0}, "not reproduced"),
        ({"cold": 1.4}, "partly"),
        ({"cold": 3.5}, "partly"),
        ({"lookup": 3.5}, "partly"),
    ],
)
def test_token_recyclings_conditions(differs, verdict):
    assert verdict_of(token_recycling._checks(recycling(**differs))) == verdict


def test_rsd_is_compared_with_the_chain_first_and_at_every_shape():
    best = {
        nodes: {kind: SimpleNamespace(name=f"{kind} {nodes}") for kind in ("RSD", "chain", "independent")}
        for nodes in (6, 14)
    }
    pairs = rsd.pairs(best)
    assert next(iter(pairs.items())) == ("N 6: RSD over a chain", ("RSD 6", "chain 6"))
    assert pairs["N 14: independent siblings over a chain"] == ("independent 14", "chain 14")
    assert pairs["2-2-2: RSD-C over independent siblings, same shape"] == ("RSD-C 2-2-2", "independent 2-2-2")
    assert len(pairs) == 10


def measured(tokens):
    return rsd.DraftRates(2, [list(tokens)], [[10] * len(tokens)])


def test_rsds_lead_must_lie_above_one_with_its_whole_interval():
    found = {(1.0, one.name): measured([20, 20]) for one in rsd.contenders()}
    found |= {(1.0, one.name): measured([30, 30]) for one in rsd.contenders() if one.kind == "RSD-C"}
    found |= {(1.0, one.name): measured([10, 30]) for one in rsd.contenders() if one.kind == "chain"}
    best = {(1.0, nodes): rsd._best(found, 1.0, nodes) for nodes in rsd.NODES}
    holds = {check.text: check.holds for check in rsd._compared(found, best, 1.0)}
    assert holds["2-2: RSD-C over independent siblings, same shape"] is True
    assert holds["N 6: RSD over independent siblings"] is True
    assert holds["N 6: RSD over a chain"] is None  # 3.0 to 1.0 by prompt
    assert holds["N 6: independent siblings over a chain"] is None
    level = {(1.0, one.name): measured([20, 20]) for one in rsd.contenders()}
    assert not any(check.holds for check in rsd._compared(level, best, 1.0))
