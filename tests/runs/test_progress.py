"""Progress: a bar in a terminal, a line every few seconds without one, nothing for quick work."""

import ast
import contextlib
import io
import re
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

import unwrite
from unwrite.runs import progress, silent, training_progress

module = sys.modules["unwrite.runs.progress"]
SOURCES = sorted(Path(unwrite.__file__).parent.rglob("*.py"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hundredths of the seconds people wait."""
    monkeypatch.setattr(module, "DELAY", 0.05)
    monkeypatch.setattr(module, "EVERY", 0.05)


class Said:
    """What went to standard error, which is no terminal here."""

    def __init__(self, capsys):
        self.capsys, self.text = capsys, ""

    def getvalue(self):
        self.text += self.capsys.readouterr().err
        return self.text

    def hear(self, words, times=1):
        """Waits until the words were said so often, on a busy machine too."""
        end = time.monotonic() + 20
        while self.getvalue().count(words) < times and time.monotonic() < end:
            time.sleep(0.01)


@pytest.fixture
def stream(capsys):
    return Said(capsys)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_people_wait_two_seconds_and_then_hear_every_five(monkeypatch):
    monkeypatch.undo()
    assert (module.DELAY, module.EVERY) == (2.0, 5.0)


def test_without_a_terminal_a_line_says_how_many_of_how_many_and_the_time_left(stream):
    for number in progress(range(4), "scoring"):
        if number == 1:
            stream.hear("scoring")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "scoring: 1 of 4, 0:00 so far, 0:00 left"
    assert lines[-1] == "scoring: 4 of 4, 0:00"


def test_quick_work_says_nothing(stream):
    assert list(progress([3, 1, 2], "scoring")) == [3, 1, 2]
    assert stream.getvalue() == ""


def test_one_long_step_is_heard_of_more_than_once(stream):
    with progress(1, "converting"):
        stream.hear("converting", times=2)
    assert stream.getvalue().splitlines().count("converting: 0 of 1, 0:00 so far") >= 2


def test_time_left_is_of_the_steps_that_this_run_took(monkeypatch, stream):
    with progress(1000, "training", done=400) as shown:
        shown._start, shown.done = 100.0, 430
        monkeypatch.setattr(module.time, "monotonic", lambda: 160.0)
        # 30 steps took a minute, 570 are left
        assert shown.line() == "training: 430 of 1000, 1:00 so far, 19:00 left"


def test_work_of_unknown_length_shows_its_time_and_what_is_at_work(stream):
    with progress(None, "bench") as shown:
        shown.say("replaying prompt 3 of 40")
        stream.hear("bench")
    assert stream.getvalue().splitlines()[0] == "bench: 0:00 so far, replaying prompt 3 of 40"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert module.clock(seconds) == text


def test_items_without_a_length_are_counted(stream):
    for _ in progress(iter(range(3)), "reading"):
        stream.hear("reading")
    assert stream.getvalue().splitlines()[-1] == "reading: 3, 0:00"


def test_an_error_ends_the_lines(stream):
    with pytest.raises(KeyError), progress(9, "scoring"):
        raise KeyError
    time.sleep(0.12)
    assert stream.getvalue() == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "progress" and thread.is_alive()]


def test_inner_work_speaks_for_the_outer_while_it_lasts(stream):
    with progress(3, "measuring"):
        with progress(9, "scoring"):
            stream.hear("scoring", times=3)
        inside = stream.getvalue()
        stream.hear("measuring", times=inside.count("measuring") + 1)
    assert inside.count("scoring") >= 3
    assert inside.count("measuring") <= 1
    assert "measuring" in stream.getvalue()[len(inside) :]


def test_silent_work_says_nothing_and_what_is_around_it_goes_on(stream):
    with progress(2, "sweep"), silent(), progress(9, "training"):
        stream.hear("sweep", times=3)
    assert "training" not in stream.getvalue()
    assert "sweep: 0 of 2" in stream.getvalue()


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress(range(3), "scoring"):
        time.sleep(0.06)
    shown = terminal.getvalue()
    assert re.search(r"scoring: +67%.*2/3", shown)
    assert "\n" not in shown


def test_a_bar_without_steps_moves_by_the_clock(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(None, "converting") as shown:
        shown.say("a file")
        time.sleep(0.12)
    assert "converting: 00:00, a file" in terminal.getvalue()


def test_no_standard_error_and_a_closed_one_hurt_nobody(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(2), "scoring")) == [0, 1]
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    with progress(2, "scoring"):
        closed.close()
        time.sleep(0.08)
    assert capsys.readouterr().out == ""


def test_a_redirection_inside_does_not_take_the_lines_away(stream):
    with progress(None, "converting"), contextlib.redirect_stderr(io.StringIO()):
        stream.hear("converting")
    assert "converting" in stream.getvalue()


class Step:
    """A stand-in for transformers' Trainer: five steps, of which two are done."""

    def __init__(self, bars=False, begun=lambda: None):
        from types import SimpleNamespace

        self.begun = begun
        self.callbacks, self.args = [], SimpleNamespace(disable_tqdm=not bars)

    def is_world_process_zero(self):
        return True

    def add_callback(self, one):
        self.callbacks.append(one)

    def remove_callback(self, one):
        self.callbacks.remove(one)

    def train(self, fails=False):
        from types import SimpleNamespace

        state = SimpleNamespace(max_steps=5, global_step=2)
        for one in self.callbacks:
            one.on_train_begin(None, state, None)
        self.begun()
        for state.global_step in (3, 4, 5):
            time.sleep(0.06)
            for one in self.callbacks:
                one.on_step_end(None, state, None)
            if fails:
                raise KeyError


def test_a_trainer_shows_its_steps_from_where_it_goes_on(stream):
    trainer = Step(begun=lambda: stream.hear("NPO"))
    with training_progress(trainer, "NPO"):
        trainer.train()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("NPO: 2 of 5, ")
    assert lines[-1] == "NPO: 5 of 5, 0:00"
    assert trainer.callbacks == []


def test_a_trainer_that_fails_ends_the_lines(stream):
    trainer = Step()
    with pytest.raises(KeyError), training_progress(trainer, "NPO"):
        trainer.train(fails=True)
    before = stream.getvalue()
    time.sleep(0.12)
    assert stream.getvalue() == before


def test_a_trainer_with_bars_of_its_own_keeps_them(stream):
    trainer = Step(bars=True)
    with training_progress(trainer, "NPO"):
        trainer.train()
    assert stream.getvalue() == ""


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_one_file_alone_shows_progress():
    users = {}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if ("tqdm" in text or "rich" in text) and (names := set(_imports(ast.parse(text)))):
            users |= {library: path.name for library in ("tqdm", "rich.progress", "rich.status") if library in names}
        assert ".status(" not in text
    assert users == {"tqdm": "progress.py"}


def test_nothing_holds_the_items_once_the_work_has_ended(monkeypatch):
    """Not even on a busy machine, where a thread that is to end isn't scheduled for a while."""
    tell = module.Progress._tell

    def late(self):
        tell(self)
        time.sleep(0.2)

    class Item:
        pass

    monkeypatch.setattr(module.Progress, "_tell", late)
    items = [Item()]
    held = weakref.ref(items[0])
    for _ in progress(items, "scoring"):
        pass
    del items, _
    assert held() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_stream_that_takes_nothing_more_holds_the_work_up_for_a_while_only(monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 0.05)
    free = threading.Event()
    monkeypatch.setattr(module.Progress, "_tell", lambda self: free.wait(20))
    start = time.monotonic()
    with progress(None, "scoring"):
        pass
    assert time.monotonic() - start < 10
    free.set()
