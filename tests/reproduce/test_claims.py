"""The harness: verdicts follow from checks, records carry how they were got, done systems have results."""

import json
import subprocess

import pytest
from stored import same_kinds

from unwrite import catalog
from unwrite.beds.budget import Budget
from unwrite.beds.synthetic import distance, fit, make
from unwrite.cli import main
from unwrite.errors import MethodError, UnwriteError
from unwrite.reproduce import base as claims
from unwrite.reproduce.base import Claim, run, store
from unwrite.reproduce.checks import Check, verdict_of
from unwrite.reproduce.freshness import staleness
from unwrite.runs import provenance
from unwrite.scoring.intervals import spread

HOLDS = Check("claim", "a", True)


def made(headline="1.2x", checks=(HOLDS,), **more):
    return Claim("npo", "claim", "setting", ("figure",), {"NPO": ("1",)}, headline, "reason", checks, (0,), **more)


def test_a_claims_verdict_is_that_of_its_checks():
    assert made().verdict == made().record()["verdict"] == "reproduced"
    assert made(checks=(Check("claim", "a", False), Check("claim", "b", True))).verdict == "not reproduced"
    assert made(too_small=True).verdict == "too small for a verdict"


def test_a_headline_that_fills_more_than_a_cell_is_refused():
    assert made("x" * 100).headline
    with pytest.raises(MethodError, match="npo: the headline has 101 characters, of 1 to 100"):
        made("x" * 101)
    with pytest.raises(MethodError, match="the headline has 0 characters"):
        made("")


def test_a_statement_that_stands_twice_is_refused():
    with pytest.raises(MethodError, match="two checks say the same: a; a"):
        made(checks=(Check("claim", "a", True), Check("control", "a", True)))


def test_a_spread_is_mean_and_deviation():
    assert spread([1.0, 3.0]) == "2 +- 1"


def test_npo_runs_tiny_and_is_stored_with_how_it_was_got(tmp_path):
    claim, record = run("npo", Budget("tiny"))
    assert claim.rows
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert "take small" in claim.reason
    path = store(record, tmp_path)
    kept = json.loads(path.read_text())
    assert set(kept) >= {
        "slug", "form", "verdict", "claim", "headline", "rows", "checks", "seeds", "versions", "machine", "commit", "hashes", "seconds",
    }  # fmt: skip
    assert same_kinds(claim)
    assert staleness("npo", kept | {"commit": "0" * 40}) is None


def test_new_results_are_no_change_of_the_code(tmp_path, monkeypatch):
    home = tmp_path / "src" / "unwrite"
    for folder in ("reproduce", "results", "runs"):
        (home / folder).mkdir(parents=True)
        (home / folder / "kept").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(home / "runs" / "provenance.py"))
    clean = provenance.commit()
    assert len(clean) == 40
    (home / "results" / "new.json").write_text("{}")
    assert provenance.commit() == clean
    (home / "reproduce" / "kept").write_text("changed")
    assert provenance.commit() == f"{clean}-dirty"


def test_reproduce_prints_every_check_with_its_kind_and_figure_then_the_headline(monkeypatch, capsys):
    checks = (
        Check("claim", "it is faster", 0.82, ">", 1.0, (0.8, 0.85)),
        Check("control", "chance does worse", 0.0, ">", 0.0, (-1.0, 1.0)),
        Check("mechanism", "every text is greedy's own", True),
    )
    claim = made("0.82x", checks)
    monkeypatch.setattr(claims, "run", lambda slug, budget: (claim, claim.record() | {"seconds": 1.0}))
    main(["reproduce", "npo", "--dry"])
    out = " ".join(capsys.readouterr().out.split())
    assert "fails claim: it is faster: 0.82 (0.8 to 0.85), must be > 1" in out
    assert "open control: chance does worse: 0 (-1 to 1), must be > 0" in out
    assert "holds mechanism: every text is greedy's own here 0.82x verdict not reproduced" in out


def test_an_unknown_system_is_refused():
    with pytest.raises(UnwriteError, match="npo"):
        run("npoo", Budget("tiny"))


@pytest.mark.parametrize("slug", [s.slug for s in catalog.systems().values() if s.status == "done"])
def test_a_stored_result_is_of_a_real_budget(slug):
    result = catalog.system(slug).result
    assert result is not None
    assert result["budget"] != "tiny"
    assert result["form"] == claims.FORM
    assert 0 < len(result["headline"]) <= claims.HEADLINE
    checks = [Check.stored(check) for check in result["checks"]]
    assert [check.record() for check in checks] == result["checks"]
    assert result["verdict"] == verdict_of(checks)


def test_a_model_is_at_distance_zero_from_itself():
    kinds = make(0, 1.0)
    weight = fit([kinds["retain"]], 50)
    assert distance(kinds["retain"].fresh, weight, weight) == pytest.approx(0.0, abs=1e-12)


def test_the_synthetic_labels_favour_their_kind():
    kinds = make(0, 1.0)
    assert (kinds["retain"].labels == 0).double().mean() > 0.6
    assert (kinds["forget"].labels == 1).double().mean() > 0.6
