"""The loop: rounds of collect, convert, train and evaluate; a model is kept only when it is better on validation tasks.

In: an `IterateConfig`. Out: an `IterateResult`, and this folder:

    state.json       what is finished; written after every stage     models/     links: start, round_1, …
    round_N/         rollouts.jsonl, the converted folder (sft, dpo or grpo), run/, evaluation/; where adapters were
                     trained, merged/, the model that the next stages load
    final/           the kept and the starting model on the final split, played once, after the last round
    iterate.json     the rounds and the final comparison             report.html

Each round begins with the best model so far. Its model replaces that one when the paired difference of mean rewards on
the validation tasks is above `min_improvement`; the interval's verdict is recorded and decides nothing, since choosing
is not claiming: the claim is the final comparison, on tasks that chose nothing.
A loop that was killed goes on behind the last finished stage; the stage in flight resumes by its own means.
Refuses: a folder in use, resuming with other settings, more rounds once the final tasks were played.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from regimen.adapters import holds_adapters
from regimen.config.load import assignment, dump, load_train_config
from regimen.config.schema import CollectConfig, EvaluateConfig, IterateConfig
from regimen.convert.options import DATASETS, ConvertOptions, check_for_target
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.evaluation.compare import Comparison
from regimen.pipelines.collect import collect
from regimen.pipelines.convert import convert
from regimen.pipelines.evaluate import EVALUATION_FILE, Evaluation, evaluate
from regimen.pipelines.iterate_report import rounds_table, write_loop_report
from regimen.pipelines.merge import merge
from regimen.pipelines.models import free_memory, resolve_model
from regimen.pipelines.run import write_text
from regimen.pipelines.train import train
from regimen.registry import nearest

STATE_FILE = "state.json"
RESULT_FILE = "iterate.json"
MERGED = "merged"
START = 0  # stands for the starting model where rounds are numbered

Progress = Callable[..., None]


class Round(msgspec.Struct, kw_only=True):
    """What a round did. `start` is the round whose model it began with; `seconds` has an entry per finished stage."""

    number: int
    start: int
    seconds: dict[str, float] = {}
    num_episodes: int = 0
    mean_reward: float | None = None
    format: str = ""
    converted: dict[str, int] = {}
    trained: dict[str, int] = {}
    num_steps: int = 0
    comparison: Comparison | None = None
    kept: bool = False


class State(msgspec.Struct, kw_only=True):
    """What is finished. `final` is how long the final evaluation took; None until it is there."""

    version: int = 1
    settings: dict[str, Any]
    rounds: list[Round] = []
    final: float | None = None

    @property
    def kept(self) -> int:
        """The round whose model is the best so far; 0 is the starting model."""
        return max((done.number for done in self.rounds if done.kept), default=START)


@dataclass(frozen=True, slots=True)
class Stages:
    """The four pipelines of a round; tests put others in their place."""

    collect: Callable[..., Any] = collect
    convert: Callable[..., Any] = convert
    train: Callable[..., Any] = train
    evaluate: Callable[..., Evaluation] = evaluate


@dataclass(slots=True)
class IterateResult:
    """What came out: the rounds, the kept one (0: the starting model), its model, the final evaluation.

    `stopped`: training was asked to stop by a signal; `evaluation` is None, and the loop can be resumed.
    """

    folder: Path
    rounds: list[Round]
    kept: int
    model: Path | str
    evaluation: Evaluation | None = None
    stopped: bool = False

    def __str__(self) -> str:
        text = rounds_table(self.rounds, self.evaluation)
        if self.stopped:
            return f"{text}\nstopped by a signal; continue with --resume"
        kept = f"round {self.kept}" if self.kept else "the starting model: no round made a better one"
        return f"{text}\nkept: {kept}\nmodel: {self.model}\nreport: {self.folder / 'report.html'}"


class _StoppedError(Exception):
    """Training left early because of a signal."""


def iterate(
    config: IterateConfig, *, resume: bool = False, progress: Progress | None = None, stages: Stages | None = None
) -> IterateResult:
    """Run the rounds that are missing, then judge the kept model and the starting one on the final split, once.

    Raises `UsageError` for a folder in use or settings that changed, and what the stages raise.
    """
    convert_options(config)
    resolve_model(config.model)
    state = _open(config, resume=resume or config.resume)
    return _Loop(config, state, stages or Stages(), progress or _silent).run()


def convert_options(config: IterateConfig) -> ConvertOptions:
    """The options of `convert`, less `to`. Raises `ConfigError` for a key that is none.

    No task is held out for GRPO unless asked: its training plays the validation data of its own configuration.
    """
    given = {key: value for key, value in config.convert.items() if key != "to"}
    if config.convert["to"] == "grpo":
        given.setdefault("validation_fraction", 0.0)
    for key in given:
        if key not in ConvertOptions.__struct_fields__:
            close = nearest(key, list(ConvertOptions.__struct_fields__))
            fix = f"did you mean convert.{close}?" if close else None
            raise ConfigError("unknown key", where=f"convert.{key}", fix=fix)
    try:
        options = msgspec.convert(given, ConvertOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), where="convert") from None
    check_for_target(options, config.convert["to"])
    return options


def _silent(*_: object, **__: object) -> None:
    pass


def _open(config: IterateConfig, *, resume: bool) -> State:
    """The state to go on from: a new one, or that of the folder when resuming."""
    folder = Path(config.output)
    settings = _settings(config)
    if resume:
        state = _read_state(folder, fix="start it without --resume")
        if state.settings != settings:
            raise UsageError(
                "the loop was begun with other settings",
                where=str(folder / STATE_FILE),
                fix="resume with those (rounds and batch sizes may change), or choose another output",
            )
        if state.final is not None and config.rounds > len(state.rounds):
            raise UsageError(
                f"the loop ended after {len(state.rounds)} rounds and its final tasks were played",
                where=str(folder),
                expected="final tasks to be looked at once",
                fix="start a new loop from its model, in another folder",
            )
        state.rounds = state.rounds[: config.rounds]
        return state
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not config.overwrite:
            fix = "continue with --resume, replace it with --overwrite, or set another output"
            raise UsageError("the folder is not empty", where=str(folder), fix=fix)
        _read_state(folder, fix="choose another output; --overwrite replaces folders of earlier loops only")
        shutil.rmtree(folder)
    return State(settings=settings)


def _read_state(folder: Path, *, fix: str) -> State:
    try:
        return msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError):
        raise UsageError("holds no loop of iterate", where=str(folder), fix=fix) from None


def _settings(config: IterateConfig) -> dict[str, Any]:
    """What must not change between a loop and its resumption, as JSON has it."""
    settings = config.model_dump(mode="json", exclude={"output", "rounds", "resume", "overwrite"})
    for section in (settings["collect"], settings["evaluate"]):
        # How many play at once changes no episode.
        section.pop("concurrency")
        section["generation"].pop("max_batch_size")
    return json.loads(json.dumps(settings))


class _Loop:
    """One run of the loop: its configuration, its state and the stages in order."""

    def __init__(self, config: IterateConfig, state: State, stages: Stages, progress: Progress) -> None:
        self.config, self.state, self.stages, self.progress = config, state, stages, progress
        self.folder = Path(config.output)
        self.to: str = config.convert["to"]

    def run(self) -> IterateResult:
        self._save()
        try:
            for number in range(1, self.config.rounds + 1):
                self._round(number)
        except _StoppedError:
            kept = self.state.kept
            return IterateResult(self.folder, self.state.rounds, kept, self._target(kept), stopped=True)
        evaluation = self._final()
        kept = self.state.kept
        result = IterateResult(self.folder, self.state.rounds, kept, self._target(kept), evaluation)
        write_loop_report(self.folder, result.rounds, evaluation, self.state.final or 0.0, dump(self.config))
        write_text(self.folder / RESULT_FILE, _as_json(result))
        return result

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / STATE_FILE, msgspec.json.format(msgspec.json.encode(self.state)).decode() + "\n")

    def _round(self, number: int) -> None:
        """The stages of a round that are not finished yet."""
        if number > len(self.state.rounds):
            self.state.rounds.append(Round(number=number, start=self.state.kept))
        current = self.state.rounds[number - 1]
        for name in ("collect", "convert", "train", "evaluate"):
            if name not in current.seconds:
                started = time.monotonic()
                getattr(self, f"_{name}")(current, self.folder / f"round_{number}")
                current.seconds[name] = round(time.monotonic() - started, 3)
                free_memory()
                self._save()

    def _collect(self, current: Round, folder: Path) -> None:
        given = {
            **self.config.collect.model_dump(),
            "model": self._model(current.start),
            "output": str(folder / "rollouts.jsonl"),
            "seed": self.config.collect.seed + self.config.seed + current.number - 1,  # new episodes each round
            "resume": True,
        }
        total = done = 0

        def begin(num_episodes: int) -> None:
            nonlocal total
            total = num_episodes

        def count(_row: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            self.progress(f"round {current.number}: collect", done, total)

        collection = self.stages.collect(CollectConfig.model_validate(given), on_start=begin, on_row=count)
        current.num_episodes, current.mean_reward = collection.num_episodes, collection.mean_reward

    def _convert(self, current: Round, folder: Path) -> None:
        options = convert_options(self.config)
        try:
            manifest = self.stages.convert(
                folder / "rollouts.jsonl", self.to, folder / self.to, options, overwrite=True
            )
        except ConvertError as error:
            if current.number == 1:
                raise
            end = f"end the loop here: --resume with rounds={current.number - 1}"
            fix = f"{error.fix}, or {end}" if error.fix else end
            raise ConvertError(error.message, where=error.where, expected=error.expected, fix=fix) from error
        current.format, current.converted = manifest.format, dict(manifest.ledger.rows)

    def _train(self, current: Round, folder: Path) -> None:
        loaded = load_train_config(self.config.train.config, self._overrides(current, folder))

        def report(label: str, done: int, total: int, note: str = "") -> None:
            self.progress(f"round {current.number}: {label}", done, total, note)

        begun = (folder / "run" / "config.yaml").exists()
        result = self.stages.train(loaded, resume=begun, progress=report)
        if result.stopped:
            raise _StoppedError
        if holds_adapters(folder / "run" / "model"):
            merge(folder / "run" / "model", folder / MERGED, overwrite=True)
        current.trained, current.num_steps = dict(result.ledger), result.num_steps

    def _overrides(self, current: Round, folder: Path) -> list[str]:
        """What the round adds to the training configuration: model, data, folders."""
        given: dict[str, Any] = {
            "policy.model_name": self._model(current.start),
            "checkpointing.enabled": True,
            "checkpointing.checkpoint_dir": str(folder / "run"),
            "logger.log_dir": str(folder / "run"),
            "data.train.dataset_name": DATASETS[current.format],
            "data.train.data_path": str(folder / self.to / "train.jsonl"),
        }
        if self.to == "grpo":
            environment = self.config.collect.environment
            given["data.train.env_name"] = environment.name
            given |= {"env": {environment.name: environment.settings}} if environment.settings else {}
        else:
            given["data.validation.dataset_name"] = DATASETS[current.format]
            given["data.validation.data_path"] = str(folder / self.to / "val.jsonl")
        return [*self.config.train.overrides, *(assignment(key, value) for key, value in given.items())]

    def _evaluate(self, current: Round, folder: Path) -> None:
        label = f"round {current.number}: evaluate"
        models, against = [self._model(current.number)], self._model(current.start)
        evaluation = self._play(models, against, self.config.evaluate.split, folder / "evaluation", label)
        comparison = evaluation.comparison
        assert comparison is not None
        current.comparison = comparison
        current.kept = comparison.difference > self.config.min_improvement

    def _final(self) -> Evaluation:
        """The kept model against the starting one on the final split; the starting one alone when none was kept."""
        output = self.folder / "final"
        if self.state.final is not None:
            return msgspec.json.decode((output / EVALUATION_FILE).read_bytes(), type=Evaluation)
        kept = self.state.kept
        against = self._model(START) if kept else None
        started = time.monotonic()
        evaluation = self._play([self._model(kept)], against, self.config.evaluate.final_split, output, "final")
        self.state.final = round(time.monotonic() - started, 3)
        self._save()
        return evaluation

    def _play(self, models: list[str], against: str | None, split: str, output: Path, label: str) -> Evaluation:
        given = {
            **self.config.evaluate.model_dump(exclude={"final_split"}),
            "models": models,
            "against": against,
            "split": split,
            "output": str(output),
        }

        def report(name: str, done: int, total: int) -> None:
            self.progress(f"{label} {name}", done, total)

        return self.stages.evaluate(EvaluateConfig.model_validate(given), report, resume=True)

    def _target(self, number: int) -> Path | str:
        """The model of a round, or the starting one."""
        if not number:
            return resolve_model(self.config.model)
        folder = self.folder / f"round_{number}"
        return folder / MERGED if (folder / MERGED).is_dir() else folder / "run" / "model"

    def _model(self, number: int) -> str:
        """The model of a round under a name that tells them apart in tables: a link; a hub's name stays as it is."""
        target = Path(self._target(number))
        link = self.folder / "models" / (f"round_{number}" if number else "start")
        if not number and not target.is_dir():
            return str(target)
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            place = target.resolve() if number == START else os.path.relpath(target, link.parent)
            link.symlink_to(place, target_is_directory=True)
        return str(link)


def _as_json(result: IterateResult) -> str:
    """What machines read: the rounds, what was kept, the final scores and their paired difference."""
    evaluation = result.evaluation
    record = {
        "version": 1,
        "kept": result.kept,
        "model": str(result.model),
        "rounds": result.rounds,
        "final": evaluation.models if evaluation else [],
        "environments": evaluation.environments if evaluation else {},
    }
    return msgspec.json.format(msgspec.json.encode(record)).decode() + "\n"
