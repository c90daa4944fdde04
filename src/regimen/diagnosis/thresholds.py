"""The thresholds by which rollouts are judged, in one place, so that a report can name them."""

from __future__ import annotations

import msgspec


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Limits taken from practice; every one may be changed by the caller.

    `success_low`, `success_high`: below, nearly nothing passes; from there on little is left to learn.
    `sft_first`: below this share of passing rollouts, imitate the passing ones before GRPO.
    `sft_rows`, `sft_rows_least`: passing rows that SFT wants, and the least worth imitating.
    `pair_share`: share of the repeated tasks that must yield a pair before DPO is advised.
    `spread_low`, `spread_good`: standard deviation of rewards that is a red flag, and that is enough for DPO.
    `flat_high`: share of zero-variance groups that is a problem. `unique_low`: share of different answers.
    `same_answer_high`: share of tasks with one and the same answer. `truncated_high`, `unscored_high`: shares.
    `few_rollouts`: fewer scored rollouts than this make every figure rough.
    `least_for_shares`: fewer answers (or tasks) than this say nothing about shares.
    `environment_rows`: scored rollouts that each of several environments should have.
    `leaked_high`: share of prompts that hold their answer. `retokenised_high`: share of model calls whose text gives
    other ids; up to there it is the sampler's freedom, beyond it another tokenizer or template is likely.
    """

    success_low: float = 0.1
    success_high: float = 0.9
    sft_first: float = 0.3
    sft_rows: int = 100
    sft_rows_least: int = 30
    pair_share: float = 0.5
    spread_low: float = 0.1
    spread_good: float = 0.15
    flat_high: float = 0.8
    unique_low: float = 0.5
    same_answer_high: float = 0.5
    truncated_high: float = 0.1
    unscored_high: float = 0.1
    few_rollouts: int = 30
    least_for_shares: int = 10
    environment_rows: int = 100
    leaked_high: float = 0.01
    retokenised_high: float = 0.2


DEFAULT_THRESHOLDS = Thresholds()
