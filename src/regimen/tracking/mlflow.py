"""MLflow: metrics, the configuration without its secrets as parameters, and sample episodes as artifacts.

In: metrics. Out: a run of `experiment_name` at `tracking_uri`: a server, or a folder; without one, what
MLFLOW_TRACKING_URI names, else `folder/mlruns`. A resumed run goes on under the id in `folder/mlflow.id`; a step that
is already there keeps its first values. The package is imported when a tracker is made.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from regimen.errors import UsageError
from regimen.tracking.base import Sample, full_name
from regimen.tracking.redact import redacted

ID_FILE = "mlflow.id"
MAX_PARAMETER = 6000  # characters that a parameter may have
MAX_PARAMETERS = 100  # of one request


class MlflowTracker:
    """Sends metrics to MLflow."""

    is_remote = True

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self._mlflow = _package()
        folder.mkdir(parents=True, exist_ok=True)
        place = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        if place.startswith("file:"):  # newer releases want to be told that a folder will do
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        id_file = folder / ID_FILE
        try:
            self._client: Any = self._mlflow.MlflowClient(tracking_uri=place)
            if resume_step is not None and id_file.is_file():
                self._id = id_file.read_text(encoding="utf-8").strip()
                self._client.update_run(self._id, status="RUNNING")
                self._resumed = True
            else:
                experiment = self._experiment(experiment_name or "regimen")
                self._id = str(self._client.create_run(experiment, run_name=run_name).info.run_id)
                self._resumed = False
        except self._mlflow.exceptions.MlflowException as error:
            raise UsageError(
                f"MLflow cannot be reached ({str(error).splitlines()[0]})",
                where="logger.mlflow.tracking_uri",
                fix="check logger.mlflow.tracking_uri, or set logger.mlflow_enabled=false",
            ) from error
        id_file.write_text(self._id + "\n", encoding="utf-8")
        self._last: dict[str, int] = {}

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Add the metrics to the history at `step`; values that are not finite are left to metrics.jsonl."""
        now = int(time.time() * 1000)
        named = {full_name(prefix, name): float(value) for name, value in metrics.items()}
        make = self._mlflow.entities.Metric
        new = [
            make(name, value, now, step)
            for name, value in named.items()
            if math.isfinite(value) and step > self._last_step(name)
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Set the run's parameters, without secrets; those of a resumed run stand already, and cannot change."""
        if self._resumed:
            return
        make = self._mlflow.entities.Param
        parameters = [make(name, text[:MAX_PARAMETER]) for name, text in _flat(redacted(config))]
        for first in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + MAX_PARAMETERS])

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """A text file for each validation."""
        self._client.log_text(self._id, "\n".join(str(sample) for sample in samples), f"samples/step_{step}.txt")

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _last_step(self, name: str) -> int:
        """The last step that an earlier part of the run logged under `name`."""
        if not self._resumed:
            return -1
        if name not in self._last:
            history = self._client.get_metric_history(self._id, name)
            self._last[name] = max((int(metric.step) for metric in history), default=-1)
        return self._last[name]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return found


def _package() -> Any:
    try:
        importlib.import_module("mlflow.exceptions")
        return importlib.import_module("mlflow")
    except ImportError as error:
        raise UsageError(
            f"the MLflow tracker needs the package mlflow ({error})",
            where="logger.mlflow_enabled",
            fix="pip install 'regimen-rl[mlflow]', or set logger.mlflow_enabled=false",
        ) from None
