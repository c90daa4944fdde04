"""Against the real package, with a folder for a server."""

import pytest

pytest.importorskip("mlflow")

import mlflow

from regimen.errors import UsageError
from regimen.tracking.base import Sample
from regimen.tracking.mlflow import MlflowTracker


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def stored(folder):
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    return client, client.get_run((folder / "mlflow.id").read_text().strip())


def history(folder, name):
    client, run = stored(folder)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_metrics_parameters_and_samples_without_secrets(tmp_path):
    tracker = MlflowTracker(tmp_path, experiment_name="e", run_name="r")
    many = {f"key_{i}": i for i in range(150)}  # more than one request takes
    tracker.log_config({"policy": {"model_name": "tiny"}, "env": {"search": {"api_key": "top-secret-1"}}, "many": many})
    for step in (1, 2):
        tracker.log(step, {"loss": 1 / step, "reward": float("nan"), "failed:timed_out": 1.0}, "train")
    tracker.log_samples(2, [Sample(prompt="What?", answer="That.", reward=1.0)])
    tracker.close()
    _, run = stored(tmp_path)
    assert (run.info.run_name, run.info.status) == ("r", "FINISHED")
    assert history(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert history(tmp_path, "train/reward") == []
    assert run.data.params["policy.model_name"] == "tiny"
    assert run.data.params["many.key_149"] == "149"
    assert run.data.params["env.search.api_key"] == "(redacted)"
    [text] = tmp_path.rglob("step_2.txt")
    assert text.read_text() == "--- reward 1\nWhat?\n>>>\nThat.\n"
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"top-secret-1" in content for content in files)


def test_a_resumed_run_goes_on_and_each_step_stands_once(tmp_path):
    first = MlflowTracker(tmp_path)
    first.log_config({"a": 1})
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    second = MlflowTracker(tmp_path, resume_step=3)
    second.log_config({"a": 2})
    for step in (3, 4):
        second.log(step, {"loss": 10.0 * step})
    second.close()
    assert history(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert stored(tmp_path)[1].data.params == {"a": "1"}


def test_a_server_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UsageError, match=r"logger\.mlflow\.tracking_uri: MLflow cannot be reached"):
        MlflowTracker(tmp_path, tracking_uri="http://127.0.0.1:9")
