"""Rules of `policy.dtensor_cfg.lora_cfg`: what is accepted, noted and refused by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_train_config
from regimen.errors import ConfigError

KEY = "policy.dtensor_cfg.lora_cfg"
ON = f"{KEY}.enabled=true"
MANY = ["policy.dtensor_cfg.enabled=true", "cluster.num_processes=2"]


def loaded(algorithm: str, tmp_path: Path, *overrides: str) -> Any:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    name = {"sft": "openai_format", "dpo": "PreferenceDataset"}.get(algorithm)
    data = [f"data.train.dataset_name={name}", f"data.train.data_path={rows}"] if name else []
    return load_train_config(algorithm, ["policy.model_name=m", *data, *overrides])


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_adapters_need_one_key(algorithm: str, tmp_path: Path) -> None:
    config = loaded(algorithm, tmp_path, ON)
    section = config.policy.dtensor_cfg.lora_cfg
    assert (section.enabled, section.dim, section.alpha, section.lora_A_init) == (True, 8, 32, "xavier")
    assert not config.policy.dtensor_cfg.enabled
    assert loaded(algorithm, tmp_path, ON, *MANY).policy.dtensor_cfg.lora_cfg.enabled


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
def test_what_has_no_meaning_is_refused_by_name(
    algorithm: str, overrides: list[str], key: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(algorithm, tmp_path, ON, *overrides)
    assert str(caught.value).startswith(f"{KEY}.{key} ")
    assert said in str(caught.value)


def test_sequence_parallel_takes_no_adapters(tmp_path: Path) -> None:
    tensor = [*MANY, "policy.dtensor_cfg.tensor_parallel_size=2"]
    assert loaded("sft", tmp_path, ON, *tensor).policy.dtensor_cfg.lora_cfg.enabled
    with pytest.raises(ConfigError, match=r"^policy.dtensor_cfg.sequence_parallel .* not implemented with adapters"):
        loaded("sft", tmp_path, ON, *tensor, "policy.dtensor_cfg.sequence_parallel=true")


def test_libraries_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
    with pytest.raises(ConfigError, match=r"enabled .*needs the package peft.*pip install 'regimen-rl\[lora\]'"):
        loaded("sft", tmp_path, ON)
    there.add("peft")
    assert loaded("sft", tmp_path, ON).policy.dtensor_cfg.lora_cfg.enabled
    with pytest.raises(ConfigError, match=r"load_in_4bit .*bitsandbytes.*pip install 'regimen-rl\[qlora\]'"):
        loaded("sft", tmp_path, ON, f"{KEY}.load_in_4bit=true")
    there.add("bitsandbytes")
    assert loaded("sft", tmp_path, ON, f"{KEY}.load_in_4bit=true").policy.dtensor_cfg.lora_cfg.load_in_4bit
    with pytest.raises(ConfigError, match="4 bits do not lie in shards"):
        loaded("sft", tmp_path, ON, f"{KEY}.load_in_4bit=true", *MANY)


def test_keys_without_adapters_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded("sft", tmp_path, f"{KEY}.dim=16", f"{KEY}.match_all_linear=true", f"{KEY}.use_triton=true")
    said = capsys.readouterr().err
    assert f"no effect here, as {KEY}.enabled is false: {KEY}.dim" in said
    assert f"no effect here, as it changes speed or memory only: {KEY}.use_triton" in said
    loaded("sft", tmp_path, f"{KEY}.enabled=false", f"{KEY}.match_all_linear=true")
    assert KEY not in capsys.readouterr().err
