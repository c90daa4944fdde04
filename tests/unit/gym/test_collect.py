from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from regimen.errors import GymError, RolloutError, UsageError
from regimen.generation.base import Sampling
from regimen.generation.fake import FakeGeneration
from regimen.gym.agent import Limits
from regimen.gym.collect import Collection, collect_rollouts
from regimen.gym.store import read_complete_lines
from regimen.rollouts.reader import RolloutReader, read_failures

SAMPLING = Sampling(max_new_tokens=8)


async def collect(environment: Any, generation: Any, renderer: Any, **settings: Any) -> Collection:
    num_tasks, num_repeats = settings.pop("num_tasks", 3), settings.pop("num_repeats", 2)
    tasks = environment.tasks("train", num_tasks)
    return await collect_rollouts(tasks, num_repeats, environment, generation, renderer, SAMPLING, **settings)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows]


ALL = [(task, repeat) for task in range(3) for repeat in range(2)]


async def test_files_and_order(environment, renderer, parrot, tmp_path):
    heard: list[dict[str, Any]] = []
    output = tmp_path / "r.jsonl"
    found = await collect(environment, parrot, renderer, output=output, on_row=heard.append)
    assert pairs(found.rows) == ALL
    assert (found.mean_reward, found.failures, found.num_episodes, len(heard)) == (1.0, [], 6, 6)
    assert sorted(pairs(lines(output))) == ALL
    tasks = lines(tmp_path / "r_materialized_inputs.jsonl")
    assert pairs(tasks) == ALL
    assert (tasks[4]["wanted"], tasks[4]["agent_ref"]) == ("2", {"name": "counting"})
    assert lines(tmp_path / "r_failures.jsonl") == []
    (entry,) = json.loads((tmp_path / "r_aggregate_metrics.json").read_text())
    assert entry["agent_ref"] == {"name": "counting"}
    assert entry["agent_metrics"]["mean/reward"] == 1.0
    assert entry["agent_metrics"]["num_repeats"] == 2
    with RolloutReader([output]) as reader:
        assert sorted(rollout.task_index for rollout in reader) == [0, 0, 1, 1, 2, 2]


async def test_episodes_start_in_order(environment, renderer, tmp_path):
    started: list[str] = []

    def answer(prompt_ids: list[int], sampling: Sampling, seed: int) -> list[int]:
        started.append(renderer.decode(prompt_ids).split()[3])
        return renderer.encode("0 <end>")

    await collect(environment, FakeGeneration(answer, delay=0.001), renderer, concurrency=2)
    assert started == ["0", "0", "1", "1", "2", "2"]


async def test_concurrency_bounds_the_episodes_in_flight(environment, renderer):
    in_flight: list[int] = []
    original = environment.seed

    async def seed(task: Any) -> Any:
        session = await original(task)
        in_flight.append(environment.open_sessions)
        return session

    environment.seed = seed
    generation = FakeGeneration(lambda *_: renderer.encode("0 <end>"), delay=0.002)
    await collect(environment, generation, renderer, num_tasks=10, concurrency=4)
    assert max(in_flight) == 4


async def test_same_seed_same_rows(environment, renderer, parrot):
    first = await collect(environment, parrot, renderer, seed=3)
    second = await collect(environment, parrot, renderer, seed=3, concurrency=1)
    assert [row["response"]["output"] for row in first.rows] == [row["response"]["output"] for row in second.rows]


async def test_existing_output_is_refused(environment, renderer, parrot, tmp_path):
    output = tmp_path / "r.jsonl"
    await collect(environment, parrot, renderer, output=output)
    before = output.read_bytes()
    with pytest.raises(UsageError, match="the file exists"):
        await collect(environment, parrot, renderer, output=output)
    assert output.read_bytes() == before
    await collect(environment, parrot, renderer, output=output, overwrite=True)
    assert len(lines(output)) == 6


async def test_resume_plays_exactly_the_missing_and_drops_a_torn_line(environment, renderer, parrot, tmp_path):
    output = tmp_path / "r.jsonl"
    await collect(environment, parrot, renderer, output=output)
    kept = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(kept[:4]) + kept[4][:50])
    done = set(pairs([json.loads(line) for line in kept[:4]]))
    heard: list[dict[str, Any]] = []
    found = await collect(environment, parrot, renderer, output=output, resume=True, on_row=heard.append)
    assert set(pairs(heard)) == set(ALL) - done
    assert output.read_bytes().startswith(b"".join(kept[:4]))
    assert sorted(pairs(lines(output))) == ALL
    assert (pairs(found.rows), found.num_resumed) == (ALL, 4)


async def test_resume_with_more_repeats_and_tasks(environment, renderer, parrot, tmp_path):
    output = tmp_path / "r.jsonl"
    await collect(environment, parrot, renderer, output=output)
    found = await collect(environment, parrot, renderer, output=output, resume=True, num_tasks=4, num_repeats=3)
    assert (len(found.rows), found.num_resumed) == (12, 6)
    assert len(lines(output)) == 12
    assert len(lines(tmp_path / "r_materialized_inputs.jsonl")) == 12


async def test_resume_without_earlier_files_begins(environment, renderer, parrot, tmp_path):
    found = await collect(environment, parrot, renderer, output=tmp_path / "new" / "r.jsonl", resume=True)
    assert len(found.rows) == 6


@pytest.mark.parametrize("settings, text", [({"seed": 1}, "seed 0, now it is 1"), ({"model_name": "b"}, "model")])
async def test_resume_refuses_other_settings(environment, renderer, parrot, tmp_path, settings, text):
    output = tmp_path / "r.jsonl"
    await collect(environment, parrot, renderer, output=output)
    with pytest.raises(UsageError, match=text):
        await collect(environment, parrot, renderer, output=output, resume=True, **settings)


LIMITS = Limits(max_turns=4, max_sequence_length=4096)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"top_k": 5}, "top_k None, now it is 5"),
        ({"stop_ids": (7,)}, "stop_ids"),
        ({"limits": Limits(max_turns=2)}, "max_turns"),
        ({"limits": Limits(max_turns=4, max_sequence_length=99)}, "max_sequence_length 4096, now it is 99"),
    ],
)
async def test_resume_refuses_what_no_row_tells(environment, renderer, parrot, tmp_path, settings, text):
    output, tasks = tmp_path / "r.jsonl", environment.tasks("train", 3)
    parts = (tasks, 2, environment, parrot, renderer)
    await collect_rollouts(*parts, SAMPLING, output=output, limits=LIMITS)
    limits = settings.pop("limits", LIMITS)
    sampling = msgspec.structs.replace(SAMPLING, **settings)
    with pytest.raises(UsageError, match=text):
        await collect_rollouts(*parts, sampling, output=output, limits=limits, resume=True)
    (tmp_path / "r_settings.json").unlink()  # an older collection: its rows are all there is to compare
    found = await collect_rollouts(*parts, sampling, output=output, limits=limits, resume=True)
    assert found.num_resumed == 6
    assert not (tmp_path / "r_settings.json").exists()


async def test_resume_refuses_other_tasks(environment, renderer, parrot, tmp_path):
    output = tmp_path / "r.jsonl"
    await collect(environment, parrot, renderer, output=output)
    other = environment.tasks("train", 3)
    other[1].row["wanted"] = "7"
    with pytest.raises(UsageError, match="task 1 differs"):
        await collect_rollouts(other, 2, environment, parrot, renderer, SAMPLING, output=output, resume=True)


async def test_failed_episodes_are_kept_apart_and_retried_on_resume(environment, renderer, parrot, tmp_path, call):
    output = tmp_path / "r.jsonl"

    def answer(prompt_ids: list[int], sampling: Sampling, seed: int) -> list[int]:
        words = renderer.decode(prompt_ids).split()
        return renderer.encode(f"{call(value=13)} <end>" if "1" in words else f"{words[3]} <end>")

    found = await collect(environment, FakeGeneration(answer), renderer, output=output)
    assert (pairs(found.rows), pairs(found.failures)) == ([(0, 0), (0, 1), (2, 0), (2, 1)], [(1, 0), (1, 1)])
    assert found.mean_reward == 1.0
    failures = list(read_failures(output))
    assert [failure.reward for failure in failures] == [None, None]
    (entry,) = json.loads((tmp_path / "r_aggregate_metrics.json").read_text())
    assert (entry["agent_metrics"]["num_failures"], entry["agent_metrics"]["num_rollouts"]) == (2, 4)
    again = await collect(environment, parrot, renderer, output=output, resume=True)
    assert (pairs(again.rows), again.failures) == (ALL, [])
    assert lines(tmp_path / "r_failures.jsonl") == []


async def test_mostly_failing_stops_the_run(environment, renderer, tmp_path):
    generation = FakeGeneration(lambda *_: RuntimeError("dead"))
    with pytest.raises(GymError, match=r"20 of 20 episodes failed.*RuntimeError: dead"):
        await collect(environment, generation, renderer, num_tasks=50, concurrency=1, output=tmp_path / "r.jsonl")
    assert len(lines(tmp_path / "r_failures.jsonl")) == 20
    assert environment.open_sessions == 0


async def test_a_few_episodes_that_all_fail_are_an_error_at_the_end(environment, renderer):
    heard: list[Any] = []
    with pytest.raises(GymError, match="6 of 6"):
        await collect(environment, FakeGeneration(lambda *_: OSError("x")), renderer, on_row=heard.append)
    assert len(heard) == 6


async def test_cancelling_keeps_what_is_finished(environment, renderer, parrot, tmp_path):
    output = tmp_path / "r.jsonl"
    parrot.delay = 0.01
    task = asyncio.create_task(collect(environment, parrot, renderer, num_tasks=100, concurrency=2, output=output))
    while not output.exists() or len(output.read_bytes().splitlines()) < 5:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 5 <= len(lines(output)) < 200
    assert environment.open_sessions == 0


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "r.jsonl"
    row = '{"_ng_task_index": 0, "_ng_rollout_index": 0}'
    path.write_text(f"{row}\nnot json\n{row}\n")
    with pytest.raises(RolloutError, match=r"r\.jsonl:2"):
        read_complete_lines(path)
    path.write_text(f"{row}\n{row[:20]}")
    assert len(read_complete_lines(path)) == 1
