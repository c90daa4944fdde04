"""The command that trains on a converted folder.

In: the folder and its manifest. Out: a `regimen train` line that works once MODEL is replaced by a model.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from regimen.convert.manifest import Manifest
from regimen.convert.options import DATASETS

PROMPTS_PER_STEP = 32  # of the shipped GRPO configuration
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
NO_VALIDATION = {
    "sft": ("sft.val_period=0", "sft.val_at_start=false"),
    "dpo": ("dpo.val_period=0", "dpo.val_at_start=false"),
    "grpo": ("grpo.val_period=0",),
}


def training_command(manifest: Manifest, folder: Path) -> str | None:
    """`regimen train` with the shipped configuration of the target, and all that the rows decide.

    None for gym rows: how many turns their episodes need, the rows do not tell (`regimen inspect` does).
    """
    to, counts = manifest.target, manifest.counts
    if manifest.format == "gym":
        return None
    words = ["regimen", "train", to, "policy.model_name=MODEL"]
    words.append(f"data.default.dataset_name={DATASETS[manifest.format]}")
    words.append(f"data.train.data_path={folder / 'train.jsonl'}")
    if counts.validation_rows:
        words.append(f"data.validation.data_path={folder / 'val.jsonl'}")
    else:
        words += NO_VALIDATION[to]
    if manifest.format == "response":
        words.append(f"data.default.env_name={_environment(folder / 'train.jsonl')}")
    if to == "grpo" and counts.train_rows < PROMPTS_PER_STEP:
        words.append(f"grpo.num_prompts_per_step={counts.train_rows}")
    return shlex.join(words)


def _environment(path: Path) -> str:
    """Who judges questions and answers: `multiple_choice` where every answer is a letter, else `math`."""
    with path.open(encoding="utf-8") as lines:
        are_letters = all(_LETTER.fullmatch(json.loads(line)["output"]) for line in lines if line.strip())
    return "multiple_choice" if are_letters else "math"
