import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from regimen.cli.inspect import inspect
from regimen.errors import RolloutError, UsageError

DATA = Path(__file__).parents[2] / "fixtures" / "rollouts"


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(inspect)

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})

    return call


def test_figures_problems_and_plan_fit_eighty_columns(run):
    result = run(DATA / "shop.jsonl")
    assert result.exit_code == 0
    text = result.stdout
    for expected in (
        "4 read, 4 with a reward, 0 bad",
        "agent_run_error 2",
        "binary: mean 0.500, sd 0.500",
        "2 of 4 (50.0%), reward 1",
        "@1 0.500  @2 1.000",
        "price_of 8, give_total 4",
        "many_failures: 2 of 6 episodes failed",
        "fix: ",
        "recommendation: Only 4 rollouts: collect more before trusting a plan.",
        "3. Train with GRPO",
        f"$ regimen convert {DATA / 'shop.jsonl'} --to grpo --out grpo_data",
    ):
        assert expected in text
    commands_and_title = ("$ regimen", str(DATA))
    too_long = [line for line in text.splitlines() if len(line) > 80 and not any(c in line for c in commands_and_title)]
    assert too_long == []


def test_graded_rewards_and_several_environments(run):
    result = run(DATA / "wild.jsonl", DATA / "shop.jsonl")
    assert result.exit_code == 0
    assert "2 files" in result.stdout
    assert "continuous" in result.stdout
    assert "shop_agent" in result.stdout
    assert "0.2 to 0.3" in result.stdout


def test_json_is_one_document_and_nothing_else(run):
    result = run(DATA / "shop.jsonl", "--json")
    document = json.loads(result.stdout)
    assert document["version"] == 1
    assert document["statistics"]["rewards"]["num_passing"] == 2
    assert document["read"]["failures"] == {"agent_run_error": 2}
    assert {found["code"] for found in document["findings"]} >= {"many_failures"}
    assert document["recommendation"]["rule"] == "reinforce"
    assert result.stdout.count("\n") == 1


def test_past_max_bad_the_rest_is_shown_and_the_command_fails(run, tmp_path):
    result = run(DATA / "broken.jsonl", "--quarantine", tmp_path / "q.jsonl")
    assert isinstance(result.exception, RolloutError)
    assert result.exception.exit_code == 1
    assert "1 with a reward, 14 bad" in result.stdout
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 14
    assert run(DATA / "broken.jsonl", "--max-bad", "1").exit_code == 0
    as_json = run(DATA / "broken.jsonl", "--json")
    assert isinstance(as_json.exception, RolloutError)
    assert "14 of 15 rows are bad" in json.loads(as_json.stdout)["error"]


def test_misuse(run, tmp_path):
    for arguments in ((tmp_path,), (tmp_path / "none.jsonl",), (DATA / "shop.jsonl", "--max-bad", "7")):
        error = run(*arguments).exception
        assert isinstance(error, UsageError)
        assert error.exit_code == 2
    assert run().exit_code == 2


def test_markup_in_the_data_is_text(run, tmp_path):
    row = {"responses_create_params": {"input": "x"}, "output": "y", "reward": 1, "agent_ref": {"name": "[red]a[/b]"}}
    path = tmp_path / "[bold]r.jsonl"
    path.write_text(json.dumps(row) + "\n")
    result = run(path)
    assert result.exit_code == 0
    assert "[red]a[/b]" in result.stdout


def test_inspecting_imports_no_torch():
    code = "import sys, regimen.cli.inspect; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_text_that_no_screen_can_show(run, tmp_path):
    row = {"responses_create_params": {"input": "\ud800"}, "output": "y", "reward": 1, "agent_ref": {"name": "\ud800"}}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert "\\ud800" in run(path).stdout
    assert json.loads(run(path, "--json").stdout)["statistics"]["environments"]["\ud800"]["rows"] == 1


def test_tokens_are_looked_at_with_a_model(run, tiny, tmp_path):
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [
        {"responses_create_params": {"input": f"{n}?"}, "output": "y" * (n + 1), "reward": n % 2} for n in range(40)
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # user turn "user\n" + digits + "?", header "assistant\n", answer; four special ids and one line end
    sizes = [5 + len(str(n)) + 1 + 10 + n + 1 + 4 + 1 for n in range(40)]
    result = run(path, "--model", tmp_path / "model", "--max-length", 50, "--json")
    findings = {found["code"]: found for found in json.loads(result.stdout)["findings"]}
    assert findings["over_length"]["count"] == sum(size > 50 for size in sizes) > 0
    assert findings["over_length"]["example"]["line"] == 1 + next(n for n, size in enumerate(sizes) if size > 50)
    assert f"the longest has {max(sizes)}" in findings["over_length"]["message"]


def test_a_template_needs_a_tokenizer(run):
    error = run(DATA / "shop.jsonl", "--chat-template", "tools").exception
    assert isinstance(error, UsageError)
    assert "--model" in str(error)


def test_recorded_ids_are_counted_without_a_model(run):
    result = run(DATA / "shop.jsonl", "--max-length", "2", "--json")
    findings = {found["code"]: found for found in json.loads(result.stdout)["findings"]}
    assert findings["over_length"]["count"] == 4
