"""The quickstart: the whole loop on one computer with the small model, by the pipelines and files of the commands.

In: a folder. Out: every stage's files in it, a `Quickstart` and report.html. Each stage is what a person would type
(docs/quickstart.md, "By hand"): the same shipped configurations, with the folder put in.
Three models come out of the same base: rejection-sampled SFT with GRPO after it (the recommended path), GRPO alone,
and DPO.
The test tasks are looked at once, at the end, by all of them. `smoke` is the same path on fewer tasks and steps.
Refuses: a folder in use, unless asked to replace it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from regimen.config.load import dump, load_collect_config, load_evaluate_config, load_train_config
from regimen.convert.manifest import Manifest
from regimen.convert.options import ConvertOptions
from regimen.errors import RunError, UsageError
from regimen.evaluation.records import Curve, LedgerTable, ReportData, StageTime, curve_of, examples_of
from regimen.evaluation.report import terminal_table, write_report
from regimen.pipelines.collect import collect
from regimen.pipelines.convert import convert
from regimen.pipelines.evaluate import Evaluation, evaluate, read_side
from regimen.pipelines.inspect import Inspection, inspect_rollouts
from regimen.pipelines.models import free_memory
from regimen.pipelines.run import versions, write_text
from regimen.pipelines.small_model import NAME, small_model
from regimen.pipelines.train import TrainResult, train
from regimen.tracking.jsonl import read_metrics

Progress = Callable[..., None]

CONVERSIONS: dict[str, ConvertOptions] = {
    "sft": ConvertOptions(require_tool_use=True),
    "dpo": ConvertOptions(format="preference"),
    "grpo": ConvertOptions(),
}
# Name in the table -> configuration, and the model it starts from (None: the base).
TRAININGS: dict[str, tuple[str, str | None]] = {
    "sft": ("quickstart/sft", None),
    "sft_grpo": ("quickstart/sft_grpo", "sft"),
    "grpo": ("quickstart/grpo", None),
    "dpo": ("quickstart/dpo", None),
}
# What the smoke run changes: fewer tasks, fewer steps, the same path.
SMOKE: dict[str, list[str]] = {
    "collect": ["num_tasks=32", "num_repeats=2"],
    "sft": ["sft.max_num_steps=1"],
    "sft_grpo": ["grpo.max_num_steps=1", "grpo.num_prompts_per_step=2", "policy.train_global_batch_size=null"],
    "grpo": ["grpo.max_num_steps=1", "grpo.num_prompts_per_step=2", "policy.train_global_batch_size=null"],
    "dpo": ["dpo.max_num_steps=1"],
    "evaluate": ["num_tasks=8"],
}


@dataclass(slots=True)
class Quickstart:
    """What came out. `seconds` per stage."""

    folder: Path
    evaluation: Evaluation
    inspection: Inspection
    manifests: dict[str, Manifest]
    trainings: dict[str, TrainResult]
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            temperature = self.evaluation.settings["generation"]["temperature"]
            title = f"unseen test tasks, temperature {temperature:g}"
            console.print(terminal_table(self.evaluation.models, title=title))
        total = sum(self.seconds.values())
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"{capture.get()}{total / 60:.1f} minutes: {stages}\nreport: {self.folder / 'report.html'}"


def quickstart(
    folder: Path, *, smoke: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Quickstart:
    """Run every stage into `folder`."""
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise UsageError("the folder is not empty", where=str(folder), fix="choose another, or pass --overwrite")
        if not (folder / "quickstart.json").is_file():
            raise UsageError("the folder is not that of a quickstart", where=str(folder), fix="choose another")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "quickstart.json", json.dumps({"smoke": smoke, "finished": False}) + "\n")
    return _Loop(folder, smoke, progress or _silent).run()


def _silent(*_: object, **__: object) -> None:
    pass


class _Loop:
    """The stages, in order."""

    def __init__(self, folder: Path, smoke: bool, progress: Progress) -> None:
        self.folder, self.smoke, self.progress = folder, smoke, progress
        self.seconds: dict[str, float] = {}
        self.configs: dict[str, str] = {}

    @contextmanager
    def stage(self, name: str) -> Any:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        free_memory()

    def shortened(self, name: str) -> list[str]:
        return SMOKE.get(name, []) if self.smoke else []

    def run(self) -> Quickstart:
        with self.stage("model"):
            small_model()
        base = NAME
        rollouts = self.folder / "rollouts.jsonl"
        with self.stage("collect"):
            self._collect(base, rollouts)
        with self.stage("inspect"):
            inspection = inspect_rollouts(rollouts)
        with self.stage("convert"):
            manifests = {to: convert(rollouts, to, self.folder / to, options) for to, options in CONVERSIONS.items()}
        models = {"base": base}
        trainings: dict[str, TrainResult] = {}
        for name, (config, start) in TRAININGS.items():
            with self.stage(f"train {name}"):
                trainings[name] = self._train(name, config, models[start or "base"])
            models[name] = str(trainings[name].model)
        with self.stage("evaluate"):
            evaluation = self._evaluate(models)
        result = Quickstart(self.folder, evaluation, inspection, manifests, trainings, self.seconds)
        write_report(self._report(result), self.folder / "report.html", overwrite=True)
        write_text(self.folder / "quickstart.json", json.dumps(_summary(result, self.smoke), indent=2) + "\n")
        return result

    def _collect(self, base: str, rollouts: Path) -> None:
        config = load_collect_config(
            "quickstart/collect", [f"model={base}", f"output={rollouts}", *self.shortened("collect")]
        )
        self.configs["collect"] = dump(config)
        total = config.num_repeats * (config.num_tasks or 0)
        done, passed = 0, 0.0

        def count(row: dict[str, Any]) -> None:
            nonlocal done, passed
            done, passed = done + 1, passed + (row.get("reward") or 0.0)
            self.progress("collect", done, total, f"mean reward {passed / done:.2f}")

        collect(config, on_row=count)

    def _train(self, name: str, config: str, model: str) -> TrainResult:
        overrides = [f"policy.model_name={model}", f"checkpointing.checkpoint_dir={self.folder / 'runs' / name}"]
        data = self.folder / config.rpartition("/")[2].rpartition("_")[2]
        overrides.append(f"data.train.data_path={data / 'train.jsonl'}")
        if (data / "val.jsonl").exists() and not name.endswith("grpo"):
            overrides.append(f"data.validation.data_path={data / 'val.jsonl'}")
        loaded = load_train_config(config, [*overrides, *self.shortened(name)])
        self.configs[name] = dump(loaded)

        def report(label: str, done: int, total: int, note: str = "") -> None:
            self.progress(label.replace(loaded.algorithm, name), done, total, note)

        result = train(loaded, progress=report)
        if result.stopped:
            raise RunError("stopped by a signal", where=str(result.folder), fix="run it again with --overwrite")
        return result

    def _evaluate(self, models: dict[str, str]) -> Evaluation:
        halfway = {start for _, start in TRAININGS.values()}  # a model that another one starts from
        others = [path for name, path in models.items() if name != "base" and name not in halfway]
        overrides = [
            f"models={json.dumps(others)}",
            f"against={models['base']}",
            f"output={self.folder / 'evaluation'}",
        ]
        config = load_evaluate_config("quickstart/evaluate", [*overrides, *self.shortened("evaluate")])
        self.configs["evaluate"] = dump(config)

        def report(label: str, done: int, total: int) -> None:
            self.progress(f"evaluate {label}", done, total)

        return evaluate(config, report)

    def _report(self, result: Quickstart) -> ReportData:
        rollouts = {
            name: read_side([self.folder / "evaluation" / path], max_bad=0.0)
            for name, path in result.evaluation.rollouts.items()
        }
        facts = {name: str(value) for name, value in versions().items()}
        facts["rollouts"] = f"{result.inspection.statistics.rows} episodes of the base model"
        ledgers = [
            LedgerTable(title=f"convert --to {to}", unit="rows", buckets=dict(manifest.ledger.rows))
            for to, manifest in result.manifests.items()
        ]
        ledgers += [
            LedgerTable(title=f"train {name}", unit="rows or episodes", buckets=training.ledger)
            for name, training in result.trainings.items()
        ]
        return ReportData(
            title="Quickstart: SmolLM2-135M and a calculator",
            summary=result.inspection.recommendation.summary,
            models=result.evaluation.models,
            curves=self._curves(result),
            stages=[StageTime(name=name, seconds=seconds) for name, seconds in self.seconds.items()],
            ledgers=ledgers,
            examples=examples_of(rollouts),
            facts=facts,
            config="\n".join(f"# {name}\n{text}" for name, text in self.configs.items()),
        )

    def _curves(self, result: Quickstart) -> list[Curve]:
        curves: list[Curve | None] = []
        for name, training in result.trainings.items():
            rows = read_metrics(training.folder / "metrics.jsonl")
            curves.append(curve_of(f"{name}: loss", rows, {"train/loss": "train", "validation/loss": "validation"}))
            curves.append(curve_of(f"{name}: reward", rows, {"train/reward": "train"}))
        return [curve for curve in curves if curve is not None]


def _summary(result: Quickstart, smoke: bool) -> dict[str, Any]:
    """What machines read: mean reward of every model, and its paired difference from the base."""
    models: dict[str, Any] = {}
    for model in result.evaluation.models:
        reward, comparison = model.score.reward, model.comparison
        models[model.score.label] = {
            "mean_reward": reward.mean if reward else None,
            "interval": [reward.interval.low, reward.interval.high] if reward else None,
            "difference": comparison.difference if comparison else None,
            "difference_interval": [comparison.interval.low, comparison.interval.high] if comparison else None,
            "verdict": comparison.verdict if comparison else None,
        }
    return {"smoke": smoke, "finished": True, "models": models, "seconds": result.seconds}
