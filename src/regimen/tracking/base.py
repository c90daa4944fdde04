"""The tracking seam: numbers of a step in, kept somewhere a person can look.

A tracker is made with the run's folder and, when the run is resumed, the first step that will run again; what was
logged from that step on is dropped or hidden, so that each step stands once.
A tracker that talks to a server may lose it while a run goes on: it is left out then, with a line on the error
stream, and the run goes on, since metrics.jsonl has everything.
Refuses, with `UsageError`: a fresh run into a folder that already holds metrics.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from regimen import registry
from regimen.errors import first_line


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """An episode to read: what was asked, what the model said and did, what it was worth (None: it failed)."""

    prompt: str
    answer: str
    reward: float | None

    def __str__(self) -> str:
        reward = "failed" if self.reward is None else f"reward {self.reward:g}"
        return f"--- {reward}\n{self.prompt}\n>>>\n{self.answer}\n"


class Tracker(Protocol):
    """Takes the metrics of steps; what it has no place for it leaves."""

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Keep the metrics of `step`; a prefix "train" makes `loss` into `train/loss`."""
        ...

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep the run's configuration, less its secrets."""
        ...

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Keep a few episodes of the validation at `step`."""
        ...

    def close(self) -> None:
        """Write what is waiting and let go of the files."""
        ...


class TrackerGroup:
    """Several trackers behind the face of one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Hand the metrics to every tracker."""
        self._each(lambda tracker: tracker.log(step, metrics, prefix))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Hand the configuration to every tracker."""
        self._each(lambda tracker: tracker.log_config(config))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Hand the episodes to every tracker."""
        self._each(lambda tracker: tracker.log_samples(step, samples))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                call(tracker)
            except Exception as error:  # the boundary: a server's troubles are said once and end no run
                if not _is_remote(tracker):
                    raise
                self.trackers.remove(tracker)
                _say_lost(tracker, error)

    def close(self) -> None:
        """Close every tracker, the later ones even when an earlier one fails."""
        failures: list[Exception] = []
        for tracker in self.trackers:
            try:
                tracker.close()
            except Exception as error:  # the boundary: all are closed, then the first failure is raised
                if _is_remote(tracker):
                    _say_lost(tracker, error)
                else:
                    failures.append(error)
        if failures:
            raise failures[0]


def _is_remote(tracker: Tracker) -> bool:
    """Whether it talks to a server."""
    return bool(getattr(tracker, "is_remote", False))


def _say_lost(tracker: Tracker, error: Exception) -> None:
    name = type(tracker).__name__
    print(f"note: {name} failed ({first_line(error)}) and gets no more metrics; metrics.jsonl has all", file=sys.stderr)


def open_trackers(
    folder: Path,
    names: Sequence[str],
    *,
    resume_step: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> TrackerGroup:
    """Open metrics.jsonl (always, it is what reports read) and the named trackers, with their settings by name."""
    wanted = ["jsonl", *(name for name in names if name != "jsonl")]
    kinds = {name: registry.resolve("tracker", name) for name in wanted}
    opened: list[Tracker] = []
    try:
        for name, kind in kinds.items():
            opened.append(kind(folder, resume_step=resume_step, **(settings or {}).get(name, {})))
    except Exception:
        TrackerGroup(opened).close()
        raise
    return TrackerGroup(opened)


def full_name(prefix: str, name: str) -> str:
    """`prefix/name`, or the name alone."""
    return f"{prefix}/{name}" if prefix else name


def is_number(value: float) -> bool:
    """Whether a metric is finite; what isn't is written as null, since JSON has no word for it."""
    return math.isfinite(value)
