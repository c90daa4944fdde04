"""How fast `regimen convert` is beside the usual loop of `json.loads` and `json.dumps`, and that its cost is linear.

    python benchmarks/convert.py --sizes 0.25 0.5 1 2 --output runs/benchmark-convert

For each size (in GB) a file of multi-turn rollouts is generated, 8 repeats a task in completion order. For each target
the loop (`benchmarks/conversion/naive.py`) and the command with one and with two processes take turns, each a process
of its own; the figures are wall time from start to exit, and the peak of resident memory of the largest process. On
the smallest file the written rows must be equal. Writes convert.json and convert.md; needs no extra package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conversion.data import write_rollouts

TARGETS = ("sft", "dpo", "grpo")
NAIVE = Path(__file__).resolve().parent / "conversion" / "naive.py"
# Figures that the loop does not write.
OURS_ALONE = ("task_name", "chosen_characters", "rejected_characters", "shared_messages")


def main() -> int:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0], help="GB of rollouts")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=1, help="turns of each; the fastest counts")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-convert"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for number, size in enumerate(sorted(options.sizes)):
        source = options.output / "rollouts.jsonl"
        num_rows = write_rollouts(source, int(size * 1e9))
        for target in options.targets:
            runs = measure(source, target, options.output, options.rounds)
            if number == 0:
                check_equal(options.output, target)
            results.append({"gigabytes": source.stat().st_size / 1e9, "rows": num_rows, "target": target, **runs})
            print(line_of(results[-1]), flush=True)
        source.unlink()
    (options.output / "convert.json").write_text(json.dumps(results, indent=2) + "\n")
    text = "\n".join([HEADER, *map(line_of, results)]) + "\n"
    (options.output / "convert.md").write_text(text)
    for folder in ("naive", "one", "two"):
        shutil.rmtree(options.output / folder, ignore_errors=True)
    return 0


HEADER = (
    "| target | GB | rows | loop, s | one process, s | two, s | one is faster | two are faster | MB/s with two "
    "| peak, MiB: loop | one | two |\n" + "| --- " * 12 + "|"
)


def line_of(result: dict[str, Any]) -> str:
    """One row of the table."""
    loop, one, two = (result[name] for name in ("naive", "one", "two"))
    cells = [
        result["target"],
        f"{result['gigabytes']:.2f}",
        f"{result['rows']:,}",
        *(f"{run['seconds']:.1f}" for run in (loop, one, two)),
        *(f"{loop['seconds'] / run['seconds']:.2f}x" for run in (one, two)),
        f"{result['gigabytes'] * 1e3 / two['seconds']:.0f}",
        *(f"{run['peak'] / 2**20:.0f}" for run in (loop, one, two)),
    ]
    return "| " + " | ".join(cells) + " |"


def measure(source: Path, target: str, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of each contestant, the fastest of its rounds."""
    command = [sys.executable, "-m", "regimen.cli.main", "convert", str(source), "--to", target, "--json"]
    contestants = {
        "naive": [sys.executable, str(NAIVE), str(source), target, str(folder / "naive")],
        "one": [*command, "--processes", "1", "--out", str(folder / "one")],
        "two": [*command, "--processes", "2", "--out", str(folder / "two")],
    }
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, words in contestants.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            run = timed(words)
            if name not in best or run["seconds"] < best[name]["seconds"]:
                best[name] = run
    return best


def timed(words: list[str]) -> dict[str, float]:
    """Wall seconds of a command, and the peak of its resident memory. Compiled modules are kept, as Python does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"error: {' '.join(words)} failed")
    return {"seconds": seconds, "peak": usage.ru_maxrss * 1024}


def check_equal(folder: Path, target: str) -> None:
    """Stop where the written rows differ in more than their order and the figures that only one side writes."""
    for file in ("train.jsonl", "val.jsonl"):
        sides = [sorted(map(digest_of, (folder / name / file).open("rb"))) for name in ("naive", "one", "two")]
        if not sides[0] == sides[1] == sides[2]:
            raise SystemExit(f"error: {target} {file}: the contestants wrote different rows")


def digest_of(line: bytes) -> bytes:
    """A hash of a row's content."""
    row = {key: value for key, value in json.loads(line).items() if key not in OURS_ALONE}
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()


if __name__ == "__main__":
    sys.exit(main())
