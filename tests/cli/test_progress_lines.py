"""Without a terminal a command says on standard error how far it is, and standard output stays what it was."""

import json
import re
import sys
import time

import pytest
from cli_runs import command, make_files

from unwrite.cli import main
from unwrite.forget.engine.text import trainer


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


def test_a_run_tells_its_training_and_its_audit_and_its_json_stays_clean(files, capsys, monkeypatch):
    for name in ("DELAY", "EVERY"):
        monkeypatch.setattr(sys.modules["unwrite.runs.progress"], name, 0.02)
    step = trainer.UnlearnTrainer.compute_loss

    def slow(self, *args, **options):
        time.sleep(0.1)
        return step(self, *args, **options)

    monkeypatch.setattr(trainer.UnlearnTrainer, "compute_loss", slow)
    main(command(files, "--json", "--attacks", "relearn"))
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == "done"
    assert re.search(r"^NPO: \d of 2, 0:00 so far", shown.err, re.M)
    assert re.search(r"^NPO: 2 of 2, 0:\d\d$", shown.err, re.M)
    assert re.search(r"^(measuring|generating|scoring|relearning)[^:]*: ", shown.err, re.M)
    assert "it/s" not in shown.err
