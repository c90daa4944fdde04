"""The evaluation: play the test tasks with each model, or read rollouts that exist; score, compare, write.

In: models and perhaps a base to compare them with (folders, or rollout files).
Out: an `Evaluation`; with an output folder also `<label>/rollouts.jsonl` and its siblings, `evaluation.json`,
`report.html`. All models get the same tasks, prompts, sampling and seeds.
Refuses: an output folder that holds an evaluation (unless resuming or asked to overwrite), resuming with other
settings, a model compared with itself. Reading files imports no torch.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from regimen.config.schema import EvaluateConfig
from regimen.errors import ConfigError, RunError, UsageError
from regimen.evaluation.compare import Comparison, compare
from regimen.evaluation.metrics import Score, observation_of, score
from regimen.evaluation.records import ModelResult, ReportData, StageTime, examples_of
from regimen.evaluation.report import write_report
from regimen.pipelines.models import check_length, check_models, free_memory, resolve_model
from regimen.rollouts.reader import Paths, RolloutReader, checked_paths, read_failures
from regimen.rollouts.records import Rollout

if TYPE_CHECKING:
    from regimen.generation.base import Generation
    from regimen.gym.agent import Renderer
    from regimen.gym.environment import Environment, Task

EVALUATION_FILE = "evaluation.json"
SETTINGS_FILE = "settings.json"
REPORT_FILE = "report.html"
ROLLOUTS_FILE = "rollouts.jsonl"
MODEL_FOLDER = "model"
PASS_THRESHOLD = 1.0

# Called as an episode of a model ends: its label, episodes done, episodes in all.
Progress = Callable[[str, int, int], None]
OpenModel = Callable[[str, EvaluateConfig], "tuple[Generation, Renderer]"]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result: the base first where there is one, then the models, each compared with the base.

    `environments`: the same for the tasks of each environment, where there are several.
    """

    version: int = 1
    models: list[ModelResult]
    sources: dict[str, list[str]]
    settings: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    rollouts: dict[str, str] = {}
    environments: dict[str, list[ModelResult]] = {}

    @property
    def score(self) -> Score:
        """The (last) model's score."""
        return self.models[-1].score

    @property
    def base(self) -> Score | None:
        """The score of what the models were compared with."""
        return self.models[0].score if self.comparison else None

    @property
    def comparison(self) -> Comparison | None:
        """The (last) model against the base; None without a base."""
        return self.models[-1].comparison


def evaluate_rollouts(
    rollouts: Paths,
    against: Paths | None = None,
    *,
    output: Path | None = None,
    ks: Sequence[int] = (),
    pass_threshold: float = PASS_THRESHOLD,
    max_bad: float = 0.01,
    overwrite: bool = False,
) -> Evaluation:
    """Score rollout files, and compare them with others on the same tasks."""
    paths = [checked_paths(given) for given in (against, rollouts) if given is not None]
    labels = labels_of([_file_source(listed[0]) for listed in paths])
    if output is not None:
        _refuse_existing(output, overwrite)
    sides = {label: read_side(listed, max_bad=max_bad) for label, listed in zip(labels, paths, strict=True)}
    evaluation = Evaluation(
        models=results_of(sides, against is not None, ks, pass_threshold),
        sources={label: [str(path) for path in listed] for label, listed in zip(labels, paths, strict=True)},
        settings={"ks": list(ks), "pass_threshold": pass_threshold},
        environments=results_by_environment(sides, against is not None, ks, pass_threshold),
    )
    if output is not None:
        write_evaluation(evaluation, sides, output)
    return evaluation


def evaluate(
    config: EvaluateConfig,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    open_model: OpenModel | None = None,
) -> Evaluation:
    """Play the tasks with the base and each model, one after the other, then score and compare.

    `open_model` makes the generation and the renderer of a model; without it the configured backend does.
    """
    from regimen.gym.environment import load_environment
    from regimen.pipelines.collect import tasks_of

    names = [name for name in (config.against, *config.models) if name is not None]
    sources = dict(zip(labels_of(names), names, strict=True))
    if open_model is None:
        check_models(names)
        for name in names:
            check_length(name, config.max_sequence_length, "max_sequence_length", trust=config.trust_remote_code)
    _check_repeats(config)
    environment = load_environment(config.environment.name, config.environment.settings)
    tasks = tasks_of(environment, config.split, config.num_tasks)
    output = Path(config.output)
    _prepare(output, config, sources, resume=resume)
    files = {label: output / folder_name(label) / ROLLOUTS_FILE for label in sources}
    seconds: dict[str, float] = {}
    for label, name in sources.items():
        started = time.monotonic()
        generation, renderer = (open_model or open_configured_model)(name, config)
        report = _counter(label, len(tasks) * config.num_repeats, progress)
        parts = (environment, generation, renderer)
        asyncio.run(_collect(tasks, parts, config, label, files[label], resume, report))
        del generation, parts
        free_memory()
        seconds[label] = round(time.monotonic() - started, 3)
    # Read back what was written: evaluating the files later gives the same numbers.
    sides = {label: read_side([path], max_bad=0.0) for label, path in files.items()}
    evaluation = Evaluation(
        models=results_of(sides, config.against is not None, config.pass_at, PASS_THRESHOLD),
        sources={label: [name] for label, name in sources.items()},
        settings=_settings(config),
        seconds=seconds,
        rollouts={label: str(path.relative_to(output)) for label, path in files.items()},
        environments=results_by_environment(sides, config.against is not None, config.pass_at, PASS_THRESHOLD),
    )
    write_evaluation(evaluation, sides, output)
    return evaluation


def _check_repeats(config: EvaluateConfig) -> None:
    if max(config.pass_at) > config.num_repeats:
        raise ConfigError(
            f"pass@{max(config.pass_at)} with {config.num_repeats} repeats a task",
            where="pass_at",
            expected=f"numbers from 1 to {config.num_repeats}",
            fix="raise num_repeats",
        )


def open_configured_model(name: str, config: EvaluateConfig) -> tuple[Generation, Renderer]:
    """The generation and renderer of a model folder, by the configured backend."""
    from regimen.pipelines.collect import load_generation
    from regimen.tokens.template import Renderer

    name, trust = resolve_model(name), config.trust_remote_code
    renderer = Renderer.load(name, config.chat_template, config.chat_template_kwargs, trust_remote_code=trust)
    generation = load_generation(name, config.generation, trust_remote_code=trust)
    return generation, renderer


async def _collect(
    tasks: Sequence[Task],
    parts: tuple[Environment, Generation, Renderer],
    config: EvaluateConfig,
    label: str,
    output: Path,
    resume: bool,
    on_row: Callable[[dict[str, Any]], None] | None,
) -> None:
    from regimen.gym.collect import collect_rollouts
    from regimen.pipelines.collect import limits_of, sampling_of

    environment, generation, renderer = parts
    try:
        await collect_rollouts(
            tasks,
            config.num_repeats,
            environment,
            generation,
            renderer,
            sampling_of(config.generation, renderer),
            seed=config.seed,
            concurrency=config.concurrency,
            limits=limits_of(config),
            output=output,
            resume=resume,
            overwrite=config.overwrite and not resume,
            on_row=on_row,
            model_name=label,
        )
    finally:
        await generation.close()


def _counter(label: str, total: int, progress: Progress | None) -> Callable[[dict[str, Any]], None] | None:
    if progress is None:
        return None
    done = 0

    def count(_row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        progress(label, done, total)

    return count


def read_side(paths: Sequence[Path], *, max_bad: float) -> list[Rollout]:
    """All rollouts of files and of their failures files, less the failures that a later attempt made good."""
    with RolloutReader(paths, max_bad=max_bad) as reader:
        rollouts = list(reader)
    played = {(found.task_id, found.rollout_index) for found in rollouts if found.rollout_index is not None}
    failures = [failure for path in paths for failure in read_failures(path)]
    return rollouts + [found for found in failures if (found.task_id, found.rollout_index) not in played]


def results_of(
    sides: Mapping[str, Sequence[Rollout]], has_base: bool, ks: Sequence[int], threshold: float
) -> list[ModelResult]:
    """Scores of all sides; with a base, the first one, the others are compared with it."""
    observations = {label: [observation_of(rollout) for rollout in rollouts] for label, rollouts in sides.items()}
    base = next(iter(sides)) if has_base else None
    results: list[ModelResult] = []
    for label, rows in observations.items():
        comparison = None
        if base is not None and label != base:
            comparison = compare(rows, observations[base], label=label, against=base)
        found = score(rows, label=label, ks=ks, pass_threshold=threshold)
        results.append(ModelResult(score=found, comparison=comparison))
    return results


def results_by_environment(
    sides: Mapping[str, Sequence[Rollout]], has_base: bool, ks: Sequence[int], threshold: float
) -> dict[str, list[ModelResult]]:
    """`results_of` for each environment, where all sides have the same ones and there are several."""
    names = [sorted({rollout.environment or "" for rollout in rollouts}) for rollouts in sides.values()]
    if len(names[0]) < 2 or any(other != names[0] for other in names):
        return {}
    found: dict[str, list[ModelResult]] = {}
    for name in names[0]:
        own = {
            label: [rollout for rollout in rollouts if (rollout.environment or "") == name]
            for label, rollouts in sides.items()
        }
        found[name] = _results_of_one(own, has_base, ks, threshold)
    return found


def _results_of_one(
    own: Mapping[str, Sequence[Rollout]], has_base: bool, ks: Sequence[int], threshold: float
) -> list[ModelResult]:
    """The results on one environment of several: with the pass rate (pass@1), and without what its failures forbid.

    Failed episodes may leave it too few repeats for a k, or no task that is scored on both sides.
    """
    scored = [Counter(found.task_id for found in rollouts if found.reward is not None) for rollouts in own.values()]
    most = min(max(counts.values(), default=0) for counts in scored)
    is_comparable = all(scored[0].keys() & counts.keys() for counts in scored)
    possible = [k for k in sorted({1, *ks}) if k <= most] if ks else ks
    return results_of(own, has_base and is_comparable, possible, threshold)


def write_evaluation(evaluation: Evaluation, sides: Mapping[str, Sequence[Rollout]], output: Path) -> None:
    """Write report.html, then evaluation.json: the latter says that the evaluation is complete."""
    stages = [StageTime(name=f"play with {label}", seconds=value) for label, value in evaluation.seconds.items()]
    facts = {label: ", ".join(names) for label, names in evaluation.sources.items()}
    facts |= {name: str(value) for name, value in _flat(evaluation.settings) if value not in (None, [], {})}
    data = ReportData(
        title=f"Evaluation of {evaluation.score.label}",
        models=evaluation.models,
        environments=evaluation.environments,
        stages=stages,
        examples=examples_of(sides),
        facts=facts,
    )
    write_report(data, output / REPORT_FILE, overwrite=True)
    _write_json(output / EVALUATION_FILE, evaluation)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def labels_of(sources: Sequence[str]) -> list[str]:
    """Short distinct names of models or files: the last part of the path, with the parts before it where equal."""
    if len(set(sources)) < len(sources):
        raise UsageError("a model is compared with itself", where=sources[0], fix="name two different ones")
    parts = [[part for part in Path(source).parts if part not in ("/", ".", "..")] or [source] for source in sources]
    # A run keeps its model in the folder `model`: what tells runs apart is the folder above.
    parts = [path[:-1] if len(path) > 1 and path[-1] == MODEL_FOLDER else path for path in parts]
    for depth in range(1, max(len(path) for path in parts) + 1):
        labels = ["/".join(path[-depth:]) for path in parts]
        if len({folder_name(label) for label in labels}) == len(labels):
            return labels
    return [f"{number}-{path[-1]}" for number, path in enumerate(parts, start=1)]


def _file_source(path: Path) -> str:
    """What a rollout file is called after: `<label>/rollouts.jsonl`, as we write it, after its folder."""
    return str(path.parent if path.name == ROLLOUTS_FILE and path.parent.name else path.with_suffix(""))


def folder_name(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if (output / EVALUATION_FILE).exists() and not overwrite:
        raise UsageError(
            "the folder holds an evaluation",
            where=str(output / EVALUATION_FILE),
            fix="choose another folder, or ask to overwrite it",
        )


def _refuse_begun(output: Path, overwrite: bool) -> None:
    if (output / SETTINGS_FILE).exists() and not overwrite:
        raise UsageError(
            "the folder holds an evaluation that was begun",
            where=str(output / SETTINGS_FILE),
            fix="continue it with --resume, replace it with --overwrite, or choose another folder",
        )


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"output", "overwrite", "models", "against"})


def _prepare(output: Path, config: EvaluateConfig, sources: dict[str, str], *, resume: bool) -> None:
    """Check the folder, and keep the settings so that a resumed evaluation cannot mix two."""
    if not resume:
        _refuse_existing(output, config.overwrite)
        _refuse_begun(output, config.overwrite)
    path = output / SETTINGS_FILE
    settings = _settings(config)
    # How many play at once changes no episode.
    settings.pop("concurrency")
    settings["generation"].pop("max_batch_size")
    now = {"models": {label: _full_name(name) for label, name in sources.items()}, "settings": settings}
    if resume and path.exists():
        try:
            earlier = msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise RunError(f"not JSON: {error}", where=str(path)) from None
        if earlier != msgspec.json.decode(msgspec.json.encode(now)):
            raise UsageError(
                "the evaluation was begun with other models or settings",
                where=str(path),
                fix="resume with those, or choose another folder",
            )
    _write_json(path, now)


def _full_name(name: str) -> str:
    """The whole path of a model folder; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _write_json(path: Path, record: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
