"""Ends a run that hangs, and says in which stage.

In: the names of stages as they begin, and a beat whenever something is done. Out: nothing while there is progress.
After `timeout` seconds without any, the stage's name and the stacks of all threads go into the folder, and the block
is left with a `RunError`. Code that cannot be interrupted (a kernel, a collective that waits for a dead process) gets
`GRACE_SECONDS` more; then the process ends with exit code 1. Outside the main thread nothing can be interrupted: the
stacks are written, and the next beat raises.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType

from regimen.errors import RunError

GRACE_SECONDS = 30.0
# Not SIGALRM, which verifiers set to bound their own work, nor SIGUSR1, with which batch systems announce an end.
SIGNAL = signal.SIGUSR2


class _Hung(KeyboardInterrupt):
    """Raised in the main thread, wherever it is."""


class Watchdog:
    """See the module; a context manager. `timeout` None watches nothing."""

    def __init__(self, folder: Path, timeout: float | None) -> None:
        self.folder, self.timeout = folder, timeout
        self.stage = "start"
        self._beats = 0
        self._over = threading.Event()
        self._error: RunError | None = None
        self._is_main = False
        self._before: object = None
        self._thread: threading.Thread | None = None

    def enter(self, stage: str) -> None:
        """A stage begins."""
        self.stage = stage
        self.beat()

    def beat(self) -> None:
        """Something was done."""
        self._beats += 1
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Watchdog:
        if self.timeout is not None:
            self._is_main = threading.current_thread() is threading.main_thread()
            if self._is_main:
                self._before = signal.signal(SIGNAL, self._interrupt)
            self._thread = threading.Thread(target=self._watch, args=(self.timeout,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._is_main:
                signal.signal(SIGNAL, self._before)  # type: ignore[arg-type]
        if isinstance(error, _Hung) and self._error is not None:
            raise self._error from None

    def _interrupt(self, *_: object) -> None:
        if self._error is not None and not self._over.is_set():
            raise _Hung

    def _watch(self, timeout: float) -> None:
        """Count the seconds without a beat in ticks, so that time in which the process was stopped does not count."""
        tick, seen, idle = min(1.0, timeout / 4), self._beats, 0.0
        while not self._over.wait(tick):
            seen, idle = self._beats, (idle + tick if seen == self._beats else 0.0)
            if idle > timeout:
                self._end(timeout)
                return

    def _end(self, timeout: float) -> None:
        stage, path = self.stage, self._write_stacks(timeout)
        self._error = RunError(
            f"no progress for {timeout:g} s in the stage {stage!r}",
            where=str(path),
            fix="look at the stacks there; raise run.stage_timeout if the work was only slow; continue with --resume",
        )
        if not self._is_main:
            return
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        if not self._over.wait(GRACE_SECONDS):
            print(f"error: {self._error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _write_stacks(self, timeout: float) -> Path:
        path = self.folder / f"hang_{self.stage}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.write(f"stage: {self.stage}\nno progress for {timeout:g} s; the stacks of all threads:\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path
