from pathlib import Path

import pytest
import yaml

from regimen.config import (
    assignment,
    dump,
    load_collect_config,
    load_evaluate_config,
    load_iterate_config,
    load_train_config,
)
from regimen.config.schema import TrainConfig
from regimen.config.source import shipped_names
from regimen.errors import ConfigError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config"
SFT = {
    "defaults": "sft",
    "data": {
        "train": {"dataset_name": "openai_format", "data_path": "train.jsonl"},
        "validation": {"dataset_name": "openai_format", "data_path": "validation.jsonl"},
    },
}
PLAY = {"environment": {"name": "calculator"}, "output": "out"}


def refusal(source: object, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_train_config(source, overrides)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_guide_sft_means_what_it_says():
    config = load_train_config(FIXTURES / "guide_sft.yaml")
    assert config.algorithm == "sft"
    train, validation = config.data.train, config.data.validation
    assert train is not None
    assert validation is not None
    assert (train.dataset_name, train.data_path) == ("openai_format", "sft_data/train.jsonl")
    assert (train.chat_key, train.tool_key) == ("messages", "tools")
    assert validation.data_path == "sft_data/val.jsonl"
    assert config.policy.model_name == config.policy.tokenizer_name == "Qwen/Qwen2.5-1.5B"
    assert config.policy.tokenizer.template is None
    assert (config.global_batch_size, config.policy.train_micro_batch_size) == (128, 4)
    assert config.policy.max_total_sequence_length == config.data.max_input_seq_length == 1024
    assert config.policy.optimizer.kwargs == {"lr": 5e-6, "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-5}
    assert config.sft is not None
    assert (config.sft.max_num_epochs, config.sft.val_period, config.sft.val_at_start) == (3, 100, True)
    assert config.sft.max_num_steps == 60
    assert config.checkpoint_metric == ("val", "loss")
    assert config.checkpointing.checkpoint_dir == "results/my_sft"
    assert config.logger.wandb.project == "rollouts-sft"
    assert "data.train_data_path -> data.train.data_path" in config.notes[0]
    assert config.logger.wandb_enabled


def test_guide_dpo_means_what_it_says():
    config = load_train_config(FIXTURES / "guide_dpo.yaml")
    assert config.algorithm == "dpo"
    assert config.dpo is not None
    assert config.dpo.reference_policy_kl_penalty == 0.05
    assert (config.dpo.preference_loss_weight, config.dpo.sft_loss_weight) == (1.0, 0.0)
    assert (config.dpo.val_period, config.dpo.max_num_steps, config.seed) == (25, 150, 42)
    train = config.data.train
    assert train is not None
    assert train.dataset_name == "BinaryPreferenceDataset"
    assert (train.prompt_key, train.chosen_key, train.rejected_key) == ("prompt", "chosen", "rejected")
    assert config.checkpoint_metric == ("val", "loss")
    assert config.policy.scheduler is not None
    assert config.policy.scheduler[-1] == {"milestones": [20]}
    assert not any("wandb" in note for note in config.notes)


def test_guide_grpo_means_what_it_says():
    config = load_train_config(FIXTURES / "guide_grpo.yaml")
    assert config.algorithm == "grpo"
    assert config.grpo is not None
    assert (config.grpo.num_prompts_per_step, config.grpo.num_generations_per_prompt) == (32, 16)
    assert (config.episodes_per_step, config.global_batch_size, config.updates_per_step) == (512, 512, 1)
    assert config.grpo.adv_estimator.normalize_rewards is True
    assert config.grpo.adv_estimator.use_leave_one_out_baseline is True
    assert config.loss_fn.reference_policy_kl_penalty == 0.01
    assert (config.loss_fn.ratio_clip_min, config.loss_fn.ratio_clip_max) == (0.2, 0.2)
    loss = config.loss_fn
    assert (loss.use_importance_sampling_correction, loss.truncated_importance_sampling_type) == (True, "tis")
    assert (loss.truncated_importance_sampling_ratio, loss.truncated_importance_sampling_ratio_min) == (2.0, None)
    assert config.policy.optimizer.kwargs["lr"] == 5e-6
    assert config.policy.generation is not None
    assert (config.policy.generation.backend, config.policy.generation.max_new_tokens) == ("transformers", 1024)
    assert config.policy.train_token_budget == 4 * 1024
    train = config.data.train
    assert train is not None
    assert (train.dataset_name, train.input_key, train.env_name) == ("ResponseDataset", "input", "math")
    assert config.env == {"math": {"num_workers": 8, "math_verify_impl": "hf_math_verify"}}
    assert config.checkpoint_metric == ("val", "reward")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configurations_load(name: str):
    loaders = {"collect": load_collect_config, "evaluate": load_evaluate_config, "iterate": load_iterate_config}
    last = name.split("/")[-1]
    if name.startswith("quickstart/"):
        config = loaders.get(last, load_train_config)(name)
        plays = isinstance(config, TrainConfig) and config.grpo is not None
        assert [note[:30] for note in config.notes] == (["importance-sampling correction"] if plays else [])
        return
    dataset = {"sft": "openai_format", "dpo": "PreferenceDataset"}.get(last, "NemoGymDataset")
    paths = [f"data.{entry}.data_path={entry}.jsonl" for entry in ("train", "validation")]
    config = load_train_config(name, [f"data.default.dataset_name={dataset}", *paths])
    assert config.algorithm == last.split("_")[0]


def test_grpo_math_8b_keeps_its_batches():
    paths = ["data.default.dataset_name=ResponseDataset", "data.train.data_path=a", "data.validation.data_path=b"]
    config = load_train_config("grpo_math_8B", paths)
    assert (config.episodes_per_step, config.global_batch_size, config.updates_per_step) == (2048, 512, 4)
    assert config.policy.optimizer.kwargs == {"lr": 3e-7, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.parametrize("name", ["guide_sft.yaml", "guide_dpo.yaml", "guide_grpo.yaml"])
def test_dump_loads_again_with_the_same_values(name: str, tmp_path: Path):
    config = load_train_config(FIXTURES / name)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load_train_config(tmp_path / "config.yaml").model_dump() == config.model_dump()


def test_dump_keeps_text_that_looks_like_an_interpolation():
    config = load_train_config(SFT, [assignment("policy.tokenizer.chat_template", "a \\${b} c")])
    assert config.policy.tokenizer.template == "a ${b} c"
    assert load_train_config(yaml.safe_load(dump(config))).policy.tokenizer.template == "a ${b} c"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("policy.train_global_batch_size=many", "policy.train_global_batch_size (override"),
        ("policy.train_global_batch_size=many", "is 'many'; expected a whole number"),
        ("policy.train_global_batch_size=1.5", "is 1.5; expected a whole number"),
        ("policy.train_global_batch_size=true", "is true; expected a whole number"),
        ("policy.train_global_batch_size=0", "is 0; expected greater than or equal to 1"),
        ("sft.val_at_start=1", "is 1; expected true or false"),
        ("policy.model_name=7", "is 7; expected text"),
        ("policy.model_name=null", "is null; expected text"),
        ("policy.precision=float16", "is 'float16'; expected 'bfloat16' or 'float32'"),
        ("policy=fast", "expected a section with keys below it"),
        ("policy.optimizer.kwargs=3", "expected a section with keys below it"),
        ("policy.tokenizer.chat_template=null", "write 'default'"),
        ("data.train.dataset_name=squad", "expected one of ResponseDataset, openai_format"),
    ],
)
def test_wrong_types_name_key_place_and_expectation(override: str, expected: str):
    assert expected in refusal(SFT, override)


def test_wrong_type_names_file_and_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("defaults: sft\npolicy:\n  train_micro_batch_size: four\n")
    assert f"policy.train_micro_batch_size ({file}:3): is 'four'; expected a number" in refusal(file)


def test_missing_key_says_which():
    message = refusal({**SFT, "defaults": None, "sft": {}, "policy": {"precision": "float32"}})
    assert message == "policy.model_name: is missing; to fix: set policy.model_name"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, "found no section of an algorithm; expected exactly one"),
        ({"sft": {}, "dpo": {}}, "found the sections sft and dpo"),
    ],
)
def test_exactly_one_algorithm(sections: dict[str, object], expected: str):
    assert expected in refusal({"policy": {"model_name": "m"}, **sections})


def test_data_default_is_merged_under_each_entry():
    data = {
        "default": {"dataset_name": "ResponseDataset", "input_key": "q", "output_key": "a"},
        "train": {"data_path": "t", "output_key": "b"},
        "validation": {"data_path": "v"},
    }
    config = load_train_config({"defaults": "sft", "data": data})
    train, validation = config.data.train, config.data.validation
    assert train is not None
    assert validation is not None
    assert (train.input_key, train.output_key) == ("q", "b")
    assert (validation.input_key, validation.output_key) == ("q", "a")


def test_a_list_of_one_data_set_is_that_data_set():
    entry = {"dataset_name": "openai_format", "data_path": "t"}
    config = load_train_config({**SFT, "data": {**SFT["data"], "train": [entry]}})
    assert config.data.train is not None
    assert config.data.train.data_path == "t"
    assert "mixing several is not implemented" in refusal({**SFT, "data": {"train": [entry, entry]}})


def test_grpo_environment_options():
    source = {
        "defaults": "grpo",
        "grpo": {"val_period": 0, "normalize_rewards": False, "num_prompts_per_step": 4},
        "data": {"train": {"dataset_name": "Environment", "env_name": "calculator", "split": "train"}},
        "env": {"calculator": {"seed": 3}},
    }
    config = load_train_config(source)
    assert config.env["calculator"] == {"seed": 3}
    assert config.policy.train_global_batch_size == 4 * 16
    assert config.grpo is not None
    assert config.grpo.adv_estimator.normalize_rewards is False
    assert config.grpo.adv_estimator.use_leave_one_out_baseline is True


def test_evaluate_takes_one_model_or_several():
    assert load_evaluate_config({**PLAY, "model": "a"}).models == ["a"]
    assert load_evaluate_config({**PLAY, "models": ["a", "b"], "against": "a"}).split == "test"
    with pytest.raises(ConfigError, match=r"pass_at: asks for pass@4 of 1 repeats"):
        load_evaluate_config({**PLAY, "model": "a", "pass_at": [1, 4]})


def test_collect_refuses_unknown_keys_and_bad_lengths():
    assert load_collect_config({**PLAY, "model": "m"}).generation.max_new_tokens == 256
    with pytest.raises(ConfigError, match=r"unknown key 'num_repeat'; to fix: did you mean num_repeats\?"):
        load_collect_config({**PLAY, "model": "m", "num_repeat": 2})
    with pytest.raises(ConfigError, match=r"generation.max_new_tokens: is 2048; expected less than"):
        load_collect_config({**PLAY, "model": "m"}, ["generation.max_new_tokens=2048"])
    with pytest.raises(ConfigError, match="exclude each other"):
        load_collect_config({**PLAY, "model": "m"}, ["resume=true", "overwrite=true"])


def test_iterate_checks_its_training_configuration_early():
    config = load_iterate_config("quickstart/iterate")
    assert (config.convert["to"], config.train.config, config.evaluate.final_split) == ("sft", "quickstart/sft", "test")
    with pytest.raises(ConfigError, match=r"unknown key 'max_epochs'; to fix: did you mean sft.max_num_epochs\?"):
        load_iterate_config("quickstart/iterate", ["train.overrides=[sft.max_epochs=3]"])
    with pytest.raises(ConfigError, match=r"convert.to: is 'dpo', but train.config trains with sft"):
        load_iterate_config("quickstart/iterate", ["convert.to=dpo"])
    with pytest.raises(ConfigError, match="another split"):
        load_iterate_config("quickstart/iterate", ["evaluate.final_split=validation"])


def test_assignment_survives_any_text():
    value = 'C: "x" #1, {y}'
    assert load_train_config(SFT, [assignment("policy.model_name", value)]).policy.model_name == value


def test_env_of_a_configuration_that_plays_is_a_mixture() -> None:
    entries = {"math": {"weight": 2}, "calculator": {}}
    config = load_collect_config({"model": "m", "output": "o.jsonl", "env": entries})
    assert (config.environment.name, config.environment.options) == ("mixture", {"environments": entries})
    with pytest.raises(ConfigError, match="name the environments under env"):
        load_collect_config({"model": "m", "output": "o", "env": entries, "environment": {"name": "math"}})
