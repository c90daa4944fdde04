"""The tracking seam: numbers of a step in, kept somewhere a person can look.

A tracker is made with the run's folder and, when the run is resumed, the first step that will run again; what was
logged from that step on is dropped or hidden, so that each step stands once.
Refuses, with `UsageError`: a fresh run into a folder that already holds metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from regimen import registry


class Tracker(Protocol):
    """Takes the metrics of steps."""

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Keep the metrics of `step`; a prefix "train" makes `loss` into `train/loss`."""
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
        for tracker in self.trackers:
            tracker.log(step, metrics, prefix)

    def close(self) -> None:
        """Close every tracker, the later ones even when an earlier one fails."""
        failures: list[Exception] = []
        for tracker in self.trackers:
            try:
                tracker.close()
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def open_trackers(folder: Path, names: Sequence[str], *, resume_step: int | None = None) -> TrackerGroup:
    """Open metrics.jsonl (always, it is what reports read) and the named trackers in a run's folder."""
    wanted = ["jsonl", *(name for name in names if name != "jsonl")]
    kinds = [registry.resolve("tracker", name) for name in wanted]
    return TrackerGroup([kind(folder, resume_step=resume_step) for kind in kinds])


def full_name(prefix: str, name: str) -> str:
    """`prefix/name`, or the name alone."""
    return f"{prefix}/{name}" if prefix else name


def is_number(value: float) -> bool:
    """Whether a metric is finite; what isn't is written as null, since JSON has no word for it."""
    return math.isfinite(value)
