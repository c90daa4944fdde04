"""How an episode ended. A failure that is not the model's is never a reward of 0."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The typed end of an episode; only `OK` and `TRUNCATED` episodes carry a reward that may be trained on."""

    OK = "ok"
    MODEL_FAILED = "model_failed"
    ENVIRONMENT_FAILED = "environment_failed"
    VERIFIER_FAILED = "verifier_failed"
    TIMED_OUT = "timed_out"
    TRUNCATED = "truncated"

    @property
    def is_scored(self) -> bool:
        """Whether the reward of such an episode speaks about the model."""
        return self in (Outcome.OK, Outcome.TRUNCATED)
