"""TensorBoard event files in `folder/tensorboard`.

In: metrics. Out: scalars that `tensorboard --logdir` shows; a resumed run hides the steps it runs again. torch and
tensorboard are imported when a tracker is made, so that naming this one costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from regimen.errors import UsageError
from regimen.tracking.base import full_name

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

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
