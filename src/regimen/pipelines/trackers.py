"""The trackers of a training run, as its `logger` section asks for them.

In: a configuration and the run folder. Out: trackers that know the configuration. One whose package is not installed is
left out: the configuration's notes have said so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from regimen.config.schema import TrainConfig
from regimen.tracking.base import TrackerGroup, open_trackers

TRACKERS = ("tensorboard", "wandb", "mlflow")


def open_run_trackers(config: TrainConfig, folder: Path, resume_step: int | None) -> TrackerGroup:
    """Open metrics.jsonl and the trackers that are enabled."""
    logger = config.logger
    asked = [name for name in TRACKERS if getattr(logger, f"{name}_enabled")]
    names = [name for name in asked if name == "tensorboard" or importlib.util.find_spec(name)]
    tracker = open_trackers(
        Path(logger.log_dir or folder),
        names,
        resume_step=resume_step,
        settings={"wandb": logger.wandb.model_dump(), "mlflow": logger.mlflow.model_dump()},
    )
    tracker.log_config(config.model_dump())
    return tracker
