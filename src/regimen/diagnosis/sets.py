"""Problems that show only in the figures of a whole set of rollouts.

In: `Statistics`. Out: `Finding`s about rewards, groups and sizes.
"""

from __future__ import annotations

from regimen.diagnosis.findings import Finding, Severity, finding
from regimen.diagnosis.thresholds import Thresholds
from regimen.rollouts.statistics import Statistics


def set_findings(statistics: Statistics, limits: Thresholds, num_failed: int = 0) -> list[Finding]:
    """All findings that rest on the figures alone; `num_failed` episodes stand in failures files."""
    return [
        *_reward_findings(statistics, limits),
        *_group_findings(statistics, limits),
        *_size_findings(statistics, limits, num_failed),
    ]


def _reward_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    rewards, summary = statistics.rewards, statistics.rewards.summary
    found: list[Finding] = []
    if not summary.count:
        message = f"none of the {statistics.rows} rows has a reward that speaks about the model"
        return [
            finding(
                "no_rewards", "error", statistics.rows, message, "see the outcomes: mend what failed, collect again"
            )
        ]
    if rewards.out_of_range:
        fix = "scale them (grpo.reward_scaling), and give thresholds in the verifier's own range"
        message = f"{rewards.out_of_range} rewards lie outside 0 to 1 ({summary.min:.4g} to {summary.max:.4g})"
        found.append(finding("reward_out_of_range", "warning", rewards.out_of_range, message, fix))
    if summary.count > 1 and summary.min == summary.max:
        return [*found, _equal_rewards(summary.count, summary.min, rewards.success_threshold)]
    rate = rewards.success_rate
    if rate < limits.success_low:
        message = f"only {rewards.num_passing} of {summary.count} rollouts pass ({rate:.1%})"
        fix = "use easier tasks, a better prompt or a stronger model, and check that the verifier is not too strict"
        found.append(finding("success_low", "warning", summary.count - rewards.num_passing, message, fix))
    if rate >= limits.success_high:
        message = f"{rewards.num_passing} of {summary.count} rollouts pass ({rate:.1%}): little is left to learn here"
        found.append(
            finding("success_high", "note", rewards.num_passing, message, "use harder tasks for reinforcement learning")
        )
    if rewards.kind != "binary" and summary.sd < limits.spread_low:
        message = f"rewards hardly differ (standard deviation {summary.sd:.3f}, below {limits.spread_low:g})"
        found.append(
            finding(
                "rewards_narrow", "warning", summary.count, message, "make the verifier tell better from worse answers"
            )
        )
    return found


def _equal_rewards(count: int, value: float, threshold: float) -> Finding:
    if value == 0:
        return finding(
            "rewards_all_zero",
            "error",
            count,
            f"all {count} rewards are 0: nothing can be learned from them",
            "give the verifier an answer known to be right; if it scores 1, collect easier tasks or a better prompt",
        )
    severity: Severity = "warning" if value >= threshold else "error"
    return finding(
        "rewards_all_equal",
        severity,
        count,
        f"all {count} rewards are {value:g}: the verifier tells nothing apart",
        "give the verifier an answer known to be wrong; if it scores lower, use harder tasks or a higher temperature",
    )


def _group_findings(statistics: Statistics, limits: Thresholds) -> list[Finding]:
    groups, summary = statistics.groups, statistics.rewards.summary
    if not summary.count or summary.min == summary.max:
        return []
    if not groups.num_repeated:
        message = f"no task was tried twice ({groups.num_tasks} tasks): variance within groups is not known"
        return [
            finding(
                "single_repeats",
                "note",
                groups.num_tasks,
                message,
                "collect 4 or more rollouts per task for GRPO and DPO",
            )
        ]
    found: list[Finding] = []
    flat = groups.num_all_pass + groups.num_all_fail
    if flat > limits.flat_high * groups.num_repeated:
        everywhere = flat == groups.num_repeated
        message = (
            f"{flat} of {groups.num_repeated} groups have no variance "
            f"({groups.num_all_pass} all pass, {groups.num_all_fail} all fail): they give GRPO no gradient"
        )
        fix = "raise the temperature, collect more repeats, and choose tasks that are neither too easy nor too hard"
        found.append(finding("no_group_variance", "error" if everywhere else "warning", flat, message, fix))
    if not groups.num_pairs:
        message = f"no task has two rewards at least {groups.pair_gap:g} apart: there are no pairs for DPO"
        fix = "collect more repeats at a higher temperature, or lower --min-gap"
        found.append(finding("no_pairs", "note", groups.num_repeated, message, fix))
    return found


def _size_findings(statistics: Statistics, limits: Thresholds, num_failed: int) -> list[Finding]:
    found: list[Finding] = []
    scored, passing = statistics.scored, statistics.rewards.num_passing
    if not scored:
        return found
    if scored < limits.few_rollouts:
        message = f"only {scored} scored rollouts: every figure here is rough"
        found.append(finding("few_rollouts", "note", scored, message, "collect more before choosing a plan"))
    if passing < limits.sft_rows:
        message = f"passing rows: {passing}; SFT wants at least {limits.sft_rows}, better 1,000"
        fix = "collect more tasks, or more repeats of those that pass"
        found.append(finding("few_rows_for_sft", "note", passing, message, fix))
    if statistics.truncated > limits.truncated_high * scored:
        message = f"{statistics.truncated} of {scored} scored rollouts were cut off at the token limit"
        fix = "raise max_output_tokens, or ask for shorter answers"
        found.append(finding("truncated", "warning", statistics.truncated, message, fix))
    episodes = statistics.rows + num_failed
    failed = episodes - scored
    if failed > limits.unscored_high * episodes:
        message = f"{failed} of {episodes} episodes failed without a usable reward"
        fix = "see the outcomes; mend the environment or the verifier first"
        found.append(finding("many_failures", "warning", failed, message, fix))
    return found
