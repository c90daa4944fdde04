"""`regimen init environment` and `regimen test environment`: what is written passes; what is broken is named."""

from __future__ import annotations

import json

import pytest

from regimen.cli.main import main
from regimen.gym.environment import load_environment


@pytest.fixture
def folder(tmp_path):
    assert main(["init", "environment", str(tmp_path / "word_count")]) == 0
    return tmp_path / "word_count"


def test_what_is_written_passes_at_once(folder, capsys):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "environment.py", "example.jsonl"]
    assert main(["test", "environment", str(folder), "--num-tasks", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok") for line in lines) == 9
    assert not any(line.startswith("broken") for line in lines)


def test_it_has_the_name_200_tasks_and_examples(folder):
    environment = load_environment(str(folder))
    assert (environment.name, type(environment).__name__) == ("word_count", "WordCount")
    tasks = {split: environment.tasks(split) for split in ("train", "validation", "test")}
    assert sum(map(len, tasks.values())) >= 200
    assert environment.tasks("train", 0) == []
    rows = [json.loads(line) for line in (folder / "example.jsonl").read_text().splitlines()]
    assert rows == [task.row for task in tasks["train"][:5]]
    assert "@" not in (folder / "environment.py").read_text() + (folder / "README.md").read_text()


def test_an_existing_folder_is_refused_and_kept(folder, capsys):
    (folder / "environment.py").write_text("mine")
    assert main(["init", "environment", str(folder)]) == 2
    assert f"{folder}: it exists" in capsys.readouterr().err
    assert (folder / "environment.py").read_text() == "mine"


@pytest.mark.parametrize(
    "words, text",
    [
        (["init", "environment", "Bad-Name"], "'Bad-Name' cannot name an environment"),
        (["init", "environment", "class"], "'class' cannot name an environment"),
        (["init", "environment", "calculator"], "ships with Regimen"),
        (["init", "model", "x"], "'model' is nothing to write"),
        (["test", "environment", "calculatr"], "did you mean 'calculator'"),
    ],
)
def test_refusals(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "right, broken, promise",
    [
        ("reward=float(numbers ==", "reward=float(True or numbers ==", "no answer, and the question repeated, score 0"),
        ("reward=float(numbers ==", "reward=float(False and numbers ==", "a perfect player scores 1"),
        ("        last = output[-1]", "        output[0]\n        last = output[-1]", "no answer, and the question"),
        ('Random(f"word_count/{split}")', "Random()", "tasks are numbered and the same at every call"),
        ("split_of(word) == split", "word", "splits share no task"),
        ('name != "spell" or', "", "an unknown tool is a ToolError"),
        ('"required": ["word"]', '"required": ["text"]', "tools have a JSON schema"),
    ],
)
def test_a_broken_promise_is_named(folder, capsys, right, broken, promise):
    file = folder / "environment.py"
    source = file.read_text()
    assert right in source
    source = source.replace(right, broken)
    if promise == "splits share no task":
        source = source.replace('f"word_count/{split}"', '"word_count"')
    if promise == "an unknown tool is a ToolError":
        source = source.replace("not isinstance(word, str)", "word == 7").replace("len(word) > 100", "word == 8")
        source = source.replace('" ".join(word)', '" ".join(str(word))')
    file.write_text(source)
    assert main(["test", "environment", str(folder), "--num-tasks", "5"]) == 1
    assert f"broken  {promise}" in capsys.readouterr().out


def test_a_folder_with_two_environments_or_no_python_is_refused(folder, capsys):
    file = folder / "environment.py"
    file.write_text(file.read_text() + "\n\nclass Other(WordCount):\n    pass\n")
    assert main(["test", "environment", str(folder)]) == 2
    assert "WordCount, Other" in capsys.readouterr().err
    file.write_text("class (")
    assert main(["test", "environment", str(folder)]) == 2
    assert "environment.py:1: not Python" in capsys.readouterr().err
