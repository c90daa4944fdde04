"""Rules of `policy.dtensor_cfg.lora_cfg`: what is accepted, noted and refused by name."""

from __future__ import annotations

import importlib.util

import pytest

from regimen.config.load import load_train_config
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError

KEY = "policy.dtensor_cfg.lora_cfg"
ON = f"{KEY}.enabled=true"
MANY = ["policy.dtensor_cfg.enabled=true", "cluster.num_processes=2"]


DATASETS = {"sft": "openai_format", "dpo": "PreferenceDataset", "grpo": "NemoGymDataset"}


def loaded(algorithm: str, *overrides: str) -> TrainConfig:
    data = [f"data.{name}.dataset_name={DATASETS[algorithm]}" for name in ("train", "validation")]
    paths = [f"data.{name}.data_path={name}.jsonl" for name in ("train", "validation")]
    return load_train_config(algorithm, [*data, *paths, *overrides])


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_adapters_need_one_key(algorithm: str) -> None:
    config = loaded(algorithm, ON)
    section = config.policy.dtensor_cfg.lora_cfg
    assert (section.enabled, section.dim, section.alpha, section.lora_A_init) == (True, 8, 32, "xavier")
    assert not config.policy.dtensor_cfg.enabled
    assert loaded(algorithm, ON, *MANY).policy.dtensor_cfg.lora_cfg.enabled


@pytest.mark.parametrize(
    ("algorithm", "overrides", "key", "said"),
    [
        ("sft", [f"{KEY}.match_all_linear=true", f"{KEY}.target_modules=[q_proj]"], "match_all_linear", "target_mod"),
        ("sft", [f"{KEY}.match_all_linear=false"], "target_modules", "no layer would get an adapter"),
        ("sft", [f"{KEY}.dropout=0.1"], "dropout_position", "is 'post', which is not implemented"),
        ("dpo", [f"{KEY}.dropout=0.1", f"{KEY}.dropout_position=pre"], "dropout", "must not be random"),
        ("grpo", [f"{KEY}.dropout=0.1", f"{KEY}.dropout_position=pre"], "dropout", "must not be random"),
        ("sft", [f"{KEY}.lora_A_init=pissa"], "lora_A_init", "xavier"),
        ("sft", [f"{KEY}.dim=0"], "dim", "greater than or equal to 1"),
        ("sft", [f"{KEY}.rank=8"], "rank", "unknown key 'rank'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(algorithm: str, overrides: list[str], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(algorithm, ON, *overrides)
    assert str(caught.value).startswith((f"{KEY}.{key} ", f"{KEY}.{key}: "))
    assert said in str(caught.value)


def test_sequence_parallel_takes_no_adapters() -> None:
    tensor = [*MANY, "policy.dtensor_cfg.tensor_parallel_size=2"]
    assert loaded("sft", ON, *tensor).policy.dtensor_cfg.lora_cfg.enabled
    with pytest.raises(ConfigError, match=r"^policy.dtensor_cfg.sequence_parallel .* not implemented with adapters"):
        loaded("sft", ON, *tensor, "policy.dtensor_cfg.sequence_parallel=true")


def test_libraries_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
    with pytest.raises(ConfigError, match=r"enabled .*needs the package peft.*pip install 'regimen-rl\[lora\]'"):
        loaded("sft", ON)
    there.add("peft")
    assert loaded("sft", ON).policy.dtensor_cfg.lora_cfg.enabled
    with pytest.raises(ConfigError, match=r"load_in_4bit .*bitsandbytes.*pip install 'regimen-rl\[qlora\]'"):
        loaded("sft", ON, f"{KEY}.load_in_4bit=true")
    there.add("bitsandbytes")
    assert loaded("sft", ON, f"{KEY}.load_in_4bit=true").policy.dtensor_cfg.lora_cfg.load_in_4bit
    with pytest.raises(ConfigError, match="4 bits do not lie in shards"):
        loaded("sft", ON, f"{KEY}.load_in_4bit=true", *MANY)


def test_keys_without_adapters_are_noted() -> None:
    notes = loaded("sft", f"{KEY}.dim=16", f"{KEY}.match_all_linear=true", f"{KEY}.use_triton=true").notes
    assert f"no effect here, as {KEY}.enabled is false: {KEY}.dim" in notes
    assert f"no effect here, as it changes speed or memory only: {KEY}.use_triton" in notes
    quiet = loaded("sft", f"{KEY}.enabled=false", f"{KEY}.match_all_linear=true").notes
    assert not any("lora" in note for note in quiet)
