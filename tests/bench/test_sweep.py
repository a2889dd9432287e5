"""A sweep is the same whoever runs it, in whatever order, stopped or not; its table ranks methods and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import sweeping
import torch
from sweeping import FEW, TINY, lines, nothing_to_train, row_of, trials, without_clocks
from threadpoolctl import threadpool_limits

from unwrite.beds.images import BEDS, ImageBed, Measured
from unwrite.bench import sweep as sweeps
from unwrite.bench import sweep_file
from unwrite.bench.sweep import Trial, run_trial, sweep, trials_of
from unwrite.bench.sweep_kinds import Contender, sweep_kind
from unwrite.bench.sweep_table import markdown
from unwrite.errors import MethodError, MissingExtra, Notice, RunError, UnwriteError
from unwrite.forget import RMU
from unwrite.forget.base import Edit
from unwrite.forget.dampening import SSD
from unwrite.forget.vision.fine_tuning import Retrain
from unwrite.forget.vision.head_only import HeadOnly
from unwrite.runs import cache_dir, progress
from unwrite.runs.jobs import crew, one_thread


@dataclass(frozen=True, kw_only=True)
class Refusing(Edit):
    """Refuses, or fails."""

    forgets = ("images",)
    unforeseen: bool = False

    def _apply(self, work):
        raise (ZeroDivisionError if self.unforeseen else UnwriteError)("not on these rows")


@pytest.fixture
def counted(monkeypatch):
    """Trials that only say that they ran."""
    ran = []

    def run(trial):
        ran.append(str(trial))
        return row_of(trial)

    monkeypatch.setattr(sweeps, "_prepare", nothing_to_train)
    monkeypatch.setattr(sweeps, "run_trial", run)
    return ran


# What is in it


def test_references_and_the_control_are_always_there_and_once():
    names = [trial.contender.name for trial in trials_of([Contender("head-only", HeadOnly()), *FEW], [TINY], [0])]
    assert names == ["before", "retrained", "head-only", "ssd", "fine-tune"]


def test_trials_of_one_bed_and_seed_follow_each_other():
    homes = [trial.home for trial in trials(2, beds=(TINY, BEDS["digits/range"]))]
    assert len(set(homes)) == 4
    assert homes == sorted(homes, key=homes.index)


def test_kinds_are_told_from_the_method():
    kinds = [one.kind for one in (*sweep_kind(TINY).always, *FEW, Contender("a", HeadOnly(whole_class="retrain")))]
    assert kinds == ["reference", "reference", "control", "method", "method", "control"]
    assert Contender("retrain", Retrain()).kind == "reference"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Contender("scrub"), "contender 'scrub' has method None"),
        (lambda: Contender("before", SSD()), "contender 'before' has method SSD"),
        (lambda: Trial(Contender("rmu", RMU(layer=1)), TINY, 0), "rmu has no meaning for images"),
        (lambda: Trial(Contender("ssd", SSD(), {"epochs": 1}), TINY, 0), "unknown training argument 'epochs'"),
        (lambda: Trial(Contender("ssd", SSD(), {"num_train_epochs": -1}), TINY, 0), "num_train_epochs is -1"),
        (lambda: trials_of([FEW[0], Contender("ssd", SSD(alpha=1))], [TINY], [0]), "contender 'ssd' is there twice"),
        (lambda: trials_of(FEW, [TINY, replace(TINY, epochs=2)], [0]), "bed 'tiny' is there twice"),
        (lambda: trials_of(FEW, [], [0]), "2 methods, 0 beds and 1 seeds are no sweep"),
        (lambda: Trial(FEW[0], replace(TINY, data=lambda seed: None), 0), "no name that another process could find"),
    ],
)
def test_what_makes_no_sweep_is_refused_at_once(made, message):
    with pytest.raises(MethodError, match=message):
        made()


def test_a_key_is_what_the_row_depends_on():
    base = Trial(FEW[1], TINY, 0)
    assert Trial(replace(FEW[1], args={"num_train_epochs": 1.0}), replace(TINY), 0).key == base.key
    others = [
        Trial(FEW[1], TINY, 1),
        Trial(replace(FEW[1], args={"num_train_epochs": 2.0}), TINY, 0),
        Trial(replace(FEW[1], name="other"), TINY, 0),
        Trial(Contender("fine-tune", SSD(), FEW[1].args), TINY, 0),
        Trial(FEW[1], replace(TINY, epochs=2), 0),
        Trial(FEW[1], replace(TINY, split=partial(TINY.split.func, 4)), 0),
    ]
    assert len({base.key, *(one.key for one in others)}) == 1 + len(others)


# What comes out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(trials of two seeds, their rows by one process in order), where two threads may be had."""
    some, threads = trials(2), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch, threadpool_limits(2):
            patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
            rows = sweep(some, tmp_path_factory.mktemp("sweep") / "out.jsonl", 1)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    return some, rows


def test_a_row_says_what_was_measured(whole):
    some, rows = whole
    for trial, row in zip(some, rows, strict=True):
        assert (row["bed"], row["contender"], row["seed"]) == ("tiny", trial.contender.name, trial.seed)
        assert list(row) == ["key", "bed", "contender", "kind", "seed", "values", "cost", "seconds"]
        assert set(row["values"]) == set(TINY.metrics)
    assert [row["seconds"] is None for row in rows[:5]] == [True, True, False, False, False]
    assert [row["cost"] for row in rows[:3]][::2] == [0, 0]


@pytest.mark.filterwarnings("ignore:SSD selects")
def test_rows_are_those_of_the_bed(whole):
    with one_thread():
        bed = ImageBed(TINY, 0)
        found = [bed.measure(bed.before), bed.retraining(), bed.apply(HeadOnly()), bed.apply(FEW[0].method)]
    for row, one in zip(whole[1], found, strict=False):
        assert (row["values"], row["cost"]) == (one.values, one.cost)
    assert found[1]["avg_gap"] == 0


def test_two_processes_another_order_and_a_stop_change_nothing(whole, tmp_path):
    some, rows = whole
    out = tmp_path / "out.jsonl"
    sweep(some[3:6], out, 1)
    told = []
    again = sweep(some[::-1], out, 2, told.append)
    assert without_clocks(again[::-1]) == without_clocks(rows)
    assert markdown(again) == markdown(rows)
    assert len(lines(out)) == 1 + len(some)
    assert told[0].startswith("targets and oracles: 0 of 2 done (tiny, seed 1; tiny, seed 0)")
    assert told[-1].startswith("trials: 9 of 10 done, about 1 s left (")


def test_what_two_threads_trained_is_not_taken_for_what_one_trains(tmp_path):
    sweep(trials()[:1], tmp_path / "out.jsonl", 1)
    assert not list(cache_dir().glob("fit/*"))
    assert len(list(cache_dir().glob("one-thread/fit/*/model"))) == 2


def test_the_clock_runs_while_it_unlearns_and_not_else(monkeypatch):
    class Slow:
        @property
        def before(self):
            time.sleep(0.3)

        def unlearn(self, method, args, target):
            time.sleep(0.05)
            return None, 0

        def measure(self, model, forwards):
            time.sleep(0.3)
            return Measured({"TA": float("nan")}, 0.0)

    monkeypatch.setattr(sweeps, "_models", lambda trial: Slow())
    row = run_trial(Trial(FEW[0], TINY, 0))
    assert 0.05 <= row["seconds"] < 0.3
    assert row["values"] == {"TA": None}


def test_a_refusal_is_a_row_and_a_fault_is_tried_again(tmp_path):
    some = trials(contenders=[Contender("a", Refusing()), Contender("b", Refusing(unforeseen=True)), FEW[0]])
    out = tmp_path / "out.jsonl"
    rows = sweep(some, out, 1)
    assert rows[3]["error"] == "not on these rows"
    assert rows[4]["error"] == "ZeroDivisionError: not on these rows"
    assert "in _apply" in rows[4]["fault"]
    assert "values" in rows[5]
    kept = [row["contender"] for row in lines(out)[1:]]
    assert kept == ["before", "retrained", "head-only", "a", "ssd"]
    told = []
    sweep(some, out, 1, told.append)
    assert told[-1].endswith("(b on tiny, seed 0)")


def test_a_bed_that_cannot_be_made_ends_the_sweep(tmp_path):
    nowhere = replace(TINY, name="nowhere", split=partial(TINY.split.func, "x"))
    with pytest.raises(MethodError, match=r"bed nowhere can't be made: .*unknown class 'x'"):
        sweep(trials(beds=(nowhere,)), tmp_path / "out.jsonl", 1)


# What stays when it stops


def test_what_is_there_is_not_run_again_and_more_can_be_added(counted, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    first = sweep(trials(), out, 1)
    assert len(counted) == 5
    second = sweep(trials(2), out, 1)
    assert second[:5] == first
    assert counted[5:] == [str(trial) for trial in trials(2)[5:]]
    assert sweep(trials(), out, 1) == first
    assert len(counted) == 10


def test_a_line_that_was_cut_off_is_dropped_and_run_again(counted, tmp_path):
    out = tmp_path / "out.jsonl"
    rows = sweep(trials(), out, 1)
    for cut in (1, 10, 150):  # its end, its half, more
        out.write_bytes(out.read_bytes()[:-cut])
        before = len(counted)
        assert sweep(trials(), out, 1) == rows
        assert counted[before:] == ["fine-tune on tiny, seed 0"]
        assert [row["key"] for row in lines(out)[1:]] == [row["key"] for row in rows]


def test_a_first_line_that_was_cut_off_is_written_anew(counted, tmp_path):
    out = tmp_path / "out.jsonl"
    sweep(trials()[:1], out, 1)
    first = out.read_bytes().splitlines()[0]
    for cut in (0, 4, 40):
        out.write_bytes(first[:cut])
        sweep(trials()[:1], out, 1)
        assert out.read_bytes().splitlines()[0] == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# My notes", "holds no sweep"),
        (b'{"sweep": 1, "code": \n{}\n', "damaged in line 1"),
        (b'{"sweep": 1, "versions": {}, "code": "x", "commit": "abc"}\n', r"other code of unwrite \(commit abc, now "),
    ],
)
def test_what_is_no_sweep_of_this_code_is_refused_and_left_alone(counted, tmp_path, content, message):
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(RunError, match=message):
        sweep(trials(), out, 1)
    assert out.read_bytes() == content
    assert not counted


def test_rows_of_other_versions_are_refused_and_named(counted, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    sweep(trials()[:1], out, 1)
    monkeypatch.setattr(sweep_file, "versions", lambda: {"torch": "9.0"})
    with pytest.raises(RunError, match=r"torch \S+ \(now 9.0\)"):
        sweep(trials(), out, 1)


def test_every_file_of_code_counts(monkeypatch, tmp_path):
    here = sweep_file.begun_with()
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(sweep_file, "files", lambda package: tmp_path)
    one = sweep_file.begun_with()
    (tmp_path / "a.py").write_text("2")
    assert len({here["code"], one["code"], sweep_file.begun_with()["code"]}) == 3


def test_two_sweeps_never_write_to_one_file(counted, tmp_path):
    out = tmp_path / "out.jsonl"
    sweep(trials(), out, 1)
    with (
        sweep_file.opened(out, sweep_file.begun_with()),
        pytest.raises(RunError, match="another sweep is writing"),
    ):
        sweep(trials(), out, 1)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_stopped_from_outside_goes_on_and_leaves_no_worker(counted, tmp_path, stop):
    out, notes = tmp_path / "out.jsonl", tmp_path / "notes"
    notes.mkdir()
    script = subprocess.Popen(
        [sys.executable, sweeping.__file__, str(out)],
        env={**os.environ, "NOTES": str(notes)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not out.exists() or len(out.read_bytes().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert script.poll() is None
        time.sleep(0.05)
    script.send_signal(stop)
    assert script.wait(20) != 0
    while any(_alive(int(note.name)) for note in notes.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = len(lines(out)) - 1
    rows = sweep(trials(8), out, 1)
    assert len(counted) == len(rows) - kept < len(rows)
    assert rows == [row_of(trial) for trial in trials(8)]


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Who does it


def test_a_worker_that_is_killed_ends_the_sweep_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_prepare", sweeping.killed)
    with pytest.raises(RunError, match=r"a worker was killed, maybe for want of memory, at one of: .* on tiny, seed 0"):
        sweep(trials()[:2], tmp_path / "out.jsonl", 2)


def test_a_job_shows_no_progress_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["unwrite.runs.progress"], "DELAY", 0.01)

    def job(name):
        with progress(2, name):
            time.sleep(0.05)

    with crew(1) as each:
        list(each(job, ["inside"], lambda some: None))
    job("outside")
    assert "inside" not in (shown := capsys.readouterr().err)
    assert "outside: 0 of 2" in shown


def test_less_than_one_worker_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(MethodError, match="workers is 0"):
        sweep(trials(), tmp_path / "out.jsonl", 0)
    assert not list(tmp_path.glob("*.jsonl"))


def test_ray_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"ray is not installed.*unwrite\[scale\]"), crew(2, "local"):
        pass


@pytest.fixture
def ray():
    found = pytest.importorskip("ray", reason="ray is not installed: pip install 'unwrite[scale]'")
    yield found
    found.shutdown()


def test_a_ray_cluster_gives_the_same_rows(whole, tmp_path, ray):
    some, rows = whole
    told = []
    again = sweep(some, tmp_path / "out.jsonl", 2, told.append, "local")
    assert without_clocks(again) == without_clocks(rows)
    assert not ray.is_initialized()
    assert told[-1].startswith("trials: 9 of 10 done, about")


def test_a_cluster_that_runs_is_used(ray, tmp_path):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with crew(2) as each:
        pids = {pid for _, pid in each(lambda job: os.getpid(), [1, 2, 3], lambda some: None)}
        with pytest.raises(RunError, match="a worker was killed"):
            list(each(lambda job: os._exit(1), [1], lambda some: None))
    assert os.getpid() not in pids
    assert ray.is_initialized()


def test_no_cluster_there_is_one_line(ray):
    with pytest.raises(RunError, match=r"no ray cluster answers at 127\.0\.0\.1:1"), crew(None, "127.0.0.1:1"):
        pass
    with pytest.raises(MethodError, match=r"the cluster at 127\.0\.0\.1:1 has its own"), crew(2, "127.0.0.1:1"):
        pass


def test_a_file_system_without_locks_is_said_and_does_not_stop_a_sweep(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(sweep_file.fcntl, "flock", refuses)
    with pytest.warns(Notice, match="without locks"), sweep_file.opened(tmp_path / "out", {"sweep": 1}) as file:
        file.append({"key": "a"})
    assert [line.get("key") for line in lines(tmp_path / "out")] == [None, "a"]
