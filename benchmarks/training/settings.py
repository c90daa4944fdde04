"""What every process of one benchmark run agrees on: model, sizes, threads. Travels as JSON on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

LEARNING_RATE = 1e-6
MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes count what one optimiser step takes."""

    model: str
    steps: int = 2
    warmup: int = 1
    threads: int = 2
    conversations: int = 2  # SFT
    pairs: int = 1  # DPO
    prompts: int = 1  # GRPO
    group_size: int = 8  # GRPO: completions of each prompt
    new_tokens: int = 32  # GRPO: tokens of each completion
    micro_batch_tokens: int = 16384  # Regimen: tokens computed at once
    micro_batch_rows: int = 0  # TRL: rows (DPO: pairs) computed at once; 0: all of a step
    forest_completion: int = 16  # forest: tokens of each completion
    forest_rounds: int = 2
    longest: int = 2048  # cost curve: tokens of the longest sequence
    device: str = "cpu"
    dtype: str = "float32"
    temperature: float = 1.0

    @property
    def total_steps(self) -> int:
        """Warm-up and measured steps."""
        return self.warmup + self.steps

    def dump(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The reverse of `dump`."""
        return cls(**json.loads(text))
