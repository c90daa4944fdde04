"""What a person may choose about a conversion, checked before any file is read.

In: keyword arguments (the command's flags). Out: a frozen `ConvertOptions`.
Refuses: values out of range, and options that say nothing about the target they are given for.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from regimen.convert.where import parse_where
from regimen.errors import UsageError

Target = Literal["sft", "dpo", "grpo"]
Reasoning = Literal["auto", "reasoning_content", "inline", "drop"]
Strategy = Literal["same_prompt", "all_pairs", "halves", "length_matched", "branches", "stratified"]
Spelling = Literal["openai", "nemo_rl"]

FORMATS: dict[str, tuple[str, ...]] = {
    "sft": ("openai", "simple"),
    "dpo": ("preference", "binary"),
    "grpo": ("gym", "response"),
}
# What a training configuration calls the data set that reads the rows of a format.
DATASETS = {
    "openai": "openai_format",
    "simple": "ResponseDataset",
    "preference": "PreferenceDataset",
    "binary": "BinaryPreferenceDataset",
    "gym": "NemoGymDataset",
    "response": "ResponseDataset",
}
# Formats whose rows hold plain strings, so that reasoning can only stand inside the text.
STRING_FORMATS = ("simple", "binary")
BINARY_THRESHOLD = 1.0
CONTINUOUS_THRESHOLD = 0.95
DEFAULT_MIN_GAP = 0.2
DEFAULT_MAX_PAIRS = 8
DEFAULT_HIGH = 0.7
DEFAULT_LOW = 0.4
DEFAULT_SIMILARITY = 0.8
STRATEGIES: tuple[Strategy, ...] = ("same_prompt", "all_pairs", "halves", "length_matched", "branches", "stratified")
# Options that only some targets read; the others refuse them instead of ignoring them.
TARGETS_OF: dict[str, tuple[str, ...]] = {
    "reward_threshold": ("sft", "grpo"),
    "require_tool_use": ("sft",),
    "max_per_task": ("sft",),
    "min_turns": ("sft",),
    "balance": ("sft",),
    "reasoning": ("sft", "dpo"),
    "spelling": ("sft", "dpo"),
    "strategy": ("dpo",),
    "min_gap": ("dpo",),
    "max_pairs_per_task": ("dpo",),
    "high_threshold": ("dpo",),
    "low_threshold": ("dpo",),
    "across_tasks": ("dpo",),
    "min_pass_rate": ("grpo",),
    "max_pass_rate": ("grpo",),
    "with_pass_rate": ("grpo",),
    "mix": ("grpo",),
    "upsample": ("grpo",),
}
# Options that say nothing unless another one is given, or has one of some values.
NEEDS: dict[str, tuple[str, tuple[object, ...] | None]] = {
    "high_threshold": ("strategy", ("stratified",)),
    "low_threshold": ("strategy", ("stratified",)),
    "across_tasks": ("strategy", ("stratified",)),
    "max_pairs_per_task": ("strategy", STRATEGIES[1:]),
    "upsample": ("mix", None),
    "against_similarity": ("against", None),
}


class ConvertOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The choices of one conversion; `None` and `"auto"` mean: decided from the data, and recorded.

    `reward_threshold` None: 1.0 where all rewards are 0 or 1, else 0.95; for GRPO it says what counts as a pass.
    `reasoning` auto: a `reasoning_content` field where rows hold messages, `<think>` text where they hold strings.
    `where` is a condition on the row's fields, `mix` maps environments to weights, `against` names an evaluation file
    whose prompts must not be trained on.
    """

    format: str = "auto"
    spelling: Spelling = "openai"
    where: str | None = None
    reward_threshold: float | None = None
    reasoning: Reasoning = "auto"
    require_tool_use: bool = False
    max_per_task: int | None = None
    min_turns: int = 1
    balance: float | None = None
    strategy: Strategy = "same_prompt"
    min_gap: float = DEFAULT_MIN_GAP
    max_pairs_per_task: int = DEFAULT_MAX_PAIRS
    high_threshold: float = DEFAULT_HIGH
    low_threshold: float = DEFAULT_LOW
    across_tasks: bool = False
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    with_pass_rate: bool = False
    mix: dict[str, float] | None = None
    upsample: bool = False
    against: str | None = None
    against_similarity: float = DEFAULT_SIMILARITY
    validation_fraction: float = 0.1
    seed: int = 0
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        _choice("reasoning", self.reasoning, ("auto", "reasoning_content", "inline", "drop"))
        _choice("strategy", self.strategy, STRATEGIES)
        _choice("spelling", self.spelling, ("openai", "nemo_rl"))
        for name in ("reward_threshold", "high_threshold", "low_threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise _refusal(name, value, "a finite number")
        if not (math.isfinite(self.min_gap) and self.min_gap >= 0):
            raise _refusal("min_gap", self.min_gap, "a number of at least 0")
        for name in ("min_pass_rate", "max_pass_rate", "max_bad"):
            if not 0 <= getattr(self, name) <= 1:
                raise _refusal(name, getattr(self, name), "a number from 0 to 1")
        if not 0 <= self.validation_fraction < 1:
            raise _refusal("validation_fraction", self.validation_fraction, "a number from 0 to below 1")
        if not 0 < self.against_similarity <= 1:
            raise _refusal("against_similarity", self.against_similarity, "a number above 0, at most 1")
        for name in ("max_per_task", "min_turns", "max_pairs_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _refusal(name, value, "a whole number of at least 1")
        if self.balance is not None and not (math.isfinite(self.balance) and self.balance >= 1):
            raise _refusal("balance", self.balance, "a number of at least 1")
        if self.min_pass_rate > self.max_pass_rate:
            raise _refusal("min_pass_rate", self.min_pass_rate, f"at most max_pass_rate ({self.max_pass_rate})")
        if self.low_threshold >= self.high_threshold:
            raise _refusal("low_threshold", self.low_threshold, f"less than high_threshold ({self.high_threshold})")
        if self.mix is not None:
            _check_mix(self.mix)
        if self.where is not None:
            parse_where(self.where)


def parse_mix(text: str) -> dict[str, float]:
    """`calculator=2,mcqa=1` as weights by environment; raises `UsageError` for anything else."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or name in weights or math.isnan(weight):
            raise _refusal("mix", text, "weights by environment, such as calculator=2,mcqa=1")
        weights[name] = weight
    return weights


def _check_mix(weights: dict[str, float]) -> None:
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise _refusal("mix", weights, "at least one environment, with weights above 0")


def check_for_target(options: ConvertOptions, to: str) -> None:
    """Refuse an unknown target, a format of another target, and options that the target does not read."""
    if to not in FORMATS:
        raise UsageError(f"unknown target {to!r}", where="--to", expected=f"one of {', '.join(FORMATS)}")
    if options.format != "auto" and options.format not in FORMATS[to]:
        raise UsageError(
            f"{options.format!r} is not a format of {to}",
            where="--format",
            expected=f"auto or one of {', '.join(FORMATS[to])}",
        )
    defaults = ConvertOptions()
    for name, targets in TARGETS_OF.items():
        if to not in targets and getattr(options, name) != getattr(defaults, name):
            raise UsageError(
                f"has no meaning with --to {to}", where=_flag(name), expected=f"--to {' or '.join(targets)}"
            )
    for name in NEEDS:
        if getattr(options, name) != getattr(defaults, name):
            _check_needs(options, name)
    if options.format == "simple" and options.spelling != "openai":
        raise UsageError("a simple row has no messages to spell", where="--spelling", expected="--format openai")
    if options.format in STRING_FORMATS and options.reasoning == "reasoning_content":
        raise UsageError(
            f"a {options.format} row has no field for reasoning",
            where="--reasoning",
            expected="inline or drop",
        )


def _check_needs(options: ConvertOptions, name: str) -> None:
    """Refuse `name` where the option that gives it a meaning is absent."""
    other, values = NEEDS[name]
    given = getattr(options, other)
    if given is None or (values is not None and given not in values):
        expected = _flag(other) + (f" {' or '.join(map(str, values))}" if values is not None else "")
        raise UsageError(f"has no meaning without {_flag(other)}", where=_flag(name), expected=expected)


def with_reasoning(options: ConvertOptions, format_name: str) -> ConvertOptions:
    """`options` with `reasoning: auto` decided for rows of `format_name`."""
    if options.reasoning != "auto":
        return options
    chosen: Reasoning = "inline" if format_name in STRING_FORMATS else "reasoning_content"
    return msgspec.structs.replace(options, reasoning=chosen)


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _refusal(name, value, f"one of {', '.join(known)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refusal(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"is {value!r}", where=_flag(name), expected=expected)
