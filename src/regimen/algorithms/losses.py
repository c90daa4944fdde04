"""The losses, as pure functions of `logprob [E]` and a micro-batch's `Supervision`.

In: current log-probabilities with their gradient. Out: this micro-batch's share of the loss and of its figures; the
shares of all micro-batches of a global batch add up to the value of the whole, however it was split.

Refuses: a global batch in which nothing is trained (it would be 0/0), pairs that are not whole, and options that
contradict each other or would do nothing. What a masked entry holds cannot reach the result, infinities included.
Half precision is widened to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from regimen.errors import ConfigError, PolicyError
from regimen.policy.base import LossOutput, Supervision


@dataclass(frozen=True, slots=True)
class PolicyGradientOptions:
    """Options of `policy_gradient_loss`, under their configuration keys (`loss_fn.*`)."""

    reference_policy_kl_penalty: float = 0.01
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    kl_input_clamp_value: float | None = 20.0
    kl_output_clamp_value: float | None = 10.0
    ratio_clip_min: float = 0.2
    ratio_clip_max: float = 0.2
    ratio_clip_c: float | None = None
    use_on_policy_kl_approximation: bool = False
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: Literal["tis", "icepop", "seq-mask-tis"] | None = None
    truncated_importance_sampling_ratio: float | None = None
    truncated_importance_sampling_ratio_min: float | None = None
    sequence_level_importance_ratios: bool = False
    token_level_loss: bool = True
    force_on_policy_ratio: bool = False
    use_cispo: bool = False
    disable_ppo_ratio: bool = False
    length_normalizer: int | None = None
    entropy_coefficient: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range and combinations in which an option would be ignored."""
        if self.reference_policy_kl_type not in ("k1", "k2", "k3"):
            _refuse("reference_policy_kl_type", self.reference_policy_kl_type, "k1, k2 or k3")
        if self.ratio_clip_c is not None and self.ratio_clip_c <= 1:
            _refuse("ratio_clip_c", self.ratio_clip_c, "more than 1, or null")
        if self.sequence_level_importance_ratios and self.token_level_loss:
            _refuse("sequence_level_importance_ratios", True, "false, or token_level_loss: false with it")
        if self.force_on_policy_ratio and self.disable_ppo_ratio:
            _refuse("force_on_policy_ratio", True, "false, as disable_ppo_ratio is set")
        if self.length_normalizer is not None and (self.length_normalizer < 1 or not self.token_level_loss):
            _refuse("length_normalizer", self.length_normalizer, "at least 1, with token_level_loss: true; or null")
        if self.entropy_coefficient is not None and self.entropy_coefficient < 0:
            _refuse("entropy_coefficient", self.entropy_coefficient, "at least 0, or null")
        if self.use_cispo:
            self._check_cispo()
        self._check_truncation()

    def _check_cispo(self) -> None:
        for name in ("disable_ppo_ratio", "force_on_policy_ratio", "sequence_level_importance_ratios"):
            if getattr(self, name):
                _refuse(name, True, "false, as use_cispo weights each token by its clipped ratio")
        if self.ratio_clip_c is not None:
            _refuse("ratio_clip_c", self.ratio_clip_c, "null, as use_cispo is set")
        if not self.token_level_loss:
            _refuse("token_level_loss", False, "true, as use_cispo is set")

    def _check_truncation(self) -> None:
        kind = self.truncated_importance_sampling_type
        low, high = self.truncated_importance_sampling_ratio_min, self.truncated_importance_sampling_ratio
        if kind is None:
            for name in ("truncated_importance_sampling_ratio", "truncated_importance_sampling_ratio_min"):
                if getattr(self, name) is not None:
                    _refuse(name, getattr(self, name), "null, as truncated_importance_sampling_type is null")
            return
        if kind not in ("tis", "icepop", "seq-mask-tis"):
            _refuse("truncated_importance_sampling_type", kind, "tis, icepop, seq-mask-tis or null")
        if not self.use_importance_sampling_correction:
            _refuse("truncated_importance_sampling_type", kind, "null, as use_importance_sampling_correction is false")
        if high is None or high <= 0:
            _refuse("truncated_importance_sampling_ratio", high, f"a positive upper bound for {kind}")
        if low is None and kind != "tis":
            _refuse("truncated_importance_sampling_ratio_min", low, f"a lower bound for {kind}")
        if low is not None and high is not None and low > high:
            _refuse("truncated_importance_sampling_ratio_min", low, f"at most the upper bound {high}")
        if kind == "seq-mask-tis" and self.sequence_level_importance_ratios:
            _refuse("sequence_level_importance_ratios", True, "false, as seq-mask-tis weights single tokens")


@dataclass(frozen=True, slots=True)
class PreferenceOptions:
    """Options of `dpo_loss`, under their configuration keys (`dpo.*`)."""

    reference_policy_kl_penalty: float = 0.05
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range and a label smoothing that nothing reads."""
        if self.loss_type not in ("sigmoid", "ipo", "hinge", "robust"):
            _refuse("dpo.loss_type", self.loss_type, "sigmoid, ipo, hinge or robust")
        if not 0 <= self.label_smoothing < 0.5:
            _refuse("dpo.label_smoothing", self.label_smoothing, "0 to less than 0.5")
        if self.label_smoothing and self.loss_type in ("ipo", "hinge"):
            _refuse("dpo.label_smoothing", self.label_smoothing, f"0, as {self.loss_type} does not read it")
        if self.loss_type == "robust" and not self.label_smoothing:
            _refuse("dpo.label_smoothing", self.label_smoothing, "more than 0, as robust without it is sigmoid")


def policy_gradient_loss(logprob: Tensor, batch: Supervision, options: PolicyGradientOptions) -> LossOutput:
    """Clipped policy gradient with a KL penalty and an entropy bonus: GRPO, DAPO, GSPO, CISPO, REINFORCE, by `options`.

    With `force_on_policy_ratio` the policy before the step is the current one, and `previous_logprob` is not read; with
    a penalty of 0 `reference_logprob` is not read. Raises `PolicyError` where an `entropy_coefficient` is set and the
    policy computed no entropy.
    """
    _require_trained(batch)
    logprob, batch = _without_masked(logprob, batch)
    if options.force_on_policy_ratio:
        batch = replace(batch, previous_logprob=logprob.detach())
    ratio, clipped = _ratios(logprob, batch, options)
    surrogate = _surrogate(logprob, ratio, clipped, batch.advantage, options)
    importance = _sampling_importance(batch, options)
    if options.use_importance_sampling_correction:
        surrogate = importance * surrogate
    # The figures stay means over tokens; only what is optimised is divided otherwise.
    divided = batch if options.length_normalizer is None else _by_constant_length(batch, options.length_normalizer)
    loss = _reduce(surrogate, divided, options.token_level_loss)
    penalty = loss.new_zeros(())
    if options.reference_policy_kl_penalty != 0:
        penalty = _reduce(_kl_penalty(logprob, batch, options), divided, options.token_level_loss)
        loss = loss + options.reference_policy_kl_penalty * penalty
    figures = _policy_gradient_figures(logprob.detach(), batch, ratio.detach(), clipped.detach(), options)
    figures["sampling_importance_ratio"] = _reduce(importance, batch, not options.sequence_level_importance_ratios)
    figures["kl_penalty"] = penalty
    if options.entropy_coefficient is not None:
        if batch.entropy is None:
            raise PolicyError("the policy computed no entropy", where="loss_fn.entropy_coefficient")
        if options.entropy_coefficient:
            bonus = _reduce(batch.entropy, divided, options.token_level_loss)
            loss = loss - options.entropy_coefficient * bonus
        figures["entropy"] = _reduce(batch.entropy, batch, token_level=True)
    return LossOutput(loss, _to_floats(figures))


def dpo_loss(logprob: Tensor, batch: Supervision, options: PreferenceOptions) -> LossOutput:
    """Direct preference optimisation, plus a negative log-likelihood of the chosen answers.

    The figures `rewards_*_mean` are sums (or averages) of `lp - ref`, without the factor beta.
    """
    _require_trained(batch)
    logprob, batch = _without_masked(logprob, batch)
    chosen, rejected = _pair_rows(batch)
    num_pairs = batch.valid_sequences / 2
    valid = batch.sample_mask[chosen]

    def mean(values: Tensor) -> Tensor:
        return (values * valid).sum() / num_pairs

    rewards = _row_total(logprob - batch.reference_logprob, batch, options.preference_average_log_probs)
    margin = rewards[chosen] - rewards[rejected]
    preference = mean(_preference(margin, options))
    sft = mean(-_row_total(logprob, batch, options.sft_average_log_probs)[chosen])
    loss = options.preference_loss_weight * preference
    if options.sft_loss_weight != 0:
        loss = loss + options.sft_loss_weight * sft
    figures = {
        "sft_loss": sft,
        "preference_loss": preference,
        "accuracy": mean((margin > 0).to(margin.dtype)),
        "rewards_chosen_mean": mean(rewards[chosen]),
        "rewards_rejected_mean": mean(rewards[rejected]),
    }
    return LossOutput(loss, _to_floats(figures))


def _preference(margin: Tensor, options: PreferenceOptions) -> Tensor:
    """The loss of each pair from `R_chosen - R_rejected`, `[P]`."""
    beta, smoothing = options.reference_policy_kl_penalty, options.label_smoothing
    if options.loss_type == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if options.loss_type == "hinge":
        return (1 - beta * margin).clamp(min=0)
    right, wrong = -logsigmoid(beta * margin), -logsigmoid(-beta * margin)
    if options.loss_type == "robust":
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    return right if smoothing == 0 else (1 - smoothing) * right + smoothing * wrong


def sft_loss(logprob: Tensor, batch: Supervision) -> LossOutput:
    """Mean negative log-likelihood over all trained tokens of the global batch."""
    _require_trained(batch)
    logprob, batch = _without_masked(logprob, batch)
    loss = _reduce(-logprob, batch, token_level=True)
    return LossOutput(loss, _to_floats({"num_tokens": batch.weight.sum()}))


def _refuse(name: str, value: object, expected: str) -> None:
    raise ConfigError(f"{value!r} is not accepted", where=name, expected=expected)


def _require_trained(batch: Supervision) -> None:
    if batch.valid_tokens <= 0 or batch.valid_sequences <= 0:
        raise PolicyError(
            f"the global batch trains {batch.valid_tokens:g} tokens of {batch.valid_sequences:g} sequences",
            expected="at least one of each",
            fix="skip the step: every answer was masked, filtered or failed",
        )


def _without_masked(logprob: Tensor, batch: Supervision) -> tuple[Tensor, Supervision]:
    """Entries of weight 0 with all their values set to 0: nothing computed from them can be NaN, nor its gradient."""
    logprob = logprob.to(torch.promote_types(logprob.dtype, torch.float32))
    used = batch.weight != 0

    def clean(values: Tensor) -> Tensor:
        return torch.where(used, values, torch.zeros_like(values))

    cleaned = replace(
        batch,
        advantage=clean(batch.advantage),
        sampled_logprob=clean(batch.sampled_logprob),
        previous_logprob=clean(batch.previous_logprob),
        reference_logprob=clean(batch.reference_logprob),
        entropy=None if batch.entropy is None else clean(batch.entropy),
    )
    return clean(logprob), cleaned


def _row_sum(values: Tensor, batch: Supervision) -> Tensor:
    """Sums over the entries of each sequence, `[E]` to `[S]`."""
    return values.new_zeros(len(batch.sample_mask)).index_add(0, batch.sequence, values)


def _row_mean(values: Tensor, batch: Supervision) -> Tensor:
    """Means over the trained tokens of each sequence, `[E]` to `[S]`; 0 where there is none.

    The mask is that of the tokens, without the sample mask: a weight between 0 and 1 does not shrink a mean.
    """
    trained = values * (batch.weight != 0)
    return _row_sum(trained, batch) / batch.num_trained.clamp(min=1)


def _row_total(values: Tensor, batch: Supervision, average: bool) -> Tensor:
    return _row_mean(values, batch) if average else _row_sum(values, batch)


def _reduce(values: Tensor, batch: Supervision, token_level: bool) -> Tensor:
    """Share of the mean over all trained tokens, or of the mean over sequences of their means."""
    if token_level:
        return (values * batch.weight).sum() / batch.valid_tokens
    return (_row_mean(values, batch) * batch.sample_mask).sum() / batch.valid_sequences


def _by_constant_length(batch: Supervision, length: int) -> Supervision:
    """The batch as if each of its sequences had `length` trained tokens: long answers weigh no less per token."""
    return replace(batch, valid_tokens=batch.valid_sequences * length)


def _ratios(logprob: Tensor, batch: Supervision, options: PolicyGradientOptions) -> tuple[Tensor, Tensor]:
    """The ratio of current to previous probability and its clipped form, each `[E]`."""
    if options.disable_ppo_ratio:
        return logprob, logprob
    log_ratio = logprob - batch.previous_logprob
    if options.force_on_policy_ratio:
        ratio = log_ratio.exp()
        return ratio, ratio
    if options.sequence_level_importance_ratios:
        log_ratio = _row_mean(log_ratio, batch)[batch.sequence]
    ratio = log_ratio.exp()
    return ratio, ratio.clamp(1 - options.ratio_clip_min, 1 + options.ratio_clip_max)


def _surrogate(
    logprob: Tensor, ratio: Tensor, clipped: Tensor, advantage: Tensor, options: PolicyGradientOptions
) -> Tensor:
    """The actor loss of each entry, before sampling weights."""
    if options.use_cispo:
        return -advantage * clipped.detach() * logprob
    surrogate = torch.maximum(-advantage * ratio, -advantage * clipped)
    if options.ratio_clip_c is not None:
        capped = torch.minimum(surrogate, -advantage * options.ratio_clip_c)
        surrogate = torch.where(advantage < 0, capped, surrogate)
    return surrogate


@torch.no_grad()
def _sampling_importance(batch: Supervision, options: PolicyGradientOptions) -> Tensor:
    """Weights `[E]` that correct for sampling from the generator instead of the policy; without gradient."""
    log_weight = batch.previous_logprob - batch.sampled_logprob
    log_total = log_weight
    if options.sequence_level_importance_ratios:
        log_total = _row_sum(log_weight * batch.weight, batch)[batch.sequence]
    weight = torch.nan_to_num(log_total.exp(), nan=0.0, posinf=0.0, neginf=0.0)
    kind, high = options.truncated_importance_sampling_type, options.truncated_importance_sampling_ratio
    low = options.truncated_importance_sampling_ratio_min or 0.0
    if kind == "tis":
        return weight.clamp(low, high)
    if kind == "icepop":
        return weight * _inside(weight, low, high)
    if kind == "seq-mask-tis":
        return weight * _inside(_row_mean(log_weight, batch).exp(), low, high)[batch.sequence]
    return weight


def _inside(values: Tensor, low: float, high: float | None) -> Tensor:
    return (values >= low) & (values <= (float("inf") if high is None else high))


def _kl_penalty(logprob: Tensor, batch: Supervision, options: PolicyGradientOptions) -> Tensor:
    """The KL penalty of each entry, `[E]`.

    The samples come from the policy that is optimised, so the estimate is multiplied by `exp(lp - detach(lp))`: its
    value is 1 and its gradient the missing score-function term. A saturated clamp stops the gradient of both factors.
    """
    origin = batch.sampled_logprob if options.use_on_policy_kl_approximation else logprob.detach()
    log_ratio = batch.reference_logprob - logprob
    score = _finite_exp(logprob - origin)
    limit = options.kl_input_clamp_value
    if limit is not None:
        inside = log_ratio.abs() <= limit
        score = torch.where(inside, score, score.detach())
        log_ratio = log_ratio.clamp(-limit, limit)
    penalty = score * kl_estimate(log_ratio, options.reference_policy_kl_type)
    limit = options.kl_output_clamp_value
    return penalty if limit is None else penalty.clamp(-limit, limit)


def kl_estimate(log_ratio: Tensor, kind: str) -> Tensor:
    """Estimates of KL(current || reference) from `log_ratio = ref - lp`, for samples of the current policy."""
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return log_ratio.exp() - 1 - log_ratio


def _finite_exp(values: Tensor) -> Tensor:
    """`exp`, and 0 with gradient 0 where that is not finite (masked before `exp`, whose gradient would be 0 * inf)."""
    finite = values.detach().exp().isfinite()
    exponent = torch.where(finite, values, torch.zeros_like(values))
    return torch.where(finite, exponent.exp(), torch.zeros_like(values))


@torch.no_grad()
def _policy_gradient_figures(
    logprob: Tensor, batch: Supervision, ratio: Tensor, clipped: Tensor, options: PolicyGradientOptions
) -> dict[str, Tensor]:
    """Token means of the ratios, the entropy, and the distance between generator and policy."""
    mismatch = batch.previous_logprob - batch.sampled_logprob
    importance = (logprob - batch.sampled_logprob).exp()
    tokens = {
        "probs_ratio": ratio,
        "probs_ratio_clamped": clipped,
        "ratio_clipped_fraction": (ratio != clipped).to(ratio.dtype),
        "approx_entropy": -importance * logprob,
        "token_mult_prob_error": mismatch.abs().exp(),
        "gen_kl_error": kl_estimate(mismatch, options.reference_policy_kl_type),
    }
    return {name: _reduce(values, batch, token_level=True) for name, values in tokens.items()}


def _to_floats(figures: dict[str, Tensor]) -> dict[str, float]:
    """All figures in one transfer from the device."""
    stacked = torch.stack([value.detach() for value in figures.values()])
    return dict(zip(figures, stacked.tolist(), strict=True))


def _pair_rows(batch: Supervision) -> tuple[Tensor, Tensor]:
    """Rows of the chosen and of the rejected sequences, pair by pair: two `[P]` int64; masked sequences are left out.

    Raises `PolicyError` unless each pair has exactly one of both and each sequence is in a pair.
    """
    chosen: dict[int, int] = {}
    rejected: dict[int, int] = {}
    table = zip(batch.pair.tolist(), batch.is_chosen.tolist(), batch.sample_mask.tolist(), strict=True)
    for row, (pair, is_chosen, mask) in enumerate(table):
        side = chosen if is_chosen else rejected
        if mask == 0:
            continue
        if pair < 0 or pair in side:
            problem = (
                "is in no pair" if pair < 0 else f"is a second {'chosen' if is_chosen else 'rejected'} of its pair"
            )
            raise PolicyError(problem, where=f"sequence {row}, pair {pair}", expected="one chosen and one rejected")
        side[pair] = row
    for pair in chosen.keys() ^ rejected.keys():
        raise PolicyError(
            f"pair {pair} has no {'rejected' if pair in chosen else 'chosen'} sequence here",
            expected="both in one micro-batch, each with a trained token, and both masked or neither",
        )
    device = batch.pair.device
    rows = [[side[pair] for pair in chosen] for side in (chosen, rejected)]
    left, right = torch.tensor(rows, dtype=torch.int64, device=device)
    return left, right
