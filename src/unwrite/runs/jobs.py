"""Independent jobs, the same result wherever they run: here one by one, in processes, or as tasks of a ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from ..errors import MethodError, MissingExtra, RunError, naming, setting
from .atomic import PART
from .progress import hush, silent

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Each", "crew", "one_thread"]


class Each(Protocol):
    """Runs `work` on every job and gives (job, result) as they end; `tell` gets those that run, as far as it is known."""

    def __call__(
        self, work: Callable[[Any], Any], jobs: Sequence[Any], tell: Callable[[Sequence[Any]], None]
    ) -> Iterator[tuple[Any, Any]]: ...


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, beside any number of others.

    What is trained inside is kept apart in the cache: where two threads train, the same recipe makes another model.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), _environment(**{PART: "one-thread"}):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def crew(workers: int | None = None, ray: str | None = None) -> Iterator[Each]:
    """Who does the jobs; all are stopped when the block ends by an error.

    Args:
        workers: processes; 1 for this one, None for one a core.
        ray: "local", or a cluster's address; None for the cluster that is initialised, if there is one.

    Raises:
        MissingExtra: ray isn't installed.
        RunError: no cluster answers there; inside the block: a worker was killed.
    """
    if ray is not None:
        with _cluster(ray, workers):
            yield _on_ray
    elif "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _on_ray
    elif (count := workers or len(os.sched_getaffinity(0))) == 1:
        yield _here
    else:
        with _processes(count) as each:
            yield each


def _here(
    work: Callable[[Any], Any], jobs: Sequence[Any], tell: Callable[[Sequence[Any]], None]
) -> Iterator[tuple[Any, Any]]:
    for job in jobs:
        tell([job])
        with silent(), naming("settings"):
            result = work(job)
        yield job, result


@contextmanager
def _processes(workers: int) -> Iterator[Each]:
    others = set(active_children())
    with _environment(OMP_NUM_THREADS="1"):
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)

        def each(
            work: Callable[[Any], Any], jobs: Sequence[Any], tell: Callable[[Sequence[Any]], None]
        ) -> Iterator[tuple[Any, Any]]:
            left, running = iter(jobs), dict[Future[Any], Any]()
            try:
                while True:
                    running |= {pool.submit(work, job): job for job in islice(left, workers - len(running))}
                    if not running:
                        return
                    tell(list(running.values()))
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        result = done.result()
                        yield running.pop(done), result
            except BrokenProcessPool:
                raise RunError(_killed(running.values())) from None

        try:
            yield each
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise
        pool.shutdown()


def _killed(jobs: Iterable[object]) -> str:
    return (
        f"a worker was killed, maybe for want of memory, at one of: {'; '.join(map(str, jobs))}. What is done is kept: "
        "run the same again, with fewer workers."
    )


def _begin() -> None:
    """In a new worker: Ctrl-C is the parent's to answer, so is progress, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hush()
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[None]:
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "scale") from None
    if address != "local" and workers is not None:
        raise MethodError(f"{setting('workers')} is {workers}, and the cluster at {address} has its own. Leave it out.")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == "local":
            ray.init(num_cpus=workers or len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host and port.isdigit():
                socket.create_connection((host, int(port)), timeout=10).close()  # ray itself waits for minutes
            ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        raise RunError(
            f"no ray cluster answers at {address} ({str(error).splitlines()[0]}). Start one, or use local."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _on_ray(
    work: Callable[[Any], Any], jobs: Sequence[Any], tell: Callable[[Sequence[Any]], None]
) -> Iterator[tuple[Any, Any]]:
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    env = {"OMP_NUM_THREADS": "1", **{name: os.environ[name] for name in ("UNWRITE_CACHE",) if name in os.environ}}
    task = ray.remote(num_cpus=1, runtime_env={"env_vars": env})(work)
    waiting = {task.remote(job): job for job in jobs}
    try:
        while waiting:
            tell(())
            [done], _ = ray.wait(list(waiting), num_returns=1)
            try:
                result = ray.get(done)
            except (WorkerCrashedError, OutOfMemoryError):
                raise RunError(_killed([waiting[done]])) from None
            yield waiting.pop(done), result
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
