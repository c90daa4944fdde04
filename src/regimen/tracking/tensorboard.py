"""TensorBoard event files in `folder/tensorboard`.

In: metrics, sample episodes. Out: scalars and texts that `tensorboard --logdir` shows; a resumed run hides the steps it
runs again. torch and tensorboard are imported when a tracker is made, so that naming this one costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from regimen.errors import UsageError
from regimen.tracking.base import Sample, full_name
from regimen.tracking.redact import redacted

FOLDER_NAME = "tensorboard"


class TensorBoardTracker:
    """Writes scalars to `folder/tensorboard`."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"the TensorBoard tracker needs torch and tensorboard ({error})",
                fix="pip install 'regimen-rl[train]', or leave the tracker out",
            ) from None
        self.folder = folder / FOLDER_NAME
        self._writer = SummaryWriter(log_dir=str(self.folder), purge_step=resume_step)

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Add one scalar per metric and flush."""
        for name, value in metrics.items():
            self._writer.add_scalar(full_name(prefix, name), float(value), global_step=step)
        self._writer.flush()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """A text with the configuration, less its secrets."""
        self._writer.add_text("config", _block(yaml.safe_dump(redacted(config), sort_keys=False)), global_step=0)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """One text for each episode."""
        for index, sample in enumerate(samples):
            self._writer.add_text(f"validation/sample_{index}", _block(str(sample)), global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _block(text: str) -> str:
    """`text` as it is, where Markdown would make something of it."""
    return "".join(f"    {line}\n" for line in text.splitlines())
