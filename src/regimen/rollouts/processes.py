"""Processes of this machine that work for this one.

In: a function at the top level of a module, and jobs one by one. Out: results, in the order of the jobs.
A process is a fresh interpreter: a forked one would share locks with threads of this one. It doesn't run the script
that started it again unless it is told to, so that a script needs no `if __name__ == "__main__":`.
Refuses: a process that dies is a `RolloutError`; errors of a job are raised in its place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from regimen.errors import RolloutError

WORTH_A_PROCESS = 32 << 20  # bytes; below, starting a process takes longer than it saves
MOST_PROCESSES = 16
AHEAD = 2  # jobs given out for each process: one at work, one waiting

Job = TypeVar("Job")
Result = TypeVar("Result")


class Processes:
    """Some processes, started when they are first needed; `with` ends them. One process is this one itself.

    `module` is what they import at once.
    """

    def __init__(self, number: int, *, run_script: bool = False, module: str = __name__) -> None:
        self.number = number
        self._module = module
        self._context: BaseContext = SpawnContext() if run_script else _Context()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def start(self) -> None:
        """Start them before there is work, so that they import while this process does something else."""
        for _ in range(self.number if self.number > 1 else 0):
            self._started().submit(_nothing)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """`function` of each job; only a few jobs for each process are taken ahead of their results."""
        if self.number == 1:
            yield from map(function, jobs)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._started().submit(function, job))
                if len(waiting) >= AHEAD * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RolloutError(
                "a process died while it worked", fix="look for an out-of-memory kill, or use fewer processes"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.number, mp_context=self._context, initializer=import_module, initargs=(self._module,)
            )
        return self._pool


def num_cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(files: Sequence[Path]) -> int:
    """One process for each core, as far as the files are worth it."""
    size = sum(path.stat().st_size for path in files if path.is_file())
    return max(1, min(num_cores(), MOST_PROCESSES, size // WORTH_A_PROCESS))


def _nothing() -> None:
    pass


class _Process(SpawnProcess):
    """A fresh interpreter that imports what it is asked to call, and not the script that started it.

    Ctrl-C on a terminal is for the process that started it, which ends it.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        script = sys.modules["__main__"].__dict__
        hidden = {name: script[name] for name in ("__spec__", "__file__") if name in script}
        script.update(dict.fromkeys(hidden))
        try:
            with _without_interrupts():
                return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        finally:
            script.update(hidden)


@contextmanager
def _without_interrupts() -> Generator[None]:
    """Hold Ctrl-C back; a process that starts meanwhile never hears it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Starts such processes."""

    Process = _Process  # type: ignore[assignment]
