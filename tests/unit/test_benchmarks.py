"""The benchmark runs, refuses to replace figures, and computes what it says. No time is judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_benchmark(*arguments: str, output: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / "train.py"), "--quick", "--threads", "1", *arguments]
    return subprocess.run(
        [*command, "--output", str(output)], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"training.{name}")


def test_forest_part_runs_and_keeps_earlier_figures(tmp_path: Path) -> None:
    first = run_benchmark("--algorithms", output=tmp_path)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    cases = {(case["ratio"], case["group"]): case for case in results["forest"]}
    assert list(cases) == [(ratio, group) for ratio in (0.25, 1.0, 4.0) for group in (4, 8, 16)]
    # A prompt of 8 tokens and completions of 4, 7, 9 and 12.
    assert cases[1.0, 4]["tokens"] == {"forest": 8 + 32, "packed": 4 * 8 + 32, "padded": 4 * (8 + 12)}
    assert all(seconds > 0 for case in cases.values() for seconds in case["seconds"].values())
    assert all(rate > 0 for rate in results["ceiling"].values())
    assert [row["tokens"] for row in results["curve"]] == [128, 256]
    assert all(row["seconds"] > 0 and row["flops_per_second"] > 0 for row in results["curve"])
    assert "these figures only show" in first.stdout

    second = run_benchmark("--algorithms", output=tmp_path)
    assert second.returncode == 2
    assert "--overwrite" in second.stderr


@pytest.mark.slow
def test_contestants_train_the_same_tokens_to_the_same_loss(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'regimen-rl[benchmark]'")
    run = run_benchmark("--no-forest", output=tmp_path)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert list(results["algorithms"]) == ["sft", "dpo", "grpo"]
    for contestants in results["algorithms"].values():
        ours, theirs = contestants["regimen forest"], contestants["trl default"]
        assert ours["trained_tokens"] == theirs["trained_tokens"] > 0
        assert ours["computed_tokens"] < theirs["computed_tokens"]
        assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-5)


def test_summary_leaves_the_warm_up_out(part: Any) -> None:
    steps = [
        {"seconds": seconds, "trained_tokens": 12, "computed_tokens": 40, "loss": loss}
        for seconds, loss in ((9.0, 5.0), (2.0, 4.0), (4.0, 3.0), (3.0, 2.0))
    ]
    summary = part("report").summarise(
        {"steps": steps, "peak_bytes": 70, "base_bytes": 5, "peak_covers": "steps"}, warmup=1, parameters=3
    )
    assert summary == {
        "step_seconds": 3.0,
        "fastest_seconds": 2.0,
        "slowest_seconds": 4.0,
        "trained_tokens": 12,
        "computed_tokens": 40,
        "trained_tokens_per_second": 4.0,
        "computed_tokens_per_second": pytest.approx(40 / 3),
        "peak_bytes": 70,
        "above_bytes": 70 - 5 - 3 * 12,
        "peak_covers": "steps",
        "first_loss": 5.0,
    }


def test_ratios_compare_steps_that_do_as_much(part: Any) -> None:
    contestants: dict[str, dict[str, Any]] = {
        "regimen forest": {"trained_tokens_per_second": 12.0, "above_bytes": 4},
        "regimen reference": {"trained_tokens_per_second": 8.0, "above_bytes": 5},
        "trl default": {"trained_tokens_per_second": 2.0, "above_bytes": 10},
        "trl tuned": {"trained_tokens_per_second": 6.0, "above_bytes": 8},
    }
    part("report").add_ratios("dpo", contestants)
    found = {
        name: (figures["compared_with"], figures["times_faster"], figures["our_share_of_memory"])
        for name, figures in contestants.items()
        if name.startswith("trl")
    }
    assert found == {"trl default": ("regimen reference", 4.0, 0.5), "trl tuned": ("regimen forest", 2.0, 0.5)}


def test_flops_of_a_forest(part: Any) -> None:
    pytest.importorskip("torch")
    from regimen.tokens.forest import TrainingSequence, build_forest

    config = SimpleNamespace(
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=6,
        num_hidden_layers=3,
        vocab_size=10,
    )
    forest = build_forest([TrainingSequence([1, 2, 3], [(2, 3)]), TrainingSequence([1, 2, 4, 5], [(2, 4)])])
    # A layer has 4·4 twice, 4·2 twice and 3·4·6 weights; five tokens; three predicted ones; 1+2+3+3+4 pairs.
    layer = 2 * 16 + 2 * 8 + 72
    expected = 6 * (3 * layer * 5 + 10 * 4 * 3) + 12 * 3 * 4 * 13
    assert part("flops").training_flops(config, forest) == expected


def test_conversion_is_compared_on_equal_rows(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / "convert.py"), "--sizes", "0.004", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr  # it stops where the contestants write different rows
    results = json.loads((tmp_path / "convert.json").read_text(encoding="utf-8"))
    assert [result["target"] for result in results] == ["sft", "dpo", "grpo"]
    assert all(result["rows"] == 280 and result["one"]["seconds"] > 0 for result in results)
    assert len((tmp_path / "convert.md").read_text(encoding="utf-8").splitlines()) == 5


def test_collecting_is_measured_here_and_through_servers() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "collect.py"), "--episodes", "50", "--concurrency", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["loop", "4", "50"], ["http", "4", "50"], ["served", "4", "50"]]
    assert all(float(cell) > 0 for row in rows for cell in row[3:])


def test_the_gyms_collector_is_measured_by_its_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    beside = importlib.import_module("collection.beside")
    said = "Collecting:  50%|##  | 1/2 [00:01<00:01, 9.00it/s]\rCollecting: 100%|####| 2/2 [00:04<00:00,  2.00s/it]"
    gym = tmp_path / "gym"
    lines = ["#!/usr/bin/env python3", "import sys", "at = sys.argv.index('--output')"]
    lines += ["open(sys.argv[at + 1], 'w').write('{}\\n{}\\n')", f"print({said!r})"]
    gym.write_text("\n".join(lines), encoding="utf-8")
    gym.chmod(0o755)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("{}\n", encoding="utf-8")
    asked = (str(gym), "a", tasks)
    assert beside.measure_theirs(*asked, 2, 1, tmp_path / "rollouts.jsonl") == 0.5
    with pytest.raises(SystemExit, match="has not written 3 episodes"):
        beside.measure_theirs(*asked, 3, 1, tmp_path / "rollouts.jsonl")
    with pytest.raises(SystemExit, match="there is no command"):
        beside.measure_theirs("no-such-gym", "a", tasks, 1, 1, tmp_path / "rollouts.jsonl")
    results = [
        {"kind": kind, "concurrency": 64, "turn": turn, "episodes": 9, "episodes_per_second": rate * turn}
        for turn in (1, 2)
        for kind, rate in ((beside.THEIRS, 2.0), ("http", 7.0))
    ]
    assert beside.table(results).splitlines()[2:] == [
        "| NeMo Gym's collector, on its servers | 64 | 9 | 2.0 | 4.0 | 1.0 |",
        "| `regimen collect --model-url` | 64 | 9 | 7.0 | 14.0 | 3.5 |",
    ]
