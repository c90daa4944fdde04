"""One step's training data, and how it is divided among optimiser steps.

In: training sequences. Out: `Batch`, with a ledger in which every episode stands in one bucket of its environment.
Refuses nothing: the sources of batches do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from regimen.tokens.forest import TrainingSequence

# How many episodes of each environment ended in each bucket.
EpisodeLedger = dict[str, Counter[str]]


def add_episodes(ledger: EpisodeLedger, more: EpisodeLedger) -> None:
    """Add the counts of `more` to `ledger`."""
    for environment, buckets in more.items():
        ledger.setdefault(environment, Counter()).update(buckets)


def in_total(ledger: EpisodeLedger) -> Counter[str]:
    """The counts of all environments together."""
    total: Counter[str] = Counter()
    for buckets in ledger.values():
        total.update(buckets)
    return total


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimiser step takes: a range of a batch's sequences, and the divisors of its loss."""

    rows: range
    valid_tokens: float
    valid_sequences: float


@dataclass(slots=True)
class Batch:
    """One global batch. `sequences` are those to compute; the normalisers count those left out as inert too.

    `episodes` is the ledger of those that were played. `updates` divides the sequences among several optimiser steps;
    empty, there is one over all of them.
    `weight_version`: the oldest weights that sampled a token of it; `age`: by how many steps they are older.
    """

    sequences: list[TrainingSequence]
    valid_tokens: float
    valid_sequences: float
    metrics: dict[str, float] = field(default_factory=dict)
    episodes: EpisodeLedger = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    weight_version: int | None = None
    age: int = 0

    def divided(self) -> list[Update]:
        """The optimiser steps to take, in order."""
        whole = Update(range(len(self.sequences)), self.valid_tokens, self.valid_sequences)
        return self.updates or [whole]

    @property
    def ledger(self) -> Counter[str]:
        """The episodes of all environments by bucket."""
        return in_total(self.episodes)

    def ledger_metrics(self) -> dict[str, float]:
        """The ledger as metrics, for each environment too where there are several."""
        counts = {f"episodes/{bucket}": float(count) for bucket, count in self.ledger.items()}
        for environment, buckets in self.episodes.items() if len(self.episodes) > 1 else ():
            counts |= {f"environment/{environment}/episodes/{name}": float(n) for name, n in buckets.items()}
        return counts


def with_reference(sequences: Sequence[TrainingSequence], values: list[np.ndarray]) -> list[TrainingSequence]:
    """The sequences with their reference log-probabilities."""
    return [replace(s, reference_logprob=v) for s, v in zip(sequences, values, strict=True)]


def with_previous(sequences: Sequence[TrainingSequence], values: list[np.ndarray]) -> list[TrainingSequence]:
    """The sequences with the log-probabilities of the policy as it is before the first optimiser step."""
    return [replace(s, previous_logprob=v) for s, v in zip(sequences, values, strict=True)]
