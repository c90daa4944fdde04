import pytest

from regimen.diagnosis.checks import Diagnosis
from regimen.diagnosis.recommend import quoted_paths, recommend
from regimen.diagnosis.thresholds import Thresholds
from regimen.rollouts.statistics import collect_statistics


def plan(rollouts, path="rollouts.jsonl", **thresholds):
    diagnosis = Diagnosis()
    for rollout in rollouts:
        diagnosis.add(rollout)
    statistics = collect_statistics(rollouts)
    return recommend(statistics, diagnosis.finish(statistics), path, Thresholds(**thresholds))


def actions(found):
    return [step.action for step in found.steps]


# 100 of 832 pass (12%): 50 tasks solved once or twice of eight, 54 never.
RARE = [[1, 1, 0, 0, 0, 0, 0, 0]] * 50 + [[0] * 8] * 54
GRADED = [[0.2, 0.5, 0.7, 0.9], [0.4, 0.85, 0.3, 0.6]] * 20


def test_rare_success_with_enough_passing_rows_is_imitated_first(episodes):
    found = plan(episodes(*RARE))
    assert found.rule == "imitate_first"
    assert found.summary == "12% success with 100 passing rows: rejection-sampled SFT first, then GRPO."
    assert actions(found) == ["sft", "grpo"]
    assert found.steps[0].commands == [
        "regimen convert rollouts.jsonl --to sft --out sft_data",
        "regimen train sft policy.model_name=MODEL data.default.dataset_name=openai_format "
        "data.train.data_path=sft_data/train.jsonl data.validation.data_path=sft_data/val.jsonl",
    ]
    assert found.steps[0].reason == "100 passing rows"
    assert found.steps[1].reason == "50 of 104 groups have rewards that differ"
    assert (found.figures["num_passing"], found.figures["scored"], found.figures["num_varied"]) == (100, 832, 50)
    assert found.thresholds.sft_first == 0.3


def test_fewer_passing_rows_are_imitated_with_a_warning(episodes):
    found = plan(episodes(*[[1, 0, 0, 0, 0, 0, 0, 0]] * 48))
    assert actions(found) == ["sft", "grpo"]
    assert "fewer than the 100" in found.steps[0].reason


@pytest.mark.parametrize("value", [0, 0.5])
def test_equal_rewards_mean_fixing_the_verifier_first(episodes, value):
    found = plan(episodes(*[[value] * 4] * 50))
    assert found.rule == "all_equal"
    assert actions(found) == ["fix_verifier", "collect", "inspect"]
    assert found.steps[2].commands == ["regimen inspect rollouts.jsonl"]


def test_everything_passes(episodes):
    found = plan(episodes(*[[1] * 4] * 50))
    assert actions(found) == ["fix_verifier", "sft", "harder_tasks"]


@pytest.mark.parametrize("groups", [[[1] * 9 + [0]] * 20, [[0.95, 0.9, 1.0, 0.85]] * 30])
def test_mostly_solved_tasks_are_imitated_or_made_harder(episodes, groups):
    found = plan(episodes(*groups))
    assert found.rule == "mostly_solved"
    assert actions(found) == ["sft", "harder_tasks"]


def test_graded_rewards_with_repeats_make_pairs(episodes):
    found = plan(episodes(*GRADED))
    assert found.rule == "graded_pairs"
    assert actions(found) == ["sft", "dpo", "grpo"]
    assert found.steps[0].commands[0] == "regimen convert rollouts.jsonl --to sft --reward-threshold 0.8 --out sft_data"
    assert found.steps[1].commands[0] == "regimen convert rollouts.jsonl --to dpo --format preference --out dpo_data"
    assert "data.default.dataset_name=PreferenceDataset" in found.steps[1].commands[1]
    assert found.steps[1].reason.startswith("40 of 40 tasks have rewards at least 0.2 apart (mean gap 0.62")


def test_graded_rewards_that_pass_often_need_no_imitation(episodes):
    assert actions(plan(episodes(*[[0.2, 0.9, 0.85, 0.5]] * 30))) == ["dpo", "grpo"]


@pytest.mark.parametrize("share", [3, 5, 8])
def test_medium_success_with_variance_is_for_grpo(episodes, share):
    found = plan(episodes(*[[1] * share + [0] * (10 - share)] * 20))
    assert found.rule == "reinforce"
    assert actions(found) == ["grpo", "dpo"]
    assert found.steps[0].commands == [
        "regimen convert rollouts.jsonl --to grpo --out grpo_data",
        "regimen train grpo policy.model_name=MODEL data.default.dataset_name=NemoGymDataset "
        "data.train.data_path=grpo_data/train.jsonl data.validation.data_path=grpo_data/val.jsonl",
    ]


def test_one_repeat_per_task_is_enough_for_grpo(episodes):
    found = plan(episodes(*[[1], [0]] * 50))
    assert actions(found) == ["grpo"]
    assert "no task was tried twice" in found.steps[0].reason


def test_ten_to_thirty_percent_with_few_passing_rows(episodes):
    assert actions(plan(episodes(*[[1, 0, 0, 0, 0]] * 20))) == ["grpo", "dpo"]


def test_too_rare_success_means_collecting(episodes):
    found = plan(episodes(*[[1] + [0] * 39] * 10))
    assert found.rule == "too_rare"
    assert actions(found) == ["collect", "sft", "grpo"]
    assert "10 of 400 pass (2.5%); 100 passing rows need about 4,000 rollouts" in found.steps[0].reason


def test_graded_rewards_that_never_pass_still_differ(episodes):
    assert actions(plan(episodes(*[[0.1, 0.2, 0.15]] * 20))) == ["grpo"]


def test_flat_groups_need_another_temperature(episodes):
    found = plan(episodes(*[[1] * 4] * 25 + [[0] * 4] * 25))
    assert found.rule == "flat_groups"
    assert actions(found) == ["collect", "sft"]
    assert "25 all pass, 25 all fail" in found.steps[0].reason
    assert actions(plan(episodes([1, 1], [0, 0]))) == ["collect"]


def test_nothing_scored(episodes):
    found = plan(episodes([0, 0], mask_sample=True))
    assert found.rule == "nothing_scored"
    assert actions(found) == ["repair", "fix_environment"]
    assert "environment_failed 2" in found.steps[1].reason


def test_problems_are_mended_first(episodes):
    found = plan([*episodes(*RARE), *episodes([0])])
    assert actions(found) == ["repair", "sft", "grpo"]
    assert found.steps[0].title == "Mend the data: remove the rows that stand twice"


def test_other_thresholds_change_the_plan(episodes):
    assert plan(episodes(*RARE), sft_first=0.1).rule == "reinforce"


def test_paths_are_quoted(episodes):
    path = quoted_paths(["my runs/a.jsonl", "b.jsonl"])
    found = plan(episodes(*RARE), path)
    assert found.steps[0].commands[0] == "regimen convert 'my runs/a.jsonl' b.jsonl --to sft --out sft_data"


def test_the_grpo_command_plays_as_many_turns_as_the_rollouts_have(episodes):
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    reply = {"type": "function_call_output", "call_id": "c", "output": "3"}
    answer = {"role": "assistant", "content": "3"}
    short = episodes([1, 0], [1, 0], output=[answer])
    long = episodes([1, 0], [1, 0], output=[call, reply, call, reply, answer])
    step = {step.action: step for step in plan([*short, *long]).steps}["grpo"]
    assert step.commands[1].endswith("data.validation.data_path=grpo_data/val.jsonl grpo.max_rollout_turns=3")
    single = {step.action: step for step in plan(short).steps}["grpo"]
    assert "max_rollout_turns" not in single.commands[1]


def fields(**given):
    """Fields of a row without ground truth, unless given; each environment is named only where it is said."""
    return {"expected_answer": None, **given}


CASES = [
    # name, groups of rewards, fields, rule, actions in order
    ("high success, one repeat", [[1]] * 95 + [[0]] * 5, {}, "mostly_solved", ["sft", "harder_tasks"]),
    ("high success, repeats", [[1] * 4] * 45 + [[1, 0, 1, 0]] * 5, {}, "mostly_solved", ["sft", "harder_tasks"]),
    ("graded and nearly perfect", [[0.95, 0.85, 0.99]] * 40, {}, "mostly_solved", ["sft", "harder_tasks"]),
    ("verifiable, variance within groups", [[1, 0, 1, 0]] * 50, {}, "reinforce", ["grpo", "dpo"]),
    ("half of the groups vary", [[1, 0]] * 30 + [[1, 1]] * 15 + [[0, 0]] * 15, {}, "reinforce", ["grpo", "dpo"]),
    ("few groups vary", [[1, 0]] * 10 + [[1, 1]] * 30 + [[0, 0]] * 20, {}, "reinforce", ["grpo"]),
    ("one repeat, mixed", [[1], [0]] * 60, {}, "reinforce", ["grpo"]),
    ("one repeat, mixed, graded", [[0.9], [0.2], [0.6]] * 40, {}, "reinforce", ["grpo"]),
    ("graded, varied, repeated", [[0.3, 0.9, 0.5, 0.85]] * 40, {}, "graded_pairs", ["dpo", "grpo"]),
    ("graded, seldom good", [[0.1, 0.85, 0.4, 0.3, 0.2]] * 40, {}, "graded_pairs", ["sft", "dpo", "grpo"]),
    ("graded, never good", [[0.1, 0.6, 0.4, 0.3]] * 40, {}, "graded_pairs", ["dpo"]),
    ("graded, hardly differing", [[0.5, 0.55, 0.6]] * 40, {}, "reinforce", ["grpo"]),
    ("12% with 100 passing", RARE, {}, "imitate_first", ["sft", "grpo"]),
    ("25% with 50 passing", [[1, 0, 0, 0]] * 50, {}, "imitate_first", ["sft", "grpo"]),
    ("5% with 20 passing", [[1] + [0] * 19] * 20, {}, "too_rare", ["collect", "sft", "grpo"]),
    ("all zero", [[0] * 4] * 50, {}, "all_equal", ["fix_verifier", "collect", "inspect"]),
    ("all the same grade", [[0.5] * 4] * 50, {}, "all_equal", ["fix_verifier", "collect", "inspect"]),
    ("all pass", [[1] * 4] * 50, {}, "all_equal", ["fix_verifier", "sft", "harder_tasks"]),
    ("groups all pass or all fail", [[1] * 4] * 25 + [[0] * 4] * 25, {}, "flat_groups", ["collect", "sft"]),
    ("too few rows", [[1, 0]] * 10, {}, "reinforce", ["collect", "grpo", "dpo"]),
    ("too few rows, all zero", [[0, 0]] * 5, {}, "all_equal", ["fix_verifier", "collect", "inspect"]),
    ("offline, pairs", [[1, 0, 1, 0]] * 50, fields(), "offline", ["dpo", "sft", "ground_truth"]),
    ("offline, graded", [[0.3, 0.9, 0.5, 0.85]] * 40, fields(), "graded_pairs", ["dpo"]),
    ("offline, one repeat", [[1], [0]] * 60, fields(), "offline", ["sft", "ground_truth"]),
    ("offline, seldom passing", [[1, 0, 0, 0, 0]] * 40, fields(), "offline", ["sft", "dpo", "ground_truth"]),
    ("offline, nothing to learn from", [[1]] * 20 + [[0]] * 60, fields(), "offline", ["collect", "ground_truth"]),
    ("an environment, no truth", [[1, 0]] * 50, fields(agent_ref={"name": "e"}), "reinforce", ["grpo", "dpo"]),
    ("nothing scored", [[0] * 4] * 10, {"mask_sample": True, "reward": None}, "nothing_scored", ["fix_environment"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "groups", "given", "rule", "expected"), CASES, ids=[case[0] for case in CASES])
def test_constructed_cases(episodes, name, groups, given, rule, expected):
    found = plan(episodes(*groups, **given))
    assert (found.rule, actions(found)) == (rule, expected)
    advised = [command for step in found.steps for command in step.commands]
    for step in found.steps:
        if step.action in ("sft", "dpo", "grpo"):
            assert step.commands[0].startswith(f"regimen convert rollouts.jsonl --to {step.action}")
    if given.get("expected_answer", "x") is None and "agent_ref" not in given:
        assert not any("grpo" in command for command in advised)


def test_environments_that_the_plan_does_not_fit_are_named(episodes):
    mixed = [
        *episodes(*[[1, 0, 1, 0]] * 40, agent_ref={"name": "middling"}),
        *episodes(*[[1, 1, 1, 1]] * 30, [1, 0, 1, 1], agent_ref={"name": "easy"}),
        *episodes(*[[0, 0, 0, 0]] * 30, [0, 0, 0, 1], agent_ref={"name": "hard"}),
    ]
    found = plan(mixed)
    assert actions(found) == ["environments", "grpo"]
    assert found.steps[0].title.endswith("imitate or make harder: easy 99%; easier tasks first: hard 1%")


def test_a_constant_verifier_among_others_is_fixed_first(episodes):
    mixed = [
        *episodes(*[[1, 0, 1, 0]] * 40, agent_ref={"name": "sound"}),
        *episodes(*[[1, 1, 1, 1]] * 10, agent_ref={"name": "lenient"}),
    ]
    found = plan(mixed)
    assert actions(found) == ["repair", "grpo", "dpo"]
    assert "fix the verifiers that tell nothing apart" in found.steps[0].title


def test_a_missing_ground_truth_is_said_where_grpo_is_advised(episodes):
    found = plan(episodes(*[[1, 0]] * 50, expected_answer=None, agent_ref={"name": "e"}))
    assert "no ground truth was found" in found.steps[0].reason
