"""What to do next with a set of rollouts: an ordered plan and the figures it rests on.

In: `Statistics`, `Finding`s, and the path that commands should name. Out: a `Recommendation`.
The rules are read from top to bottom; the first that applies makes the plan.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence

import msgspec

from regimen.diagnosis.findings import Finding
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.rollouts.statistics import Statistics

UNKNOWN = "unknown"  # the environment of rows that name none

# Target -> what to ask of the conversion, and the data set that reads its rows.
FORMATS = {
    "sft": ("", "openai_format"),
    "dpo": (" --format preference", "PreferenceDataset"),
    "grpo": ("", "NemoGymDataset"),
}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step: what to do, why (with its figures), and the commands, if a command does it."""

    action: str
    title: str
    reason: str
    commands: list[str] = []


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """The plan in one sentence and in steps; `rule` names the case, `figures` and `thresholds` decided it."""

    rule: str
    summary: str
    steps: list[Step]
    figures: dict[str, float | int | str]
    thresholds: Thresholds


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules look at."""

    statistics: Statistics
    limits: Thresholds
    path: str
    counts: dict[str, int]

    @property
    def rate(self) -> float:
        """Share of passing rollouts."""
        return self.statistics.rewards.success_rate

    @property
    def passing(self) -> int:
        """Number of passing rollouts."""
        return self.statistics.rewards.num_passing

    @property
    def scored(self) -> int:
        """Number of rollouts with a reward."""
        return self.statistics.scored

    @property
    def is_offline(self) -> bool:
        """Whether nothing says how to judge new answers: no row has a ground truth, and none names its environment."""
        return self.counts.get("no_ground_truth", 0) >= self.scored and set(self.statistics.environments) == {UNKNOWN}

    @property
    def is_few(self) -> bool:
        """Whether there are too few rollouts to trust any figure."""
        return self.scored < self.limits.few_rollouts

    @property
    def varies(self) -> bool:
        """Whether some task was solved sometimes, or whether nobody can say (no task was tried twice)."""
        groups = self.statistics.groups
        return groups.num_varied > 0 or groups.num_repeated == 0

    @property
    def has_pairs(self) -> bool:
        """Whether enough repeated tasks have a clearly better and a clearly worse answer."""
        groups = self.statistics.groups
        return groups.num_repeated > 0 and groups.num_pairs >= self.limits.pair_share * groups.num_repeated

    def commands(self, to: str) -> list[str]:
        """The commands that convert the rollouts and train on them; MODEL is the person's to fill in."""
        threshold = self.statistics.rewards.success_threshold
        keep = f" --reward-threshold {threshold:g}" if to == "sft" and self.statistics.rewards.kind != "binary" else ""
        row_format, dataset = FORMATS[to]
        folder = f"{to}_data"
        return [
            f"regimen convert {self.path} --to {to}{row_format}{keep} --out {folder}",
            f"regimen train {to} policy.model_name=MODEL data.default.dataset_name={dataset} "
            f"data.train.data_path={folder}/train.jsonl data.validation.data_path={folder}/val.jsonl"
            + (self._playing() if to == "grpo" else ""),
        ]

    def _playing(self) -> str:
        """What GRPO must be told to play episodes as long as these: it plays one turn unless asked for more."""
        turns = int(self.statistics.turns.max)
        return f" grpo.max_rollout_turns={turns}" if turns > 1 else ""


def recommend(
    statistics: Statistics,
    findings: Sequence[Finding] = (),
    path: str = "rollouts.jsonl",
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Recommendation:
    """The plan for these rollouts; `path` (a file, or several joined by blanks and quoted) stands in the commands."""
    counts = {found.code: found.count for found in findings}
    case = Case(statistics=statistics, limits=thresholds, path=path, counts=counts)
    rule, (summary, steps) = next((rule, plan) for rule in RULES if (plan := rule(case)) is not None)
    if case.scored and case.is_few and not any(step.action == "collect" for step in steps):
        summary = f"Only {case.scored} rollouts: collect more before trusting a plan. So far: {summary}"
        steps = [_few(case), *steps]
    return Recommendation(
        rule=rule.__name__.removeprefix("_"),
        summary=summary,
        steps=[*_repairs(case), *_environments_apart(case), *steps],
        figures=_figures(statistics),
        thresholds=thresholds,
    )


def quoted_paths(paths: Sequence[str]) -> str:
    """Paths as a command line takes them."""
    return " ".join(shlex.quote(path) for path in paths)


Plan = tuple[str, list[Step]]


def _nothing_scored(case: Case) -> Plan | None:
    if case.scored:
        return None
    reason = f"none of the {case.statistics.rows} rows has a reward: {_counts(case.statistics.outcomes)}"
    return "Mend what failed, then collect again.", [
        _step("fix_environment", "Find out why every episode failed", reason)
    ]


def _all_equal(case: Case) -> Plan | None:
    summary = case.statistics.rewards.summary
    if summary.count < 2 or summary.min != summary.max:
        return None
    if summary.min >= case.statistics.rewards.success_threshold:
        steps = [
            _step(
                "fix_verifier",
                "Check that the verifier can fail an answer",
                f"all {summary.count} rewards are {summary.min:g}",
            ),
            *_easy_steps(case),
        ]
        return "Everything passes: check the verifier, then use harder tasks (or imitate these rows).", steps
    reason = f"all {summary.count} rewards are {summary.min:g}, so no rollout is better than another"
    steps = [
        _step("fix_verifier", "Score an answer known to be right and one known to be wrong", reason),
        _collect(
            "Collect again with temperature 0.7 to 1.0, several repeats and easier tasks", "equal rewards teach nothing"
        ),
        _step(
            "inspect",
            "Inspect the new rollouts",
            "the plan depends on their pass rate",
            [f"regimen inspect {case.path}"],
        ),
    ]
    return "Fix the verifier first: it tells nothing apart; then collect again.", steps


def _mostly_solved(case: Case) -> Plan | None:
    if case.rate < case.limits.success_high:
        return None
    return f"{case.rate:.0%} pass: imitate them (SFT), or use harder tasks.", _easy_steps(case)


def _easy_steps(case: Case) -> list[Step]:
    harder = _step(
        "harder_tasks",
        "For reinforcement learning collect harder tasks",
        f"{case.rate:.0%} pass, from {case.limits.success_high:.0%} on most groups have no variance",
    )
    return [_sft(case, "Imitate the passing rollouts"), harder]


def _flat_groups(case: Case) -> Plan | None:
    groups = case.statistics.groups
    if case.varies:
        return None
    reason = (
        f"all {groups.num_repeated} groups have no variance ({groups.num_all_pass} all pass, "
        f"{groups.num_all_fail} all fail): GRPO gets no gradient, DPO no pairs"
    )
    steps = [_collect("Collect again with temperature 0.7 to 1.0 and at least 4 repeats", reason)]
    if case.passing >= case.limits.sft_rows_least:
        steps.append(_sft(case, "Meanwhile, imitate the passing rollouts"))
    return "No variance within groups: collect with a higher temperature before reinforcement learning.", steps


def _graded_pairs(case: Case) -> Plan | None:
    rewards, groups = case.statistics.rewards, case.statistics.groups
    if rewards.kind == "binary" or not case.has_pairs or rewards.summary.sd < case.limits.spread_good:
        return None
    reason = (
        f"{groups.num_pairs} of {groups.num_repeated} tasks have rewards at least {groups.pair_gap:g} apart "
        f"(mean gap {groups.mean_gap:.2f}, standard deviation {rewards.summary.sd:.2f})"
    )
    steps = [_step("dpo", "Train on pairs (DPO)", reason, case.commands("dpo"))]
    if case.rate >= case.limits.success_low and not case.is_offline:
        steps.append(_grpo(case, "Go on with GRPO, where the environment can be played"))
    if case.rate < case.limits.sft_first and case.passing >= case.limits.sft_rows_least:
        steps.insert(0, _sft(case, "Imitate the passing rollouts first"))
    return "Graded rewards and several repeats: DPO on pairs of better and worse answers.", steps


def _imitate_first(case: Case) -> Plan | None:
    if case.rate >= case.limits.sft_first or case.passing < case.limits.sft_rows_least:
        return None
    steps = [
        _sft(case, "Imitate the passing rollouts (rejection-sampled SFT)"),
        _grpo(case, "Then GRPO from that model"),
    ]
    return f"{case.rate:.0%} success with {case.passing} passing rows: rejection-sampled SFT first, then GRPO.", steps


def _offline(case: Case) -> Plan | None:
    """Without a ground truth and an environment nothing can judge new answers: learn from those that are there."""
    if not case.is_offline:
        return None
    steps: list[Step] = []
    if case.has_pairs:
        reason = f"{case.statistics.groups.num_pairs} of {case.statistics.groups.num_repeated} tasks have a clear gap"
        steps.append(_step("dpo", "Train on pairs (DPO)", reason, case.commands("dpo")))
    if case.passing >= case.limits.sft_rows_least:
        steps.insert(0 if case.rate < case.limits.sft_first else len(steps), _sft(case, "Imitate the passing rollouts"))
    if not steps:
        reason = f"{case.passing} passing rows and {case.statistics.groups.num_pairs} pairs are too few to learn from"
        steps.append(_collect("Collect more rollouts, several per task", reason))
    names = " and ".join(step.action.upper() for step in steps if step.action != "collect") or "collect more"
    return f"Nothing here can judge new answers, so no GRPO: {names}.", [*steps, _truth_step()]


def _truth_step() -> Step:
    return _step(
        "ground_truth",
        "For GRPO, find the task rows (--tasks) and the environment",
        "no row has a ground truth or names its environment",
    )


def _too_rare(case: Case) -> Plan | None:
    graded = case.statistics.rewards.kind != "binary" and case.statistics.groups.num_varied > 0
    if graded or case.rate >= case.limits.success_low:
        return None
    wanted = case.limits.sft_rows
    needed = f"about {math.ceil(wanted / case.rate):,} rollouts at this rate" if case.passing else "none passes yet"
    reason = f"{case.passing} of {case.scored} pass ({case.rate:.1%}); {wanted} passing rows need {needed}"
    steps = [
        _collect("Collect more rollouts, with easier tasks or a better prompt among them", reason),
        _sft(case, "Imitate the passing rollouts"),
        _grpo(case, "Then GRPO from that model"),
    ]
    return "Too few rollouts pass: collect more (or easier) ones, then SFT, then GRPO.", steps


def _reinforce(case: Case) -> Plan | None:
    steps = [_grpo(case, "Train with GRPO")]
    groups = case.statistics.groups
    if case.has_pairs:
        reason = f"{groups.num_pairs} of {groups.num_repeated} tasks have both a right and a wrong answer"
        title = "Or, without playing the environment: DPO on the pairs"
        steps.append(_step("dpo", title, reason, case.commands("dpo")))
    return f"{case.rate:.0%} success with variance to learn from: GRPO.", steps


RULES: tuple[Callable[[Case], Plan | None], ...] = (
    _nothing_scored,
    _all_equal,
    _mostly_solved,
    _flat_groups,
    _graded_pairs,
    _offline,
    _imitate_first,
    _too_rare,
    _reinforce,
)

# Findings that should be dealt with before any training, and how.
REPAIRS = {
    "constant_verifier": "Fix the verifiers that tell nothing apart first, or leave their environments out",
    "failure_as_zero": "Keep failed episodes out of the rewards (the commands below do)",
    "duplicate_rows": "Remove the rows that stand twice",
    "task_with_several_prompts": "Inspect the files of different collections apart",
    "tools_missing": "Put the tools into the requests",
    "reward_out_of_range": "Bring the rewards into 0 to 1",
    "many_failures": "Find out why so many episodes failed",
}


def _repairs(case: Case) -> list[Step]:
    found = [REPAIRS[code] for code in REPAIRS if code in case.counts]
    if not found:
        return []
    return [
        _step(
            "repair",
            "Mend the data: " + "; ".join(text[0].lower() + text[1:] for text in found),
            "see the problems above",
        )
    ]


def _environments_apart(case: Case) -> list[Step]:
    """Of several environments, those that the plan for all of them does not fit."""
    parts = case.statistics.environments
    if len(parts) < 2 or not case.scored:
        return []
    limits = case.limits
    scored = {name: part for name, part in parts.items() if part.scored >= limits.least_for_shares}
    varying = {name: part for name, part in scored.items() if part.min_reward < part.max_reward}
    rates = {name: part.success_rate for name, part in varying.items()}
    solved = [f"{name} {rate:.0%}" for name, rate in rates.items() if rate >= limits.success_high]
    rare = [f"{name} {rate:.0%}" for name, rate in rates.items() if rate < limits.success_low]
    advice = [f"imitate or make harder: {', '.join(solved)}"] if solved else []
    advice += [f"easier tasks first: {', '.join(rare)}"] if rare else []
    if not advice or len(solved) == len(scored) or len(rare) == len(scored):
        return []
    title = "Treat environments apart that the plan for the whole does not fit: " + "; ".join(advice)
    return [_step("environments", title, f"{len(parts)} environments, together {case.rate:.0%} pass")]


def _few(case: Case) -> Step:
    reason = f"{case.scored} scored rollouts are fewer than {case.limits.few_rollouts}: their shares are chance"
    return _collect("Collect more rollouts, 4 or more per task, and inspect again", reason)


def _sft(case: Case, title: str) -> Step:
    reason = f"{case.passing} passing rows"
    if case.passing < case.limits.sft_rows:
        reason += f", fewer than the {case.limits.sft_rows} that SFT wants: collect more where you can"
    return _step("sft", title, reason, case.commands("sft"))


def _grpo(case: Case, title: str) -> Step:
    groups = case.statistics.groups
    if groups.num_repeated:
        reason = f"{groups.num_varied} of {groups.num_repeated} groups have rewards that differ"
    else:
        reason = "no task was tried twice here; GRPO plays each prompt several times itself"
    if case.counts.get("no_ground_truth", 0) >= case.scored:
        reason += "; no ground truth was found, so find the task rows (--tasks), unless the environment has it"
    return _step("grpo", title, reason, case.commands("grpo"))


def _collect(title: str, reason: str) -> Step:
    return _step("collect", title, reason, ["regimen collect --help"])


def _step(action: str, title: str, reason: str, commands: list[str] | None = None) -> Step:
    return Step(action=action, title=title, reason=reason, commands=commands or [])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "no rows"


def _figures(statistics: Statistics) -> dict[str, float | int | str]:
    rewards, groups = statistics.rewards, statistics.groups
    return {
        "scored": statistics.scored,
        "reward_kind": rewards.kind,
        "mean_reward": rewards.summary.mean,
        "reward_sd": rewards.summary.sd,
        "success_rate": rewards.success_rate,
        "num_passing": rewards.num_passing,
        "num_tasks": groups.num_tasks,
        "num_repeated": groups.num_repeated,
        "num_varied": groups.num_varied,
        "num_pairs": groups.num_pairs,
    }
