"""Servers on a real socket, and the collection of rollouts through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_collect_config
from regimen.errors import ConfigError, EndpointError, UsageError
from regimen.generation.base import Sampling
from regimen.generation.fake import FakeGeneration
from regimen.gym.agent import play
from regimen.gym.protocol import files_of
from regimen.pipelines.collect import collect
from regimen.rollouts.turns import sequences_of, turns_of
from regimen.serving.agent import AgentService
from regimen.serving.environment import environment_app
from regimen.serving.model import model_app

CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "500 + 500"}}</tool_call>'


def calculates(kit: Any) -> FakeGeneration:
    """Calls the calculator, then says what it said."""

    def answer(prompt: list[int], _sampling: Any, _seed: int) -> list[int]:
        last = "".join(map(chr, prompt)).split("|")[-2]
        return [*map(ord, CALL if last.startswith("user:") else f"It is {last.removeprefix('tool:')}."), 1]

    return FakeGeneration(answer)


def engine(kit: Any, generation: Any) -> Any:
    return kit.engine_of(generation, max_length=20_000, sampling=Sampling(max_new_tokens=200, stop_ids=(1,)))


def config_of(folder: Path, *overrides: str, **source: Any) -> Any:
    tree = {"environment": {"name": "calculator"}, "num_tasks": 3, "output": str(folder / "r.jsonl"), **source}
    return load_collect_config(tree, overrides)


@pytest.mark.parametrize("with_ids", [False, True])
def test_collecting_with_a_model_at_an_endpoint(kit: Any, tmp_path: Path, with_ids: bool) -> None:
    generation = calculates(kit)
    with kit.running(model_app(engine(kit, generation))) as url:
        config = config_of(tmp_path, "num_repeats=2", model="letters", model_url=f"{url}/v1", token_ids=with_ids)
        found = collect(config)
    assert (len(found.rows), found.failures) == (6, [])
    row = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert [item["type"] for item in row["response"]["output"]] == ["function_call", "function_call_output", "message"]
    assert row["extracted_answer"] == "1000"
    assert (row["response"]["model"], row["regimen"]["tokenizer"]) == ("letters", None)
    turns = turns_of(row["response"]["output"])
    assert len(turns) == (2 if with_ids else 0)
    assert row["response"]["usage"]["output_tokens"] == len(CALL) + 1 + len("It is 1000.") + 1
    if with_ids:
        assert turns[0].generation_ids == [*map(ord, CALL), 1]
        assert turns[1].prompt_ids[-11:] == [*map(ord, "|assistant:")]


def test_resuming_plays_what_is_missing_and_other_settings_are_refused(kit: Any, tmp_path: Path) -> None:
    with kit.running(model_app(engine(kit, calculates(kit)))) as url:
        source = {"model": "letters", "model_url": f"{url}/v1"}
        collect(config_of(tmp_path, **source))
        again = collect(config_of(tmp_path, "num_repeats=2", "resume=true", **source))
        assert (again.num_resumed, len(again.rows)) == (3, 6)
        with pytest.raises(UsageError, match="temperature"):
            collect(config_of(tmp_path, "resume=true", "generation.temperature=0.5", **source))


def test_collecting_from_a_running_gym(kit: Any, tmp_path: Path) -> None:
    memory, renderer = kit.Memory(), kit.engine_of(kit.says()).renderer

    def answer(prompt: list[int], _sampling: Any, _seed: int) -> list[int]:
        called = "|tool:" in "".join(map(chr, prompt))
        return [*map(ord, "blue" if called else kit.call_text("remember", word="blue")), 1]

    generation = FakeGeneration(answer)

    async def play_task(environment: Any, task: Any, repeat: int, sampling: Sampling) -> Any:
        return await play(task, repeat, environment, generation, renderer, sampling, 0)

    service = AgentService(memory, play_task, Sampling())
    rows = [task.row for task in memory.tasks("train", 2)] + [{"responses_create_params": {"input": "no secret"}}]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with kit.running(environment_app(memory, extra=service.routes())) as url:
        config = load_collect_config(
            {
                "environment": {"name": "calculator"},
                "gym": url,
                "agent": "memory_agent",
                "tasks": str(tasks),
                "num_repeats": 2,
                "output": str(tmp_path / "r.jsonl"),
            }
        )
        found = collect(config)
        unknown = config.model_copy(update={"agent": "memry_agent", "output": str(tmp_path / "other.jsonl")})
        with pytest.raises(UsageError, match="did you mean 'memory_agent'"):
            collect(unknown)
    assert [(row["_ng_task_index"], row["_ng_rollout_index"], row["reward"]) for row in found.rows] == [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (1, 0, 1.0),
        (1, 1, 1.0),
    ]
    assert len(sequences_of(turns_of(found.rows[0]["response"]["output"]))) == 1
    assert [row["_ng_failure_http_status"] for row in found.failures] == [422, 422]
    failures = files_of(tmp_path / "r.jsonl").failures.read_text().splitlines()
    assert "KeyError" in json.loads(failures[0])["_ng_failure_message"]


def test_a_gym_that_is_not_there_is_named(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"responses_create_params": {"input": "q"}}\n')
    source = {"gym": "http://127.0.0.1:1", "agent": "a", "tasks": str(tasks)}
    with pytest.raises(EndpointError, match=r"127.0.0.1:1/global_config_dict_yaml: cannot connect.*is the server run"):
        collect(config_of(tmp_path, **source))


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ({}, "model"),
        ({"model": "m", "agent": "a"}, "agent"),
        ({"model": "m", "token_ids": True}, "token_ids"),
        ({"gym": "http://g", "tasks": "t"}, "agent"),
        ({"gym": "http://g", "agent": "a"}, "tasks"),
        ({"gym": "http://g", "agent": "a", "tasks": "t", "model": "m"}, "model"),
        ({"gym": "http://g", "agent": "a", "tasks": "t", "max_turns": 3}, "max_turns"),
    ],
    ids=str,
)
def test_one_policy_is_named(tmp_path: Path, source: Any, where: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, **source)
    assert error.value.where == where
