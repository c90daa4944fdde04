import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.convert.balance import MixCount, TaskRows, balanced_rows, mixed_tasks
from regimen.convert.split import task_position
from regimen.errors import ConvertError


def tasks(**sizes):
    return [TaskRows(name, f"{name}/{index}") for name, size in sizes.items() for index in range(size)]


def totals(copies):
    counts = {}
    for task_id, count in copies.items():
        name = task_id.split("/")[0]
        counts[name] = counts.get(name, 0) + count
    return counts


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=30),
    st.sampled_from([1.0, 1.5, 3.0]),
)
def test_no_environment_has_more_than_so_many_times_the_smallest(sizes, ratio):
    given_tasks = [TaskRows(name, f"{name}/{index}", rows) for index, (name, rows) in enumerate(sizes)]
    kept = balanced_rows(given_tasks, ratio, 0)
    before = totals({task.task_id: task.num_rows for task in given_tasks})
    limit = int(ratio * min(before.values()))
    assert totals(kept) == {name: min(total, limit) for name, total in before.items()}
    assert all(0 <= kept[task.task_id] <= task.num_rows for task in given_tasks)
    assert balanced_rows(given_tasks[::-1], ratio, 0) == kept


def test_which_rows_stay_depends_on_the_seed_and_not_on_the_split():
    many = tasks(a=1000, b=500)
    kept = {task for task, rows in balanced_rows(many, 1.0, 0).items() if rows and task[0] == "a"}
    assert len(kept) == 500
    assert kept != {task for task, rows in balanced_rows(many, 1.0, 1).items() if rows and task[0] == "a"}
    # Half of the tasks stay; if the split drew on the same numbers, all or none of its tasks would.
    held_out = {task.task_id for task in many if task.environment == "a" and task_position(task.task_id, 0) < 0.2}
    assert 0.35 < len(held_out & kept) / len(held_out) < 0.65


def test_environments_without_candidates_do_not_empty_the_others():
    assert balanced_rows([TaskRows("a", "a/0", 0), TaskRows("b", "b/0", 4)], 2.0, 0) == {"a/0": 0, "b/0": 4}
    assert balanced_rows([], 2.0, 0) == {}


def test_a_mixture_is_reached_by_leaving_tasks_out():
    copies, counts = mixed_tasks(tasks(calculator=10, mcqa=10), {"calculator": 2, "mcqa": 1}, False, 0)
    assert totals(copies) == {"calculator": 10, "mcqa": 5}
    assert set(copies.values()) == {0, 1}
    assert counts == {
        "calculator": MixCount(weight=2, tasks_seen=10, tasks_kept=10, rows=10),
        "mcqa": MixCount(weight=1, tasks_seen=10, tasks_kept=5, rows=5),
    }


def test_a_mixture_is_reached_by_repeating_rows_when_asked():
    copies, counts = mixed_tasks(tasks(a=4, b=10), {"a": 1, "b": 1}, True, 0)
    assert totals(copies) == {"a": 10, "b": 10}
    # Ten rows of four tasks: two stand three times, two twice.
    assert sorted(count for task, count in copies.items() if task[0] == "a") == [2, 2, 3, 3]
    assert counts["a"] == MixCount(weight=1, tasks_seen=4, tasks_kept=4, rows=10)


def test_a_name_may_be_the_beginning_of_an_environments():
    copies, _ = mixed_tasks(tasks(mcqa_agent=2, math_agent=1), {"mcqa": 1, "math": 1}, False, 0)
    assert totals(copies) == {"mcqa_agent": 1, "math_agent": 1}


@pytest.mark.parametrize(
    "weights, said",
    [
        ({"m": 1, "calculator": 1}, "'m' names 2 environments"),
        ({"sudoku": 1}, "'sudoku' names no environments"),
        ({"mcqa": 1, "mcqa_agent": 1}, "'mcqa_agent' names 1 environments"),
        ({"mcqa": 1, "math": 1}, "no weight for calculator"),
    ],
)
def test_weights_must_name_the_environments(weights, said):
    with pytest.raises(ConvertError, match=said) as caught:
        mixed_tasks(tasks(mcqa_agent=2, math_agent=1, calculator=1), weights, False, 0)
    assert caught.value.where == "--mix"
    assert caught.value.expected == "each of calculator, math_agent, mcqa_agent once"
