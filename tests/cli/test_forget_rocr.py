"""unwrite forget --method rocr: a name and its substitute as flags, the forms as the audit, and refusals of one line."""

import json

import pytest
from cli_runs import command, make_files, refused

from unwrite.cli import main
from unwrite.cli.fields import build
from unwrite.models import KeyStatistics, load

NAMED = ("--method", "rocr", "--target", "book", "--substitute", "river", "--nullspace-share", "0.5")
UNTRAINED = ("--epochs", "--lr")


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


def test_a_name_and_its_substitute_are_flags_and_the_audit_asks_in_forms(files, capsys):
    main(command(files, *NAMED, "--suite", "forms", without=UNTRAINED))
    run = files / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    report = json.loads((run / "report.json").read_text())
    assert {"forget_qa", "forget_letters", "retain_forms", "form_variation"} <= {*report["columns"]["after"]}
    note = json.loads((run / "model" / "unwrite.json").read_text())
    assert "target='book', substitute='river'" in note["provenance"]["method"]
    load(run / "model")


def test_fields_are_read_from_flags(files, tmp_path):
    method = build(
        "rocr", {"target": "Stephen King; King, Jr.", "substitute": "A; B", "layers": "4,5", "official": "true"}
    )
    assert method.targets == ("Stephen King", "King, Jr.")
    assert method.substitutes == ("A", "B")
    assert (method.layers, method.official) == ((4, 5), True)
    model = load(files / "model").model
    folder = KeyStatistics.fit(model, [[3, 4, 5, 6]], (0,)).save(tmp_path / "keys")
    assert build("rocr", {"stored": str(folder)}).stored.tokens == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--target": "nobody"}, "the target 'nobody' is not found in any forget row"),
        ({"--substitute": "Book"}, "the substitute of 'book' is the same name"),
        ({"--layers": "0,2"}, "--layers is (0, 2); give consecutive blocks"),
        ({"--mode": "reject"}, "Leave --substitute out"),
    ],
)
def test_refusals_are_one_line_and_leave_no_run(files, capsys, flags, message):
    given = {**dict(zip(NAMED[::2], NAMED[1::2], strict=True)), **flags}
    parts = [part for pair in given.items() for part in pair]
    assert message in refused(capsys, command(files, *parts, without=UNTRAINED))
    assert not (files / "run").exists()


def test_a_method_that_trains_nothing_has_no_epochs(files, capsys):
    assert "rocr trains nothing" in refused(capsys, command(files, *NAMED))
