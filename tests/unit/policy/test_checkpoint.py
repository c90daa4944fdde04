from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import SafetensorError

from regimen.errors import RunError
from regimen.policy import checkpoint
from regimen.policy.checkpoint import load_state, save_model, save_state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_state_round_trip(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": {"n": 3, "x": [1.5, "text", None, True]}}
    save_state(state, tmp_path / "state.pt")
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["a"].tolist() == [0.0, 1.0, 2.0]
    assert loaded["b"] == state["b"]
    assert names(tmp_path) == ["state.pt"]


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state({"step": 1}, path)

    def full_disk(_: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_state({"step": 2}, path)
    assert load_state(path) == {"step": 1}
    assert names(tmp_path) == ["state.pt"]


def test_a_full_disk_is_one_line(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device\nC++ frames")

    def full_disk_of_tensors(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: IoError(No space left on device)")

    model = tiny.tiny_model()
    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    monkeypatch.setattr(model, "save_pretrained", full_disk_of_tensors)
    with pytest.raises(RunError, match=r"state\.pt: cannot be written \(.*No space left on device\)"):
        save_state({"step": 2}, tmp_path / "state.pt")
    with pytest.raises(RunError, match=r"model: cannot be written \(.*No space left"):
        save_model(model, tmp_path / "model", torch.float32)
    assert names(tmp_path) == []


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/nonexistent/evil"),)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps(_Evil())], ids=["empty", "text", "pickled code"]
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        load_state(path)
    with pytest.raises(RunError):
        load_state(tmp_path / "missing.pt")


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
