import msgspec
import pytest

from regimen.diagnosis.checks import Diagnosis
from regimen.rollouts.records import Source
from regimen.rollouts.statistics import collect_statistics


def diagnose(rollouts, num_failed=0):
    diagnosis = Diagnosis()
    for rollout in rollouts:
        diagnosis.add(rollout)
    return {found.code: found for found in diagnosis.finish(collect_statistics(rollouts), num_failed)}


# 200 passing of 400, half of the groups varied: nothing to complain about.
HEALTHY = [[1, 0, 1, 0]] * 50 + [[1, 1, 1, 1]] * 25 + [[0, 0, 0, 0]] * 25


def test_healthy_rollouts_have_no_findings(episodes):
    assert diagnose(episodes(*HEALTHY)) == {}


@pytest.mark.parametrize(
    ("groups", "code", "severity", "count"),
    [
        ([[0, 0], [0, 0]], "rewards_all_zero", "error", 4),
        ([[0.5, 0.5], [0.5]], "rewards_all_equal", "error", 3),
        ([[1, 1], [1, 1]], "rewards_all_equal", "warning", 4),
        ([[0, 2, -1, 1]], "reward_out_of_range", "warning", 2),
        ([[0] * 10] * 9 + [[1] + [0] * 9], "success_low", "warning", 99),
        ([[1] * 10] * 9 + [[1] * 9 + [0]], "success_high", "note", 99),
        ([[0.5, 0.55, 0.45]], "rewards_narrow", "warning", 3),
        ([[1, 1], [0, 0]], "no_group_variance", "error", 2),
        ([[1, 1]] * 9 + [[1, 0]], "no_group_variance", "warning", 9),
        ([[1], [0]], "single_repeats", "note", 2),
        ([[0.5, 0.6], [0.9, 0.8]], "no_pairs", "note", 2),
        ([[1, 0]] * 99, "few_rows_for_sft", "note", 99),
        ([[1, 0]] * 14, "few_rollouts", "note", 28),
    ],
)
def test_findings_from_the_figures(episodes, groups, code, severity, count):
    found = diagnose(episodes(*groups))[code]
    assert (found.severity, found.count) == (severity, count)
    assert found.message
    assert found.fix


def test_equal_rewards_are_not_also_called_low_and_flat(episodes):
    assert set(diagnose(episodes(*[[0, 0]] * 20))) == {"rewards_all_zero"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"mask_sample": True, "reward": 0.0}, "failure_as_zero"),
        ({"output": [], "reward": 0.0}, "failure_as_zero"),
        ({"output": [{"role": "assistant", "content": " \n"}]}, "empty_answers"),
        ({"output": [{"type": "reasoning", "summary": []}]}, "empty_answers"),
        ({"output": [], "reward": 1.0}, "empty_answers"),
        ({"expected_answer": None}, "no_ground_truth"),
        ({"output": [{"type": "function_call", "name": "f", "arguments": "{"}]}, "malformed_arguments"),
        ({"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "tools_missing"),
        ({"_ng_rollout_index": 0}, "duplicate_rows"),
        ({"responses_create_params": {"input": "another"}}, "task_with_several_prompts"),
    ],
)
def test_findings_from_rows_name_the_first_example(episodes, fields, code):
    healthy = episodes(*HEALTHY)
    broken = episodes([1, 1], **fields)[1]
    assert code not in diagnose(healthy)
    found = diagnose([*healthy[:1], *healthy[2:], broken])[code]
    assert (found.count, found.example) == (1, Source("r.jsonl", 2))


def test_failures_without_a_reward_of_zero_are_in_order(episodes):
    failed = episodes([1], mask_sample=True, reward=None)
    assert "failure_as_zero" not in diagnose([*episodes(*HEALTHY), *failed])


def test_tokens_that_do_not_continue(episodes):
    def turn(prompt):
        return {"prompt_token_ids": prompt, "generation_token_ids": [5], "generation_log_probs": [-0.1]}

    said = {"role": "assistant", "content": "a"}
    sound = [{**said, **turn([1])}, {"role": "user", "content": "b"}, {**said, **turn([1, 5, 2])}]
    broken = [{**said, **turn([1])}, {"role": "user", "content": "b"}, {**said, **turn([1, 6, 2])}]
    assert "tokens_do_not_continue" not in diagnose(episodes([1], output=sound))
    assert diagnose(episodes([1], output=broken))["tokens_do_not_continue"].count == 1


def test_repeated_answers(episodes):
    same = [{"role": "assistant", "content": "same"}]
    found = diagnose(episodes(*[[1, 0, 1, 0]] * 10, output=same))
    assert found["repeated_answers"].count == 40 - 10
    assert found["same_answer_everywhere"].count == 10
    assert "repeated_answers" not in diagnose(episodes(*[[1, 0]] * 4, output=same))


def test_truncated_and_failed_shares(episodes):
    cut = episodes(*[[0]] * 45, regimen={"outcome": "truncated", "reason": None})
    healthy = episodes(*HEALTHY)
    assert diagnose([*healthy, *cut])["truncated"].count == 45
    assert "many_failures" not in diagnose(healthy, num_failed=44)
    assert diagnose(healthy, num_failed=45)["many_failures"].count == 45
    assert set(diagnose(episodes([0, 0], mask_sample=True))) == {"no_rewards", "failure_as_zero"}


def test_ground_truth_may_stand_in_the_task_row_or_the_request(episodes):
    (rollout,) = episodes([1], expected_answer=None)

    def codes(**changes):
        return set(diagnose([msgspec.structs.replace(rollout, **changes)]))

    assert "no_ground_truth" in codes(task={"responses_create_params": {}, "_ng_task_index": 0, "id": 3})
    assert "no_ground_truth" not in codes(task={"options": ["a"]})
    assert "no_ground_truth" not in codes(params={"input": "x", "metadata": {"ground_truth": "4"}})
    assert "no_ground_truth" not in codes(row={"expected_synonyms": ["a"]})


def test_errors_come_first(episodes):
    found = list(diagnose(episodes([1, 1], [0, 0], expected_answer=None)).values())
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=["error", "warning", "note"].index)
    assert found[0].code == "no_group_variance"
