"""Rollout files to a folder of training rows, in two passes: index, then read and write what selection needs.

In: rollout files of any kind, a target (sft, dpo or grpo) and `ConvertOptions`.
Out: a folder with train.jsonl and val.jsonl, a sidecar beside each, quarantine.jsonl where rows were unreadable, and
manifest.json; and the `Manifest`. The folder appears whole or not at all.
Memory does not grow with the files: selection works on an index on disk, one task at a time. Several processes give
the same folder as one.
Refuses: a folder in use, options without a meaning for the target, an input that leaves nothing to train on
(`ConvertError` with what would), and a ledger that does not balance.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from regimen.convert import dpo, grpo, sft
from regimen.convert.balance import MixCount, balanced_rows, mixed_tasks
from regimen.convert.episodes import episode_of
from regimen.convert.folder import folder_written_whole
from regimen.convert.manifest import InputFile, Manifest, now, rewards_of, tool_version, write_manifest
from regimen.convert.options import FORMATS, ConvertOptions, check_for_target, with_reasoning
from regimen.convert.pairs import pair_across_tasks
from regimen.convert.screen import Screened
from regimen.errors import ConvertError, RegimenError, RolloutError, UsageError
from regimen.pipelines.converted import (
    QUARANTINE,
    Totals,
    described,
    inputs_of,
    keep_quarantine,
    nothing_left,
    warnings_about,
)
from regimen.pipelines.engine import Engine, map_ordered
from regimen.pipelines.figures import balance_figures, left_figures, mix_figures
from regimen.pipelines.pieces import piece_of
from regimen.pipelines.selection import Recipe, Work
from regimen.pipelines.verify import verify_folder
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.lines import decode_row
from regimen.rollouts.processes import Processes
from regimen.rollouts.sources import STDIN, Kind, Paths, checked_paths, kind_of, open_lines

ROWS_OF_A_PIECE = 512
FILES_TO_LEARN_FROM = 64

Result = TypeVar("Result")
# Called as the work goes on: stage, parts done, parts in all.
Progress = Callable[[str, int, int], None]


def convert(
    rollouts: Paths,
    to: str,
    out: Path | str,
    options: ConvertOptions | None = None,
    *,
    tasks: Path | str | None = None,
    overwrite: bool = False,
    verify: bool = False,
    num_processes: int = 1,
    processes: Processes | None = None,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> Manifest:
    """Convert rollout files into the folder `out` and return its manifest.

    `verify` reads every written row back and compares it with its rollouts; a difference is a `ConvertError`.
    `tasks` names the task rows where they do not stand beside the rollouts as `*_materialized_inputs.jsonl`.
    With the engine `ray` the second pass runs on the machines of a Ray cluster, which must see the files and the folder
    under the same names. `processes` are the caller's own, in place of new ones. `progress` hears (stage, done, total)
    as the work goes on.
    """
    options = options or ConvertOptions()
    check_for_target(options, to)
    paths, out = checked_paths(rollouts), Path(out).absolute()
    if num_processes < 1:
        raise UsageError(f"is {num_processes}", where="--processes", expected="at least 1")
    files = inputs_of(paths, tasks, options.against)
    with (
        ThreadPoolExecutor(1) as hashing,  # beside the passes: hashing does not hold the interpreter
        nullcontext(processes) if processes else Processes(num_processes) as at_work,
        folder_written_whole(out, overwrite) as folder,
        _kept_quarantine(folder, out),
    ):
        inputs = hashing.submit(described, files)
        report = progress or _silent
        alike = _truth_fields(paths) if to == "grpo" else []
        with _index_of(paths, tasks, options, alike, folder, at_work, report) as index:
            conversion = _Conversion(index, to, options, alike, folder, at_work, engine, report)
            totals = conversion.run()
            _judge(totals, index, options)
            piped = [(index.plain_path(index.files.index(str(STDIN))), "rollouts")] if STDIN in paths else []
            manifest = _manifest(conversion, totals, [*_named(described(piped), str(STDIN)), *inputs.result()])
            if verify:
                verified = verify_folder(folder, index, conversion.options)
                manifest = msgspec.structs.replace(manifest, verified_rows=verified)
        write_manifest(manifest, folder)
    return manifest


@contextmanager
def _kept_quarantine(folder: Path, out: Path) -> Generator[None]:
    """Where a conversion fails, its quarantine stays beside the folder, and the error names it."""
    try:
        yield
    except (RolloutError, ConvertError) as error:
        saved = keep_quarantine(folder / QUARANTINE, out)
        if saved is None:
            raise
        fix = f"{error.fix or 'mend the rows'}; they are kept, with reasons, in {saved}"
        raise type(error)(error.message, where=error.where, expected=error.expected, fix=fix) from error


def _silent(*_: object) -> None:
    pass


def _index_of(
    paths: Sequence[Path],
    tasks: Path | str | None,
    options: ConvertOptions,
    alike: Sequence[str],
    folder: Path,
    processes: Processes,
    report: Progress,
) -> RolloutIndex:
    return RolloutIndex.build(
        paths,
        quarantine=folder / QUARANTINE,
        tasks=tasks,
        max_bad=options.max_bad,
        processes=processes,
        alike=alike,
        folder=folder,
        on_part=partial(report, "index"),
    )


def _truth_fields(paths: Sequence[Path]) -> list[str]:
    """What may be ground truth in the first row of each of the first files; the index compares it between repeats."""
    names: dict[str, None] = {}
    for path in [path for path in paths if kind_of(path) is not Kind.PIPE][:FILES_TO_LEARN_FROM]:
        with suppress(RegimenError), open_lines(path) as lines:
            row = decode_row(next(iter(lines), b""))
            names |= dict.fromkeys(grpo.candidates_of(row)) if isinstance(row, dict) else {}
    return list(names)


def _judge(totals: Totals, index: RolloutIndex, options: ConvertOptions) -> None:
    num_bad, num_rows = totals.num_bad + index.report.bad, index.report.rows
    if num_bad > options.max_bad * num_rows:
        raise ConvertError(
            f"{num_bad} of {num_rows} rows cannot be converted",
            expected=f"at most {options.max_bad:g} of the rows",
            fix="mend the rows, or allow more with --max-bad",
        )


def _named(files: list[InputFile], name: str) -> list[InputFile]:
    return [msgspec.structs.replace(file, path=name) for file in files]


def _manifest(conversion: _Conversion, totals: Totals, inputs: list[InputFile]) -> Manifest:
    index, options = conversion.index, conversion.options
    totals.ledger.count_many("quarantined", index.report.bad)
    num_bad = totals.num_bad + index.report.bad
    is_screened = options.where is not None or options.against is not None
    return Manifest(
        created=now(),
        tool={"name": "regimen", "version": tool_version()},
        target=conversion.to,
        format=options.format,
        options=options,
        inputs=inputs,
        rewards=rewards_of(index.rewards()),
        counts=totals.counts(),
        ledger=totals.ledger.close(index.num_rows + index.report.bad, conversion.num_tokens),
        outputs=totals.outputs(num_bad),
        tokenizers=dict(totals.tokenizers),
        templates=dict(totals.templates),
        warnings=warnings_about(conversion.to, totals),
        environments=dict(totals.environments),
        mix=conversion.mix,
        screened=conversion.screened if is_screened else None,
    )


class _Conversion:
    """The second pass over an index."""

    def __init__(
        self,
        index: RolloutIndex,
        to: str,
        options: ConvertOptions,
        alike: Sequence[str],
        folder: Path,
        processes: Processes,
        engine: Engine,
        report: Progress,
    ) -> None:
        self.index, self.to, self.folder, self.report = index, to, folder, report
        self.processes = processes
        self.engine: Engine = engine
        self.options = self._resolved(options)
        self.recipe = Recipe(
            to=to, options=self.options, reader=index.open(), files=index.files, alike=frozenset(alike)
        )
        self.num_tokens = 0
        self.mix: dict[str, MixCount] = {}
        self.screened: Screened | None = None

    def run(self) -> Totals:
        """Write both sides; once more where the hash alone leaves one of them without a task."""
        if self.to == "grpo" and self.options.format == "gym":
            self.recipe = msgspec.structs.replace(self.recipe, has_indices=self.index.can_be_named())
        prepared = self._prepare()
        totals = self._write(prepared, self.recipe)
        moved = totals.moved(self.options.validation_fraction)
        if moved:
            totals = self._write(prepared, msgspec.structs.replace(self.recipe, moved=moved))
        self.screened = totals.finish_screen()  # an error in the condition comes before what it leaves
        if not totals.num_examples:
            raise nothing_left(self.to, self.index, self.options, totals.ledger)
        return totals

    def _resolved(self, options: ConvertOptions) -> ConvertOptions:
        """`options` with everything that the data decides filled in, as the manifest records it."""
        format_name = FORMATS[self.to][0] if options.format == "auto" else options.format
        if self.to == "dpo" and options.format == "auto":
            format_name = "binary" if self._all_said_in_strings() else "preference"
        threshold = options.reward_threshold
        if self.to != "dpo":
            threshold = sft.reward_threshold(self.index.rewards(), threshold)
        resolved = msgspec.structs.replace(options, format=format_name, reward_threshold=threshold)
        return with_reasoning(resolved, format_name)

    def _all_said_in_strings(self) -> bool:
        """Whether strings lose nothing of any episode: a file has one format. The first loss ends the search."""
        found = False
        with self.index.open() as reader:
            for row in self.index.rows():
                if row.reward is None:
                    continue
                try:
                    if not dpo.is_said_in_strings(episode_of(reader.said(row))):
                        return False
                except RolloutError:  # the second pass puts it aside
                    continue
                found = True
        return found

    def _prepare(self) -> Work:
        """What must be decided over all tasks before any is written."""
        common = Work(recipe=self.recipe)
        if self.options.balance is not None:
            figures = [light for some in self._map(balance_figures, self._pieces(common)) for light in some]
            common.limits = balanced_rows(figures, self.options.balance, self.options.seed)
        if self.options.mix is not None:
            figures = [light for some in self._map(mix_figures, self._pieces(common)) for light in some]
            common.copies, self.mix = mixed_tasks(figures, self.options.mix, self.options.upsample, self.options.seed)
        if self.options.across_tasks:
            left = [light for some in self._map(left_figures, self._pieces(common)) for light in some]
            pairs = pair_across_tasks(left, self.options)
            common.awaited = frozenset(key for pair in pairs for key in pair)
            places = {name: number for number, name in enumerate(self.index.files)}
            found = {key: row for key in common.awaited if (row := self.index.find(places[key[0]], key[1]))}
            common.pairs = [(found[better], found[worse]) for better, worse in pairs]
        return common

    def _map(self, function: Callable[[Work], Result], works: Iterator[Work]) -> Iterator[Result]:
        return map_ordered(function, works, processes=self.processes, engine=self.engine)

    def _pieces(self, common: Work) -> Iterator[Work]:
        """The tasks in pieces, and the pairs across tasks last."""
        self.num_tokens = 0
        folder = str(self.folder) if self.processes.number > 1 or self.engine == "ray" else None
        for tasks in self.index.batches(ROWS_OF_A_PIECE):
            self.num_tokens += tasks.num_sampled
            work = Work(recipe=common.recipe, tasks=tasks, folder=folder)
            if common.limits is not None or common.copies is not None or common.awaited:
                _decide(work, common)
            yield work
        for start in range(0, len(common.pairs), ROWS_OF_A_PIECE):
            pairs = common.pairs[start : start + ROWS_OF_A_PIECE]
            yield Work(recipe=common.recipe, pairs=pairs, folder=folder)

    def _write(self, prepared: Work, recipe: Recipe) -> Totals:
        common = msgspec.structs.replace(prepared, recipe=recipe)
        pieces = self._map(piece_of, self._pieces(common))
        with Totals.begin(self.folder, self.options, quarantines=not recipe.moved) as totals:
            done = 0
            for piece in pieces:
                totals.take(piece)
                done += piece.num_rows
                self.report("convert", done, self.index.num_rows)
        return totals


def _decide(work: Work, common: Work) -> None:
    """Give the piece what was decided over its own tasks, and no other's."""
    groups = list(work.groups)
    task_ids = {group[0].task_id for group in groups}
    work.limits, work.copies = _of_tasks(common.limits, task_ids), _of_tasks(common.copies, task_ids)
    if common.awaited:
        work.awaited = common.awaited.intersection(common.recipe.key(row) for group in groups for row in group)


def _of_tasks(figures: dict[str, int] | None, task_ids: set[str]) -> dict[str, int] | None:
    return None if figures is None else {task_id: figures.get(task_id, 0) for task_id in task_ids}
