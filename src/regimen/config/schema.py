"""Typed configurations. In: resolved dictionaries. Out: frozen sections; unknown keys and wrong types are refused.

`TrainConfig` is the whole of a training configuration in NeMo RL's vocabulary; the configurations of the other
commands and the sections are re-exported here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from regimen.config.schema_algorithms import (
    AdvantageConfig,
    DPOConfig,
    GRPOConfig,
    LossConfig,
    RewardScalingConfig,
    RewardShapingConfig,
    SFTConfig,
)
from regimen.config.schema_data import DataConfig, DatasetConfig
from regimen.config.schema_loops import (
    CollectConfig,
    EnvironmentConfig,
    EvaluateConfig,
    IterateConfig,
    Noted,
    PlayConfig,
)
from regimen.config.schema_policy import (
    DTensorConfig,
    GenerationConfig,
    OptimizerConfig,
    PolicyConfig,
    SamplingConfig,
    TokenBudgetConfig,
    TokenizerConfig,
)
from regimen.config.section import Section

__all__ = [
    "AdvantageConfig",
    "Algorithm",
    "CheckpointingConfig",
    "ClusterConfig",
    "CollectConfig",
    "DPOConfig",
    "DTensorConfig",
    "DataConfig",
    "DatasetConfig",
    "EnvironmentConfig",
    "EvaluateConfig",
    "GRPOConfig",
    "GenerationConfig",
    "IterateConfig",
    "LoggerConfig",
    "LossConfig",
    "MlflowConfig",
    "Noted",
    "OptimizerConfig",
    "PlayConfig",
    "PolicyConfig",
    "RewardScalingConfig",
    "RewardShapingConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "Section",
    "TokenBudgetConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WandbConfig",
]

Algorithm = Literal["sft", "dpo", "grpo"]
# Names under which users know the validation metric of each algorithm, and ours.
METRIC_NAMES: dict[str, dict[str, str]] = {
    "sft": {"val_loss": "loss"},
    "dpo": {"val_loss": "loss", "validation-default_loss": "loss"},
    "grpo": {"val_reward": "reward", "accuracy": "reward"},
}


class CheckpointingConfig(Section):
    """When to write checkpoints, where, and which to keep."""

    enabled: bool = True
    checkpoint_dir: str = "results"
    metric_name: str | None = None
    higher_is_better: bool = False
    keep_top_k: int | None = Field(default=3, ge=1)
    save_period: int = Field(default=10, ge=1)
    save_optimizer: bool = True
    is_async: bool = False  # a copy of the state is written by a thread while training goes on


class WandbConfig(Section):
    """Where a wandb tracker reports to. Offline: the environment variable WANDB_MODE=offline."""

    project: str | None = None
    name: str | None = None
    entity: str | None = None


class MlflowConfig(Section):
    """Where an MLflow tracker reports to. `tracking_uri` None: MLFLOW_TRACKING_URI, else the run folder."""

    experiment_name: str | None = None
    run_name: str | None = None
    tracking_uri: str | None = None


class RunConfig(Section):
    """`run` (ours): how the run itself goes. `stage_timeout`: seconds without progress until it is ended; None: never.

    `deterministic`: two runs are equal bit for bit, at the cost of speed.
    """

    deterministic: bool = False
    stage_timeout: float | None = Field(default=3600.0, gt=0)


class LoggerConfig(Section):
    """Which trackers, besides metrics.jsonl, which is always written."""

    log_dir: str | None = None
    tensorboard_enabled: bool = True
    wandb_enabled: bool = False
    wandb: WandbConfig = WandbConfig()
    mlflow_enabled: bool = False
    mlflow: MlflowConfig = MlflowConfig()


class ClusterConfig(Section):
    """The machines. Only `policy.dtensor_cfg` uses more than one process."""

    gpus_per_node: int = Field(default=1, ge=0)
    num_nodes: int = Field(default=1, ge=1)
    num_processes: int | None = Field(default=None, ge=1)  # ours; None: one for each GPU, one where there is none
    launcher: Literal["auto", "local", "ray"] = "auto"  # ours; auto: Ray where RAY_ADDRESS names a cluster


class TrainConfig(Noted):
    """A training run. Exactly one of `sft`, `dpo`, `grpo` is there; `loss_fn` and `env` belong to GRPO."""

    policy: PolicyConfig
    data: DataConfig = DataConfig()
    env: dict[str, dict[str, Any]] = Field(default_factory=lambda: dict[str, dict[str, Any]]())
    sft: SFTConfig | None = None
    dpo: DPOConfig | None = None
    grpo: GRPOConfig | None = None
    loss_fn: LossConfig = LossConfig()
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    logger: LoggerConfig = LoggerConfig()
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()

    @property
    def algorithm(self) -> Algorithm:
        """Which algorithm: the section that is there."""
        return "sft" if self.sft is not None else "dpo" if self.dpo is not None else "grpo"

    @property
    def training(self) -> SFTConfig | DPOConfig | GRPOConfig:
        """The algorithm's section."""
        section = self.sft or self.dpo or self.grpo
        assert section is not None  # the loader's rules hold it
        return section

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.training.seed

    @property
    def global_batch_size(self) -> int:
        """Rows (SFT), pairs (DPO) or episodes (GRPO) of one optimiser step."""
        if self.policy.train_global_batch_size is not None:
            return self.policy.train_global_batch_size
        return self.episodes_per_step if self.grpo is not None else 32

    @property
    def episodes_per_step(self) -> int:
        """GRPO: episodes collected for one step."""
        return self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt if self.grpo else 0

    @property
    def updates_per_step(self) -> int:
        """GRPO: optimiser steps for one batch of episodes."""
        return self.episodes_per_step // self.global_batch_size if self.grpo else 1

    @property
    def tasks_per_generation(self) -> int:
        """GRPO: tasks whose episodes are played at once; more than those of a step only with dynamic sampling."""
        return int(self.grpo.num_prompts_per_step * self.grpo.batch_multiplier) if self.grpo else 0

    @property
    def checkpoint_metric(self) -> tuple[str, str] | None:
        """(`train` or `val`, name) of the metric that ranks checkpoints, under Regimen's name; None: by recency."""
        name = self.checkpointing.metric_name
        if name is None:
            return None
        prefix, _, rest = name.rpartition(":")
        return prefix or "val", METRIC_NAMES[self.algorithm].get(rest, rest)
