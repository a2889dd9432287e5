"""How far work has come: a bar in a terminal, a line every few seconds without one, nothing within two seconds.

    for batch in progress(batches, "scoring"): ...

    with progress(steps, "training", done=first) as bar:
        ...
        bar.advance()

Everything goes to standard error, so that what a command prints for programs stays as it is. Without a terminal the
lines come from a thread of their own: one long step, such as a slow batch, is heard of too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..terminal import one_line

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Progress", "hush", "progress", "silent", "training_progress"]

T = TypeVar("T")

DELAY = 2.0  # seconds of work before anything is shown
EVERY = 5.0  # seconds between two lines
LONGEST = 5.0  # seconds that the end of work waits for a line which is being written, to a paused terminal maybe

_silenced = 0
_under_way: list[Progress[Any]] = []  # the outer before the inner


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress of what runs inside, for work whose own progress is shown: the trainings of a sweep."""
    global _silenced
    _silenced += 1
    try:
        yield
    finally:
        _silenced -= 1


def hush() -> None:
    """No progress from this process any more: a worker whose parent shows how far all have come."""
    global _silenced
    _silenced += 1


@overload
def progress(work: int | None, description: str, *, total: int | None = None, done: int = 0) -> Progress[int]: ...
@overload
def progress(work: Iterable[T], description: str, *, total: int | None = None, done: int = 0) -> Progress[T]: ...
def progress(
    work: Iterable[Any] | int | None, description: str, *, total: int | None = None, done: int = 0
) -> Progress[Any]:
    """Shows how far `work` has come, as its items are taken or as `advance` is called.

    Args:
        work: items to go through; or how many steps there are, None where nobody knows.
        description: what is done, in a few words.
        total: how many items there are, where they can't be counted.
        done: steps that were done before, by a run that goes on.
    """
    if work is None or isinstance(work, int):
        return Progress((), description, work if total is None else total, done)
    if total is None and isinstance(work, Sized):
        total = len(work)
    return Progress(work, description, total, done)


class Progress(Generic[T]):
    """See `progress`: iterated over, or entered and advanced."""

    def __init__(self, items: Iterable[T], description: str, total: int | None, done: int) -> None:
        self.items, self.description, self.total, self.done = items, one_line(description), total, done
        self._first, self._start, self._lines = done, 0.0, 0
        self._note = ""
        self._ended = threading.Event()
        self._bar: Any = None
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.advance()

    def __enter__(self) -> Progress[T]:
        self._start = time.monotonic()
        # The stream of now: a block inside may send standard error elsewhere, to keep another library quiet.
        self._stream = sys.stderr
        if _silenced or self._stream is None:
            return self
        _under_way.append(self)
        if self._stream.isatty():
            from tqdm import tqdm

            options: dict[str, Any] = {} if self.total is not None else {"bar_format": "{desc}: {elapsed}{postfix}"}
            self._bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.description,
                delay=DELAY,
                leave=False,
                file=self._stream,
                **options,
            )
        if self._bar is None or self.total is None:  # a bar without steps moves by the clock
            self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # A thread that ended later would hold the items, and with them all they hold, for as long as it isn't scheduled.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LONGEST)
        _under_way[:] = [one for one in _under_way if one is not self]
        if self._bar is not None:
            self._bar.close()
        elif self._lines:
            self._write(self.line(ended=True))

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)

    def say(self, note: str) -> None:
        """What is shown behind the figures from now on: the loss, or what is at work."""
        self._note = one_line(note)
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)

    def line(self, ended: bool = False) -> str:
        """What a log gets: `training: 120 of 300, 0:12 so far, 0:18 left`."""
        elapsed = time.monotonic() - self._start
        parts = []
        if self.total is not None:
            parts.append(f"{self.done} of {self.total}")
        elif self.done:
            parts.append(str(self.done))
        parts.append(clock(elapsed) if ended else f"{clock(elapsed)} so far")
        new = self.done - self._first
        if not ended and self.total is not None and new and self.done < self.total:
            parts.append(f"{clock(elapsed / new * (self.total - self.done))} left")
        if self._note:
            parts.append(self._note)
        return f"{self.description}: {', '.join(parts)}"

    def _tell(self) -> None:
        wait = DELAY
        while not self._ended.wait(wait):
            if self._bar is not None:
                self._bar.refresh()
                wait = 1.0
                continue
            wait = EVERY
            if not self._inner_tells():
                self._lines += 1
                self._write(self.line())

    def _inner_tells(self) -> bool:
        """Whether work inside this one has lines of its own: one voice at a time."""
        under_way = list(_under_way)
        return self in under_way and any(one._lines for one in under_way[under_way.index(self) + 1 :])

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stream that was closed, or a reader that went away
            self._stream.write(f"{line}\n")
            self._stream.flush()


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 1:02:03.

    >>> clock(3723)
    '1:02:03'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def training_progress(trainer: Trainer, description: str) -> Iterator[None]:
    """Shows the steps of a transformers Trainer while `trainer.train()` runs inside the block, unless it does so itself."""
    if not trainer.args.disable_tqdm or not trainer.is_world_process_zero():
        yield
        return
    from transformers import TrainerCallback

    class Advance(TrainerCallback):
        """Tells the progress of every step, from the one that training begins with."""

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            self.shown = around.enter_context(progress(state.max_steps, description, done=state.global_step))

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            self.shown.advance(state.global_step - self.shown.done)

    callback = Advance()
    trainer.add_callback(callback)
    try:
        with contextlib.ExitStack() as around:
            yield
    finally:
        trainer.remove_callback(callback)
