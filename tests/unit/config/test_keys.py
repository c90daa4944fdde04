from pathlib import Path
from typing import Any

import pytest
import yaml

from regimen.config import load_train_config
from regimen.config.keys import SchemaKeys, with_data_defaults
from regimen.config.known import KNOWN
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config"
DATASETS = {"sft": "openai_format", "dpo": "PreferenceDataset", "grpo": "NemoGymDataset"}
SCHEMA = with_data_defaults(SchemaKeys.of(TrainConfig))


def load(algorithm: str, *overrides: str) -> TrainConfig:
    data = [f"data.{name}.dataset_name={DATASETS[algorithm]}" for name in ("train", "validation")]
    paths = [f"data.{name}.data_path={name}.jsonl" for name in ("train", "validation")]
    return load_train_config(algorithm, [*data, *paths, *overrides])


def refusal(algorithm: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(algorithm, *overrides)
    return str(caught.value)


CORRECTION = (
    "use_importance_sampling_correction", "truncated_importance_sampling_type", "truncated_importance_sampling_ratio"
)  # fmt: skip


def declared_keys() -> list[str]:
    table: dict[str, str] = yaml.safe_load((FIXTURES / "nemo_rl_keys.yaml").read_text())
    return [f"{parent}.{name}" for parent, names in table.items() for name in names.split()]


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_nemo_rls_own_values_are_accepted(algorithm: str):
    tree: dict[str, Any] = yaml.safe_load((FIXTURES / f"nemo_rl_{algorithm}.yaml").read_text())
    for name in ("train", "validation"):
        entry = {"dataset_name": DATASETS[algorithm], "data_path": f"{name}.jsonl"}
        tree["data"][name] = {**(tree["data"].get(name) or {}), **entry}
    if algorithm == "grpo":
        tree["policy"]["generation"]["backend"] = "transformers"
    config, base = load_train_config(tree), load(algorithm)
    ours, theirs = base.model_dump(), config.model_dump()
    # Different on purpose: off in NeMo RL's file, and on where nothing is said.
    assert theirs["loss_fn"]["use_importance_sampling_correction"] is False or algorithm != "grpo"
    for tree_ in (ours, theirs):
        for key in CORRECTION:
            tree_["loss_fn"].pop(key)
    for section in ("sft", "dpo", "grpo", "loss_fn", "checkpointing"):
        assert ours[section] == theirs[section]
    for key in ours["policy"].keys() - {
        "tokenizer",
        "optimizer",
        "dtensor_cfg",
        "sequence_packing",
        "dynamic_batching",
        "generation",
    }:
        assert ours["policy"][key] == theirs["policy"][key], key
    assert ours["policy"]["generation"] == theirs["policy"]["generation"]
    assert base.policy.train_token_budget == config.policy.train_token_budget
    assert ours["policy"]["optimizer"]["kwargs"].items() <= theirs["policy"]["optimizer"]["kwargs"].items()


def test_every_declared_key_is_known():
    unknown = [
        key
        for key in declared_keys()
        if KNOWN.reason(key) is None
        and key not in KNOWN.off_values
        and key not in KNOWN.aliases
        and key not in SCHEMA.values
        and key not in SCHEMA.sections
        and not key.startswith(("policy.optimizer.kwargs.", "policy.scheduler.", "env.", "data.train.", "data.valid"))
    ]
    assert unknown == []


def test_every_declared_data_key_is_known():
    for key in declared_keys():
        if key.startswith(("data.train.", "data.validation.", "data.default.")):
            assert KNOWN.reason(key) or key in KNOWN.off_values or key in SCHEMA.values, key


def test_table_and_schema_do_not_overlap():
    assert {*KNOWN.off_values} & {*KNOWN.no_effect} == set()
    assert {*KNOWN.paths, *KNOWN.aliases, *KNOWN.renamed} & SCHEMA.values == set()
    targets = {*KNOWN.aliases.values(), *KNOWN.renamed.values()}
    assert [key for key in targets if key not in SCHEMA.values and key not in KNOWN.paths] == []


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("policy.model_nam=x", "policy.model_name"),
        ("polcy.model_name=x", "policy"),
        ("sft.max_epochs=3", "sft.max_num_epochs"),
        ("policy.max_num_steps=3", "sft.max_num_steps"),
        ("policy.lr=1e-5", "policy.optimizer.kwargs.lr"),
        ("learning_rate=1e-5", "policy.optimizer.kwargs.lr"),
        ("sft.epochs=1", "sft.max_num_epochs"),
        ("policy.megatron_cfg.optimizer.lrr=1", "policy.megatron_cfg.optimizer.lr"),
        ("data.train.dat_path=x", "data.train.data_path"),
        ("data.trian.data_path=x", "data.train"),
        ("checkpointing.keep_top=1", "checkpointing.keep_top_k"),
        ("policy.dtensor_cfg.tensor_parallel=2", "policy.dtensor_cfg.tensor_parallel_size"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_key(override: str, fix: str):
    message = refusal("sft", override)
    assert f"unknown key {override.split('=')[0].split('.')[-1]!r}" in message or "unknown key" in message
    assert message.endswith(f"did you mean {fix}?"), message


def test_a_key_near_nothing_lists_the_section():
    message = refusal("sft", "sft.zzzzzz=1")
    assert message.startswith(
        "sft.zzzzzz (override 'sft.zzzzzz=1'): unknown key 'zzzzzz'; expected one of max_num_epoch"
    )


def test_a_new_section_in_an_override_is_placed_there():
    message = refusal("sft", "policy.optimiser.name=x")
    assert message.startswith("policy.optimiser (override 'policy.optimiser.name=x'): unknown key 'optimiser'")


def test_unknown_key_in_a_file_names_the_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("defaults: sft\n\nsft:\n  max_num_epoch: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_train_config(file)
    expected = f"sft.max_num_epoch ({file}:4): unknown key 'max_num_epoch'; to fix: did you mean sft.max_num_epochs?"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("algorithm", "override"),
    [
        ("sft", "policy.megatron_cfg.enabled=true"),
        ("sft", "policy.hf_config_overrides={attention_dropout: 0.1}"),
        ("sft", "data.train.split_validation_size=0.05"),
        ("sft", "data.train.subset=main"),
        ("sft", "data.train.processor=my.processor"),
        ("sft", "checkpointing.checkpoint_must_save_by=00:03:00:00"),
        ("sft", "checkpointing.model_save_format=torch_save"),
        ("sft", "logger.swanlab_enabled=true"),
        ("grpo", "grpo.async_grpo.in_flight_weight_updates=true"),
        ("grpo", "grpo.async_grpo.recompute_kv_cache_after_weight_updates=true"),
        ("grpo", "grpo.async_grpo.max_generation_failures=3"),
        ("grpo", "grpo.seq_logprob_error_threshold=1.5"),
        ("grpo", "loss_fn.positive_example_nll_weight=0.1"),
        ("grpo", "policy.generation.stop_strings=[stop]"),
        ("grpo", "policy.generation.model_name=other"),
        ("grpo", "reward_penalties.penalize_empty_final_answer=true"),
        ("grpo", "on_policy_distillation.enabled=true"),
        ("grpo", "policy.draft.enabled=true"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(algorithm: str, override: str):
    message = refusal(algorithm, override)
    assert message.startswith(override.split("=")[0])
    assert "is not implemented in this build; expected" in message


def test_one_is_not_true():
    assert "1 is not implemented" in refusal("sft", "policy.megatron_cfg.enabled=1")
    assert "0 is not implemented" in refusal("sft", "policy.megatron_cfg.enabled=0")


def test_values_that_leave_an_option_off_are_accepted():
    values = ["policy.generation.model_name=${policy.model_name}", "policy.generation.stop_strings=[]"]
    assert load("grpo", *values, "loss_fn.use_importance_sampling_correction=false").notes == []


def test_keys_without_effect_give_one_note_for_each_reason():
    config = load(
        "grpo",
        "policy.generation.vllm_cfg.gpu_memory_utilization=0.6",
        "policy.generation.colocated.enabled=true",
        "policy.dtensor_cfg.tensor_parallel_size=2",
        "policy.generation.vllm_kwargs={a: {b: 1}}",
        "data_plane=null",
        "loss_fn.use_importance_sampling_correction=false",
    )
    assert len(config.notes) == 2
    assert "policy.generation.vllm_cfg.gpu_memory_utilization, policy.generation" in " ".join(config.notes)
    assert "policy.dtensor_cfg.tensor_parallel_size" in " ".join(config.notes)


def test_activation_checkpointing_by_its_other_names():
    assert load("sft", "policy.dtensor_cfg.activation_checkpointing=true").policy.activation_checkpointing is True
    assert load("sft", "policy.activation_checkpointing=true").notes == []


def test_the_same_key_by_two_names_is_refused():
    source = {"defaults": "sft", "data": {"train_data_path": "a", "train": {"data_path": "b"}}}
    with pytest.raises(ConfigError, match=r"data.train_data_path and data.train.data_path are the same key"):
        load_train_config(source)


def test_old_names_work_as_overrides_and_over_new_ones():
    config = load("sft", "data.train_data_path=old.jsonl")
    assert config.data.train is not None
    assert config.data.train.data_path == "old.jsonl"
    assert config.notes == ["old key names were translated: data.train_data_path -> data.train.data_path"]


def test_null_sections_are_absent_sections():
    assert load("sft", "policy.sequence_packing=null").policy.sequence_packing.enabled is False
