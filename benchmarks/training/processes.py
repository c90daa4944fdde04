"""Contestants in processes of their own, which take a step when they are told to.

A contestant's side is `Channel`, the benchmark's is `Contestant`. Lines of JSON go through the standard streams; what a
contestant's libraries print goes to its log. A process has memory of its own, so that a peak is its own, and waits
between its steps, so that contestants can take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from regimen.pipelines.machine import peak_bytes, resident_bytes
from training.settings import Settings

BENCHMARKS = Path(__file__).resolve().parents[1]


class BenchmarkError(RuntimeError):
    """A contestant failed; the text ends with what it printed."""


class Channel:
    """Inside a contestant: wait for the word, report figures."""

    def __init__(self, device: str = "cpu") -> None:
        self.started = time.perf_counter()
        self.device = device
        self.base_bytes = resident_bytes() if device == "cpu" else 0  # Python and libraries, before the model
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._ready = False
        self.peak_covers = "process"

    def send(self, **figures: Any) -> None:
        """Report."""
        self._out.write(json.dumps(figures) + "\n")

    def wait(self) -> None:
        """Until the next step may begin. The first call says that everything is set up."""
        if not self._ready:
            self._ready = True
            self.send(setup_seconds=time.perf_counter() - self.started)
            self._reset_peak()
        if not sys.stdin.readline():
            raise SystemExit(1)

    def finish(self) -> None:
        """Report the peak."""
        self.send(peak_bytes=self._peak_bytes(), base_bytes=self.base_bytes, peak_covers=self.peak_covers)

    def now(self) -> float:
        """The time when everything that was started is done."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak_bytes(self) -> int:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return peak_bytes()

    def _reset_peak(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.peak_covers = "steps"
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.peak_covers = "steps"
        except OSError:
            self.peak_covers = "process"


class Contestant:
    """A process that takes steps. Raises `BenchmarkError` when it ends before its time."""

    def __init__(self, module: str, arguments: list[str], settings: Settings, log: Path) -> None:
        self.name = " ".join([module.rpartition(".")[2], *arguments])
        self.log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, settings.dump()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(settings, log.parent),
            )

    def read(self) -> dict[str, Any]:
        """The next report."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            raise BenchmarkError("\n".join([f"{self.name} ended with {self._process.wait()}:", *tail]))
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """Let it take one step."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` tells what happened
        return self.read()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(settings: Settings, scratch: Path) -> dict[str, str]:
    """The device alone, a fixed number of threads, no network, caches in the scratch folder."""
    paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(settings.threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "" if settings.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
