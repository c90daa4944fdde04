"""The local policy's step against a hand-written torch loop, and what must not move when a step is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from padded import SEQUENCES, nll
from torch import Tensor

from regimen.algorithms.losses import sft_loss
from regimen.errors import PolicyError
from regimen.policy.base import LossOutput, Supervision
from regimen.policy.checkpoint import load_state, save_state
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches

KWARGS = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-5}
DECAY = [{"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.5, "total_iters": 4}}]


def options(**changes: Any) -> LocalPolicyOptions:
    return LocalPolicyOptions(**{"precision": "float32", "optimizer_kwargs": KWARGS, "schedule": DECAY, **changes})


def policy_of(tiny: ModuleType, **changes: Any) -> LocalPolicy:
    return LocalPolicy(tiny.tiny_model(), options(**changes))


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_steps_equal_a_torch_loop(tiny: ModuleType) -> None:
    policy = policy_of(tiny)
    model = tiny.tiny_model()
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-5)
    for step in range(3):
        result = policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
        loss = nll(model)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.5 + 0.125 * step)
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert result.learning_rate == pytest.approx(1e-2 * (0.5 + 0.125 * step))
    torch.testing.assert_close(weights(policy.model), weights(model), rtol=1e-3, atol=2e-4)


def test_figures_of_micro_batches_add_up(tiny: ModuleType) -> None:
    forests = micro_batches(SEQUENCES, 1)
    assert len(forests) == 3
    result = policy_of(tiny).train_step(forests, sft_loss)
    assert result.metrics == {"num_tokens": 6.0}
    assert result.computed_tokens == 13
    whole = policy_of(tiny).evaluate(micro_batches(SEQUENCES, 100), sft_loss)
    assert whole.loss == pytest.approx(result.loss, rel=1e-5)
    assert (whole.grad_norm, whole.computed_tokens) == (0.0, 9)


def test_evaluate_and_logprobs_leave_the_weights(tiny: ModuleType) -> None:
    policy = policy_of(tiny)
    before = weights(policy.model)
    policy.evaluate(micro_batches(SEQUENCES, 100), sft_loss)
    [values] = policy.logprobs(micro_batches(SEQUENCES, 100))
    assert -values.mean() == pytest.approx(nll(tiny.tiny_model()).item(), rel=1e-4)
    assert torch.equal(weights(policy.model), before)


def test_the_temperature_divides_the_logits(tiny: ModuleType) -> None:
    forests = micro_batches([TrainingSequence([5, 6], [(1, 2)])], 100)
    [found] = policy_of(tiny, temperature=2.0).logprobs(forests)
    model = tiny.tiny_model()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5]])).logits[0, 0]
    assert found[0] == pytest.approx((logits / 2).log_softmax(-1)[6].item(), abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_refused_and_nothing_moves(tiny: ModuleType, value: float) -> None:
    policy = policy_of(tiny)
    policy.train_step(micro_batches(SEQUENCES, 100), sft_loss)
    before, state = weights(policy.model), policy.optimizer.state_dict()["state"][0]["step"].item()  # type: ignore

    def broken(logprob: Tensor, batch: Supervision) -> LossOutput:
        return LossOutput(logprob.sum() * value, {})

    with pytest.raises(PolicyError, match="not finite; no step was taken"):
        policy.train_step(micro_batches(SEQUENCES, 100), broken)
    assert torch.equal(weights(policy.model), before)
    assert policy.optimizer.state_dict()["state"][0]["step"].item() == state  # type: ignore
    assert np.isfinite(policy.train_step(micro_batches(SEQUENCES, 100), sft_loss).loss)  # and it can go on


def test_what_before_step_raises_keeps_the_weights(tiny: ModuleType) -> None:
    policy = policy_of(tiny)
    before = weights(policy.model)

    def stop() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        policy.train_step(micro_batches(SEQUENCES, 100), sft_loss, before_step=stop)
    assert torch.equal(weights(policy.model), before)


def test_resuming_from_a_file_gives_the_same_weights(tiny: ModuleType, tmp_path: Path) -> None:
    forests = micro_batches(SEQUENCES, 6)
    through = policy_of(tiny)
    for _ in range(4):
        through.train_step(forests, sft_loss)
    first = policy_of(tiny)
    for _ in range(2):
        first.train_step(forests, sft_loss)
    save_state(first.state(), tmp_path / "state.safetensors")
    second = LocalPolicy(tiny.tiny_model(seed=9), options())
    second.load_state(load_state(tmp_path / "state.safetensors"))
    results = [second.train_step(forests, sft_loss) for _ in range(2)]
    assert torch.equal(weights(second.model), weights(through.model))
    assert [round(r.learning_rate, 6) for r in results] == [0.0075, 0.00875]


def test_a_saver_writes_the_weights_of_the_moment_it_was_made(tiny: ModuleType, tmp_path: Path) -> None:
    policy = policy_of(tiny)
    before = weights(policy.model).clone()
    write = policy.saver()
    policy.train_step(micro_batches(SEQUENCES, 100), sft_loss)
    assert not torch.equal(weights(policy.model), before)
    write(tmp_path / "model")
    assert torch.equal(weights(LocalPolicy.load(tmp_path / "model", options(train=False)).model), before)


def test_a_state_of_another_model_is_refused(tiny: ModuleType) -> None:
    other = LocalPolicy(tiny.tiny_model(intermediate_size=40), options())
    with pytest.raises(PolicyError, match=r"of another model: model\.layers\.0\.mlp\.down_proj\.weight"):
        policy_of(tiny).load_state(other.state())


def test_a_saved_folder_loads_with_transformers_and_gives_the_same_logits(tiny: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = policy_of(tiny)
    policy.train_step(micro_batches(SEQUENCES, 100), sft_loss)
    policy.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.no_grad():
        assert -policy.logprobs(micro_batches(SEQUENCES, 100))[0].mean() == pytest.approx(nll(loaded).item(), rel=1e-5)
    reloaded = LocalPolicy.load(tmp_path / "model", options(train=False))
    assert torch.equal(weights(reloaded.model), weights(policy.model))


def test_a_policy_for_reading_cannot_train(tiny: ModuleType) -> None:
    policy = policy_of(tiny, train=False)
    for call in (lambda: policy.train_step([], sft_loss), policy.state, lambda: policy.load_state({})):
        with pytest.raises(PolicyError, match="loaded for reading"):
            call()


def test_dropout_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(PolicyError, match=r"set attention_dropout to 0 in the model's config\.json"):
        LocalPolicy(tiny.tiny_model(attention_dropout=0.1), options())
    model = tiny.tiny_model()
    model.extra = torch.nn.Dropout(0.2)
    with pytest.raises(PolicyError, match="extra"):
        LocalPolicy(model, options())


def test_routing_noise_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(PolicyError, match=r"router_jitter_noise is 0\.1"):
        LocalPolicy(tiny.tiny_model("mixtral", router_jitter_noise=0.1), options())


def test_activation_checkpointing_changes_no_number(tiny: ModuleType) -> None:
    forests = micro_batches(SEQUENCES, 100)
    plain, saving = (policy_of(tiny, activation_checkpointing=flag) for flag in (False, True))
    assert saving.train_step(forests, sft_loss).grad_norm == pytest.approx(
        plain.train_step(forests, sft_loss).grad_norm, rel=1e-6
    )
    torch.testing.assert_close(weights(saving.model), weights(plain.model))


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"config\.json"):
        LocalPolicy.load(tmp_path, options())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PolicyError, match="no model can be loaded"):
        LocalPolicy.load(tmp_path, options())
