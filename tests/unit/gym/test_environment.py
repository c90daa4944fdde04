from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError
from regimen.gym import environment as module
from regimen.gym.environment import Environment, ToolError, load_environment, shipped_environments
from regimen.gym.environments.calculator import Calculator

EXAMPLES = Path(__file__).parents[3] / "examples"
SOURCE = """
from regimen.gym.environment import Environment, Task, Verdict

class Mine(Environment):
    name = "mine"
    def __init__(self, *, size: int = 2):
        super().__init__()
        if size < 1:
            raise ValueError("size is too small")
        self.size = size
    def tasks(self, split, num_tasks=None):
        return [Task(i, {"responses_create_params": {"input": "x"}}) for i in range(self.size)]
    async def verify(self, session, task, output):
        return Verdict(0.0)

class Other:
    pass
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_shipped():
    assert "calculator" in shipped_environments()
    assert isinstance(load_environment("calculator", {"seed": 3}), Calculator)


def test_from_a_file(file):
    assert len(load_environment(f"{file}:Mine", {"size": 5}).tasks("train")) == 5


async def test_the_example():
    environment = load_environment(f"{EXAMPLES / 'custom_environment.py'}:Backwards", {"brevity": 0.5})
    task = environment.tasks("train", 1)[0]
    assert await environment.call(None, "letters", {"word": "cat"}) == "1 c, 2 a, 3 t"
    rewards: list[float] = []
    for text in ("elppa", "It is elppa.", "apple", ""):
        content = [{"type": "output_text", "text": text}]
        verdict = await environment.verify(None, task, [{"type": "message", "content": content}])
        rewards.append(verdict.reward)
    assert rewards == [1.0, 0.5, 0.0, 0.0]
    assert (await environment.verify(None, task, [])).reward == 0.0


def test_from_an_entry_point(monkeypatch):
    point = EntryPoint("theirs", "regimen.gym.environments.calculator:Calculator", module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: [point] if group == "regimen.environments" else [])
    assert isinstance(load_environment("theirs"), Calculator)
    with pytest.raises(ConfigError, match=r"one of calculator, .*theirs, .*a folder with environment\.py, or path"):
        load_environment("nothing")


@pytest.mark.parametrize(
    "name, options, text",
    [
        ("calculater", {}, "unknown environment 'calculater'.*did you mean 'calculator'"),
        ("calculator", {"sed": 1}, "has no option 'sed'.*one of seed, mix, hint.*did you mean 'seed'"),
        ("calculator", {"mix": 5}, "environment 'calculator': .*check environment.options"),
        ("calculator", {"hint": "much"}, "check environment.options"),
        ("nowhere.py:Mine", {}, "there is no file nowhere.py"),
        ("nowhere.py", {}, "names no class"),
        ("{file}:Mane", {}, "has no class 'Mane'.*did you mean 'Mine'"),
        ("{file}:Other", {}, "is not an environment"),
        ("{file}:Mine", {"size": 0}, "size is too small"),
        ("{file}:Mine", {"length": 0}, "no option 'length'"),
    ],
)
def test_refusals(file, name, options, text):
    with pytest.raises(ConfigError, match=text):
        load_environment(name.format(file=file), options)


async def test_defaults_of_the_base_class(file):
    environment = load_environment(f"{file}:Mine")
    assert await environment.seed(environment.tasks("train")[0]) is None
    assert await environment.close(None) is None
    with pytest.raises(ToolError, match="unknown tool 'x'"):
        await environment.call(None, "x", {})


def test_an_environment_without_init_takes_no_options():
    class Plain(Environment):
        name = "plain"

        def tasks(self, split: Any, num_tasks: int | None = None) -> list[Any]:
            return []

        async def verify(self, session: Any, task: Any, output: Any) -> Any:
            return None

    assert Plain().tasks("train") == []
    with pytest.raises(ConfigError, match="'plain' takes no option 'a'"):
        Plain(a=1)


def test_questions_and_answers_are_for_those_that_judge_them():
    with pytest.raises(ConfigError, match=r"'calculator' does not judge question-and-answer rows.*math or multiple_ch"):
        Calculator().answer_fields("42")
