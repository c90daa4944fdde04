from pathlib import Path

import pytest
import yaml

from regimen.convert.export.nemo_rl import largest_batch, nemo_rl_config, write_nemo_rl_config
from regimen.convert.options import ConvertOptions
from regimen.errors import ConvertError, UsageError
from regimen.pipelines.convert import convert

CHECKOUT = Path("/opt/nemo-rl")


@pytest.fixture
def config_of(calculator, choices, tmp_path):
    def make(to, name="rows", **changes):
        source = choices if changes.get("format") in ("binary", "response") else calculator
        gym = ["environment.yaml"] if to == "grpo" else []
        convert(source, to, tmp_path / name, ConvertOptions(**changes))
        return nemo_rl_config(tmp_path / name, "model", CHECKOUT, gym)

    return make


def test_an_sft_config_writes_what_has_no_default(config_of, tmp_path):
    config = config_of("sft")
    assert config["defaults"] == "/opt/nemo-rl/examples/configs/sft.yaml"
    assert config["policy"] == {
        "model_name": "model",
        "tokenizer": {"name": "model", "chat_template": "default"},
        "megatron_cfg": {"enabled": False},
        "train_global_batch_size": 2,
        "train_micro_batch_size": 1,
    }
    assert config["data"]["train"] == {
        "data_path": str(tmp_path / "rows" / "train.jsonl"),
        "dataset_name": "openai_format",
        "chat_key": "messages",
        "tool_key": "tools",
        "use_preserving_dataset": True,
        "split": "train",
    }
    assert config["data"]["validation"]["data_path"].endswith("rows/val.jsonl")
    assert [config["data"][key] for key in ("add_bos", "add_eos", "add_generation_prompt")] == [True, True, False]
    assert config["checkpointing"] == {"keep_top_k": 3, "save_optimizer": True, "checkpoint_must_save_by": None}
    assert config["sft"] == {"val_global_batch_size": 1, "val_micro_batch_size": 1}


def test_without_validation_rows_none_is_inherited(config_of):
    assert config_of("sft", validation_fraction=0)["data"]["validation"] is None


@pytest.mark.parametrize(
    "to, format_name, dataset",
    [
        ("dpo", "preference", "PreferenceDataset"),
        ("dpo", "binary", "BinaryPreferenceDataset"),
        ("grpo", "response", "ResponseDataset"),
    ],
)
def test_each_format_has_its_dataset(config_of, to, format_name, dataset):
    config = config_of(to, format=format_name)
    assert config["data"]["train"]["dataset_name"] == dataset
    assert config["data"]["train"]["split"] == "train"


def test_gym_rows_bring_their_environment(config_of, tmp_path):
    config = config_of("grpo")
    assert config["data"]["train"]["dataset_name"] == "NemoGymDataset"
    assert config["data"]["use_multiple_dataloader"] is False
    assert config["policy"]["draft"] == {"enabled": False}
    assert config["env"] == {"should_use_nemo_gym": True, "nemo_gym": {"config_paths": ["environment.yaml"]}}
    assert config["grpo"] == {"num_prompts_per_step": 2, "num_generations_per_prompt": 16}
    assert config["policy"]["train_global_batch_size"] == 32
    with pytest.raises(UsageError, match="config_paths"):
        nemo_rl_config(tmp_path / "rows", "model", CHECKOUT)


def test_names_that_nemo_rl_would_cut_are_refused(config_of):
    with pytest.raises(UsageError, match="has a dot"):
        config_of("sft", name="v1.2")


def test_the_file_is_written_into_the_folder_and_survives_no_second_time(config_of, tmp_path):
    config = config_of("dpo")
    path = write_nemo_rl_config(tmp_path / "rows", "model", CHECKOUT)
    assert yaml.safe_load(path.read_text()) == config
    with pytest.raises(UsageError, match="exists"):
        write_nemo_rl_config(tmp_path / "rows", "model", CHECKOUT)
    with pytest.raises(ConvertError, match=r"no manifest\.json"):
        write_nemo_rl_config(tmp_path, "model", CHECKOUT)


def test_a_batch_is_a_power_of_two_within_rows_and_limit():
    assert [largest_batch(rows, 32) for rows in (1, 2, 3, 31, 32, 1000)] == [1, 2, 2, 16, 32, 32]
