import pytest

from regimen.errors import UsageError
from regimen.evaluation.compare import compare, comparison_text
from regimen.evaluation.metrics import Observation


def rows(tasks):
    return [
        Observation(task_id=task, rollout_index=repeat, reward=reward)
        for task, rewards in tasks.items()
        for repeat, reward in enumerate(rewards)
    ]


def test_the_paired_difference_by_hand():
    # Differences of task means 0.5, 0.25, 0, -0.15: mean 0.15; s^2 = 0.245 / 3, error sqrt(s^2 / 4); t(3) = 3.182446.
    model = rows({"a": [1.0, 0.5], "b": [0.75], "c": [0.2], "d": [0.05, 0.05]})
    base = rows({"d": [0.2], "c": [0.2, 0.2], "b": [0.5], "a": [0.25]})
    found = compare(model, base, label="sft", against="base")
    error = (0.245 / 3 / 4) ** 0.5
    assert found.difference == pytest.approx(0.15)
    assert found.interval.standard_error == pytest.approx(error)
    assert found.interval.low == pytest.approx(0.15 - 3.182446 * error, abs=1e-6)
    assert (found.wins, found.ties, found.losses, found.num_tasks) == (2, 1, 1, 4)
    assert found.verdict == "not distinguishable"
    assert found.mean - found.base_mean == pytest.approx(found.difference)


def test_only_common_tasks_count_and_the_others_are_told():
    model = rows({"a": [1.0], "b": [1.0], "x": [0.0], "y": [None]})
    base = rows({"a": [0.0], "b": [0.5], "z": [1.0], "w": [1.0]})
    found = compare(model, base)
    assert (found.num_tasks, found.num_only_model, found.num_only_base) == (2, 1, 2)
    assert found.difference == 0.75


def binary(num_right, num_tasks=200):
    return rows({f"t/{index}": [float(index < num_right)] for index in range(num_tasks)})


def test_verdicts_and_their_text():
    better = compare(binary(180), binary(60))
    assert better.verdict == "better"
    assert comparison_text(better) == "+0.60 [+0.53, +0.67] on 200 tasks (paired)"
    assert compare(binary(60), binary(180)).verdict == "worse"
    assert compare(binary(62), binary(60)).verdict == "not distinguishable"


def test_identical_models_are_not_distinguishable_and_not_certain():
    found = compare(binary(200), binary(200))
    assert found.verdict == "not distinguishable"
    assert comparison_text(found) == "+0.00 [-0.01, +0.01] on 200 tasks (paired)"
    assert (found.wins, found.ties, found.losses) == (0, 200, 0)


def test_one_common_task_has_no_interval():
    found = compare(rows({"a": [1.0]}), rows({"a": [0.0]}))
    assert found.verdict == "not distinguishable"
    assert comparison_text(found) == "+1.00 (no interval) on 1 task (paired)"


def test_no_common_task_is_refused():
    with pytest.raises(UsageError, match="no scored task in common"):
        compare(rows({"a": [1.0]}), rows({"b": [1.0], "a": [None]}))


def test_one_id_for_two_questions_is_refused():
    model = [Observation(task_id="a", reward=1.0, question="x")]
    base = [Observation(task_id="a", reward=1.0, question="y")]
    with pytest.raises(UsageError, match="task a: 1 of 1 common tasks ask different things"):
        compare(model, base)
