"""NeMo Gym's own collector, measured, and what was measured beside it as a table.

In: the command `gym` of an installation whose servers run, an agent, task rows. Out: episodes a second, as the
collector's own progress tells it. Its start, some seconds of imports, is not counted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

THEIRS = "NeMo Gym's collector"
NAMES = {
    THEIRS: f"{THEIRS}, on its servers",
    "gym": "`regimen collect --gym`, on the same servers",
    "served": "`regimen collect --gym`, on Regimen's agent server",
    "http": "`regimen collect --model-url`",
}
_PROGRESS = re.compile(r"\b(\d+)/(\d+) \[[^\]]*?([\d.]+)(it/s|s/it)\]")


def measure_theirs(command: str, agent: str, tasks: Path, repeats: int, concurrency: int, output: Path) -> float:
    """Episodes a second of the gym's collector; every episode must have ended well."""
    found = shutil.which(command)
    if found is None:
        raise SystemExit(f"error: there is no command {command}")
    asked = [str(Path(found).absolute()), "eval", "run", "--no-serve", "--agent", agent]
    asked += ["--input", str(tasks), "--output", str(output)]
    asked += ["--num-repeats", str(repeats), "--concurrency", str(concurrency)]
    # It leaves a folder of logs where it is started.
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=output.parent)
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"error: {THEIRS}: {said[-2000:]}")
    number = repeats * len(tasks.read_text(encoding="utf-8").splitlines())
    if len(output.read_text(encoding="utf-8").splitlines()) != number:
        raise SystemExit(f"error: {THEIRS} has not written {number} episodes")
    return rate_of(said)


def rate_of(said: str) -> float:
    """Episodes a second in the last whole line of the collector's progress."""
    whole = [found for found in _PROGRESS.findall(said) if found[0] == found[1]]
    if not whole:
        raise SystemExit(f"error: {THEIRS} does not say how long it took: {said[-2000:]}")
    _, _, number, unit = whole[-1]
    return float(number) if unit == "it/s" else 1 / float(number)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Contestants by concurrency, the figures of every turn, and the mean as so many times the gym's own."""
    num_turns = max(result["turn"] for result in results)
    turns = " | ".join(f"turn {turn}" for turn in range(1, num_turns + 1))
    lines = [f"| who | concurrent | episodes | {turns} | times NeMo Gym's |", "| --- " * (4 + num_turns) + "|"]
    for at in dict.fromkeys(result["concurrency"] for result in results):
        here = [result for result in results if result["concurrency"] == at]
        theirs = fmean(result["episodes_per_second"] for result in here if result["kind"] == THEIRS)
        for kind in dict.fromkeys(result["kind"] for result in here):
            own = sorted((result for result in here if result["kind"] == kind), key=lambda result: result["turn"])
            rates = [result["episodes_per_second"] for result in own]
            cells = [NAMES[kind], at, own[0]["episodes"], *rates, f"{fmean(rates) / theirs:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
