import math

import pytest

from regimen.rollouts.contents import arguments_are_object, num_turns
from regimen.rollouts.moments import Summary, summarize
from regimen.rollouts.reader import read_failures, read_rollouts
from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.statistics import Bin, PassAt, collect_statistics, pass_at_k


def rollouts(*groups, **fields):
    """One rollout per reward; the groups are tasks 0, 1, ..."""
    made = []
    for task, rewards in enumerate(groups):
        for repeat, reward in enumerate(rewards):
            row = {
                "responses_create_params": {"input": f"task {task}"},
                "output": [{"role": "assistant", "content": "a"}],
                "reward": reward,
                "_ng_task_index": task,
                "_ng_rollout_index": repeat,
                **fields,
            }
            made.append(rollout_from_row(row, Source("r.jsonl", len(made) + 1)))
    return made


def test_the_shop_file(data):
    path = data / "shop.jsonl"
    statistics = collect_statistics([*read_rollouts(path), *read_failures(path)])
    assert (statistics.rows, statistics.scored, statistics.truncated) == (6, 4, 0)
    assert statistics.outcomes == {"ok": 4, "environment_failed": 2}
    assert statistics.rewards.kind == "binary"
    assert statistics.rewards.summary == Summary(4, 0.5, 0.5, 0.0, 1.0)
    assert (statistics.rewards.num_passing, statistics.rewards.success_rate) == (2, 0.5)
    assert statistics.groups.num_tasks == statistics.groups.num_varied == statistics.groups.num_pairs == 2
    assert statistics.groups.pass_at == [PassAt(1, 0.5, 2), PassAt(2, 1.0, 2)]
    assert statistics.turns == Summary(4, 3.0, 0.0, 3.0, 3.0)
    assert statistics.items == Summary(4, 8.0, 0.0, 8.0, 8.0)
    assert statistics.output_tokens == Summary(4, 9.0, 0.0, 9.0, 9.0)
    assert statistics.num_with_token_ids == 4
    tools = statistics.tools
    assert (tools.num_offering, tools.num_using, tools.num_calls, tools.calls_per_episode) == (4, 4, 12, 3.0)
    assert tools.by_name == {"price_of": 8, "give_total": 4}
    assert tools.num_malformed == 0
    assert statistics.metrics["overlap"] == Summary(4, 0.75, 0.25, 0.5, 1.0)
    part = statistics.environments["shop_agent"]
    assert (part.rows, part.scored, part.mean_reward, part.success_rate) == (6, 4, 0.5, 0.5)


def test_groups():
    groups = collect_statistics(rollouts([1, 1], [0, 0, 0], [0, 1, 0, 0], [1])).groups
    assert (groups.num_tasks, groups.num_repeated) == (4, 3)
    assert (groups.num_all_pass, groups.num_all_fail, groups.num_varied) == (1, 1, 1)
    assert (groups.repeats.min, groups.repeats.mean, groups.repeats.max) == (1.0, 2.5, 4.0)
    assert (groups.num_pairs, groups.mean_gap) == (1, 1.0)
    assert groups.pass_at == [
        PassAt(1, (1 + 0 + 0.25 + 1) / 4, 4),
        PassAt(2, (1 + 0 + 0.5) / 3, 3),
        PassAt(4, 1.0, 1),
    ]


def test_graded_rewards_pass_from_the_threshold_on():
    statistics = collect_statistics(rollouts([0.79, 0.8], [0.95, 0.9], [0.1, 0.1]))
    assert statistics.rewards.kind == "continuous"
    assert (statistics.rewards.num_passing, statistics.rewards.success_threshold) == (3, 0.8)
    groups = statistics.groups
    assert (groups.num_all_fail, groups.num_varied, groups.num_pairs) == (1, 2, 0)
    assert statistics.rewards.histogram[0] == Bin(0.0, 0.1, 0)
    assert [part.count for part in statistics.rewards.histogram] == [0, 2, 0, 0, 0, 0, 0, 1, 1, 2]


def test_rewards_outside_the_unit_interval_widen_the_histogram():
    rewards = collect_statistics(rollouts([-1, 3, 1])).rewards
    assert rewards.out_of_range == 2
    assert rewards.kind == "continuous"
    assert (rewards.histogram[0].low, rewards.histogram[-1].high) == (-1.0, 3.0)
    assert sum(part.count for part in rewards.histogram) == 3


def test_several_components_make_it_multi():
    statistics = collect_statistics(rollouts([0, 1], reward_components={"form": 1.0, "fact": 0.5}))
    assert statistics.rewards.kind == "multi"
    assert statistics.components == {"fact": Summary(2, 0.5, 0.0, 0.5, 0.5), "form": Summary(2, 1.0, 0.0, 1.0, 1.0)}


def test_failures_enter_no_figure_but_the_counts():
    failed = rollouts([0, 0], mask_sample=True)
    statistics = collect_statistics([*rollouts([1]), *failed])
    assert (statistics.rows, statistics.scored) == (3, 1)
    assert statistics.rewards.summary == Summary(1, 1.0, 0.0, 1.0, 1.0)
    assert statistics.groups.num_tasks == 1
    nothing = collect_statistics(failed)
    assert nothing.rewards.histogram == []
    assert nothing.rewards.success_rate == 0.0
    assert nothing.groups.pass_at == []


def test_equal_rewards_have_no_spread():
    assert summarize([0.1] * 7) == Summary(7, 0.1, 0.0, 0.1, 0.1)
    assert summarize([]) == Summary(0, 0.0, 0.0, 0.0, 0.0)
    assert summarize([1e300, 3e300]) == Summary(2, 2e300, 1e300, 1e300, 3e300)
    assert summarize([1, 2, 6]).sd == pytest.approx(math.sqrt(14 / 3))


def test_pass_at_k_by_counting():
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # of the 6 pairs only one holds no passing rollout
    assert pass_at_k(3, 0, 2) == 0.0
    assert pass_at_k(3, 2, 2) == 1.0
    with pytest.raises(ValueError, match="pass@3 needs"):
        pass_at_k(2, 1, 3)


def test_turns_are_stretches_of_the_models_items():
    said, call = {"role": "assistant", "content": "a"}, {"type": "function_call", "name": "f", "arguments": "{}"}
    seen, user = {"type": "function_call_output", "call_id": "a", "output": "x"}, {"role": "user", "content": "u"}
    assert num_turns([]) == 0
    assert num_turns([{"type": "reasoning"}, said, call, call, seen, seen, said, user, said]) == 3
    assert num_turns([said, {**said, "generation_token_ids": [1]}, {**said, "generation_token_ids": [1]}]) == 2


def test_tokens_from_usage_where_there_are_no_ids():
    row = rollouts([1])[0].row
    spoken = {**row, "output": None, "response": {"output": row["output"], "usage": {"output_tokens": 12}}}
    statistics = collect_statistics([rollout_from_row(spoken, Source("r", 1)), *rollouts([1])])
    assert statistics.output_tokens == Summary(1, 12.0, 0.0, 12.0, 12.0)


@pytest.mark.parametrize(
    ("arguments", "is_object"),
    [('{"x": 1}', True), ("{}", True), ("[1]", False), ('{"x": ', False), ("", False), (None, False), ({"x": 1}, True)],
)
def test_arguments(arguments, is_object):
    assert arguments_are_object(arguments) is is_object


def test_large_groups_need_no_large_numbers():
    # 1 - C(1100, 2) / C(1200, 2), the fraction by hand: 1100 x 1099 / (1200 x 1199)
    assert pass_at_k(1200, 100, 2) == pytest.approx(1 - 1100 * 1099 / (1200 * 1199), rel=1e-12)
    assert pass_at_k(1200, 1100, 200) == 1.0
    assert pass_at_k(1200, 0, 5) == 0.0


def test_environments_have_figures_of_their_own():
    easy = rollouts([1, 1], [1, 1], agent_ref={"name": "easy"})
    mixed = rollouts([1, 0], [0, 0], [0.5], agent_ref={"name": "mixed"})
    parts = collect_statistics([*easy, *mixed]).environments
    easy_part, part = parts["easy"], parts["mixed"]
    assert (easy_part.min_reward, easy_part.max_reward, easy_part.num_varied, easy_part.num_pairs) == (1.0, 1.0, 0, 0)
    assert (part.scored, part.num_tasks, part.num_repeated, part.num_varied, part.num_pairs) == (5, 3, 2, 1, 1)
    assert (part.min_reward, part.max_reward, part.mean_reward) == (0.0, 1.0, pytest.approx(0.3))


def test_the_largest_gap_and_gaps_that_rounding_makes_smaller():
    groups = collect_statistics(rollouts([0.8, 1.0], [0.3, 0.4])).groups
    assert 1.0 - 0.8 < 0.2
    assert (groups.num_pairs, groups.largest_gap) == (1, pytest.approx(0.2))
