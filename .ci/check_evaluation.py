"""Look at what `regimen quickstart --smoke` left: an evaluation of the base and of trained models, and a report.

In: the quickstart's folder. Out: exit code 0 and the figures, or 1 and what is wrong.
The shortened run is too short to promise a gain; the whole quickstart's gain is asserted in the slow tests.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

LABELS = ["smollm2-135m-instruct", "sft_grpo", "grpo", "dpo"]  # the base, then what was trained


def main(folder: Path) -> int:
    """Check the folder; returns the exit code."""
    problems = [f"no {name} in {folder}" for name in ("evaluation.json", "report.html") if not found(folder, name)]
    if not problems:
        for path in found(folder, "evaluation.json"):
            problems += problems_of(path)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def found(folder: Path, name: str) -> list[Path]:
    """Files called `name` in the folder or below it."""
    return sorted(folder.rglob(name))


def problems_of(path: Path) -> list[str]:
    """What is wrong with one evaluation: a figure for each of the five models is expected, and no failed episode."""
    models: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["models"]
    labels = [model["score"]["label"] for model in models]
    problems = [] if labels == LABELS else [f"{path}: models {', '.join(labels)}, expected {', '.join(LABELS)}"]
    for model in models:
        score = model["score"]
        mean = (score["reward"] or {}).get("mean")
        print(f"{path}: {score['label']}: mean reward {mean} on {score['num_tasks']} tasks")
        if not (isinstance(mean, int | float) and math.isfinite(mean) and 0 <= mean <= 1):
            problems.append(f"{path}: {score['label']}: mean reward {mean!r}, expected a number from 0 to 1")
        if score["num_failed"]:
            problems.append(f"{path}: {score['label']}: {score['num_failed']} failed episodes, expected none")
    return problems


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
