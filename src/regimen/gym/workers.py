"""Processes that run somebody's library for an environment, a few at a time, each request under limits.

In: the script that they run (`worker.py` says what it defines), requests as objects of JSON. Out: the answers, or a
`GymError` where there is none: the process took too long or too much memory, or was ended. Processes start when they
are needed and end with their owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from regimen.errors import GymError

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 5.0  # of processor time for one request
WALL_SECONDS = 90.0  # at least, for what the processor does not count, like a machine that swaps
WALL_SHARE = 10.0  # seconds for each of processor time, where others use the machine too
START_SECONDS = 600.0  # until the libraries are loaded
MEMORY = 2 << 30


class Workers:
    """Up to `num_workers` processes that run `script`; `task` says in errors what they do, as in "judging the answer".

    Requests may be awaited from any event loop, one after the other or many, and asked for from any thread.
    """

    def __init__(self, script: Path, num_workers: int, seconds: float = SECONDS, *, task: str = "the request") -> None:
        self.script, self.seconds, self.task = script, seconds, task
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix=script.stem)
        self._idle: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._idle)

    async def ask(self, request: dict[str, Any], where: str, seconds: float | None = None) -> dict[str, Any]:
        """The answer; raises `GymError` when there is none."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, request, where, seconds)

    def ask_now(self, request: dict[str, Any], where: str, seconds: float | None = None) -> dict[str, Any]:
        """`ask`, for those who have no event loop."""
        return self._threads.submit(self._ask, request, where, seconds).result()

    def _ask(self, request: dict[str, Any], where: str, seconds: float | None) -> dict[str, Any]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self.script, self.task)
        try:
            return worker.answer(request, where, seconds or self.seconds)
        finally:
            if worker.is_alive:
                self._idle.append(worker)


class _Worker:
    """One process; it answers one request at a time."""

    def __init__(self, script: Path, task: str) -> None:
        self.task = task
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-B", str(WORKER), str(script), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self.is_ready = False

    def answer(self, request: dict[str, Any], where: str, seconds: float) -> dict[str, Any]:
        if not self.is_ready:
            self.is_ready = bool(self._line(None, START_SECONDS))
        line = self._line(json.dumps({"seconds": seconds, "request": request}), _wall(seconds))
        if not line.endswith("\n"):
            raise GymError(self._how_it_ended(seconds), where=where)
        return cast("dict[str, Any]", json.loads(line))

    def _line(self, said: str | None, wall: float) -> str:
        """What it answers; past `wall` seconds it is ended. "" where it ended."""
        clock = threading.Timer(wall, self.process.kill)
        clock.start()
        try:
            if said is not None:
                print(said, file=cast("IO[str]", self.process.stdin), flush=True)
            return cast("IO[str]", self.process.stdout).readline()
        except OSError:  # it ended before it read
            return ""
        finally:
            clock.cancel()

    @property
    def is_alive(self) -> bool:
        """Whether it can take another request."""
        return self.process.poll() is None

    def _how_it_ended(self, seconds: float) -> str:
        self.stop()
        code = self.process.returncode
        if code == -getattr(signal, "SIGPROF", 0):
            return f"{self.task} took more than {seconds:g} seconds of processor time"
        if code == -getattr(signal, "SIGKILL", 0):
            return f"{self.task} took more than {_wall(seconds):g} seconds, or the system ended it"
        return f"the process for {self.task} ended with code {code}"

    def stop(self) -> None:
        """Let the process end, which it does at the end of its input, and wait for it."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not read is lost with the process
                cast("IO[str]", pipe).close()
        self.process.wait()


def _wall(seconds: float) -> float:
    return max(WALL_SECONDS, WALL_SHARE * seconds)


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()
