"""The arguments of TRL's trainers that say what a training configuration says.

In: an export request whose rows are written. Out: the arguments of `SFTConfig`, `DPOConfig` or `GRPOConfig`, and of
peft's `LoraConfig` where adapters train, with a note for what TRL says otherwise and for every key that it has no word
for. Refuses adapters with values of another type.
"""

from __future__ import annotations

import math
from typing import Any, cast

from pydantic import ValidationError

from regimen.config.schema import LossConfig, TrainConfig
from regimen.config.schema_policy import LoraConfig
from regimen.config.source import Tree, lookup
from regimen.convert.export.nemo_rl_batches import fitting_micro_batch
from regimen.convert.export.nemo_rl_config import leaves
from regimen.convert.export.request import ExportRequest
from regimen.errors import ConfigError
from regimen.registry import did_you_mean

# Keys that the arguments, the rows or the script say.
SAID = (
    "data.", "cluster.", "policy.model_name", "policy.tokenizer.", "policy.train_", "policy.max_", "policy.precision",
    "policy.optimizer.", "policy.scheduler", "policy.activation_checkpointing", "policy.trust_remote_code",
    "policy.generation.max_new_tokens", "policy.generation.temperature", "policy.generation.top_", "env.",
    "checkpointing.", "logger.", *(f"{name}.{key}" for name in ("sft", "dpo", "grpo") for key in (
        "max_num_epochs", "max_num_steps", "val_period", "val_at_start", "seed")),
    "dpo.reference_policy_kl_penalty", "dpo.preference_loss_weight", "dpo.sft_loss_weight", "dpo.loss_type",
    "dpo.label_smoothing",
    "grpo.num_prompts_per_step", "grpo.num_generations_per_prompt", "grpo.normalize_rewards", "grpo.adv_estimator.norm",
    "loss_fn.reference_policy_kl_penalty", "loss_fn.ratio_clip_m", "loss_fn.token_level_loss", "loss_fn.use_cispo",
    "loss_fn.sequence_level_importance_ratios", "policy.dtensor_cfg.lora_cfg.",
)  # fmt: skip
ADAMW = "torch.optim.AdamW"
_LORA = "policy.dtensor_cfg.lora_cfg"


def trl_settings(request: ExportRequest, num_train: int, has_validation: bool) -> Tree:
    """The arguments of the trainer's configuration, for one process."""
    config = request.config
    settings = {**_run(request, num_train), **_saving(request, has_validation), **_optimizer(request)}
    if config.grpo is not None:
        settings |= _grpo(request)
    else:
        settings |= {"max_length": config.policy.max_total_sequence_length}
        settings |= {"assistant_only_loss": True} if config.sft is not None else _dpo(request)
    _note_unsaid(request)
    return settings


def lora_settings(request: ExportRequest) -> Tree | None:
    """The arguments of peft's `LoraConfig`, with patterns of layers' names; None where all weights train.

    Raises `ConfigError` for wrong values.
    """
    lora = _lora_of(lookup(request.given, _LORA)[1])
    if not lora.enabled:
        return None
    if lora.dropout and lora.dropout_position == "post":
        request.note(f"{_LORA}.dropout_position: post, but peft drops the adapters' inputs")
    if lora.lora_A_init == "xavier":
        request.note(f"{_LORA}.lora_A_init: xavier, but peft begins with kaiming's uniform")
    if lora.load_in_4bit:
        request.note(f"{_LORA}.load_in_4bit: left out, the frozen weights are not quantised")
    return {
        "r": lora.dim,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        "exclude_modules": lora.exclude_modules,
    }


def _lora_of(given: object) -> LoraConfig:
    """The section as it is written. Raises `ConfigError` for what training with Regimen refuses in it too."""
    if given is None:
        return LoraConfig()
    if not isinstance(given, dict):
        raise ConfigError(f"is {given!r}", where=_LORA, expected="a mapping")
    section = {str(key): value for key, value in cast("Tree", given).items() if key != "use_triton"}
    for key in section:
        if key not in LoraConfig.model_fields:
            raise ConfigError("unknown key", where=f"{_LORA}.{key}", fix=did_you_mean(key, LoraConfig.model_fields))
    try:
        lora = LoraConfig.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(first["msg"], where=".".join(map(str, (_LORA, *first["loc"])))) from None
    if lora.match_all_linear and lora.target_modules:
        raise ConfigError("is true beside target_modules", where=f"{_LORA}.match_all_linear", expected="one of them")
    if lora.match_all_linear is False and not lora.target_modules:
        raise ConfigError("is false without target_modules", where=f"{_LORA}.match_all_linear", expected="one of them")
    return lora


def _run(request: ExportRequest, num_train: int) -> Tree:
    config, training = request.config, request.config.training
    batch = config.global_batch_size
    micro = fitting_micro_batch(batch, _micro_batch(request), 1)
    rows = config.grpo.num_prompts_per_step if config.grpo is not None else batch
    steps = training.max_num_epochs * math.ceil(num_train / rows)
    return {
        "output_dir": config.checkpointing.checkpoint_dir,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "num_train_epochs": training.max_num_epochs,
        "max_steps": training.max_num_steps if training.max_num_steps < steps else -1,
        "bf16": config.policy.precision == "bfloat16",
        "gradient_checkpointing": config.policy.activation_checkpointing,
        "seed": training.seed,
        "logging_steps": 1,
        "report_to": [
            name for name in ("tensorboard", "wandb", "mlflow") if getattr(config.logger, f"{name}_enabled")
        ],
    }  # fmt: skip


def _micro_batch(request: ExportRequest) -> int:
    """Rows of a micro-batch; a budget in tokens is one of so many longest rows."""
    policy = request.config.policy
    longest = policy.max_total_sequence_length * (2 if request.config.dpo is not None else 1)
    if policy.train_micro_batch_tokens is None:
        return policy.train_micro_batch_size
    size = max(1, policy.train_micro_batch_tokens // longest)
    request.note(f"policy.train_micro_batch_tokens: {policy.train_micro_batch_tokens} -> {size} rows per device")
    return size


def _saving(request: ExportRequest, has_validation: bool) -> Tree:
    checkpointing, training = request.config.checkpointing, request.config.training
    settings: Tree = {
        "save_strategy": "steps" if checkpointing.enabled else "no",
        "save_steps": checkpointing.save_period,
        "save_total_limit": checkpointing.keep_top_k,
        "save_only_model": not checkpointing.save_optimizer,
    }
    if checkpointing.metric_name is not None:
        request.note("checkpointing.metric_name: left out, the script keeps the latest checkpoints, not the best")
    if has_validation and training.val_period > 0:
        settings |= {
            "eval_strategy": "steps",
            "eval_steps": training.val_period,
            "eval_on_start": training.val_at_start,
        }
        if request.config.grpo is not None:
            settings["per_device_eval_batch_size"] = request.config.grpo.num_generations_per_prompt
    return settings


def _optimizer(request: ExportRequest) -> Tree:
    policy = request.config.policy
    kwargs = dict(policy.optimizer.kwargs)
    settings: Tree = {"max_grad_norm": policy.max_grad_norm or 0.0}
    names = {"lr": "learning_rate", "weight_decay": "weight_decay", "eps": "adam_epsilon"}
    settings |= {name: kwargs.pop(key) for key, name in names.items() if key in kwargs}
    if "betas" in kwargs:
        settings["adam_beta1"], settings["adam_beta2"] = kwargs.pop("betas")
    unsaid = [f"policy.optimizer.kwargs.{key}" for key in kwargs if key not in ("foreach", "fused")]
    if policy.optimizer.name != ADAMW:
        unsaid.insert(0, f"policy.optimizer.name {policy.optimizer.name} (AdamW trains instead)")
    if unsaid:
        request.note(f"left out, set optim and optim_args for it: {', '.join(unsaid)}")
    return settings | _schedule(request)


def _schedule(request: ExportRequest) -> Tree:
    """A linear warm-up to a constant rate, which is what NeMo RL's examples have; others are named."""
    stages = [stage for stage in request.config.policy.scheduler or () if "name" in stage]
    if not stages:
        return {"lr_scheduler_type": "constant"}
    names = [str(stage["name"]).rpartition(".")[2] for stage in stages]
    if names in (["LinearLR", "ConstantLR"], ["LinearLR"]):
        arguments = cast("Tree", stages[0].get("kwargs", {}))
        if arguments.get("start_factor", 1 / 3) < arguments.get("end_factor", 1.0) == 1.0:
            steps = int(arguments.get("total_iters", 5))
            request.note(f"policy.scheduler: {steps} steps of warm-up, which TRL begins at 0")
            return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": steps}
    request.note(f"policy.scheduler: left out, the learning rate is constant; set lr_scheduler_type for {names}")
    return {"lr_scheduler_type": "constant"}


def _dpo(request: ExportRequest) -> Tree:
    dpo = request.config.dpo
    assert dpo is not None  # the caller holds it
    settings: Tree = {"beta": dpo.reference_policy_kl_penalty, "loss_type": [dpo.loss_type]}
    if dpo.label_smoothing:
        settings["label_smoothing"] = dpo.label_smoothing
    if dpo.loss_type == "ipo" and not dpo.preference_average_log_probs:
        request.note("dpo.preference_average_log_probs: false, but TRL's ipo compares averages")
    if dpo.sft_loss_weight:
        settings["loss_type"] = [dpo.loss_type, "sft"]
        settings["loss_weights"] = [dpo.preference_loss_weight, dpo.sft_loss_weight]
    elif dpo.preference_loss_weight != 1:
        settings["loss_weights"] = [dpo.preference_loss_weight]
    return settings


def _grpo(request: ExportRequest) -> Tree:
    config, loss = request.config, request.config.loss_fn
    grpo, sampling = config.grpo, config.policy.generation
    assert grpo is not None  # the caller holds it
    assert sampling is not None  # the configuration's rules hold it
    normalizes = grpo.adv_estimator.normalize_rewards
    settings: Tree = {
        "generation_batch_size": config.episodes_per_step,
        "num_generations": grpo.num_generations_per_prompt,
        "max_completion_length": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "beta": loss.reference_policy_kl_penalty,
        "epsilon": loss.ratio_clip_min,
        "epsilon_high": loss.ratio_clip_max,
        "loss_type": _loss_type(loss),
        "scale_rewards": "group" if normalizes else "none",
        "importance_sampling_level": "sequence" if loss.sequence_level_importance_ratios else "token",
    }
    if config.policy.tokenizer.chat_template_kwargs:
        settings["chat_template_kwargs"] = config.policy.tokenizer.chat_template_kwargs
    if grpo.adv_estimator.use_leave_one_out_baseline:
        request.note("grpo.use_leave_one_out_baseline: left out, TRL's baseline is the mean of the whole group")
    return settings


def _loss_type(loss: LossConfig) -> str:
    if loss.use_cispo:
        return "cispo"
    return "dapo" if loss.token_level_loss else "grpo"


def _note_unsaid(request: ExportRequest) -> None:
    """Name every key that was given another value than its default and that nothing above says."""
    defaults = _defaults()
    unsaid = [
        path
        for path, value in leaves(request.given)
        if not path.startswith(SAID) and lookup(defaults, path) != (True, value)
    ]
    if unsaid:
        request.note(f"TRL has no word for, left out: {', '.join(unsaid)}")


def _defaults() -> dict[str, Any]:
    sections: Tree = {"sft": {}, "dpo": {}, "grpo": {}, "policy": {"model_name": "any", "generation": {}}}
    return TrainConfig.model_validate(sections).model_dump()
