"""What the tests of the sweep share: a bed of seconds, trials that do nothing, and a sweep to be stopped from outside."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from unwrite.beds.images import DIGITS, Bed, _by_class
from unwrite.bench import sweep as sweeps
from unwrite.bench.sweep import trials_of
from unwrite.bench.sweep_kinds import Contender
from unwrite.data.images.sets import digits
from unwrite.forget.dampening import SSD
from unwrite.forget.vision.fine_tuning import FineTune

TINY = Bed("tiny", partial(digits, 0.9), partial(_by_class, 3), {**DIGITS, "width": 4}, 1)
FEW = [Contender("ssd", SSD(alpha=1.0)), Contender("fine-tune", FineTune(), {"num_train_epochs": 1.0})]


def trials(seeds=1, contenders=FEW, beds=(TINY,)):
    return trials_of(contenders, beds, range(seeds))


def without_clocks(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def lines(path):
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def row_of(trial, **values):
    one = trial.contender
    names = {"key": trial.key, "bed": trial.bed.name, "contender": one.name, "kind": one.kind, "seed": trial.seed}
    return names | {"values": {"TA": 90.0 + trial.seed, **values}, "cost": 1.0, "seconds": 0.5}


def nothing_to_train(trial):
    return None


def slow(trial):
    """A row after half a second; the process that made it is noted."""
    Path(os.environ["NOTES"], str(os.getpid())).touch()
    time.sleep(0.5)
    return row_of(trial)


def killed(trial):
    os.kill(os.getpid(), 9)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    sweeps._prepare, sweeps.run_trial = nothing_to_train, slow
    sweeps.sweep(trials(seeds=8), sys.argv[1], workers=2)
