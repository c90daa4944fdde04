"""Several environments in one run: shares by weight, order, names, routing, refusals."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.aggregate import aggregate_by_environment
from regimen.gym.conformance import check_environment, message
from regimen.gym.environment import Environment, Task, Verdict, load_environment
from regimen.gym.mixture import MEMBER, Drawn, Mixture, in_turn, mixed

ENTRIES = {"multiple_choice": {"weight": 3}, "sums": {"environment": "calculator", "weight": 1}}


@pytest.fixture
def mixture() -> Environment:
    return load_environment("mixture", {"environments": ENTRIES})


def names_of(tasks: list[Task]) -> list[str]:
    return [task.row["agent_ref"]["name"] for task in tasks]


def test_the_turns_of_weights_3_and_1() -> None:
    # Behind its share before each draw: a .75, then b .5 against a .5 (a is named first), then b .75, then a 1.
    assert list(islice(in_turn({"a": 3.0, "b": 1.0}), 8)) == ["a", "a", "b", "a", "a", "a", "b", "a"]


def test_every_prefix_has_its_shares_to_within_one() -> None:
    weights = {"a": 0.1, "b": 0.7, "c": 1.3}
    drawn: Counter[str] = Counter()
    for number, name in enumerate(islice(in_turn(weights), 1000), 1):
        drawn[name] += 1
        for key, weight in weights.items():
            assert abs(drawn[key] - number * weight / 2.1) < 1 + 1e-9


def test_tasks_are_those_of_the_entries_under_their_names(mixture: Environment) -> None:
    tasks = mixture.tasks("train", 8)
    assert [task.index for task in tasks] == list(range(8))
    assert Counter(names_of(tasks)) == {"multiple_choice": 6, "sums": 2}
    own = [task.row for task in load_environment("calculator").tasks("train", 2)]
    assert [{**row, "agent_ref": {"name": "sums"}, MEMBER: "sums"} for row in own] == [
        task.row for task in tasks if task.row["agent_ref"]["name"] == "sums"
    ]
    assert [task.row for task in mixture.tasks("train", 5)] == [task.row for task in tasks[:5]]


async def test_the_promises_of_environments_hold(mixture: Environment) -> None:
    assert [check for check in await check_environment(mixture, 8) if check.problem] == []


def test_the_entry_is_known_where_a_collector_writes_its_own_agent(mixture: Environment) -> None:
    task = mixture.tasks("train", 8)[-1]
    name = task.row["agent_ref"]["name"]
    sent = Task(task.index, {**task.row, "agent_ref": {"name": "an_agent"}})
    assert mixture.playing(sent).name == name
    foreign = Task(0, {"agent_ref": {"name": "an_agent"}})
    with pytest.raises(GymError, match="'an_agent' is not in the mixture; expected one of multiple_choice, sums"):
        mixture.playing(foreign)


async def test_an_entry_that_observes_is_played_through_the_mixture() -> None:
    mixture = load_environment("mixture", {"environments": {"gridworld": {}, "calculator": {}}})
    for task in mixture.tasks("train", 4):
        session = await mixture.seed(task)
        solved = await mixture.solve(session, task)
        assert solved is not None
        await mixture.close(session)
        session = await mixture.seed(task)
        seen = await mixture.observe(session, [message("north")])
        assert (seen is None) == (task.row["agent_ref"]["name"] == "calculator")
        await mixture.close(session)


def test_an_entry_plays_its_own_tasks(mixture: Environment) -> None:
    played = {name: mixture.playing(task) for task in mixture.tasks("train", 8) for name in names_of([task])}
    assert {name: (member.name, type(member).__name__) for name, member in played.items()} == {
        "multiple_choice": ("multiple_choice", "MultipleChoice"),
        "sums": ("sums", "Calculator"),
    }


def test_all_tasks_end_with_the_entry_whose_turn_it_is() -> None:
    row: dict[str, Any] = {"responses_create_params": {"input": "q"}}
    first, second = [Task(i, row) for i in range(9)], [Task(i, row) for i in range(2)]
    found = mixed([Drawn(first, 2.0, "a"), Drawn(second, 1.0, "b")])
    assert names_of(found) == ["a", "b", "a", "a", "b", "a", "a"]


class Few(Environment):
    """Two tasks."""

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        return [Task(n, {"responses_create_params": {"input": f"q{n}"}}) for n in range(min(num_tasks or 2, 2))]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        return Verdict(0.0)


def test_more_tasks_than_an_entry_has_are_refused() -> None:
    mixture = Mixture(members={"a": Few(), "b": load_environment("calculator")})
    assert names_of(mixture.tasks("train", 4)) == ["a", "b", "a", "b"]
    with pytest.raises(ConfigError, match="'a' has 2 train tasks, its share of 5 is 3"):
        mixture.tasks("train", 5)


def test_metrics_are_those_of_each_environment() -> None:
    def row(name: str, index: int, reward: float) -> dict[str, Any]:
        stamp = {"_ng_task_index": index, "_ng_rollout_index": 0, "_ng_environment_server": name}
        return {
            **stamp,
            "reward": reward,
            "response": {"output": [], "usage": {}},
            "responses_create_params": {"input": "q"},
        }

    failure = {"_ng_environment_server": "b", "_ng_failure_class": "timed_out"}
    found = aggregate_by_environment([row("a", 0, 1.0), row("b", 1, 0.0), row("a", 2, 0.0)], [failure], "mixture")
    assert [entry["agent_ref"]["name"] for entry in found] == ["a", "b"]
    assert [entry["agent_metrics"]["mean/reward"] for entry in found] == [0.5, 0.0]
    assert [entry["agent_metrics"]["num_failures"] for entry in found] == [0, 1]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({}, "names with their options"),
        ({"calculator": 3}, "names with their options"),
        ({"calculator": {"weight": 0}}, "a number above 0"),
        ({"calculator": {"weight": True}}, "a number above 0"),
        ({"calculater": {}}, "did you mean 'calculator'"),
        ({"a": {"environment": "mixture"}}, "holds no mixture"),
        ({"math": {"sed": 1}}, "did you mean 'seed'"),
    ],
)
def test_refusals(entries: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_environment("mixture", {"environments": entries})
