"""Adapters against plain peft on a padded batch; what is frozen; what is written; the model without them."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from padded import SEQUENCES, nll
from torch import Tensor

from regimen.algorithms.losses import sft_loss
from regimen.errors import ConfigError, PolicyError
from regimen.models import load_model
from regimen.policy.checkpoint import load_state, save_state
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.policy.lora import LoraOptions, choose_layers
from regimen.tokens.packing import micro_batches

KWARGS = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-5}
LORA = LoraOptions(dim=4, alpha=8, seed=3)
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def policy_of(tiny: ModuleType, lora: LoraOptions = LORA, **changes: Any) -> LocalPolicy:
    settings = {"precision": "float32", "optimizer_kwargs": KWARGS, "lora": lora, **changes}
    return LocalPolicy(tiny.tiny_model(), LocalPolicyOptions(**settings))


def adapters_of(model: Any) -> dict[str, Tensor]:
    """The adapters' weights, as `model.layers.0.self_attn.q_proj.lora_A.default.weight`."""
    named = {name.removeprefix("base_model.model."): tensor for name, tensor in model.named_parameters()}
    return {name: tensor for name, tensor in named.items() if "lora_" in name}


def peft_twin(tiny: ModuleType, policy: LocalPolicy) -> Any:
    """The same model and adapters, put together by peft alone."""
    from peft import LoraConfig, get_peft_model

    model = tiny.tiny_model()
    model.set_attn_implementation("eager")
    twin = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, tensor in adapters_of(twin).items():
            tensor.copy_(adapters_of(policy.model)[name])
    return twin


def move(policy: LocalPolicy) -> None:
    """Give B values: with B = 0, A has no gradient and the adapters no effect."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in adapters_of(policy.model).items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


def test_gradients_equal_those_of_peft_on_a_padded_batch(tiny: ModuleType) -> None:
    policy = policy_of(tiny, max_grad_norm=None)
    move(policy)
    twin = peft_twin(tiny, policy)
    nll(twin).backward()

    def stop() -> None:
        raise PolicyError("gradients are there, no step is wanted")

    with pytest.raises(PolicyError, match="gradients are there"):
        policy.train_step(micro_batches(SEQUENCES, 6), sft_loss, before_step=stop)
    found, expected = adapters_of(policy.model), adapters_of(twin)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * len(LAYERS)  # A and B, two layers
    for name, tensor in expected.items():
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
        torch.testing.assert_close(found[name].grad, tensor.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_steps_equal_a_loop_of_torch_and_peft(tiny: ModuleType) -> None:
    policy = policy_of(tiny)
    twin = peft_twin(tiny, policy)
    trained = [tensor for tensor in twin.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-5)
    for _ in range(3):
        result = policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
        loss = nll(twin)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for name, tensor in adapters_of(twin).items():
        torch.testing.assert_close(adapters_of(policy.model)[name], tensor, rtol=1e-3, atol=2e-4)


def test_the_base_is_frozen_and_has_no_training_state(tiny: ModuleType) -> None:
    policy = policy_of(tiny)
    policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
    base = dict(tiny.tiny_model().named_parameters())
    frozen = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in policy.model.named_parameters()
        if "lora_" not in name
    }
    assert frozen.keys() == base.keys()
    for name, tensor in frozen.items():
        assert tensor.grad is None, name
        assert not tensor.requires_grad, name
        assert torch.equal(tensor, base[name]), name
    # dim x (in + out) of q, k, v, o, gate, up, down with hidden 32, 4 heads and 2 key-value heads of 8, MLP 48
    inputs_and_outputs = [64, 48, 48, 64, 80, 80, 80]
    number = 2 * 4 * sum(inputs_and_outputs)
    state = policy.state()
    assert sum(tensor.numel() for tensor in state["model"].values()) == number
    moments = [values[name] for values in state["optimizer"]["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(tensor.numel() for tensor in moments) == 2 * number


@pytest.mark.parametrize(("init", "width"), [("xavier", math.sqrt(2 / (2048 + 64))), ("kaiming", math.sqrt(1 / 6144))])
def test_adapters_begin_from_the_seed_and_change_nothing(tiny: ModuleType, init: str, width: float) -> None:
    """Xavier's normal has variance 2 / (in + out); peft's uniform reaches 1 / sqrt(in), so its variance is 1 / 3 in."""
    lora = LoraOptions(dim=64, init=init, target_modules=("down_proj",))
    started = []
    for seed in (1, 2):
        model = tiny.tiny_model(intermediate_size=2048)
        torch.manual_seed(seed)
        started.append(LocalPolicy(model, LocalPolicyOptions(precision="float32", lora=lora)))
    values = [adapters_of(policy.model) for policy in started]
    for name, tensor in values[0].items():
        assert torch.equal(tensor, values[1][name])
        if "lora_A" in name:
            assert tensor.std().item() == pytest.approx(width, rel=0.02)
    assert not torch.equal(*[tensor for name, tensor in values[0].items() if "lora_A" in name])


def test_without_adapters_the_policy_is_what_it_was(tiny: ModuleType) -> None:
    plain = LocalPolicy(tiny.tiny_model(), LocalPolicyOptions(precision="float32", train=False))
    forests = micro_batches(SEQUENCES, 6)
    expected = plain.logprobs(forests)
    policy = policy_of(tiny)
    reference = policy.without_adapters()
    for _ in range(2):
        for one, other in zip(reference.logprobs(forests), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        policy.train_step(forests, sft_loss)
    assert max(np.abs(a - b).max() for a, b in zip(policy.logprobs(forests), expected, strict=True)) > 0.05
    with pytest.raises(PolicyError, match="no adapters"):
        plain.without_adapters()


def test_named_tensors_are_the_merged_weights(tiny: ModuleType) -> None:
    policy = policy_of(tiny, LoraOptions(dim=2, alpha=6, target_modules=("q_proj",)))
    move(policy)
    base, adapters = dict(tiny.tiny_model().named_parameters()), adapters_of(policy.model)
    named = dict(policy.named_tensors())
    assert set(named) == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
    for name, tensor in named.items():
        stem = name.removesuffix(".weight")
        up, down = (adapters[f"{stem}.lora_{side}.default.weight"].detach().numpy() for side in "BA")
        np.testing.assert_allclose(tensor.numpy(), base[name].detach().numpy() + 3.0 * up @ down, rtol=1e-5, atol=1e-6)


def test_the_written_folder_is_one_of_peft(tiny: ModuleType, tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    settings = LocalPolicyOptions(precision="float32", lora=LORA, optimizer_kwargs=KWARGS)
    policy = LocalPolicy.load(tiny_folder, settings)
    policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
    later = policy.saver()
    policy.save(tmp_path / "adapters")
    policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
    later(tmp_path / "later")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == files
    for name in files:
        assert (tmp_path / "adapters" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["target_modules"]) == (str(tiny_folder), sorted(LAYERS))
    policy = LocalPolicy.load(tiny_folder, settings)
    policy.train_step(micro_batches(SEQUENCES, 6), sft_loss)
    loss = policy.evaluate(micro_batches(SEQUENCES, 6), sft_loss).loss
    by_peft = PeftModel.from_pretrained(load_model(tiny_folder, torch.float32), tmp_path / "adapters")
    by_peft.base_model.model.set_attn_implementation("eager")
    merged = load_model(tmp_path / "adapters", torch.float32)
    merged.set_attn_implementation("eager")
    assert nll(by_peft).item() == pytest.approx(loss, rel=1e-5)
    assert nll(merged).item() == pytest.approx(loss, rel=1e-5)
    assert nll(load_model(tiny_folder, torch.float32)).item() != pytest.approx(loss, rel=1e-3)


def test_training_goes_on_bit_for_bit(tiny: ModuleType, tmp_path: Path) -> None:
    forests = micro_batches(SEQUENCES, 6)
    policy = policy_of(tiny)
    policy.train_step(forests, sft_loss)
    save_state(policy.state(), tmp_path / "state.safetensors")
    expected = policy.train_step(forests, sft_loss)
    resumed = policy_of(tiny, LoraOptions(dim=4, alpha=8, seed=99))
    resumed.load_state(load_state(tmp_path / "state.safetensors"))
    assert resumed.train_step(forests, sft_loss) == expected
    for name, tensor in adapters_of(policy.model).items():
        assert torch.equal(adapters_of(resumed.model)[name], tensor)
    with pytest.raises(PolicyError, match="weights are of another model"):
        policy_of(tiny, LoraOptions(dim=2)).load_state(load_state(tmp_path / "state.safetensors"))


def test_bfloat16_holds_the_base_in_half_and_adapters_in_full(tiny_folder: Path) -> None:
    policy = LocalPolicy.load(tiny_folder, LocalPolicyOptions(lora=LORA, optimizer_kwargs=KWARGS))
    dtypes = {"lora_" in name: tensor.dtype for name, tensor in policy.model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    exact = LocalPolicy.load(tiny_folder, LocalPolicyOptions(precision="float32", lora=LORA, optimizer_kwargs=KWARGS))
    forests = micro_batches(SEQUENCES, 6)
    for _ in range(2):
        half, full = policy.train_step(forests, sft_loss), exact.train_step(forests, sft_loss)
        assert half.loss == pytest.approx(full.loss, rel=0.02)
        assert half.loss != full.loss
    assert {state["exp_avg"].dtype for state in policy.state()["optimizer"]["state"].values()} == {torch.float32}


def test_dropout_acts_in_training_steps_alone(tiny: ModuleType) -> None:
    forests = micro_batches(SEQUENCES, 6)
    still = {"optimizer_kwargs": {"lr": 0.0, "weight_decay": 0.0}}
    without = policy_of(tiny, LORA, **still)
    dropping = policy_of(tiny, LoraOptions(dim=4, alpha=8, seed=3, dropout=0.5), **still)
    for policy in (without, dropping):
        move(policy)
    expected = without.train_step(forests, sft_loss).loss
    losses = {dropping.train_step(forests, sft_loss).loss for _ in range(3)}
    assert len(losses) == 3
    assert expected not in losses
    assert dropping.evaluate(forests, sft_loss).loss == without.evaluate(forests, sft_loss).loss


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 14),
        ({"target_modules": ("q_proj", "v_proj")}, 4),
        ({"target_modules": ("*.mlp.*",)}, 6),
        ({"target_modules": ("layers.1.self_attn.q_proj",)}, 1),
        ({"target_modules": ("*_proj",), "exclude_modules": ("*.layers.0.*",)}, 7),
        ({"exclude_modules": ("down_proj",)}, 12),
        ({"exclude_modules": ("lm_head",)}, 14),
    ],
)
def test_layers_are_chosen_by_name_and_pattern(tiny: ModuleType, options: dict[str, Any], number: int) -> None:
    assert len(policy_of(tiny, LoraOptions(**options)).adapters.layers) == number  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ("qproj",)}, "target_modules: 'qproj' fits no linear layer of a LlamaForCausalLM"),
        ({"target_modules": ("lm_head",)}, "target_modules: names the vocabulary head"),
        ({"exclude_modules": ("norm",)}, "exclude_modules: 'norm' fits no linear layer"),
        ({"exclude_modules": ("*_proj",)}, "exclude_modules: no layer is left"),
    ],
)
def test_names_that_choose_nothing_are_refused(tiny: ModuleType, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_layers(tiny.tiny_model(), LoraOptions(**options))
    assert str(caught.value).startswith(f"policy.dtensor_cfg.lora_cfg.{said}")


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_four_bits_hold_the_base_and_its_named_tensors_say_what_they_compute(tiny_folder: Path) -> None:
    lora = LoraOptions(dim=4, alpha=8, target_modules=("q_proj",), in_4bit=True)
    policy = LocalPolicy.load(tiny_folder, LocalPolicyOptions(precision="float32", lora=lora, optimizer_kwargs=KWARGS))
    forests = micro_batches(SEQUENCES, 6)
    losses = [policy.train_step(forests, sft_loss).loss for _ in range(2)]
    assert losses[1] < losses[0]
    plain = load_model(tiny_folder, torch.float32)
    own = dict(plain.named_parameters())
    named = dict(policy.named_tensors())
    assert set(named) == {name for name in own if "_proj" in name}  # all products of the layers have fewer bits
    with torch.no_grad():
        for name, tensor in named.items():
            assert not torch.equal(own[name], tensor)
            own[name].copy_(tensor)
    expected = LocalPolicy(plain, LocalPolicyOptions(precision="float32", train=False)).logprobs(forests)
    for one, other in zip(policy.logprobs(forests), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
