"""Weights & Biases: metrics, the configuration without its secrets, and sample episodes as tables.

In: metrics. Out: a run of `project`, in the cloud, or with WANDB_MODE=offline in `folder/wandb` for `wandb sync`.
A resumed run goes on under the id in `folder/wandb.id`. The command line, the environment, the code and what is
printed are not sent. The package is imported when a tracker is made.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.errors import UsageError
from regimen.tracking.base import Sample, full_name
from regimen.tracking.redact import redacted

ID_FILE = "wandb.id"


class WandbTracker:
    """Sends metrics to Weights & Biases."""

    is_remote = True

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None = None,
        project: str | None = None,
        name: str | None = None,
        entity: str | None = None,
    ) -> None:
        self._wandb = _package()
        id_file = folder / ID_FILE
        known = id_file.is_file() and resume_step is not None
        run_id = id_file.read_text(encoding="utf-8").strip() if known else uuid.uuid4().hex[:16]
        settings = self._wandb.Settings(
            console="off", disable_git=True, save_code=False, disable_job_creation=True, x_disable_meta=True
        )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run: Any = self._wandb.init(
                project=project,
                name=name,
                entity=entity,
                dir=str(folder),
                id=run_id,
                resume="allow" if known else None,
                settings=settings,
            )
        except self._wandb.errors.Error as error:
            raise UsageError(
                f"W&B cannot be reached ({str(error).splitlines()[0]})",
                where="logger.wandb_enabled",
                fix="log in with `wandb login`, or set the environment variable WANDB_MODE=offline",
            ) from error
        id_file.write_text(run_id + "\n", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Add the metrics to the history at `step`."""
        self._run.log({full_name(prefix, name): float(value) for name, value in metrics.items()}, step=step)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Set the run's configuration, without secrets."""
        self._run.config.update(redacted(config), allow_val_change=True)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """A table at `step`."""
        table = self._wandb.Table(columns=["step", "prompt", "answer", "reward"])
        for sample in samples:
            table.add_data(step, sample.prompt, sample.answer, sample.reward)
        self._run.log({"validation/samples": table}, step=step)

    def close(self) -> None:
        """Send what is waiting."""
        self._run.finish()


def _package() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UsageError(
            f"the W&B tracker needs the package wandb ({error})",
            where="logger.wandb_enabled",
            fix="pip install 'regimen-rl[wandb]', or set logger.wandb_enabled=false",
        ) from None
