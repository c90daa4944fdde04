"""How fast training is, beside TRL on the same machine: SFT, DPO and GRPO steps, and what the forest alone saves.

    python benchmarks/train.py --algorithms sft dpo grpo --steps 2

Needs the extras `train` and `benchmark`; without TRL its side is left out, and the run says so. Every contestant is a
process of its own with the same model, data, dtype and number of threads, and they take steps in turn. The model is
the small one of the quickstart, any folder (`--model`), or a random one of a billion weights (`--model 1b`).
`--device cuda` does the same on a GPU, in bfloat16 unless `--dtype` says otherwise. `--quick` shows in half a minute
that everything runs, on a tiny random model: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training.processes import BenchmarkError, Contestant
from training.report import add_ratios, markdown, summarise
from training.settings import Settings
from training.tiny import save_large_model, save_tiny_model

CONTESTANTS: dict[str, list[tuple[str, str]]] = {
    "sft": [("regimen", "forest"), ("trl", "default"), ("regimen", "packed"), ("trl", "tuned")],
    "dpo": [("regimen", "forest"), ("trl", "default"), ("regimen", "reference"), ("trl", "tuned")],
    "grpo": [("regimen", "forest"), ("trl", "default"), ("regimen", "checkpointed"), ("trl", "tuned")],
}
NAMES = sorted({f"{side}-{variant}" for contestants in CONTESTANTS.values() for side, variant in contestants})
QUICK_CONTESTANTS = [("regimen", "forest"), ("trl", "default")]
QUICK = {"conversations": 2, "pairs": 1, "prompts": 1, "group_size": 2, "new_tokens": 4, "forest_completion": 8}
QUICK |= {"steps": 1, "warmup": 1, "longest": 256}
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate")


def main(arguments: list[str] | None = None) -> int:
    """Run, print the tables and write `benchmark.json` and `benchmark.md`."""
    options = _parser().parse_args(arguments)
    target = options.output / "benchmark.json"
    if target.exists() and not options.overwrite:
        print(f"error: {target} exists; to fix: choose another --output, or pass --overwrite", file=sys.stderr)
        return 2
    contestants = {name: QUICK_CONTESTANTS if options.quick else CONTESTANTS[name] for name in options.algorithms}
    for name, wanted in contestants.items():
        contestants[name] = [(side, variant) for side, variant in wanted if f"{side}-{variant}" in options.contestants]
    logs = options.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(options, Path(scratch))
        try:
            results = benchmark(settings, contestants, forest=not options.no_forest, logs=logs)
        except BenchmarkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    results["quick"] = options.quick
    text = markdown(results)
    _write(target, json.dumps(results, indent=2) + "\n")
    _write(options.output / "benchmark.md", text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="*", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        help="those alone; all of an algorithm need its memory at once",
    )
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each contestant")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument(
        "--model", help="a folder, or 1b (random weights); without it the small model of the quickstart"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--conversations", type=int, default=2, help="SFT: conversations in a step")
    parser.add_argument("--pairs", type=int, default=1, help="DPO: pairs in a step")
    parser.add_argument("--prompts", type=int, default=1, help="GRPO: prompts in a step")
    parser.add_argument("--group-size", type=int, default=8, help="GRPO: completions of each prompt")
    parser.add_argument("--new-tokens", type=int, default=32, help="GRPO: tokens of each completion")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384, help="Regimen: tokens computed at once")
    parser.add_argument(
        "--micro-batch-rows", type=int, default=0, help="TRL: rows (pairs) computed at once; 0: all of a step"
    )
    parser.add_argument("--forest-completion", type=int, default=16, help="forest: mean tokens of a completion")
    parser.add_argument("--forest-rounds", type=int, default=2, help="forest: times each layout is measured")
    parser.add_argument("--longest", type=int, default=2048, help="cost of length: tokens of the longest sequence")
    parser.add_argument("--no-forest", action="store_true", help="leave out the comparison of layouts and lengths")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and tiny batches")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--overwrite", action="store_true", help="replace the figures of an earlier run")
    return parser


def _settings(options: argparse.Namespace, scratch: Path) -> Settings:
    sizes = (
        "conversations",
        "pairs",
        "prompts",
        "group_size",
        "new_tokens",
        "micro_batch_tokens",
        "micro_batch_rows",
        "forest_completion",
        "forest_rounds",
        "longest",
    )
    names = ("steps", "warmup", "threads", *sizes)
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
    chosen["device"] = options.device
    chosen["dtype"] = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    if options.quick:
        settings = Settings(model=options.model or str(save_tiny_model(scratch / "model")), **chosen)
        return replace(settings, **QUICK)
    from regimen.pipelines.small_model import small_model

    if options.model is None:
        return Settings(model=str(small_model()), **chosen)
    if options.model == "1b":
        return Settings(model=str(save_large_model(scratch / "model", small_model())), **chosen)
    return Settings(model=str(Path(options.model).resolve()), **chosen)


def benchmark(
    settings: Settings, contestants: dict[str, list[tuple[str, str]]], *, forest: bool, logs: Path
) -> dict[str, Any]:
    """All parts, one after the other; `contestants` by algorithm."""
    began = time.monotonic()
    has_trl = importlib.util.find_spec("trl") is not None
    missing = "TRL, which is not installed (pip install 'regimen-rl[benchmark]')"
    results: dict[str, Any] = {
        "environment": _environment(settings),
        "settings": json.loads(settings.dump()),
        "left_out": [] if has_trl or not contestants else [missing],
        "algorithms": {},
        "steps": {},
        **_measured("ceiling", settings, logs),
    }
    for algorithm, wanted in contestants.items():
        print(f"{algorithm}: {settings.total_steps} steps of each contestant", file=sys.stderr)
        present = [(side, variant) for side, variant in wanted if side != "trl" or has_trl]
        found = race(algorithm, present, settings, logs)
        figures = {
            name: summarise(contestant, settings.warmup, results["parameters"]) for name, contestant in found.items()
        }
        add_ratios(algorithm, figures)
        results["algorithms"][algorithm], results["steps"][algorithm] = figures, found
        _write(logs / "partial.json", json.dumps(results, indent=2) + "\n")
    if forest:
        print("forest and lengths", file=sys.stderr)
        results |= _measured("forest", settings, logs)
    results["environment"]["load average at the end"] = _load()
    results["seconds"] = time.monotonic() - began
    return results


def race(algorithm: str, wanted: list[tuple[str, str]], settings: Settings, logs: Path) -> dict[str, dict[str, Any]]:
    """Start the contestants, let them take steps in turn (each round in the reverse order of the one before)."""
    started: dict[str, Contestant] = {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for side, variant in wanted:
            name = f"{side} {variant}"
            log = logs / f"{algorithm}-{side}-{variant}.log"
            started[name] = Contestant(f"training.{side}_steps", [algorithm, variant], settings, log)
        for name, contestant in started.items():
            found[name] = {"setup": contestant.read(), "steps": []}
        for turn in range(settings.total_steps):
            for name in started if turn % 2 == 0 else reversed(started):
                found[name]["steps"].append(started[name].step())
        for name, contestant in started.items():
            found[name].update(contestant.read())
    finally:
        for contestant in started.values():
            contestant.close()
    return found


def _measured(part: str, settings: Settings, logs: Path) -> dict[str, Any]:
    contestant = Contestant("training.forest", [part], settings, logs / f"{part}.log")
    try:
        return contestant.read()
    finally:
        contestant.close()


def _environment(settings: Settings) -> dict[str, Any]:
    facts: dict[str, Any] = {"Python": platform.python_version()}
    for package in PACKAGES:
        if importlib.util.find_spec(package) is not None:
            facts[package] = importlib.metadata.version(package)
    facts |= {"processor": _processor(), "threads": settings.threads, "device": settings.device}
    facts["dtype"] = settings.dtype
    return {**facts, "model": Path(settings.model).name, "load average": _load()}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
