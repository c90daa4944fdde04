"""What became of everything that a run trained on, over all its steps.

In: the buckets of the data files' rows, and the ledgers of batches of episodes, which balance for each environment.
Out: the totals, what a checkpoint keeps of them, and `ledger.json` of a run that played episodes. Refuses nothing: the
sources of batches do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimen.pipelines.batch import EpisodeLedger, add_episodes, in_total
from regimen.pipelines.run import LEDGER_FILE, write_text


class RunLedger:
    """`rows`: of data files, by bucket. `episodes`: of each environment, by bucket."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        self.rows: Counter[str] = Counter(rows)
        self.episodes: EpisodeLedger = {}

    def add(self, episodes: EpisodeLedger) -> None:
        """Count the episodes of a step."""
        add_episodes(self.episodes, episodes)

    @property
    def total(self) -> dict[str, int]:
        """Rows and episodes by bucket."""
        total = Counter(self.rows)
        total.update(in_total(self.episodes))
        return dict(total)

    @property
    def environments(self) -> dict[str, dict[str, int]]:
        """The episodes of each environment by bucket, in alphabetical order."""
        return {name: dict(buckets) for name, buckets in sorted(self.episodes.items())}

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"ledger": self.total, "environments": self.environments}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept. What it counted for no environment stays in the total."""
        self.episodes = {name: Counter(buckets) for name, buckets in record.get("environments", {}).items()}
        self.rows = Counter(record["ledger"]) - in_total(self.episodes)

    def write(self, folder: Path) -> None:
        """Write `ledger.json` where episodes were played; that of data files stands from the start."""
        if self.episodes:
            record = {"episodes": self.total, "environments": self.environments}
            write_text(folder / LEDGER_FILE, json.dumps(record, indent=2) + "\n")
