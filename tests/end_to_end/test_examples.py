"""Every example runs, on the tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import residue

from regimen.cli.main import main as regimen
from regimen.gym.environment import load_environment
from regimen.gym.protocol import files_of
from regimen.rollouts.reader import read_rollouts

EXAMPLES = Path(__file__).parents[2] / "examples"
RESIDUE = f"{residue.__file__}:Residue"


def collect(model: Path, output: Path, environment: str, *more: str) -> None:
    words = ["collect", "--environment", environment, "--model", str(model), "--output", str(output)]
    assert regimen([*words, "--num-tasks", "4", "--max-new-tokens", "8", *more]) == 0


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_tested():
    tested = {"python_api.py", "custom_reward.py", "custom_environment.py", "evaluate_two_models.py", "grpo_loop.py"}
    tested.add("gymnasium_blackjack.py")  # in tests/unit/gym/test_gymnasium_api.py
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_python_api(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rollouts = tmp_path / "rollouts.jsonl"
    collect(tiny_folder, rollouts, RESIDUE, "--num-repeats", "12")
    example = runpy.run_path(str(EXAMPLES / "python_api.py"))
    example["main"](rollouts, str(tiny_folder), tmp_path / "out", RESIDUE, num_tasks=4)
    said = capsys.readouterr().out
    assert "48 scored episodes of 4 tasks" in said
    assert "on 4 tasks (paired): " in said


def test_a_custom_reward_and_a_custom_environment(tiny_folder: Path, tmp_path: Path):
    for name in ("custom_reward.py:HonestCalculator", "custom_environment.py:Backwards"):
        output = tmp_path / name.partition(":")[0] / "rollouts.jsonl"
        collect(tiny_folder, output, str(EXAMPLES / name))
        assert [rollout.reward for rollout in read_rollouts(output)] == [0.0] * 4
        assert all(rollout.components for rollout in read_rollouts(output))
        assert not files_of(output).failures.read_text()


async def test_the_custom_reward_weighs_a_guess():
    environment = load_environment(f"{EXAMPLES / 'custom_reward.py'}:HonestCalculator", {"guessed": 0.25})
    task = environment.tasks("test", 1)[0]
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": truth_of(task.row)}]}
    call = {"type": "function_call", "name": "calculator", "arguments": '{"expression": "1 + 1"}', "call_id": "a"}
    result = {"type": "function_call_output", "call_id": "a", "output": "2"}
    assert (await environment.verify(None, task, [answer])).reward == 0.25
    verdict = await environment.verify(None, task, [call, result, answer])
    assert (verdict.reward, verdict.components) == (1.0, {"right": 1.0, "weight": 1.0})


def truth_of(row: dict[str, Any]) -> str:
    return str(row["expected_answer"])


def test_evaluate_two_models(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    other.symlink_to(tiny_folder)
    words = (other, tiny_folder, "--num-tasks", 2, "--output", tmp_path / "evaluation")
    run_example("evaluate_two_models.py", monkeypatch, *words)
    assert "+0.00" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "report.html").exists()


def test_grpo_loop_from_the_command_line(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_example("grpo_loop.py", monkeypatch, tiny_folder, "--environment", RESIDUE, "--steps", 1)
    assert capsys.readouterr().out.startswith("step 1: reward 0.")
