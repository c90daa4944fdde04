"""The report: one HTML page that needs nothing else, and the same table for the terminal.

In: `ReportData`. Out: `report.html` (styles and charts inside, light and dark, everything from a model escaped), and a
rich table. Refuses to replace a page unless asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import jinja2
from markupsafe import Markup
from rich import box
from rich.markup import escape
from rich.table import Table

from regimen.errors import RunError, UsageError
from regimen.evaluation.charts import IntervalRow, interval_plot, line_chart
from regimen.evaluation.compare import Comparison
from regimen.evaluation.metrics import Estimate
from regimen.evaluation.records import ModelResult, ReportData

METHODS = (
    "Every mean is the mean over tasks of the task's mean over its repeats. Intervals are 95%, clustered by task: "
    "mean ± t(n−1)·s/√n over the n task means, the cluster-robust standard error of Miller, “Adding Error Bars to "
    "Evals” (2024). Shares near 0 or 1 have Wilson's interval instead. The difference is paired: the same tasks on "
    "both sides (Agresti and Min's interval where fewer than ten tasks differ). pass@k is the unbiased estimator of "
    "Chen et al. (2021). Failed episodes are counted and enter no mean."
)


def render_html(data: ReportData) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regimen.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Callable[..., str]]", environment.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update(estimate=estimate_text, ends=ends_text, difference=difference_text)
    filters.update(duration=duration_text, number=number_text)
    return environment.get_template("report.html.j2").render(
        data=data,
        ks=known_ks(data.models),
        environment_ks=sorted({1, *known_ks([model for models in data.environments.values() for model in models])}),
        intervals=_interval_chart(data.models),
        curves=[(curve.title, [series.name for series in curve.series], line_chart(curve)) for curve in data.curves],
        metric_names=sorted({name for model in data.models for name in model.score.metrics}),
        methods=METHODS,
        warnings=warnings_of(data.models),
    )


def write_report(data: ReportData, path: Path, *, overwrite: bool = False) -> Path:
    """Write the page under a temporary name, then give it its own."""
    if path.exists() and not overwrite:
        raise UsageError("the file exists", where=str(path), fix="choose another name, or ask to overwrite it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate from a model's text has no UTF-8 form; a question mark stands in its place.
        temporary.write_text(render_html(data), encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def environment_tables(environments: Mapping[str, Sequence[ModelResult]]) -> list[Table]:
    """The table of models for the tasks of each environment. Of pass@k it has the pass rate, pass@1."""
    return [terminal_table(models, escape(f"environment {name}"), ks=[1]) for name, models in environments.items()]


def terminal_table(
    models: Sequence[ModelResult], title: str | None = None, *, ks: Sequence[int] | None = None
) -> Table:
    """The table of models for a terminal of 80 columns; only the models' names may be broken."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    ks = known_ks(models) if ks is None else ks
    is_compared = any(model.comparison for model in models)
    table.add_column("model", overflow="fold", min_width=14)
    names = ["tasks", "mean reward\n[95%]", *(f"pass@{k}" for k in ks), "truncated\n/ failed"]
    for name in [*names, *(["paired\ndifference [95%]"] if is_compared else [])]:
        table.add_column(name.replace("[", r"\["), justify="right", no_wrap=True)
    for model in models:
        table.add_row(*_cells(model, ks, is_compared))
    return table


def _cells(model: ModelResult, ks: Sequence[int], is_compared: bool) -> list[str]:
    score = model.score
    passes = {item.k: number_text(item.estimate.mean) for item in score.pass_at_k}
    cells = [
        score.label,
        str(score.num_tasks),
        estimate_text(score.reward).replace(" [", "\n["),
        *(passes.get(k, "–") for k in ks),
        f"{score.num_truncated} / {score.num_failed}",
    ]
    if is_compared:
        found = model.comparison
        cells.append(_difference_cell(found) if found else "–")
    # Square brackets would be markup to rich.
    return [cell.replace("[", r"\[") for cell in cells]


def _difference_cell(comparison: Comparison) -> str:
    verdict = comparison.verdict.replace("not ", "not\n")
    return f"{difference_text(comparison)}\n{verdict}".replace(" [", "\n[")


def known_ks(models: Sequence[ModelResult]) -> list[int]:
    """Every k above 1 (pass@1 of binary rewards is the mean), or 1 where rewards are not binary."""
    ks = sorted({item.k for model in models for item in model.score.pass_at_k})
    all_binary = all(model.score.is_binary for model in models)
    return [k for k in ks if k > 1 or not all_binary]


def warnings_of(models: Sequence[ModelResult]) -> list[str]:
    """What a reader must know to read the table rightly."""
    found: list[str] = []
    for model in models:
        score, comparison = model.score, model.comparison
        if score.num_failed:
            found.append(
                f"{score.label}: {score.num_failed} of {score.num_rollouts} episodes failed and enter no mean"
                + (f"; {score.num_tasks_unscored} tasks have no score at all." if score.num_tasks_unscored else ".")
            )
        if comparison is not None and (comparison.num_only_model or comparison.num_only_base):
            found.append(
                f"{score.label}: {comparison.num_only_model} tasks were scored for it alone and "
                f"{comparison.num_only_base} for {comparison.against} alone; the difference leaves them out."
            )
    return found


def number_text(value: float | None) -> str:
    """A mean in three decimals, or four digits where it is large."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def estimate_text(estimate: Estimate | None) -> str:
    """`0.305 [0.241, 0.369]`."""
    if estimate is None:
        return "no score"
    return f"{number_text(estimate.mean)} {ends_text(estimate)}"


def ends_text(estimate: Estimate) -> str:
    """`[0.241, 0.369]`."""
    interval = estimate.interval
    if interval.low is None or interval.high is None:
        return "(no interval)"
    return f"[{number_text(interval.low)}, {number_text(interval.high)}]"


def difference_text(comparison: Comparison) -> str:
    """`+0.620 [+0.551, +0.689]`."""
    interval = comparison.interval
    if interval.low is None or interval.high is None:
        return f"{comparison.difference:+.3f} (no interval)"
    return f"{comparison.difference:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def duration_text(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `1 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _interval_chart(models: Sequence[ModelResult]) -> Markup | None:
    scored = [(model.score, model.score.reward) for model in models if model.score.reward is not None]
    if not scored:
        return None
    rows = [IntervalRow(score.label, found.mean, found.interval.low, found.interval.high) for score, found in scored]
    return interval_plot(
        rows, is_unit=all(score.is_binary for score, _ in scored), title="Mean reward with 95% intervals"
    )
