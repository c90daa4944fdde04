import json

import pytest
import yaml

from regimen.cli.main import main
from regimen.convert.export.nemo_rl_batches import fitting_batch, fitting_micro_batch
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.pipelines.export import export


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def exported(tmp_path):
    """Exports rows of a data set; gives the configuration and what was changed."""

    def make(algorithm, dataset, rows, *overrides, **changes):
        entry = {"dataset_name": dataset, "data_path": rows_file(tmp_path / "rows.jsonl", rows)}
        off = {"val_period": 0} if algorithm == "grpo" else {"val_period": 0, "val_at_start": False}
        tree = {"defaults": algorithm, "data": {"train": entry}, algorithm: off, **changes}
        manifest = export("nemo-rl", tree, tmp_path / "out", overrides)
        return yaml.safe_load((tmp_path / "out" / "config.yaml").read_text()), manifest.changes

    return make


PAIRS = [{"input": f"q{index}", "output": f"a{index}"} for index in range(40)]


def test_a_batch_is_filled_by_the_rows_and_shared_by_the_ranks():
    # (rows, asked, ranks): asked where it fits, else ranks times the largest power of two below.
    cases = {(100, 32, 1): 32, (20, 32, 1): 16, (100, 32, 8): 32, (100, 36, 8): 32, (20, 32, 8): 16, (7, 32, 8): None}
    assert {case: fitting_batch(*case) for case in cases} == cases


def test_a_micro_batch_divides_the_share_of_a_rank():
    assert [fitting_micro_batch(12, asked, 2) for asked in (1, 2, 4, 5, 6, 9)] == [1, 2, 3, 3, 6, 6]


def test_rows_that_fill_no_batch_are_told(exported):
    config, changes = exported("sft", "ResponseDataset", PAIRS, "policy.train_global_batch_size=64")
    assert config["policy"]["train_global_batch_size"] == 32
    assert "policy.train_global_batch_size: 64 -> 32, as there are 40 rows" in changes
    assert any("40 rows in batches of 32; 8 rows fill no batch" in change for change in changes)
    assert config["data"]["validation"] is None


def test_tokens_of_a_micro_batch_are_translated(exported):
    config, changes = exported("sft", "ResponseDataset", PAIRS, "policy.train_micro_batch_tokens=2048")
    assert config["policy"]["dynamic_batching"] == {
        "enabled": True,
        "train_mb_tokens": 2048,
        "sequence_length_round": 64,
    }
    assert "policy.train_micro_batch_tokens: 2048 -> policy.dynamic_batching.train_mb_tokens: 2048" in changes


def test_what_only_nemo_rl_runs_is_passed_on(exported):
    generation = {"backend": "vllm", "vllm_cfg": {"gpu_memory_utilization": 0.4}}
    config, changes = exported(
        "grpo",
        "ResponseDataset",
        PAIRS,
        "policy.dtensor_cfg.lora_cfg.enabled=true",
        policy={"generation": generation},
    )
    assert config["policy"]["dtensor_cfg"]["lora_cfg"]["enabled"] is True
    assert config["policy"]["generation"]["vllm_cfg"]["gpu_memory_utilization"] == 0.4
    assert config["policy"]["generation"]["backend"] == "vllm"
    assert not any("backend" in change for change in changes)


def test_lengths_follow_each_other_unless_given(exported):
    config, _ = exported("sft", "ResponseDataset", PAIRS, "policy.max_total_sequence_length=512")
    assert config["data"]["max_input_seq_length"] == "${policy.max_total_sequence_length}"
    assert config["policy"]["max_total_sequence_length"] == 512


def test_a_given_limit_of_prompts_is_kept(exported):
    config, _ = exported("sft", "ResponseDataset", PAIRS, "data.max_input_seq_length=256")
    assert config["data"]["max_input_seq_length"] == 256


def test_the_shipped_template_becomes_a_file(exported, tmp_path):
    config, _ = exported("sft", "ResponseDataset", PAIRS, "policy.tokenizer.chat_template=tools")
    assert config["policy"]["tokenizer"]["chat_template"] == str(tmp_path / "out" / "chat_template.jinja")
    assert "<tool_call>" in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_dpo_has_no_dynamic_batches(exported):
    rows = [{"prompt": f"q{index}", "chosen": "a", "rejected": "b"} for index in range(8)]
    config, changes = exported("dpo", "BinaryPreferenceDataset", rows, "policy.dynamic_batching.enabled=true")
    assert config["policy"]["dynamic_batching"]["enabled"] is False
    assert any("as NeMo RL refuses it for DPO" in change for change in changes)


@pytest.mark.parametrize(
    ("algorithm", "dataset", "row", "words"),
    [
        ("sft", "openai_format", {"messages": [{"role": "user", "content": "q"}]}, "last message is of the user"),
        ("sft", "ResponseDataset", {"input": "q"}, "no field 'output'"),
        ("grpo", "ResponseDataset", {"input": "q", "output": "2024-05-01"}, "dates only"),
        ("grpo", "ResponseDataset", {"input": "q", "output": True}, "a text or a number"),
        (
            "grpo",
            "ResponseDataset",
            {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "output": "1"},
            "begins with a system message",
        ),
        (
            "dpo",
            "PreferenceDataset",
            {"context": [{"role": "user", "content": "q"}], "completions": []},
            "two completions",
        ),
    ],
)
def test_rows_that_would_train_on_the_wrong_thing_are_refused(exported, algorithm, dataset, row, words, tmp_path):
    with pytest.raises(ConvertError, match=words):
        exported(algorithm, dataset, [row])
    assert not (tmp_path / "out").exists()


def test_gym_rows_need_agents_and_the_gyms_files(exported):
    row = {"responses_create_params": {"input": "q"}}
    with pytest.raises(ConvertError, match="agent_ref"):
        exported("grpo", "NemoGymDataset", [row])
    with pytest.raises(ConfigError, match="config_paths"):
        exported("grpo", "NemoGymDataset", [{**row, "agent_ref": {"name": "agent"}}] * 4)


def test_an_environment_of_regimen_is_refused(tmp_path):
    entry = {"dataset_name": "Environment", "env_name": "calculator"}
    tree = {"defaults": "grpo", "data": {"train": entry}, "grpo": {"val_period": 0}}
    with pytest.raises(ConfigError, match="cannot play an environment"):
        export("nemo-rl", tree, tmp_path / "out")


def test_unknown_keys_are_refused_with_the_nearest(exported):
    with pytest.raises(ConfigError, match="model_name"):
        exported("sft", "ResponseDataset", PAIRS, "policy.modle_name=x")


def test_only_an_export_is_replaced(exported, tmp_path):
    entry = {"dataset_name": "ResponseDataset", "data_path": rows_file(tmp_path / "rows.jsonl", PAIRS)}
    tree = {"defaults": "sft", "data": {"train": entry}, "sft": {"val_period": 0, "val_at_start": False}}
    export("nemo-rl", tree, tmp_path / "out")
    with pytest.raises(UsageError, match="--overwrite"):
        export("nemo-rl", tree, tmp_path / "out")
    assert export("trl", tree, tmp_path / "out", overwrite=True).export == "trl"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        export("trl", tree, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    rows = rows_file(tmp_path / "rows.jsonl", PAIRS)
    words = ["export", "nemo-rl", "sft", "--out", str(tmp_path / "out"), "--nemo-rl", str(tmp_path)]
    words += ["data.train.dataset_name=ResponseDataset", f"data.train.data_path={rows}"]
    assert main([*words, "sft.val_period=0", "sft.val_at_start=false"]) == 2
    assert "examples/configs/sft.yaml" in capsys.readouterr().err


def test_options_of_regimen_alone_are_left_out_and_named_where_they_change_something(exported):
    rows = [{"prompt": f"q{index}", "chosen": "yes", "rejected": "no"} for index in range(40)]
    config, changes = exported("dpo", "BinaryPreferenceDataset", rows, "dpo.loss_type=ipo")
    assert not {"loss_type", "label_smoothing", "cache_reference_logprobs"} & config["dpo"].keys()
    told = [change for change in changes if change.endswith("left out, NeMo RL has no such option")]
    assert told == ["dpo.loss_type: left out, NeMo RL has no such option"]


def test_importance_sampling_correction_is_said_as_it_is_trained(exported):
    config, changes = exported("grpo", "ResponseDataset", PAIRS, "loss_fn.length_normalizer=512")
    loss = config["loss_fn"]
    assert (loss["use_importance_sampling_correction"], loss["truncated_importance_sampling_type"]) == (True, "tis")
    assert loss["truncated_importance_sampling_ratio"] == 2.0
    assert "length_normalizer" not in loss
    assert "max_steps_without_variance" not in config["grpo"]
    assert "loss_fn.length_normalizer: left out, NeMo RL has no such option" in changes


@pytest.mark.parametrize("key", ["environment=math", "reward_function=mine.py:judge"])
def test_another_verifier_than_nemo_rls_is_refused(exported, key):
    with pytest.raises(ConfigError, match=rf"env.math.{key.split('=')[0]}: is Regimen's own"):
        exported("grpo", "ResponseDataset", PAIRS, f"env.math.{key}")


# Mixtures


@pytest.fixture
def mixed(tmp_path):
    """Exports data sets, each with its rows and the keys of its entry; gives the configuration, rows and changes."""

    def make(*sets, target="nemo-rl", validation=None, **changes):
        def entry(name, rows, keys):
            return {"data_path": rows_file(tmp_path / f"{name}.jsonl", rows), **keys}

        train = [entry(f"set_{number}", *given) for number, given in enumerate(sets)]
        tree = {"defaults": "grpo", "data": {"train": train}, "grpo": {"val_period": 0}, **changes}
        if validation is not None:
            tree["data"]["validation"] = entry("validation", *validation)
        manifest = export(target, tree, tmp_path / "out")
        lines = (tmp_path / "out" / "data" / "gym_train" / "rows.jsonl").read_text().splitlines()
        config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
        return config, [json.loads(line) for line in lines], manifest.changes

    return make


def tasks(agent, count):
    params = {"input": f"for {agent}"}
    rows = [{"responses_create_params": params, "agent_ref": {"name": agent}, "number": n} for n in range(count)]
    return [{**row, "_ng_task_index": row["number"]} for row in rows]


GYM = {"dataset_name": "NemoGymDataset"}
QUESTIONS = {"dataset_name": "ResponseDataset"}
CONFIG_PATHS = ["model.yaml", "sums.yaml", "words.yaml"]


def test_gym_tasks_of_several_environments_become_one_file_in_turn_by_weight(mixed):
    sets = [(tasks("sums", 6), {**GYM, "weight": 3}), (tasks("words", 9), GYM)]
    config, rows, changes = mixed(*sets, env={"nemo_gym": {"config_paths": CONFIG_PATHS}})
    # Of the first four tasks three are sums, and so on; sums end after six.
    agents = ["sums", "sums", "words", "sums", "sums", "sums", "words", "sums"]
    assert [row["agent_ref"]["name"] for row in rows] == agents
    assert [row["number"] for row in rows] == [0, 1, 0, 2, 3, 4, 1, 5]
    assert [row["_ng_task_index"] for row in rows] == list(range(8))
    entry = config["data"]["train"]
    assert (entry["dataset_name"], entry["env_name"]) == ("NemoGymDataset", "nemo_gym")
    assert config["data"]["use_multiple_dataloader"] is False
    assert config["env"]["nemo_gym"]["config_paths"] == CONFIG_PATHS
    assert config["grpo"]["num_prompts_per_step"] == 8
    (told,) = [change for change in changes if "become one file" in change]
    assert "2 data sets become one file, in turn by weight: 6 of 6 rows of " in told
    assert ", 2 of 9 rows of " in told


def test_questions_of_one_environment_become_one_file(mixed):
    """The keys of each data set are its own; what they make is the same."""
    other = [{"problem": f"p{n}", "solution": n} for n in range(3)]
    sets = [(PAIRS[:3], QUESTIONS), (other, {**QUESTIONS, "input_key": "problem", "output_key": "solution"})]
    config, rows, changes = mixed(*sets)
    assert rows == [
        {"input": "q0", "output": "a0"},
        {"input": "p0", "output": "0"},
        {"input": "q1", "output": "a1"},
        {"input": "p1", "output": "1"},
        {"input": "q2", "output": "a2"},
        {"input": "p2", "output": "2"},
    ]
    assert config["data"]["train"]["env_name"] == "math"
    assert list(config["env"]) == ["math"]
    assert "data.train.1: 3 numbers are written as text" in changes


@pytest.mark.parametrize(
    ("sets", "validation", "words"),
    [
        ([(PAIRS, QUESTIONS), (tasks("sums", 4), GYM)], None, "plays every row or none"),
        ([(tasks("sums", 4), GYM), (tasks("words", 4), GYM)], (PAIRS, QUESTIONS), "plays every row or none"),
        (
            [(PAIRS, QUESTIONS), (PAIRS, {**QUESTIONS, "env_name": "code"})],
            None,
            r"environments code and math.*NeMo RL 0.6.*KeyError.*expected one env_name; to fix: export the data of",
        ),
        (
            [(PAIRS, QUESTIONS), (PAIRS, {**QUESTIONS, "prompt_file": "cot.txt"})],
            None,
            r"differ in prompt_file \(None, cot.txt\), and they become one file",
        ),
        (
            [(tasks("sums", 4), GYM), ([], {"dataset_name": "Environment", "env_name": "math", "data_path": None})],
            None,
            r"data.train.1.dataset_name: NeMo RL cannot play an environment",
        ),
        ([(tasks("sums", 4), GYM), (tasks("words", 4), GYM)], None, "config_paths"),
    ],
)
def test_mixtures_that_nemo_rl_cannot_train_on_are_refused(mixed, tmp_path, sets, validation, words):
    with pytest.raises(ConfigError, match=words):
        mixed(*sets, validation=validation, env={"code": {}} if "code" in words else {})
    assert not (tmp_path / "out").exists()


def test_a_row_without_an_agent_is_named_in_its_own_file(mixed):
    sets = [(tasks("sums", 4), GYM), ([{"responses_create_params": {"input": "q"}}], GYM)]
    with pytest.raises(ConvertError, match=r"set_1.jsonl:1: has no agent_ref"):
        mixed(*sets, env={"nemo_gym": {"config_paths": CONFIG_PATHS}})


def test_a_missing_file_of_a_mixture_is_named(mixed):
    with pytest.raises(ConfigError, match=r"data.train.1.data_path: gone.jsonl: there is no such file"):
        mixed((PAIRS, QUESTIONS), (PAIRS, {**QUESTIONS, "data_path": "gone.jsonl"}))


def test_trl_takes_no_mixture(mixed):
    with pytest.raises(ConfigError, match="mixes 2 data sets, and an export to TRL is of one"):
        mixed((PAIRS, QUESTIONS), (PAIRS, QUESTIONS), target="trl")
