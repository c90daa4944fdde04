import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("torch")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regimen.tracking.base import Sample
from regimen.tracking.tensorboard import TensorBoardTracker


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_can_be_read_back(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.log(1, {"loss": 0.5}, "train")
    tracker.log(2, {"loss": 0.25}, "train")
    tracker.close()
    assert scalars(tmp_path / "tensorboard", "train/loss") == [(1, 0.5), (2, 0.25)]


def test_a_resumed_run_hides_the_steps_it_runs_again(tmp_path):
    first = TensorBoardTracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.close()
    second = TensorBoardTracker(tmp_path, resume_step=2)
    second.log(2, {"loss": 20.0})
    second.close()
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 1.0), (2, 20.0)]


def test_texts_are_kept_as_they_are(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.log_config({"policy": {"model_name": "tiny", "api_key": "top-secret-1"}})
    tracker.log_samples(2, [Sample(prompt="What?", answer="*That*.", reward=1.0)])
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("validation/sample_0/text_summary")
    assert text.step == 2
    assert text.tensor_proto.string_val[0].decode() == "    --- reward 1\n    What?\n    >>>\n    *That*.\n"
    [config] = events.Tensors("config/text_summary")
    shown = config.tensor_proto.string_val[0].decode()
    assert "model_name: tiny" in shown
    assert "top-secret-1" not in shown
