"""The reference's log-probabilities of a data set, kept on disk for the next run.

In: what the values depend on (weights, tokenizer, template, tokens, precision), the values. Out: the values
of an earlier run when all of that is the same, or nothing. A file appears whole or not at all; one that cannot be read
or does not fit is computed again. Refuses nothing: without the cache a run is slower, not different.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from regimen.config.schema import TrainConfig
from regimen.pipelines.models import resolve_model
from regimen.pipelines.small_model import default_cache
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.template import Renderer

VERSION = 1  # of what the digest is made from; a change leaves earlier files unread
FILES = ("*.safetensors", "*.bin", "*.json", "*.py")
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """One file of values, `[num_trained]` of each sequence behind one another."""

    path: Path
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, config: TrainConfig, renderer: Renderer, sequences: Sequence[TrainingSequence]
    ) -> ReferenceCache | None:
        """The file that holds the values of `sequences` by the configured model; None where its files are not known."""
        folder = _model_folder(resolve_model(config.policy.model_name))
        weights = None if folder is None else digest_of_model(folder)
        if weights is None:
            return None
        identity = {
            "version": VERSION,
            "weights": weights,
            "tokenizer": renderer.fingerprint,
            "template": renderer.template_fingerprint,
            "tokens": digest_of_tokens(sequences),
            "precision": config.policy.precision,
            **_frozen(config),
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return cls(cache_folder() / f"{name}.safetensors", tuple(sequence.num_trained for sequence in sequences))

    def load(self) -> list[np.ndarray] | None:
        """The values of each sequence, or None where there is no whole file of them."""
        try:
            values = load_file(self.path)["logprobs"]
        except (OSError, KeyError, SafetensorError):
            return None
        if values.dtype != np.float32 or values.shape != (sum(self.sizes),):
            return None
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def save(self, values: Sequence[np.ndarray]) -> None:
        """Keep the values; where the folder cannot be written the next run computes them again."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logprobs": np.concatenate([np.asarray(v, np.float32) for v in values])}, temporary)
            temporary.replace(self.path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temporary.unlink()


def _frozen(config: TrainConfig) -> dict[str, str]:
    """What weights below adapters are held in, where that is not float32."""
    lora = config.policy.dtensor_cfg.lora_cfg
    held = "4bit" if lora.load_in_4bit else config.policy.precision
    return {"weights_in": held} if lora.enabled and held != "float32" else {}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/regimen/reference_logprobs`, else below `~/.cache`."""
    return default_cache().with_name("reference_logprobs")


def _model_folder(name: str) -> Path | None:
    """The folder of a model's files: itself, or what was downloaded of a hub's model."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None


def digest_of_model(folder: Path) -> str | None:
    """SHA-256 of the contents of a model folder's weights, settings and code, by name; None without weights."""
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    if not any(path.suffix in WEIGHTS for path in paths):
        return None
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def digest_of_tokens(sequences: Sequence[TrainingSequence]) -> str:
    """SHA-256 of ids and spans, in order."""
    whole = hashlib.sha256()
    for sequence in sequences:
        for values in (sequence.ids, [place for span in sequence.spans for place in span]):
            array = np.asarray(values, np.int64)
            whole.update(len(array).to_bytes(8, "little"))
            whole.update(array.astype("<i8").tobytes())
    return whole.hexdigest()
