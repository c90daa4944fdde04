import pytest

from regimen.convert.grpo import count_task, nothing_to_play, task_example, task_fields, tasks_of
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions


def _options(**changes):
    return ConvertOptions(**({"format": "gym", "reward_threshold": 1.0} | changes))


def build_grpo(rollouts, options, ledger, is_named=False):
    examples = []
    for group in tasks_of(rollouts):
        made = task_example(group, options, is_named=is_named)
        count_task(made, ledger)
        if isinstance(made, str):
            ledger.count_rows(group.keys, made, sum(group.num_sampled))
        else:
            examples.append(made)
    return examples


def _task(**fields):
    return {
        "responses_create_params": {"input": "q", "tools": []},
        "_ng_task_index": 0,
        "_ng_rollout_index": 1,
    } | fields


def test_a_task_stands_once_with_its_pass_rate(make_task_rollout):
    rollouts = [make_task_rollout("a", reward) for reward in (1.0, 0.0, 0.5, 1.0)]
    (example,) = build_grpo(rollouts, _options(), Ledger())
    assert example.row == {"responses_create_params": {"input": "question of a"}, "expected_answer": "42"}
    record = example.record
    assert (record.pass_rate, record.mean_reward, record.num_rollouts) == (0.5, 0.625, 4)
    assert (record.truth, record.source.line) == ("rollout_row", 1)
    assert example.keys == [("rollouts.jsonl", line) for line in (1, 2, 3, 4)]


def test_the_task_row_is_believed_first_and_comes_out_as_it_was(make_task_rollout):
    rollout = make_task_rollout(
        task=_task(expected_answer=42, options=["x"], uuid="u"), fields={"agent_ref": {"name": "agent"}}
    )
    (example,) = build_grpo([rollout], _options(), Ledger())
    assert example.row == {
        "responses_create_params": {"input": "q", "tools": []},
        "expected_answer": 42,
        "options": ["x"],
        "uuid": "u",
        "agent_ref": {"name": "agent"},
    }
    assert example.record.truth == "task_row"


def test_fields_of_rollout_rows_that_are_measured_or_vary_are_no_ground_truth(make_task_rollout):
    common = {"expected_answer": 12, "topic": "sums", "accuracy": True, "extracted_answer": "12", "_ng_rollout_id": "r"}
    rollouts = [make_task_rollout(fields=common | {"note": note, "overlap": 0.5}) for note in ("one", "two")]
    (repeats,) = tasks_of(rollouts)
    assert task_fields(repeats) == ({"expected_answer": 12, "topic": "sums"}, "rollout_row")


def test_what_a_step_wise_environment_found_out_is_no_ground_truth(make_task_rollout):
    measured = {"terminated": True, "truncated": False, "info": {"won": True}}
    for fields, place in ((measured, "nowhere"), ({"info": {"level": 3}}, "rollout_row")):
        (repeats,) = tasks_of([make_task_rollout(fields=fields)])
        assert task_fields(repeats) == ({"info": {"level": 3}} if place == "rollout_row" else {}, place)


def test_sampling_settings_and_nulls_of_a_rollout_row_stay_behind(make_task_rollout):
    params = {"input": "q", "temperature": 0.7, "model": "m", "tools": None, "tool_choice": "auto"}
    (example,) = build_grpo([make_task_rollout(params=params)], _options(), Ledger())
    assert example.row["responses_create_params"] == {"input": "q", "tool_choice": "auto"}


def test_a_task_without_ground_truth_is_reported(make_task_rollout):
    for changes in ({"fields": {}}, {"task": _task(agent_ref={"name": "x"})}):
        (example,) = build_grpo([make_task_rollout(**changes)], _options(), Ledger())
        assert example.record.truth == "nowhere"


def test_the_answer_may_stand_in_the_metadata(make_task_rollout):
    params = {"input": "q", "metadata": {"ground_truth": "7"}}
    (example,) = build_grpo([make_task_rollout(fields={}, params=params)], _options(format="response"), Ledger())
    assert example.row == {"input": "q", "output": "7"}
    assert example.record.truth == "rollout_row"


def test_pass_rate_filters_count_all_rows_of_the_task(make_task_rollout):
    rollouts = [make_task_rollout(task, reward) for task in "abc" for reward in (0.0, 1.0)]
    rollouts[0] = make_task_rollout("a", 1.0)
    rollouts[3] = make_task_rollout("b", 0.0)
    ledger = Ledger()
    examples = build_grpo(rollouts, _options(min_pass_rate=0.1, max_pass_rate=0.9), ledger)
    assert [example.task_id for example in examples] == ["c"]
    assert [ledger.bucket_of(rollout.key) for rollout in rollouts] == [
        "pass_rate_too_high",
        "pass_rate_too_high",
        "pass_rate_too_low",
        "pass_rate_too_low",
        None,
        None,
    ]


def test_response_rows_hold_the_answer_as_text(make_task_rollout):
    rollout = make_task_rollout(fields={"expected_answer": 42})
    (example,) = build_grpo([rollout], _options(format="response"), Ledger())
    assert example.row == {"input": "question of t", "output": "42"}


@pytest.mark.parametrize(
    "changes, bucket",
    [
        ({"fields": {"expected_answer": [1]}}, "no_answer"),
        ({"fields": {}}, "no_answer"),
        ({"params": {"input": "q", "instructions": "s"}}, "not_simple"),
        ({"params": {"input": "q", "tools": [{"name": "f"}]}}, "not_simple"),
        ({"params": {"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}}, "not_simple"),
    ],
)
def test_response_rows_refuse_what_strings_cannot_say(make_task_rollout, changes, bucket):
    rollout, ledger = make_task_rollout(**changes), Ledger()
    assert build_grpo([rollout], _options(format="response"), ledger) == []
    assert ledger.bucket_of(rollout.key) == bucket
    assert "--format gym" in str(nothing_to_play([[1.0]], _options(format="response"), ledger))


def test_the_task_name_and_the_pass_rate_go_into_gym_rows(make_task_rollout):
    rollouts = [make_task_rollout("a", reward, environment="calculator_agent") for reward in (1.0, 0.0)]
    (example,) = build_grpo(rollouts, _options(with_pass_rate=True), Ledger())
    assert (example.row["task_name"], example.row["pass_rate"]) == ("calculator_agent", 0.5)
    assert example.environment == "calculator_agent"
    named = [make_task_rollout("a", environment="agent", fields={"expected_answer": "42", "task_name": "sums"})]
    assert build_grpo(named, _options(), Ledger())[0].row["task_name"] == "sums"
    (answer,) = build_grpo(rollouts, _options(with_pass_rate=True, format="response"), Ledger())
    assert answer.row == {"input": "question of a", "output": "42", "pass_rate": 0.5}


def test_a_task_name_alone_is_no_ground_truth(make_task_rollout):
    (example,) = build_grpo([make_task_rollout(fields={"task_name": "sums"})], _options(), Ledger())
    assert example.record.truth == "nowhere"
    assert len(tasks_of([make_task_rollout("a"), make_task_rollout("b"), make_task_rollout("a")])) == 2


def test_named_gym_rows_carry_the_task_index(make_task_rollout):
    rollouts = [make_task_rollout("x/0", task_index=0), make_task_rollout("x/1", task_index=1)]
    assert [e.row["_ng_task_index"] for e in build_grpo(rollouts, _options(), Ledger(), is_named=True)] == [0, 1]
    assert all("_ng_task_index" not in example.row for example in build_grpo(rollouts, _options(), Ledger()))
    strings = build_grpo(rollouts, _options(format="response"), Ledger(), is_named=True)
    assert all("_ng_task_index" not in example.row for example in strings)


def test_nothing_left_says_what_the_pass_rates_were(make_task_rollout):
    rollouts = [make_task_rollout("a", 0.0), make_task_rollout("b", 1.0), make_task_rollout("b", 0.0)]
    options = _options(min_pass_rate=0.9)
    ledger = Ledger()
    assert build_grpo(rollouts, options, ledger) == []
    assert str(nothing_to_play([[0.0], [1.0, 0.0]], options, ledger)) == (
        "no task has a pass rate from 0.9 to 1: pass rates of 2 tasks from 0 to 0.5 at the reward threshold 1, "
        "rewards from 0 to 1; to fix: --min-pass-rate 0 --max-pass-rate 0.5 would keep all"
    )
