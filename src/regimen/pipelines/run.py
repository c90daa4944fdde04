"""A run's folder: what was asked, with which versions, what came out, and where to go on from.

    config.yaml      the resolved configuration            versions.json    Python, packages, git revision
    inputs.json      digests of data files and model, fingerprints of tokenizer and chat template
    ledger.json      what became of rows, tokens, episodes changes.jsonl    what differed when it was resumed
    metrics.jsonl    one line per step                     rollouts/        each step's episodes (GRPO)
    samples.jsonl    a few episodes of each validation     failures/        a batch, or stacks, that stopped the run
    step_N/          a Hugging Face model folder with training_info.json; the latest also with its training state
                      (and training_state/, where many processes trained)
    model/           the model to use: the best by the configured metric, else the last

A checkpoint appears whole or not at all, and is on the disk when it does. Refuses: a fresh run into the folder of
another; resuming what was not begun, or with another configuration, data, model, tokenizer or chat template.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from regimen.errors import RunError, UsageError
from regimen.pipelines.identity import (
    Change,
    Decision,
    config_changes,
    file_changes,
    inputs_of,
    read_inputs,
    rendering_changes,
)
from regimen.policy.durable import rename_durably, sync_folder
from regimen.rank import is_first_process

INFO_FILE = "training_info.json"
LEDGER_FILE = "ledger.json"
STATE_FILE = "training_state.safetensors"
SHARDS_FOLDER = "training_state"  # what many processes hold, each its own
_PACKAGES = ("regimen-rl", "torch", "transformers", "numpy", "msgspec", "pydantic")


class RunFolder:
    """See the module. `start_step` is the number of steps that are done, `is_finished` that these are all."""

    def __init__(self, folder: Path, config_text: str, *, resume: bool, allow_changed: bool = False) -> None:
        self.path = folder
        self.config_text = config_text
        self.resume = resume
        self.allow_changed = allow_changed
        self.start_step = 0
        self.checkpoint: Path | None = None
        self.is_finished = False
        self.changes: list[str] = []
        config_path = folder / "config.yaml"
        if not resume and config_path.exists():
            raise UsageError(
                "the folder holds a run",
                where=str(folder),
                fix="continue it with --resume, or set checkpointing.checkpoint_dir to another folder",
            )
        if resume and not config_path.exists():
            raise UsageError("there is no run to resume", where=str(folder), fix="start it without --resume")
        if resume:
            self._decide(config_changes(config_path.read_text(encoding="utf-8"), config_text))
        self.inputs = inputs_of(config_text)
        if resume:
            self.begun_with = read_inputs(folder / "inputs.json")
            self._decide(file_changes(self.begun_with, self.inputs))
            self._find_checkpoint()

    def check_rendering(self, tokenizer: str, template: str) -> None:
        """Note what makes token ids of texts; refuse it where the run was begun with another."""
        self.inputs.tokenizer, self.inputs.template = tokenizer, template
        if self.resume:
            self._decide(rendering_changes(self.begun_with, self.inputs))

    def _decide(self, changes: list[Change]) -> None:
        """Raise `UsageError` for changes that are not allowed; remember the others."""
        decision = Decision.of(changes)
        new_run = "start a new run in another folder"
        if decision.refused:
            raise UsageError(
                f"changed since the run was begun: {', '.join(decision.refused)}",
                where=str(self.path),
                expected="what its checkpoints hold the state of",
                fix=f"put it back, or {new_run}, with policy.model_name set to a checkpoint of this one",
            )
        if decision.asking and not self.allow_changed:
            raise UsageError(
                f"changed since the run was begun: {', '.join(decision.asking)}",
                where=str(self.path),
                fix=f"put it back, go on all the same with --allow-changed, or {new_run}",
            )
        self.changes += decision.recorded

    def open(self) -> None:
        """Make the folder, once everything that the run needs is loaded."""
        self.path.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(self.path)
        if self.changes:
            line = json.dumps({"step": self.start_step, "changed": self.changes})
            with (self.path / "changes.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        write_text(self.path / "inputs.json", msgspec.json.format(msgspec.json.encode(self.inputs)).decode() + "\n")
        write_text(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        write_text(self.path / "config.yaml", self.config_text)  # last: with it the folder holds a run

    def _find_checkpoint(self) -> None:
        every = checkpoints(self.path)
        steps = [path for path in every if (path / STATE_FILE).is_file()]
        if every and _is_last(every[-1]):  # where nothing is left to train, no state is needed
            self.checkpoint, self.is_finished = every[-1], True
            self.start_step = step_of(self.checkpoint)
        elif steps:
            self.checkpoint = steps[-1]
            self.start_step = step_of(self.checkpoint)
        elif every:
            raise self.without_state()

    def without_state(self) -> UsageError:
        """What to say where there is more to train and no state to go on from."""
        return UsageError(
            "its checkpoints hold no training state",
            where=str(self.path),
            fix="train with checkpointing.save_optimizer=true to be able to resume",
        )

    def failures(self, rank: int) -> Path:
        """Where a process leaves what stopped the run: each its own."""
        return self.path / "failures" / (f"rank_{rank}" if rank else "")

    def unfinished(self, step: int) -> Path:
        """Where the checkpoint of `step` is written until it is whole."""
        return self.path / f".step_{step}.tmp"

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        info: dict[str, Any],
        *,
        keep: int | None,
        higher_is_better: bool,
    ) -> Path:
        """Make `step_N` from what `write` puts into a folder, then drop what need not be kept.

        The best `keep` by `info["metric"]` and the latest stay; only the latest keeps its training state.
        """
        final = self.path / f"step_{step}"
        temporary = self.unfinished(step)
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        text = json.dumps({"step": step, **info}, indent=2) + "\n"
        (temporary / INFO_FILE).write_text(text, encoding="utf-8")
        sync_folder(temporary)
        remove_folder(final)
        rename_durably(temporary, final)
        self.checkpoint = final
        for path in checkpoints(self.path)[:-1]:
            (path / STATE_FILE).unlink(missing_ok=True)
            shutil.rmtree(path / SHARDS_FOLDER, ignore_errors=True)
        for path in self._superfluous(keep, higher_is_better):
            remove_folder(path)
        return final

    def _superfluous(self, keep: int | None, higher_is_better: bool) -> list[Path]:
        *others, _ = checkpoints(self.path)
        if keep is None:
            return []
        ranked = _ranked([*others, checkpoints(self.path)[-1]], higher_is_better)
        return [path for path in others if path not in ranked[:keep]]

    def best(self, *, higher_is_better: bool) -> Path | None:
        """The best checkpoint by metric; the latest where none has one."""
        steps = checkpoints(self.path)
        return _ranked(steps, higher_is_better)[0] if steps else None


def _ranked(steps: list[Path], higher_is_better: bool) -> list[Path]:
    """Best first: by metric where there is one, then the later step."""

    def key(path: Path) -> tuple[float, int]:
        metric = json.loads((path / INFO_FILE).read_text(encoding="utf-8")).get("metric")
        value = float("-inf") if metric is None else float(metric) * (1 if higher_is_better else -1)
        value = float("-inf") if math.isnan(value) else value
        return value, step_of(path)

    return sorted(steps, key=key, reverse=True)


def _is_last(checkpoint: Path) -> bool:
    """Whether the checkpoint is that of a run's final step."""
    info = json.loads((checkpoint / INFO_FILE).read_text(encoding="utf-8"))
    return info.get("total_steps") is not None and info["total_steps"] == info.get("step")


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, by step."""
    found = [path for path in folder.glob("step_*") if (path / INFO_FILE).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number in `step_N`."""
    try:
        return int(checkpoint.name.removeprefix("step_"))
    except ValueError:
        raise RunError("not a checkpoint's name", where=str(checkpoint), expected="step_N") from None


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill in between leaves none of its name: half a checkpoint must not look whole."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
        shutil.rmtree(doomed)


def _clear_unfinished(folder: Path) -> None:
    """Remove what a kill left: half of a checkpoint written or removed, of a model, of a small file."""
    for pattern in (".step_*.tmp", "..step_*.tmp.tmp-*", ".model.*tmp"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob(".*.tmp"), *folder.glob("rollouts/.*.tmp")]:
        if path.is_file():
            path.unlink()


def publish_model(checkpoint: Path, destination: Path) -> None:
    """Make `destination` the model of `checkpoint`: its files linked, without the training state."""
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(
        checkpoint,
        temporary,
        copy_function=_link_or_copy,
        ignore=shutil.ignore_patterns(STATE_FILE, SHARDS_FOLDER, INFO_FILE),
    )
    sync_folder(temporary)
    remove_folder(destination)
    rename_durably(temporary, destination)


def _link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    rename_durably(temporary, path)


def versions() -> dict[str, str | None]:
    """What the run's results depend on besides its configuration."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["git"] = _git_revision()
    return found


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class StopSignal:
    """Set by SIGTERM: finish the step, save, leave."""

    def __init__(self) -> None:
        self.received = False


@contextmanager
def listening_for_stop() -> Generator[StopSignal]:
    """Turn SIGTERM into a flag while the block runs (main thread only; elsewhere nothing is listened for)."""
    flag = StopSignal()

    def stop(*_: object) -> None:
        flag.received = True
        if is_first_process():
            print("SIGTERM: finishing this step, then saving a checkpoint", file=sys.stderr, flush=True)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
