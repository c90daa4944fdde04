"""The stages of a training step: which one it is in, and how long each took.

In: names of stages as they begin. Out: seconds by stage; the watchdog and whoever shows progress hear of each.
The names are those under which NeMo RL times its steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from regimen.pipelines.watchdog import Watchdog

DATA, GENERATION, REFERENCE = "data_processing", "generation", "policy_and_reference_logprobs"
TRAINING, HAND_OVER = "policy_training", "prepare_for_generation"
VALIDATION, CHECKPOINT = "total_validation_time", "checkpointing"
# What a person reads while a stage goes on.
WORDS = {
    DATA: "reading rows",
    GENERATION: "playing episodes",
    REFERENCE: "reference",
    TRAINING: "training",
    HAND_OVER: "handing weights over",
    VALIDATION: "validating",
    CHECKPOINT: "saving",
}


class Stages:
    """The stage that goes on, and the seconds of those that ended."""

    def __init__(self, watchdog: Watchdog, report: Callable[[str], None]) -> None:
        self.watchdog, self._report = watchdog, report
        self._seconds: dict[str, float] = {}
        self._current: str | None = None
        self._began = 0.0

    def enter(self, stage: str) -> None:
        """End the stage before, begin this one."""
        self.leave()
        self._current, self._began = stage, time.monotonic()
        self.watchdog.enter(stage)
        self._report(WORDS[stage])

    def leave(self) -> None:
        """End the stage that goes on, if any."""
        if self._current is not None:
            spent = time.monotonic() - self._began
            self._seconds[self._current] = self._seconds.get(self._current, 0.0) + spent
            self._current = None

    def take(self) -> dict[str, float]:
        """Seconds by stage since they were last taken."""
        self.leave()
        seconds, self._seconds = self._seconds, {}
        return seconds


def rates(num_tokens: int, seconds: dict[str, float]) -> dict[str, float]:
    """Tokens a second of the step, of generation and of training, per device: this is one."""
    found = {"tokens_per_sec_per_gpu": num_tokens / max(1e-9, sum(seconds.values()))}
    for stage in (GENERATION, TRAINING, REFERENCE):
        if stage in seconds:
            found[f"{stage}_tokens_per_sec_per_gpu"] = num_tokens / max(1e-9, seconds[stage])
    return found
