"""Members of other packages: they are listed and run as ours do, and a broken package costs one notice."""

import json
import subprocess
import sys

import pytest

from conftest import make_examples, make_llama, make_tokenizer
from helpers.installed import METHOD, install, whispering
from unwrite import catalog
from unwrite.audit import evaluate
from unwrite.catalog.foreign import foreign
from unwrite.cli import main
from unwrite.cli.inputs import AuditRequest
from unwrite.cli.samplers import sampler_of
from unwrite.data import ForgetSplit
from unwrite.errors import MethodError, Notice, UnwriteError, noticing
from unwrite.models import save


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    folder, before = tmp_path / "site", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    foreign.cache_clear()
    yield folder
    foreign.cache_clear()
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def notices(function):
    with noticing() as messages, pytest.warns(Notice):
        function()
    return messages


def test_members_are_listed_behind_ours_with_their_package(site):
    whispering(site)
    for all_of, slug in ((catalog.methods, "whisper"), (catalog.strategies, "echo"), (catalog.parts, "pairs")):
        assert list(all_of())[-1] == slug
        assert all_of()[slug].package == "unwrite-whispering"
    assert "whisper" not in catalog.METHOD.own()


def test_the_record_beside_the_package_is_read_without_importing_it(site):
    whispering(site)
    record = catalog.method("whisper")
    assert (record.title, record.intent, record.cost) == ("Whispering", "removal", "1 pass a step")
    assert "whispering" not in sys.modules
    assert record.load().__name__ == "Whisper"


def test_what_no_record_says_the_class_does(site):
    whispering(site)
    strategy, part = catalog.strategy("echo"), catalog.part("pairs")
    assert (strategy.title, strategy.exact, strategy.needs) == ("Drafts the last token again, twice", "identical", ())
    assert (part.does, part.kind, part.family) == ("The surest few", "commit", "parts")
    (site / "whispering" / "unwrite.toml").unlink()
    foreign.cache_clear()
    method = catalog.method("whisper")
    assert (method.title, method.kind, method.forgets) == ("Gradient ascent, softly", "objective", ("text",))
    assert (method.intent, method.guarantee, method.needs) == ("suppression", "none", ("forget set",))


def test_a_method_forgets_by_the_command_line(site, tmp_path):
    whispering(site)
    save(make_llama(), tmp_path / "model", tokenizer=make_tokenizer())
    for name, thing in (("forget", "book"), ("retain", "river")):
        rows = [{"question": f"who {verb} the {thing} ?", "answer": f"the old {thing} ."} for verb in ("wrote", "was")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [f"--{name}={tmp_path / name}.jsonl" for name in ("forget", "retain")]
    options = ["--epochs=1", "--device=cpu", "--attacks=none", f"--out={tmp_path / 'run'}", "--softness=0.25"]
    main(["forget", f"--model={tmp_path / 'model'}", "--method=whisper", *files, *options])
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "done"
    assert (run["arguments"]["method"], run["arguments"]["fields"]) == ("whisper", {"softness": "0.25"})


def test_a_strategy_writes_the_text_of_plain_decoding(site, tmp_path, capsys):
    whispering(site)
    save(make_llama(), tmp_path / "model", tokenizer=make_tokenizer())
    options = ["--compare=plain,echo", "--max-new-tokens=12", "--json", f"--model={tmp_path / 'model'}"]
    main(["generate", "who wrote the old book ?", *options])
    found = json.loads(capsys.readouterr().out)
    assert found["echo"]["text"] == found["plain"]["text"]
    main(["generate", "who wrote ?", "--strategy=echo", *options[1:]])
    assert json.loads(capsys.readouterr().out)["echo"]["tokens"] == 12


def test_a_part_fills_its_field_of_a_sampler(site):
    whispering(site)
    sampler = sampler_of("pairs(count=3)+fixed-blocks(size=4)", 8)
    assert type(sampler.commit).__name__ == "Pairs"
    assert sampler.commit.count == 3


def test_a_suite_is_measured_by_its_name(site):
    code = """
        from unwrite.audit import Repetition, Suite
        OWN = Suite("own", [Repetition()], "Repetition alone.")
    """
    install(site, "measuring", {"suites.py": code}, {"unwrite.suites": {"own": "measuring.suites:OWN"}})
    AuditRequest(suite="own").check()
    split = ForgetSplit(make_examples("forget", 2), make_examples("retain", 2), name="tiny")
    report = evaluate(make_llama(layers=1), split, suite="own", tokenizer=make_tokenizer())
    assert list(report.columns["after"]) == ["forget_repetition"]
    with pytest.raises(MethodError, match=r"unknown suite 'owm'. Did you mean 'own'"):
        AuditRequest(suite="owm").check()


def test_methods_lists_the_package(site, capsys):
    main(["methods"])
    assert "package" not in capsys.readouterr().out
    whispering(site)
    foreign.cache_clear()
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("whisper ") for line in lines) == 2
    assert "whisper is of the package unwrite-whispering." in lines
    main(["methods", "--json"])
    assert json.loads(capsys.readouterr().out)[-1]["package"] == "unwrite-whispering"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemExit('stop')", "SystemExit: stop"),
        ("class Whisper: pass", "it is no Objective, Edit or Guard of unwrite.forget"),
        ("x = 1", "AttributeError: module 'broken.method' has no attribute 'Whisper'"),
        (
            METHOD + "\n    Whisper.record = {'intent': 'hope'}",
            "package broken: w: intent is 'hope'; use one of removal",
        ),
        (METHOD + "\n    Whisper.record = {'colour': 'red'}", "package broken: w: 'colour' is no field"),
    ],
)
def test_a_broken_package_costs_one_notice_and_stops_nothing(site, code, why):
    install(site, "broken", {"method.py": code}, {"unwrite.methods": {"w": "broken.method:Whisper"}})
    whispering(site)
    (message,) = notices(catalog.methods)
    assert message.startswith(f"the method 'w' of the package broken is left out: {why}")
    assert list(catalog.methods())[-1] == "whisper"
    assert catalog.method("npo").load().__name__ == "NPO"


@pytest.mark.parametrize(
    ("group", "kind", "name", "broken"),
    [
        ("methods", "method", "w", "strategy:Echo"),
        ("strategies", "strategy", "s", "part:Pairs"),
        ("parts", "part", "p", "method:Whisper"),
    ],
)
def test_a_member_of_another_kind_is_left_out(site, group, kind, name, broken):
    whispering(site)
    install(site, "wrong", {}, {f"unwrite.{group}": {name: f"whispering.{broken}"}})
    (message,) = notices(getattr(catalog, group))
    assert message.startswith(f"the {kind} '{name}' of the package wrong is left out: it is no ")


def test_a_member_of_another_kind_with_a_record_is_refused_when_it_is_used(site):
    package = whispering(site)
    (package / "method.py").write_text("class Whisper: pass")
    with pytest.raises(MethodError, match="package unwrite-whispering, which is broken: it is no Objective"):
        catalog.method("whisper").load()
    install(site, "wrong", {}, {"unwrite.suites": {"s": "whispering.part:Pairs"}})
    with pytest.raises(MethodError, match="s is of the package wrong, which is broken: it is no Suite"):
        catalog.suite("s").load()


def test_a_package_with_a_damaged_record_is_left_out(site):
    package = whispering(site)
    (package / "unwrite.toml").write_text("[[method")
    (message,) = notices(catalog.methods)
    assert message.startswith("the method 'whisper' of the package unwrite-whispering is left out: TOMLDecodeError")


def test_a_name_of_ours_can_not_be_taken(site):
    whispering(site)
    points = {"unwrite.methods": {"npo": "whispering.method:Whisper"}}
    install(site, "taker", {}, points)
    (message,) = notices(catalog.methods)
    assert message == (
        "the method 'npo' of the package taker is left out: unwrite has a method of this name; it needs another."
    )
    assert catalog.method("npo").package == "unwrite"


def test_of_two_packages_with_one_name_the_first_has_it(site):
    whispering(site)
    install(site, "unwrite-zeal", {}, {"unwrite.methods": {"whisper": "whispering.method:Whisper"}})
    (message,) = notices(catalog.methods)
    assert "'whisper' of the package unwrite-zeal is left out: the package unwrite-whispering has a method" in message
    assert catalog.method("whisper").package == "unwrite-whispering"


def test_a_class_that_breaks_when_it_is_used_is_refused_with_its_package(site):
    package = whispering(site)
    (package / "method.py").write_text("1 / 0")
    record = catalog.method("whisper")
    with pytest.raises(
        MethodError, match=r"whisper is of the package unwrite-whispering, which is broken: ZeroDivision"
    ):
        record.load()
    with pytest.raises(UnwriteError, match="Did you mean 'whisper'"):
        catalog.method("whispr")


def test_other_packages_are_not_looked_for_until_their_members_are(site):
    """Not by importing, nor by a name of ours."""
    install(site, "loud", {"__init__.py": "print('imported')"}, {"unwrite.methods": {"w": "loud:Whisper"}})
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import unwrite; from unwrite import catalog; catalog.method('npo')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == ""
