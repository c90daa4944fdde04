import pytest

from regimen.errors import UsageError, WorkError
from regimen.evaluation.metrics import Observation, observation_of, pass_at_k, pass_chance, score
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Source, rollout_from_row


def rows(*tasks, **fields):
    """One observation per reward: rows([1, 0], [0.5]) is two tasks."""
    return [
        Observation(task_id=f"t/{index}", rollout_index=repeat, reward=None if reward is None else float(reward))
        for index, rewards in enumerate(tasks)
        for repeat, reward in enumerate(rewards)
    ]


def test_each_task_weighs_the_same_whatever_its_repeats():
    # Task means 0.75, 0, 1: their mean is 1.75 / 3; s^2 = 0.270833, error sqrt(0.270833 / 3).
    found = score(rows([1, 1, 1, 0], [0], [1, 1]))
    assert found.reward.mean == pytest.approx(1.75 / 3)
    assert found.reward.interval.standard_error == pytest.approx((0.2708333 / 3) ** 0.5, abs=1e-6)
    assert (found.reward.num_tasks, found.reward.num_rollouts) == (3, 7)


def test_clustering_by_task_equals_the_formula_on_rollouts():
    # Miller 2024, equation 4 (equal repeats): SE^2 = sum over tasks of (sum of residuals)^2 / N^2, times n / (n - 1).
    tasks = [[0.2, 0.4], [0.9, 0.7], [0.5, 0.1], [1.0, 0.6]]
    flat = [value for task in tasks for value in task]
    mean = sum(flat) / len(flat)
    clustered = sum(sum(value - mean for value in task) ** 2 for task in tasks) / len(flat) ** 2 * 4 / 3
    assert score(rows(*tasks)).reward.interval.standard_error == pytest.approx(clustered**0.5)


def test_failures_are_counted_and_are_no_zeros():
    observations = [
        Observation(task_id="a", reward=1.0),
        Observation(task_id="a", reward=None, outcome=Outcome.ENVIRONMENT_FAILED),
        Observation(task_id="b", reward=0.5, outcome=Outcome.TRUNCATED),
        Observation(task_id="c", reward=None, outcome=Outcome.TIMED_OUT, metrics={"speed": 9.0}),
    ]
    found = score(observations)
    assert found.reward.mean == 0.75
    assert (found.num_rollouts, found.num_scored, found.num_failed, found.num_truncated) == (4, 2, 2, 1)
    assert (found.num_tasks, found.num_tasks_unscored) == (3, 1)
    assert found.outcomes == {"ok": 1, "environment_failed": 1, "timed_out": 1, "truncated": 1}
    assert found.metrics == {}


def test_nothing_scored_has_no_mean():
    found = score([Observation(task_id="a", reward=None, outcome=Outcome.VERIFIER_FAILED)], ks=[1])
    assert found.reward is None
    assert found.pass_at_k == []
    assert not found.is_binary


def test_nothing_at_all_is_refused():
    with pytest.raises(WorkError, match="no rollouts to evaluate"):
        score([])


@pytest.mark.parametrize(
    "n, c, k, expected",
    [(5, 2, 1, 0.4), (5, 2, 2, 0.7), (5, 2, 4, 1.0), (4, 0, 4, 0.0), (4, 4, 1, 1.0), (3, 1, 3, 1.0)],
)
def test_pass_chance_by_hand(n, c, k, expected):
    assert pass_chance(n, c, k) == pytest.approx(expected)


def test_pass_at_k_averages_over_tasks_that_have_k_repeats():
    # pass@2: task 0 has 1 of 4: 1 - C(3,2)/C(4,2) = 0.5; task 1 has 2 of 2: 1; task 2 has one repeat only.
    found = pass_at_k({"0": [1, 0, 0, 0], "1": [1, 1], "2": [1]}, 2)
    assert found.estimate.mean == pytest.approx(0.75)
    assert (found.estimate.num_tasks, found.estimate.num_rollouts, found.num_tasks_left_out) == (2, 6, 1)
    assert found.estimate.interval.low >= 0
    assert found.estimate.interval.high <= 1


def test_ks_are_powers_of_two_and_the_most_repeats():
    found = score(rows([1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]))
    assert [item.k for item in found.pass_at_k] == [1, 2, 4, 6]
    assert [item.estimate.mean for item in found.pass_at_k] == pytest.approx([1 / 6, 0.3, 7 / 15, 0.5])
    assert [item.k for item in score(rows([1]), ks=[1]).pass_at_k] == [1]


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_beyond_the_repeats_is_refused(k):
    with pytest.raises(UsageError, match=f"no task has {k} scored rollouts"):
        score(rows([1, 0]), ks=[k])


def test_the_threshold_decides_what_passes():
    found = score(rows([0.9], [0.5]), pass_threshold=0.9)
    assert found.pass_at_k[0].estimate.mean == 0.5
    assert not found.is_binary


def test_metric_means_are_clustered_by_task_and_may_be_absent():
    observations = [
        Observation(task_id="a", reward=1.0, metrics={"used_tool": 1.0, "calls": 3.0}),
        Observation(task_id="a", reward=1.0, metrics={"used_tool": 0.0}),
        Observation(task_id="b", reward=0.0, metrics={"used_tool": 1.0}),
    ]
    found = score(observations).metrics
    assert list(found) == ["calls", "used_tool"]
    assert found["used_tool"].mean == 0.75
    assert (found["calls"].mean, found["calls"].num_tasks) == (3.0, 1)


def test_counts_are_no_shares():
    metrics = {"num_calls": 1.0, "used_tool": 1.0}
    found = score([Observation(task_id=str(task), reward=1.0, metrics=metrics) for task in range(3)]).metrics
    assert (found["num_calls"].interval.method, found["used_tool"].interval.method) == ("none", "wilson")


def test_observations_come_from_rollouts():
    def observation(text, **fields):
        row = {
            "responses_create_params": {"input": [{"role": "user", "content": text}]},
            "response": {"output": [{"type": "message", "role": "assistant", "content": "4"}]},
            "reward": 1,
            "_ng_task_index": 3,
            "_ng_rollout_index": 1,
            "agent_ref": {"name": "calculator"},
            "used_tool": True,
            "reward_components": {"format": 0.5},
            **fields,
        }
        return observation_of(rollout_from_row(row, Source("a.jsonl", 1)))

    found = observation("2 + 2?")
    assert (found.task_id, found.rollout_index, found.reward) == ("calculator/3", 1, 1.0)
    assert dict(found.metrics) == {"used_tool": 1.0, "component/format": 0.5}
    assert found.question == observation("2 + 2?", reward=0).question
    assert found.question != observation("2 + 3?").question
    assert observation("2 + 2?", mask_sample=True).reward is None
