import json

import pytest
import typer
from typer.testing import CliRunner

from regimen.cli.evaluate import evaluate, sorted_words
from regimen.errors import UsageError

application = typer.Typer()
application.command()(evaluate)


def run(*arguments):
    return CliRunner().invoke(application, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def write_rows(path, rewards):
    with path.open("w") as file:
        for index, reward in enumerate(rewards):
            row = {
                "responses_create_params": {"input": f"question {index}"},
                "output": [{"type": "message", "role": "assistant", "content": "answer"}],
                "reward": reward,
                "_ng_task_index": index,
            }
            file.write(json.dumps(row) + "\n")
    return path


def test_two_files_give_a_table_and_a_verdict(tmp_path):
    new = write_rows(tmp_path / "new.jsonl", [1] * 15 + [0] * 5)
    old = write_rows(tmp_path / "old.jsonl", [1] * 3 + [0] * 17)
    result = run("--rollouts", new, "--against-rollouts", old, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "new against old: +0.60 [+0.36, +0.84] on 20 tasks (paired): better" in result.output
    assert "12 tasks won, 8 tied, 0 lost" in result.output
    assert "[0.542, 0.958]" in result.output
    assert (tmp_path / "out" / "report.html").exists()


def test_json_is_the_evaluation(tmp_path):
    result = run("--rollouts", write_rows(tmp_path / "a.jsonl", [0.5, 1]), "--json")
    record = json.loads(result.output)
    assert record["models"][0]["score"]["reward"]["mean"] == 0.75
    assert record["models"][0]["comparison"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "neither a model nor --rollouts"),
        (["seed=1"], "neither a model nor --rollouts"),
        (["model", "--rollouts", "a.jsonl"], "a model means nothing with --rollouts"),
        (["--rollouts", "a.jsonl", "--against", "b"], "--against means nothing with --rollouts"),
        (["--rollouts", "a.jsonl", "--num-tasks", "5"], "--num-tasks means nothing with --rollouts"),
        (["--rollouts", "a.jsonl", "--environment", "x"], "--environment means nothing with --rollouts"),
        (["--rollouts", "a.jsonl", "seed=2"], "a key=value means nothing with --rollouts"),
        (["model", "--against-rollouts", "b.jsonl"], "--against-rollouts means nothing without --rollouts"),
        (["model", "--max-bad", "0"], "--max-bad means nothing without --rollouts"),
        (["model", "--split", "exam"], "split"),
        (["model", "num_taskz=5"], "num_tasks"),
        (["--rollouts", "missing.jsonl"], "no such file"),
    ],
)
def test_misuse_is_refused(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


@pytest.fixture
def played(monkeypatch):
    """What the pipeline was asked to play."""
    asked = []

    def record(config, progress, *, resume):
        asked.append((config, resume))
        raise UsageError("not played")

    monkeypatch.setattr("regimen.cli.evaluate.evaluate_models", record)
    return asked


def test_flags_make_a_configuration(played):
    run("a", "b", "--against", "c", "--num-repeats", 4, "--temperature", 0.7, "--resume", "concurrency=8")
    config, resume = played[0]
    assert (config.models, config.against, config.split, config.output) == (["a", "b"], "c", "test", "evaluation")
    assert (config.environment.name, config.num_tasks, config.num_repeats) == ("calculator", 200, 4)
    assert (config.generation.temperature, config.pass_at, config.concurrency) == (0.7, [1, 2, 4], 8)
    assert resume


def test_without_flags_one_greedy_episode_a_task(played):
    run("a")
    config, resume = played[0]
    assert (config.num_repeats, config.generation.temperature, config.pass_at) == (1, 0.0, [1])
    assert not resume


def test_flags_and_overrides_lie_over_a_file(played, tmp_path):
    path = tmp_path / "evaluate.yaml"
    path.write_text(
        "model: a\nenvironment: {name: mine.py:Mine, options: {size: 3}}\nnum_tasks: 7\nseed: 1\noutput: out\n"
    )
    run("--config", path, "--seed", 2, "--output", tmp_path / "x", "num_tasks=9")
    config, _ = played[0]
    assert (config.models, config.environment.name, config.environment.options) == (["a"], "mine.py:Mine", {"size": 3})
    assert (config.num_tasks, config.seed, config.output) == (9, 2, str(tmp_path / "x"))


def test_a_folder_with_an_equals_sign_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert sorted_words(["lr=1", "runs/lr=2", "seed=3", "~seed"]) == (["lr=1", "runs/lr=2"], ["seed=3", "~seed"])
