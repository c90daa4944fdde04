"""The reference's log-probabilities on disk: read again only where all that they depend on is the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regimen.config.load import load_train_config
from regimen.config.schema import TrainConfig
from regimen.pipelines.reference_cache import ReferenceCache, digest_of_tokens
from regimen.tokens.forest import TrainingSequence

SEQUENCES = [TrainingSequence([1, 2, 3], [(1, 3)]), TrainingSequence([1, 2, 4, 5], [(3, 4)])]
VALUES = [np.array([-0.5, -1.0], np.float32), np.array([-2.0], np.float32)]


class FakeRenderer:
    fingerprint = "tokenizer"
    template_fingerprint = "template"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def config(model: Path, precision: str = "float32") -> TrainConfig:
    data = ["data.train.dataset_name=PreferenceDataset", "data.train.data_path=t", "dpo.val_period=0"]
    values = [*data, "dpo.val_at_start=false", f"policy.model_name={model}", f"policy.precision={precision}"]
    return load_train_config("dpo", values)


def cache(model: Path, sequences: list[TrainingSequence] = SEQUENCES, renderer: Any = None, **changes: Any) -> Any:
    return ReferenceCache.of(config(model, **changes), renderer or FakeRenderer(), sequences)


def test_a_second_run_reads_what_the_first_wrote(model: Path, tmp_path: Path) -> None:
    assert cache(model).load() is None
    cache(model).save(VALUES)
    found = cache(model).load()
    assert [value.tolist() for value in found] == [value.tolist() for value in VALUES]
    files = list((tmp_path / "cache" / "regimen" / "reference_logprobs").iterdir())
    assert [file.suffix for file in files] == [".safetensors"]  # no temporary file stays


def test_a_copy_of_the_model_elsewhere_is_the_same_model(model: Path, tmp_path: Path) -> None:
    cache(model).save(VALUES)
    shutil.copytree(model, tmp_path / "copy")
    assert cache(tmp_path / "copy").load() is not None


def test_whatever_the_values_depend_on_is_in_the_name(model: Path) -> None:
    cache(model).save(VALUES)
    assert cache(model, precision="bfloat16").load() is None
    assert cache(model, sequences=SEQUENCES[::-1]).load() is None
    assert cache(model, sequences=[SEQUENCES[0], replace(SEQUENCES[1], spans=[(2, 3)])]).load() is None
    other = FakeRenderer()
    for name in ("fingerprint", "template_fingerprint"):
        setattr(other, name, "other")
        assert cache(model, renderer=other).load() is None
        other = FakeRenderer()
    (model / "config.json").write_text('{"rope_theta": 1}')
    assert cache(model).load() is None
    (model / "config.json").write_text("{}")
    assert cache(model).load() is not None
    (model / "model.safetensors").write_bytes(b"WEIGHTS")  # of the same size
    assert cache(model).load() is None


def test_a_file_that_does_not_fit_is_not_used(model: Path) -> None:
    made = cache(model)
    made.save(VALUES)
    made.path.write_bytes(made.path.read_bytes()[:-1])
    assert made.load() is None
    made.path.write_bytes(b"")
    assert made.load() is None
    made.save([VALUES[0]])  # one sequence less
    assert made.load() is None


def test_a_folder_that_cannot_be_written_is_no_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    cache(model).save(VALUES)
    assert cache(model).load() is None


def test_a_model_without_weights_here_has_no_cache(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    assert cache(model) is None
    assert cache(Path("nobody/has-this-model")) is None


def test_tokens_are_told_apart_by_their_places() -> None:
    pairs = [([1, 2], [(1, 2)]), ([1], []), ([1, 2, 1, 2], [])]
    digests = {digest_of_tokens([TrainingSequence(ids, spans)]) for ids, spans in pairs}
    split = digest_of_tokens([TrainingSequence([1, 2], []), TrainingSequence([1, 2], [])])
    assert len({*digests, split}) == 4
