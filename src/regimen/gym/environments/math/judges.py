"""Processes that compare answers, a few at a time, each judgement under a limit of time.

In: a gold answer and another. Out: a `Judgement`, or a `GymError` where judging itself failed: the gold answer cannot
be read, or comparing took too long or too much memory. Processes start when they are needed and end with their owner.
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
from typing import IO, cast

import msgspec

from regimen.errors import GymError

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 5.0  # of processor time for one judgement
WALL_SECONDS = 90.0  # for what the processor does not count, like a machine that swaps


class Judgement(msgspec.Struct, frozen=True):
    """Whether the answer equals the gold answer, and whether it could be read at all."""

    equal: bool
    read: bool


class Judges:
    """Up to `num_workers` processes. `judge` may be awaited from any event loop, one after the other or many."""

    def __init__(self, num_workers: int, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="math-verify")
        self._idle: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._idle)

    async def judge(self, gold: str, answer: str) -> Judgement:
        """Compare; raises `GymError` when that fails."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._judge, gold, answer)

    def _judge(self, gold: str, answer: str) -> Judgement:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self.seconds)
        try:
            return worker.judge(gold, answer)
        finally:
            if worker.is_alive:
                self._idle.append(worker)


class _Worker:
    """One process; it answers one question at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def judge(self, gold: str, answer: str) -> Judgement:
        clock = threading.Timer(WALL_SECONDS, self.process.kill)
        clock.start()
        try:
            line = self._asked(json.dumps({"gold": gold, "answer": answer}))
        finally:
            clock.cancel()
        if not line.endswith("\n"):
            raise GymError(self._how_it_ended(), where=f"comparing {answer[:80]!r} with {gold[:80]!r}")
        found = json.loads(line)
        if "failure" in found:
            raise GymError(found["failure"], fix="mend the ground truth of this task")
        return Judgement(found["equal"], found["read"])

    def _asked(self, line: str) -> str:
        try:
            print(line, file=cast("IO[str]", self.process.stdin), flush=True)
            return cast("IO[str]", self.process.stdout).readline()
        except OSError:  # it ended before it read
            return ""

    @property
    def is_alive(self) -> bool:
        """Whether it can take another question."""
        return self.process.poll() is None

    def _how_it_ended(self) -> str:
        self.stop()
        code = self.process.returncode
        if code == -getattr(signal, "SIGPROF", 0):
            return f"judging the answer took more than {self.seconds:g} seconds of processor time"
        if code == -getattr(signal, "SIGKILL", 0):
            return f"judging the answer took more than {WALL_SECONDS:g} seconds, or the system ended it"
        return f"the process that judges answers ended with code {code}"

    def stop(self) -> None:
        """Let the process end, which it does at the end of its input, and wait for it."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not read is lost with the process
                cast("IO[str]", pipe).close()
        self.process.wait()


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()
