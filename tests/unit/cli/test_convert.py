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
