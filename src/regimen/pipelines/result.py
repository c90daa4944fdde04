"""What came of a training run, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class TrainResult:
    """What a run left: its folder, the model to use, the steps done, the last metrics, the ledger of the whole run.

    `environments`: the ledger of the episodes of each environment.
    """

    folder: Path
    model: Path | None
    num_steps: int
    metrics: dict[str, float]
    ledger: dict[str, int]
    stopped: bool = False
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    environments: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        state = "stopped by a signal; continue with --resume" if self.stopped else "done"
        figures = ", ".join(
            f"{name} {self.metrics[name]:.4g}"
            for name in ("train/loss", "train/reward", "validation/loss", "validation/reward")
            if name in self.metrics
        )
        lines = [f"{state}: {self.num_steps} steps in {self.seconds:.0f} s; {figures}", f"rows: {_told(self.ledger)}"]
        if len(self.environments) > 1:
            lines += [f"  of {name}: {_told(buckets)}" for name, buckets in self.environments.items()]
        return "\n".join([*lines, f"model: {self.model}" if self.model else f"folder: {self.folder}"])


def _told(ledger: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(ledger.items())) or "none"
