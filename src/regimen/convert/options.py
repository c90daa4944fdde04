"""What a person may choose about a conversion, checked before any file is read.

In: keyword arguments (the command's flags). Out: a frozen `ConvertOptions`.
Refuses: values out of range, and options that say nothing about the target they are given for.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from regimen.errors import UsageError

Target = Literal["sft", "dpo", "grpo"]
Reasoning = Literal["auto", "reasoning_content", "inline", "drop"]
Strategy = Literal["same_prompt", "all_pairs"]

FORMATS: dict[str, tuple[str, ...]] = {
    "sft": ("openai", "simple"),
    "dpo": ("preference", "binary"),
    "grpo": ("gym", "response"),
}
# Formats whose rows hold plain strings, so that reasoning can only stand inside the text.
STRING_FORMATS = ("simple", "binary")
BINARY_THRESHOLD = 1.0
CONTINUOUS_THRESHOLD = 0.95
DEFAULT_MIN_GAP = 0.2
DEFAULT_MAX_PAIRS = 8
# Options that only some targets read; the others refuse them instead of ignoring them.
TARGETS_OF: dict[str, tuple[str, ...]] = {
    "reward_threshold": ("sft", "grpo"),
    "require_tool_use": ("sft",),
    "max_per_task": ("sft",),
    "min_turns": ("sft",),
    "reasoning": ("sft", "dpo"),
    "strategy": ("dpo",),
    "min_gap": ("dpo",),
    "max_pairs_per_task": ("dpo",),
    "min_pass_rate": ("grpo",),
    "max_pass_rate": ("grpo",),
}


class ConvertOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The choices of one conversion; `None` and `"auto"` mean: decided from the data, and recorded.

    `reward_threshold` None: 1.0 where all rewards are 0 or 1, else 0.95; for GRPO it says what counts as a pass.
    `reasoning` auto: a `reasoning_content` field where rows hold messages, `<think>` text where they hold strings.
    """

    format: str = "auto"
    reward_threshold: float | None = None
    reasoning: Reasoning = "auto"
    require_tool_use: bool = False
    max_per_task: int | None = None
    min_turns: int = 1
    strategy: Strategy = "same_prompt"
    min_gap: float = DEFAULT_MIN_GAP
    max_pairs_per_task: int = DEFAULT_MAX_PAIRS
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    validation_fraction: float = 0.1
    seed: int = 0
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        _choice("reasoning", self.reasoning, ("auto", "reasoning_content", "inline", "drop"))
        _choice("strategy", self.strategy, ("same_prompt", "all_pairs"))
        if self.reward_threshold is not None and not math.isfinite(self.reward_threshold):
            raise _refusal("reward_threshold", self.reward_threshold, "a finite number")
        if not (math.isfinite(self.min_gap) and self.min_gap >= 0):
            raise _refusal("min_gap", self.min_gap, "a number of at least 0")
        for name in ("min_pass_rate", "max_pass_rate", "max_bad"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise _refusal(name, value, "a number from 0 to 1")
        if not 0 <= self.validation_fraction < 1:
            raise _refusal("validation_fraction", self.validation_fraction, "a number from 0 to below 1")
        for name in ("max_per_task", "min_turns", "max_pairs_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _refusal(name, value, "a whole number of at least 1")
        if self.min_pass_rate > self.max_pass_rate:
            raise _refusal("min_pass_rate", self.min_pass_rate, f"at most max_pass_rate ({self.max_pass_rate})")


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
    if options.format in STRING_FORMATS and options.reasoning == "reasoning_content":
        raise UsageError(
            f"a {options.format} row has no field for reasoning",
            where="--reasoning",
            expected="inline or drop",
        )


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
