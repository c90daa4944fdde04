"""Configuration: NeMo RL's vocabulary in YAML, typed, with every misspelling refused."""

from regimen.config.load import (
    assignment,
    dump,
    load_collect_config,
    load_evaluate_config,
    load_iterate_config,
    load_train_config,
)
from regimen.config.schema import CollectConfig, EvaluateConfig, IterateConfig, TrainConfig

__all__ = [
    "CollectConfig",
    "EvaluateConfig",
    "IterateConfig",
    "TrainConfig",
    "assignment",
    "dump",
    "load_collect_config",
    "load_evaluate_config",
    "load_iterate_config",
    "load_train_config",
]
