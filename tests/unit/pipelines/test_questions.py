"""Question-and-answer rows as tasks: prompts, templates, answers, and what is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_train_config
from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConfigError, ConvertError, RegimenError, UsageError
from regimen.gym.environment import Task, load_environment
from regimen.pipelines.doctor import doctor
from regimen.pipelines.questions import check_template
from regimen.pipelines.tasks import environment_of, tasks_of_dataset
from regimen.rollouts.messages import input_messages


def tasks_of(folder: Path, *rows: Any, environment: str = "math", **keys: Any) -> list[Task]:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    dataset = DatasetConfig(dataset_name="ResponseDataset", data_path=str(path), env_name=environment, **keys)
    return tasks_of_dataset(dataset, load_environment(environment), "train")


def prompt(task: Task) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in input_messages(task.row["responses_create_params"])]


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_row_is_a_question_with_its_ground_truth(tmp_path: Path) -> None:
    first, second = tasks_of(tmp_path, {"input": "1 + 1?", "output": "2"}, "", {"input": "2 + 2?", "output": "4"})
    assert (first.index, second.index) == (0, 1)
    assert prompt(first) == [("user", "1 + 1?")]
    assert first.row["expected_answer"] == "2"
    assert first.row["agent_ref"] == {"name": "math"}
    assert prompt(second) == [("user", "2 + 2?")]


def test_the_keys_are_configured(tmp_path: Path) -> None:
    [task] = tasks_of(tmp_path, {"q": "1 + 1?", "a": "2", "input": "no"}, input_key="q", output_key="a")
    assert (prompt(task), task.row["expected_answer"]) == ([("user", "1 + 1?")], "2")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(42, "42"), (0.5, "0.5"), (1e-7, "0.0000001"), (1e21, "1000000000000000000000"), (" 7 ", "7"), ("#### 3", "3")],
)
def test_numbers_are_written_out(answer: Any, expected: str, tmp_path: Path) -> None:
    [task] = tasks_of(tmp_path, {"input": "?", "output": answer})
    assert task.row["expected_answer"] == expected


def test_templates_and_system_prompts(tmp_path: Path) -> None:
    template = written(tmp_path, "cot.txt", "Think. Answer in \\boxed{{}}.\n\n{}\n")
    system = written(tmp_path, "system.txt", "You are {good} at it.\n")
    row = {"input": "What is {x} in {1, 2}?", "output": "1"}
    [task] = tasks_of(tmp_path, row, prompt_file=template, system_prompt_file=system)
    assert prompt(task) == [
        ("system", "You are {good} at it."),
        ("user", "Think. Answer in \\boxed{}.\n\nWhat is {x} in {1, 2}?"),
    ]


def test_rows_of_messages(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 1?"}]
    template = written(tmp_path, "t.txt", "Q: {}")
    [first, second] = tasks_of(
        tmp_path,
        {"messages": [*asked, {"role": "assistant", "content": "\\boxed{2}"}]},
        {"input": asked, "output": "2"},
        prompt_file=template,
    )
    assert prompt(first) == prompt(second) == [("system", "Be short."), ("user", "Q: 1 + 1?")]
    assert first.row["expected_answer"] == second.row["expected_answer"] == "2"


def test_letters_for_multiple_choice(tmp_path: Path) -> None:
    [task] = tasks_of(tmp_path, {"input": "A or B?", "output": "(B)"}, environment="multiple_choice")
    assert task.row["expected_answer"] == "B"


ROW = {"input": "1 + 1?", "output": "2"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1 + 1?", "output": "2"}, "has no field 'input'; expected one of question, output"),
        ({"input": "1 + 1?"}, "has no field 'output'"),
        ({"input": " ", "output": "2"}, "has no question; expected a text under 'input'"),
        ({"input": 3, "output": "2"}, "has no question; expected a text, or messages"),
        ({"input": [], "output": "2"}, "has no question"),
        ({"input": [{"role": "assistant", "content": "x"}], "output": "2"}, "has no question"),
        ({"messages": [{"role": "assistant", "content": "2"}]}, "has no question"),
        ({"input": "1 + 1?", "output": None}, "the answer is None; expected a text or a number under 'output'"),
        ({"input": "1 + 1?", "output": True}, "the answer is True"),
        ({"input": "1 + 1?", "output": " "}, "the answer is ' '"),
        ({"input": "1 + 1?", "output": ["2"]}, r"the answer is \['2'\]"),
        ('{"input": "1 + 1?", "output": NaN}', "the answer is nan"),
        ({"input": "1 + 1?", "output": "\\frac{1"}, "name another environment in data.train.env_name"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_bad_rows_are_refused_with_their_line(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=rf"rows\.jsonl:2: .*{message}"):
        tasks_of(tmp_path, ROW, row)


def test_answers_that_the_environment_cannot_judge_by(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"rows\.jsonl:1: the answer is '2'; expected one letter.*env_name"):
        tasks_of(tmp_path, ROW, environment="multiple_choice")
    with pytest.raises(ConvertError, match=r"'calculator' does not judge question-and-answer rows.*like math"):
        tasks_of(tmp_path, ROW, environment="calculator")


def test_two_system_prompts_are_one_too_many(tmp_path: Path) -> None:
    row = {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "output": "2"}
    with pytest.raises(ConvertError, match=":1: the row has a system message of its own"):
        tasks_of(tmp_path, row, system_prompt_file=written(tmp_path, "s.txt", "x"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for key in ("prompt_file", "system_prompt_file"):
        with pytest.raises(UsageError, match=rf"data\.train\.{key}: nowhere\.txt: there is no such file"):
            tasks_of(tmp_path, ROW, **{key: "nowhere.txt"})


@pytest.mark.parametrize("template", ["{}", "{0}", "Q: {}\n\\boxed{{}}", "{{{}}}"])
def test_templates_with_one_place(template: str) -> None:
    check_template(template, "t")


@pytest.mark.parametrize(
    ("template", "seen"),
    [
        ("no place", "0 places"), ("{} {}", "2 places"), ("{} \\boxed{}", "2 places"), ("{question}", "{question}"),
        ("{0.__class__}", "{0.__class__}"), ("{!r}", "the place"), ("{:>9}", "the place"), ("{", "the place"),
    ],
)  # fmt: skip
def test_other_templates_are_refused(template: str, seen: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one {} where the question goes") as caught:
        check_template(template, "data.train.prompt_file: t.txt")
    assert seen in str(caught.value)


def test_the_doctor_reads_them(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"input": f"{n} + 1?", "output": n + 1}) + "\n" for n in range(4)))
    words = ["data.default.dataset_name=ResponseDataset", f"data.train.data_path={path}", "grpo.val_period=0",
             "grpo.num_prompts_per_step=2", f"policy.model_name={tiny_folder}"]  # fmt: skip
    config = load_train_config("grpo", words)
    checkup = doctor(config)
    assert checkup.ok
    assert checkup.data["train"].rows == 4
    assert config.data.train is not None
    assert environment_of(config, config.data.train).name == "math"  # what NeMo RL takes where nothing is named


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegimenError, match=r"unknown environment 'maths'.*did you mean 'math'"):
        tasks_of(tmp_path, ROW, environment="maths")
