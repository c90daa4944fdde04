import pytest

from regimen.config import load_train_config
from regimen.config.nemo_gym import nemo_gym_of
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError

ENVIRONMENT = ["data.train.dataset_name=Environment", "data.train.env_name=calculator"]


def grpo(*overrides: str) -> TrainConfig:
    return load_train_config("grpo", [*ENVIRONMENT, "grpo.val_period=0", *overrides])


def sft(*overrides: str) -> TrainConfig:
    data = ["data.train.dataset_name=openai_format", "data.train.data_path=t"]
    return load_train_config("sft", [*data, "sft.val_period=0", "sft.val_at_start=false", *overrides])


GYM = ["data.train.dataset_name=NemoGymDataset", "data.train.data_path=t", "grpo.val_period=0"]
RUNNING = [*GYM, "env.nemo_gym.head_server_url=http://127.0.0.1:11000"]


def test_a_gym_in_the_loop_must_run():
    says = (
        r"env\.nemo_gym.*starts none.*gym env start --config responses_api_models/.*for_training\.yaml "
        r"--config a\.yaml .*--model-url http://127\.0\.0\.1:8001/v1.*head_server_url=http"
    )
    with pytest.raises(ConfigError, match=says):
        load_train_config("grpo", [*GYM, "env.nemo_gym={config_paths: [a.yaml]}"])
    config = load_train_config("grpo", [*RUNNING, "env.nemo_gym.config_paths=[a.yaml]", "env.should_use_nemo_gym=true"])
    found = nemo_gym_of(config)
    assert found is not None
    assert (found.head_server_url, found.model_server_port) == ("http://127.0.0.1:11000", 8001)
    assert any("its own configuration: env.nemo_gym.config_paths" in note for note in config.notes)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([*RUNNING, "env.nemo_gym.head_server_ulr=x"], "head_server_ulr.*did you mean head_server_url"),
        ([*RUNNING, "env.nemo_gym.model_server_port=eighty"], "model_server_port.*integer"),
        ([*ENVIRONMENT, "grpo.val_period=0", "env.nemo_gym.head_server_url=x"], "no data names it"),
        ([*GYM, "data.train.env_name=nemo_gym"], r"there is no env\.nemo_gym"),
        ([*GYM, "env.should_use_nemo_gym=true"], r"there is no env\.nemo_gym"),
        (
            [*RUNNING, "data.validation.dataset_name=Environment", "data.validation.env_name=calculator"],
            "no data for a gym, but the other is",
        ),
    ],
)
def test_what_does_not_go_with_a_gym(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        load_train_config("grpo", overrides)


def test_a_gym_that_is_switched_off_is_not_used():
    config = load_train_config("grpo", [*RUNNING, "env.should_use_nemo_gym=false", "data.train.env_name=calculator"])
    assert nemo_gym_of(config) is None
    assert any("should_use_nemo_gym is false" in note for note in config.notes)


@pytest.mark.parametrize(
    ("override", "where", "fix"),
    [
        ("policy.train_global_batch_size=100", "policy.train_global_batch_size", "train_global_batch_size=512"),
        ("policy.train_global_batch_size=1024", "policy.train_global_batch_size", "does not divide the 512 episodes"),
        ("grpo.num_generations_per_prompt=1", "grpo.num_generations_per_prompt", "expected at least 2"),
        ("policy.generation.temperature=0", "policy.generation.temperature", "expected more than 0"),
        ("policy.generation.top_p=0.9", "policy.generation.top_p", "expected 1.0"),
        ("policy.generation.top_k=50", "policy.generation.top_k", "expected null"),
        ("policy.generation.max_new_tokens=513", "policy.generation.max_new_tokens", "at most policy.max_total"),
        ("policy.generation.backend=vllm", "policy.generation.backend", "set policy.generation.backend=transformers"),
        ("policy.generation.backend=fake", "policy.generation.backend", "is for tests"),
        ("data.max_input_seq_length=256", "data.max_input_seq_length", "at least policy.max_total_sequence_length (51"),
        ("policy.generation.backend=transformer", "policy.generation.backend", "did you mean 'transformers'?"),
        ("~policy.generation", "policy.generation", "is missing"),
        ("loss_fn.ratio_clip_c=1.0", "loss_fn.ratio_clip_c", "expected greater than 1"),
        ("loss_fn.ratio_clip_min=-0.1", "loss_fn.ratio_clip_min", "greater than or equal to 0"),
        ("loss_fn.sequence_level_importance_ratios=true", "loss_fn.sequence_level", "token_level_loss: false with it"),
        ("loss_fn.truncated_importance_sampling_type=tis", "loss_fn.truncated_importance_sampling_ratio", "a positive"),
        ("loss_fn.truncated_importance_sampling_ratio=0", "loss_fn.truncated_importance_sampling_ratio", "greater"),
        ("grpo.batch_multiplier=2.0", "grpo.batch_multiplier", "only dynamic sampling reads it"),
        ("grpo.batch_multiplier=0.5", "grpo.batch_multiplier", "greater than or equal to 1"),
        ("grpo.dynamic_sampling_max_gen_batches=0", "grpo.dynamic_sampling_max_gen_batches", "or equal to 1"),
        ("grpo.max_steps_without_variance=0", "grpo.max_steps_without_variance", "or equal to 1"),
        ("loss_fn.reference_policy_kl_type=k4", "loss_fn.reference_policy_kl_type", "'k1', 'k2' or 'k3'"),
        ("grpo.skip_reference_policy_logprobs_calculation=true", "grpo.skip_", "reference_policy_kl_penalty=0"),
        ("grpo.adv_estimator.name=gae", "grpo.adv_estimator.name", "'grpo', 'gdpo' or 'reinforce_plus_plus'"),
        ("grpo.adv_estimator.reward_weights=[1.0]", "grpo.adv_estimator.reward_weights", "gdpo"),
        ("data.train.data_path=x", "data.train.data_path", "Environment does not read it"),
        ("env.calculater.seed=1", "env.calculater", "expected env.calculator"),
        ("data.train.env_name=null", "data.train.env_name", "is missing for Environment"),
        ("data.train.dataset_name=openai_format", "data.train.dataset_name", "is no data for grpo"),
        ("checkpointing.metric_name=test:reward", "checkpointing.metric_name", "val:<metric> or train:<metric>"),
        ("grpo.val_period=5", "grpo.val_period", "set data.validation.data_path, or grpo.val_period=0"),
        ("policy.scheduler=[{name: a}, {name: b}]", "policy.scheduler", "exactly one {milestones"),
        ("policy.scheduler=[{nam: a}]", "policy.scheduler", "a stage is {name, kwargs}"),
        ("policy.scheduler=[{name: a}, {name: b}, {milestones: [1, 2]}]", "policy.scheduler", "need 1 milestones"),
    ],
)  # fmt: skip
def test_grpo_refusals(override: str, where: str, fix: str):
    with pytest.raises(ConfigError) as caught:
        grpo(override)
    assert str(caught.value).startswith(where)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["grpo.advantage_clip_low=1.0", "grpo.advantage_clip_high=-1.0"], "at most grpo.advantage_clip_high"),
        (["grpo.reward_scaling.enabled=true", "grpo.reward_scaling.source_min=2.0"], "less than source_max"),
        (["grpo.reward_shaping.enabled=true", "grpo.reward_shaping.max_response_length=null"], "is missing, but"),
        (["loss_fn.use_cispo=true", "loss_fn.ratio_clip_c=3.0"], "null, as use_cispo is set"),
        (["loss_fn.use_importance_sampling_correction=false", "loss_fn.truncated_importance_sampling_type=tis"],
         "null, as use_importance_sampling_correction is false"),
        (["loss_fn.use_importance_sampling_correction=true", "loss_fn.truncated_importance_sampling_ratio=2.0"],
         "null, as truncated_importance_sampling_type is null"),
        (["loss_fn.force_on_policy_ratio=true", "policy.train_global_batch_size=256"], "only the first of 2 optimiser"),
        (["loss_fn.length_normalizer=512", "loss_fn.token_level_loss=false"], "null, as token_level_loss is false"),
        (["grpo.async_grpo.enabled=true", "loss_fn.use_importance_sampling_correction=false"],
         "use_importance_sampling_correction: true with it"),
        (["loss_fn.use_kl_in_reward=true"], "reinforce_plus_plus with it"),
        (["loss_fn.use_kl_in_reward=true", "grpo.adv_estimator.name=reinforce_plus_plus",
          "loss_fn.reference_policy_kl_penalty=0"], "expected more than 0"),
        (["loss_fn.use_kl_in_reward=true", "grpo.adv_estimator.name=reinforce_plus_plus",
          "loss_fn.force_on_policy_ratio=true"], "but use_kl_in_reward is set; expected false"),
        (["grpo.adv_estimator.name=gdpo", "grpo.adv_estimator.minus_baseline=false"], "gdpo always compares"),
        (["grpo.adv_estimator.name=gdpo", "grpo.reward_scaling.enabled=true"], "components of rewards as they are"),
        (["grpo.adv_estimator.name=gdpo", "grpo.reward_shaping.enabled=true"], "components of rewards as they are"),
        (["grpo.adv_estimator.name=reinforce_plus_plus", "grpo.num_generations_per_prompt=1"], "expected at least 2"),
        (["grpo.use_dynamic_sampling=true", "grpo.num_generations_per_prompt=1",
          "grpo.use_leave_one_out_baseline=false"], "a group of one cannot differ"),
        (["policy.generation.val_temperature=0", "grpo.val_num_generations_per_prompt=4"], "all answers to a task"),
        (["loss_fn.force_on_policy_ratio=true", "loss_fn.disable_ppo_ratio=true"], "disable_ppo_ratio is set"),
        (
            ["loss_fn.use_importance_sampling_correction=true", "loss_fn.truncated_importance_sampling_type=icepop",
             "loss_fn.truncated_importance_sampling_ratio=2.0"],
            "a lower bound for icepop",
        ),
    ],
)  # fmt: skip
def test_grpo_combinations(overrides: list[str], expected: str):
    with pytest.raises(ConfigError, match=expected):
        grpo(*overrides)


def test_good_grpo_passes_and_can_run():
    config = grpo("loss_fn.use_importance_sampling_correction=true", "loss_fn.truncated_importance_sampling_type=tis",
                  "loss_fn.truncated_importance_sampling_ratio=2.0", "loss_fn.ratio_clip_c=3.0")  # fmt: skip
    assert config.notes == ["without validation data, checkpoints are kept by age: checkpointing.metric_name"]
    assert grpo("grpo.use_dynamic_sampling=true", "grpo.batch_multiplier=1.5").tasks_per_generation == 48


def test_a_group_of_one_needs_no_leave_one_out():
    config = grpo("grpo.num_generations_per_prompt=1", "grpo.use_leave_one_out_baseline=false")
    assert config.global_batch_size == 32


def test_a_divided_batch_is_noted():
    several = grpo("policy.train_global_batch_size=128")
    assert any("4 optimiser steps for each batch" in note for note in several.notes)


def test_correction_is_on_where_nothing_is_said_and_says_so():
    on = grpo("loss_fn.truncated_importance_sampling_ratio=3.0")
    loss = on.loss_fn
    assert (loss.use_importance_sampling_correction, loss.truncated_importance_sampling_type) == (True, "tis")
    assert loss.truncated_importance_sampling_ratio == 3.0
    assert any(note.startswith("importance-sampling correction is on (tis, weights up to 3.0)") for note in on.notes)
    icepop = ["type=icepop", "ratio=5.0", "ratio_min=0.5"]
    chosen = grpo(*(f"loss_fn.truncated_importance_sampling_{value}" for value in icepop)).loss_fn
    assert (chosen.use_importance_sampling_correction, chosen.truncated_importance_sampling_type) == (True, "icepop")
    for value in ("true", "false"):  # what is said is taken as it is: without a type weights have no bound
        said = grpo(f"loss_fn.use_importance_sampling_correction={value}")
        assert said.loss_fn.use_importance_sampling_correction is (value == "true")
        assert said.loss_fn.truncated_importance_sampling_type is None
        assert not any("importance" in note for note in said.notes)


def test_reinforce_plus_plus_without_a_baseline_takes_groups_of_one():
    values = ["name=reinforce_plus_plus", "minus_baseline=false"]
    config = grpo("grpo.num_generations_per_prompt=1", *(f"grpo.adv_estimator.{value}" for value in values))
    assert config.episodes_per_step == 32


def test_grpo_on_questions_and_answers_loads():
    paths = ["data.default.dataset_name=ResponseDataset", "data.train.data_path=t", "grpo.val_period=0"]
    assert load_train_config("grpo_math_1B", paths).data.train.env_name == "math"
    other = load_train_config(
        "grpo_math_1B", [*paths, "data.default.env_name=multiple_choice", "env.multiple_choice.seed=1"]
    )
    assert other.data.train is not None
    assert other.data.train.env_name == "multiple_choice"
    with pytest.raises(ConfigError, match=r"^env\.maths.*remove env\.maths, or set data\.train\.env_name=maths"):
        load_train_config("grpo_math_1B", [*paths, "env.maths.seed=1"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss_fn.ratio_clip_min=0.1", "loss_fn.* has no meaning with sft"),
        ("env.calculator.seed=1", "env.* has no meaning with sft"),
        ("data.train.dataset_name=PreferenceDataset", "no data for sft; expected one of openai_format"),
        ("data.train.prompt_key=question", "is 'question', but openai_format does not read it"),
        ("data.train.data_path=null", "data.train"),
        ("sft.val_at_start=true", "is true, but there is no validation data"),
        ("sft.val_period=10", "is 10, but there is no validation data"),
    ],
)  # fmt: skip
def test_sft_refusals(override: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        sft(override)


def test_a_generator_less_precise_than_a_float32_policy_is_refused():
    assert grpo("policy.generation.precision=float32").policy.precision == "bfloat16"
    grpo("policy.precision=float32", "policy.generation.precision=float32")
    with pytest.raises(ConfigError, match=r"^policy\.generation\.precision.* is bfloat16, but policy\.precision"):
        grpo("policy.precision=float32", "policy.generation.precision=bfloat16")


def test_input_lengths_that_bound_nothing_are_accepted():
    for given, loaded in (("null", None), ("1024", 1024), ("4096", 4096)):
        assert sft(f"data.max_input_seq_length={given}").data.max_input_seq_length == loaded
    longer = sft("policy.max_total_sequence_length=4096")
    assert longer.data.max_input_seq_length == 4096  # the shipped limit follows


def test_splits_of_files_are_refused():
    validation = ["data.validation.dataset_name=openai_format", "data.validation.data_path=v", "sft.val_period=5"]
    sft(*validation, "data.train.split=train", "data.validation.split=validation")
    with pytest.raises(ConfigError, match=r"^data\.train\.split.*'test', but openai_format reads its file whole"):
        sft("data.train.split=test")
    assert grpo("data.train.split=validation").data.train


def test_keys_of_rows_and_batches_without_effect_are_noted():
    notes = sft("data.train.seed=3", "sft.val_micro_batch_size=4").notes
    assert [note.rpartition(": ")[2] for note in notes][:2] == ["sft.val_micro_batch_size", "data.train.seed"]


def test_the_fix_for_missing_validation_data_works():
    with pytest.raises(ConfigError) as caught:
        sft("sft.val_period=10", "sft.val_at_start=true")
    assert caught.value.fix == "set data.validation.data_path, or sft.val_period=0 sft.val_at_start=false"


def test_prompt_files_are_refused_where_they_would_change_the_rows():
    with pytest.raises(ConfigError, match=r"data.train.prompt_file.*not implemented"):
        sft("data.train.dataset_name=ResponseDataset", "data.train.prompt_file=cot.txt")


def test_unused_validation_data_and_machines_are_noted():
    config = sft("data.validation.dataset_name=openai_format", "data.validation.data_path=v", "cluster.num_nodes=2")
    assert any("it will not be used" in note for note in config.notes)
    assert any(note.endswith("one process: cluster") for note in config.notes)


def test_token_budgets():
    config = sft("policy.train_micro_batch_size=4", "policy.logprob_batch_size=8")
    assert (config.policy.train_token_budget, config.policy.logprob_token_budget) == (4096, 8192)
    packed = sft("policy.sequence_packing.enabled=true", "policy.sequence_packing.train_mb_tokens=3000")
    assert (packed.policy.train_token_budget, packed.policy.logprob_token_budget) == (3000, 3000)
    assert sft("policy.train_micro_batch_tokens=500").policy.train_token_budget == 500


def dpo(*overrides: str) -> TrainConfig:
    data = ["data.train.dataset_name=PreferenceDataset", "data.train.data_path=t"]
    return load_train_config("dpo", [*data, "dpo.val_period=0", "dpo.val_at_start=false", *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dpo.loss_type=kto"], "'sigmoid', 'ipo', 'hinge' or 'robust'"),
        (["dpo.loss_type=robust"], "more than 0, as dpo.loss_type robust without it is sigmoid"),
        (["dpo.loss_type=ipo", "dpo.label_smoothing=0.1"], "0, as dpo.loss_type ipo does not read it"),
        (["dpo.loss_type=hinge", "dpo.label_smoothing=0.1"], "0, as dpo.loss_type hinge does not read it"),
        (["dpo.label_smoothing=0.5"], "less than 0.5"),
        (["dpo.preference_loss_weight=0"], "one of them above 0"),
    ],
)
def test_dpo_refusals(overrides: list[str], expected: str):
    with pytest.raises(ConfigError, match=expected):
        dpo(*overrides)


def test_good_dpo_passes():
    assert dpo("dpo.loss_type=robust", "dpo.label_smoothing=0.1").dpo is not None
    assert dpo("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1").dpo is not None


@pytest.mark.parametrize(
    "override",
    ["context_parallel_size=2", "expert_parallel_size=2", "dp_replicate_size=2", "custom_parallel_plan=my.plan"],
)
def test_ways_of_dividing_a_model_that_are_not_built_are_refused(override: str) -> None:
    key = f"policy.dtensor_cfg.{override}"
    with pytest.raises(ConfigError, match="is not implemented in this build") as caught:
        sft("policy.dtensor_cfg.enabled=true", key)
    assert str(caught.value).startswith(key.split("=")[0])
    note = f"no effect here, as policy.dtensor_cfg.enabled is false: {key.split('=')[0]}"
    assert note in sft(key).notes


def test_compiled_layers_and_tensor_parallel_exclude_each_other() -> None:
    assert sft("policy.torch_compile=true").policy.torch_compile
    assert sft("policy.torch_compile=true", "policy.dtensor_cfg.enabled=true").policy.torch_compile
    with pytest.raises(ConfigError, match=r"policy.torch_compile.*layers that are divided.*tensor_parallel_size"):
        sft("policy.torch_compile=true", "policy.dtensor_cfg.enabled=true", "policy.dtensor_cfg.tensor_parallel_size=2")


def test_sequence_parallel_alone_has_no_effect() -> None:
    on = ["policy.dtensor_cfg.enabled=true", "policy.dtensor_cfg.sequence_parallel=true"]
    assert any("policy.dtensor_cfg.sequence_parallel" in note for note in sft(*on).notes)
    both = sft(*on, "policy.dtensor_cfg.tensor_parallel_size=2")
    assert not any("dtensor_cfg" in note for note in both.notes)
