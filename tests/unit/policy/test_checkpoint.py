from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from regimen.errors import RunError
from regimen.policy import checkpoint
from regimen.policy.checkpoint import copied, load_state, save_model, save_state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_state_round_trip(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(3.0),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "b": {"n": 3, "x": [1.5, "text", None, True]},
        "optimizer": {"state": {0: {"step": torch.tensor(2.0)}, 7: {}}, "betas": (0.9, 0.98), "rate": 0.1 + 0.2},
        "milestones": Counter({30: 1, 80: 2}),
        "metrics": {"loss": math.nan, "bound": -math.inf},
        "marked": {"__tuple__": [1]},
    }
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert loaded["a"].tolist() == [0.0, 1.0, 2.0]
    assert (loaded["bytes"].dtype, loaded["bytes"].tolist()) == (torch.uint8, [1, 255])
    assert loaded["b"] == state["b"]
    assert loaded["optimizer"]["state"][0]["step"].item() == 2.0
    assert loaded["optimizer"]["state"][7] == {}
    assert (loaded["optimizer"]["betas"], loaded["optimizer"]["rate"]) == ((0.9, 0.98), 0.30000000000000004)
    assert (loaded["milestones"], type(loaded["milestones"])) == (state["milestones"], Counter)
    assert math.isnan(loaded["metrics"]["loss"])
    assert loaded["metrics"]["bound"] == -math.inf
    assert loaded["marked"] == {"__tuple__": [1]}
    assert names(tmp_path) == ["state.safetensors"]


def test_the_state_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    """Anyone's reader finds the tensors, and where they stand in a JSON tree."""
    save_state({"model": {"weight": torch.ones(2)}, "step": 5}, tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["regimen_state"]) == {"model": {"weight": {"__tensor__": "0"}}, "step": 5}
        assert file.get_tensor("0").tolist() == [1.0, 1.0]


def test_what_is_neither_tensor_nor_plain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a PosixPath cannot be kept in a training state"):
        save_state({"a": [tmp_path]}, tmp_path / "state.safetensors")
    assert names(tmp_path) == []


def test_a_copy_does_not_follow_its_tensor() -> None:
    weight = torch.zeros(2)
    state = {"a": [weight], "b": (weight, 1), "c": Counter({3: 1})}
    copy = copied(state)
    weight.fill_(1.0)
    assert (copy["a"][0].tolist(), copy["b"][0].tolist()) == ([0.0, 0.0], [0.0, 0.0])
    assert (type(copy["b"]), type(copy["c"]), copy["c"][3]) == (tuple, Counter, 1)


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save_state({"step": 1}, path)

    def full_disk(_: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_state({"step": 2}, path)
    assert load_state(path) == {"step": 1}
    assert names(tmp_path) == ["state.safetensors"]


def test_a_full_disk_is_one_line(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk_of_tensors(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: IoError(No space left on device)")

    model = tiny.tiny_model()
    monkeypatch.setattr(checkpoint, "save_file", full_disk_of_tensors)
    monkeypatch.setattr(model, "save_pretrained", full_disk_of_tensors)
    with pytest.raises(RunError, match=r"state\.safetensors: cannot be written \(.*No space left on device\)"):
        save_state({"step": 2}, tmp_path / "state.safetensors")
    with pytest.raises(RunError, match=r"model: cannot be written \(.*No space left"):
        save_model(model, tmp_path / "model", torch.float32)
    assert names(tmp_path) == []


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/nonexistent/evil"),)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps(_Evil()), save({"a": torch.ones(1)})],
    ids=["empty", "text", "pickled code", "tensors alone"],
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        load_state(path)
    with pytest.raises(RunError):
        load_state(tmp_path / "missing.safetensors")


def test_a_model_folder_is_replaced_whole(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    model = tiny.tiny_model()
    save_model(model, folder, torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(3.0)
    save_model(model, folder, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert set(loaded.model.norm.weight.tolist()) == {3.0}
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert model.dtype == torch.float32  # saving changes nothing

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(model, folder, torch.float32)
    assert names(tmp_path) == ["model"]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
