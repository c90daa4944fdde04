import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from regimen.cli.convert import convert
from regimen.errors import ConvertError, UsageError

CALCULATOR = Path(__file__).parents[2] / "fixtures" / "convert" / "calculator.jsonl"


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(convert)

    def run(*arguments, catch=True):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=catch)

    return run


def test_the_ledger_and_the_files_are_shown(run, tmp_path):
    result = run(CALCULATOR, "--to", "sft", "--out", tmp_path / "set")
    assert result.exit_code == 0, result.output
    for text in ("11 rollout rows", "below_threshold", "failed:timed_out", "train.sidecar.jsonl", "warning:"):
        assert text in result.output


def test_json_is_the_manifest(run, tmp_path):
    result = run(CALCULATOR, "--to", "dpo", "--out", tmp_path / "set", "--strategy", "all_pairs", "--json")
    manifest = json.loads(result.stdout)
    assert manifest == json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["options"]["strategy"] == "all_pairs"
    assert manifest["ledger"]["num_rows"] == 11


def test_the_flags_of_selection_reach_the_options_and_the_screen(run, tmp_path):
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text('{"prompt": "What is 9 - 4?"}\n')
    arguments = [
        CALCULATOR, "--to", "dpo", "--out", tmp_path / "set", "--strategy", "stratified", "--high-threshold", 0.9,
        "--low-threshold", 0.1, "--across-tasks", "--max-pairs-per-task", 2, "--spelling", "nemo_rl",
        "--where", "reward<=1", "--against", evaluation, "--against-similarity", 0.9, "--verify",
    ]  # fmt: skip
    options = json.loads(run(*arguments, "--json").stdout)["options"]
    assert (options["strategy"], options["high_threshold"], options["low_threshold"]) == ("stratified", 0.9, 0.1)
    assert (options["across_tasks"], options["max_pairs_per_task"], options["spelling"]) == (True, 2, "nemo_rl")
    assert (options["where"], options["against"], options["against_similarity"]) == ("reward<=1", str(evaluation), 0.9)
    result = run(*arguments, "--overwrite")
    for text in ("rows with a prompt of the evaluation: 2", "verified rows: 1"):
        assert text in result.output


def test_mixtures_and_balance_are_flags_too(run, tmp_path):
    arguments = ["--mix", "calculator=2", "--upsample", "--with-pass-rate", "--json"]
    manifest = json.loads(run(CALCULATOR, "--to", "grpo", "--out", tmp_path / "a", *arguments).stdout)
    options = manifest["options"]
    assert (options["mix"], options["upsample"], options["with_pass_rate"]) == ({"calculator": 2.0}, True, True)
    assert manifest["mix"]["calculator_agent"]["tasks_kept"] == 4
    shown = run(CALCULATOR, "--to", "grpo", "--out", tmp_path / "b", "--mix", "calculator=1").output
    assert "calculator_agent: 4 of 4 tasks, 4 rows" in shown
    arguments = ["--balance", 2, "--best-of", 1, "--json"]
    options = json.loads(run(CALCULATOR, "--to", "sft", "--out", tmp_path / "c", *arguments).stdout)["options"]
    assert (options["balance"], options["max_per_task"]) == (2.0, 1)


def test_every_flag_reaches_the_options(run, tmp_path):
    result = run(
        CALCULATOR, "--to", "sft", "--out", tmp_path / "set", "--reward-threshold", 0.5, "--reasoning", "drop",
        "--require-tool-use", "--max-per-task", 1, "--min-turns", 2, "--validation-fraction", 0, "--seed", 5,
        "--max-bad", 0.5, "--json",
    )  # fmt: skip
    options = json.loads(result.stdout)["options"]
    assert options["reward_threshold"] == 0.5
    assert (options["reasoning"], options["require_tool_use"], options["max_per_task"]) == ("drop", True, 1)
    assert (options["min_turns"], options["validation_fraction"], options["seed"]) == (2, 0.0, 5)


@pytest.mark.parametrize(
    "arguments, kind",
    [
        (["--to", "sft", "--min-gap", "0.5"], UsageError),
        (["--to", "dpo", "--format", "openai"], UsageError),
        (["--to", "sft", "--reward-threshold", "5"], ConvertError),
    ],
)
def test_errors_are_left_to_the_command_line(run, tmp_path, arguments, kind):
    with pytest.raises(kind):
        run(CALCULATOR, "--out", tmp_path / "set", *arguments, catch=False)


def test_an_unknown_target_is_misuse(run, tmp_path):
    assert run(CALCULATOR, "--to", "ppo", "--out", tmp_path / "set").exit_code == 2


def test_no_tensor_library_is_imported():
    code = "import sys, regimen.cli.convert; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
