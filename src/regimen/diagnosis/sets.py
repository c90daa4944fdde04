"""Problems that show only in the figures of a whole set of rollouts.

In: `Statistics`. Out: `Finding`s about rewards, environments, groups and sizes.
What one finding explains is not said again by another: equal rewards are not also called low, narrow and flat.
"""

from __future__ import annotations

import math

from regimen.diagnosis.findings import Finding, finding
from regimen.diagnosis.thresholds import Thresholds
from regimen.rollouts.statistics import Statistics


def set_findings(statistics: Statistics, limits: Thresholds, num_failed: int = 0) -> list[Finding]:
    """All findings that rest on the figures alone; `num_failed` episodes stand in failures files."""
    if not statistics.scored:
        message = f"none of the {statistics.rows} rows has a reward that speaks about the model"
        return [finding("no_rewards", statistics.rows, message)]
    equal = _equal_rewards(statistics)
    if equal:
        return [*_out_of_range(statistics), *equal, *_failures(statistics, limits, num_failed)]
    return [
        *_reward_findings(statistics, limits),
        *_environment_findings(statistics, limits),
        *_group_findings(statistics, limits),
        *_size_findings(statistics, limits),
        *_failures(statistics, limits, num_failed),
    ]


def _equal_rewards(statistics: Statistics) -> list[Finding]:
    count, value = statistics.scored, statistics.rewards.summary.min
    if count < 2 or value != statistics.rewards.summary.max:
        return []
    if value == 0:
        return [finding("rewards_all_zero", count, f"all {count} rewards are 0: nothing can be learned from them")]
    severity = "warning" if value >= statistics.rewards.success_threshold else "error"
    message = f"all {count} rewards are {value:g}: the verifier tells nothing apart"
    return [finding("rewards_all_equal", count, message, severity=severity)]


def _out_of_range(statistics: Statistics) -> list[Finding]:
    rewards = statistics.rewards
    if not rewards.out_of_range:
        return []
    ends = f"{rewards.summary.min:.4g} to {rewards.summary.max:.4g}"
    message = f"{rewards.out_of_range} rewards lie outside 0 to 1 ({ends})"
    return [finding("reward_out_of_range", rewards.out_of_range, message)]


def _reward_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    rewards, summary = statistics.rewards, statistics.rewards.summary
    found = _out_of_range(statistics)
    rate = rewards.success_rate
    if rate < limits.success_low:
        message = f"only {rewards.num_passing} of {summary.count} rollouts pass ({rate:.1%})"
        found.append(finding("success_low", summary.count - rewards.num_passing, message))
    if rate >= limits.success_high:
        message = f"{rewards.num_passing} of {summary.count} rollouts pass ({rate:.1%}): little is left to learn here"
        found.append(finding("success_high", rewards.num_passing, message))
    if rewards.kind != "binary" and summary.sd < limits.spread_low:
        message = f"rewards hardly differ (standard deviation {summary.sd:.3f}, below {limits.spread_low:g})"
        found.append(finding("rewards_narrow", summary.count, message))
    return found


def _environment_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    """Of several environments, those whose verifier is constant, and those with few rows."""
    parts = statistics.environments
    if len(parts) < 2:
        return []
    constant = {
        name: part
        for name, part in parts.items()
        if part.scored >= limits.least_for_shares and part.min_reward == part.max_reward
    }
    small = {name: part for name, part in parts.items() if 0 < part.scored < limits.environment_rows}
    found: list[Finding] = []
    if constant:
        shown = ", ".join(f"{name} {part.min_reward:g} in all {part.scored}" for name, part in constant.items())
        count = sum(part.scored for part in constant.values())
        found.append(finding("constant_verifier", count, f"environments whose rewards are all equal: {shown}"))
    if small:
        shown = ", ".join(f"{name} {part.scored}" for name, part in small.items())
        message = f"environments with fewer than {limits.environment_rows} scored rollouts: {shown}"
        found.append(finding("environment_small", len(small), message))
    return found


def _group_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    groups = statistics.groups
    if not groups.num_repeated:
        if statistics.scored < 2:
            return []
        message = f"no task was tried twice ({groups.num_tasks} tasks): variance within groups is not known"
        return [finding("single_repeats", groups.num_tasks, message)]
    found: list[Finding] = []
    flat = groups.num_all_pass + groups.num_all_fail
    if flat > limits.flat_high * groups.num_repeated:
        message = (
            f"{flat} of {groups.num_repeated} groups have no variance "
            f"({groups.num_all_pass} all pass, {groups.num_all_fail} all fail): they give GRPO no gradient"
        )
        severity = "error" if flat == groups.num_repeated else "warning"
        found.append(finding("no_group_variance", flat, message, severity=severity))
    if not groups.num_pairs and groups.num_varied:
        message = f"no task has two rewards at least {groups.pair_gap:g} apart: there are no pairs for DPO"
        gap = math.floor(groups.largest_gap * 1000) / 1000 or groups.largest_gap
        fix = f"lower the gap: --min-gap {gap:g} gives some; or collect more repeats at a higher temperature"
        found.append(finding("no_pairs", groups.num_repeated, message, fix=fix))
    return found


def _size_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    found: list[Finding] = []
    scored, passing = statistics.scored, statistics.rewards.num_passing
    if scored < limits.few_rollouts:
        message = f"only {scored} scored rollouts, {passing} of them passing: every figure here is rough"
        found.append(finding("few_rollouts", scored, message))
    elif passing < limits.sft_rows:
        message = f"passing rows: {passing}; SFT wants at least {limits.sft_rows}, better 1,000"
        found.append(finding("few_rows_for_sft", passing, message))
    if statistics.truncated > limits.truncated_high * scored:
        message = f"{statistics.truncated} of {scored} scored rollouts were cut off at the token limit"
        found.append(finding("truncated", statistics.truncated, message))
    return found


def _failures(statistics: Statistics, limits: Thresholds, num_failed: int) -> list[Finding]:
    episodes = statistics.rows + num_failed
    failed = episodes - statistics.scored
    if failed <= limits.unscored_high * episodes:
        return []
    return [finding("many_failures", failed, f"{failed} of {episodes} episodes failed without a usable reward")]
