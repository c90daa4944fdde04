"""Reading a converted folder back: every written row compared with the rollouts it was made of.

In: the folder as it is being written, the rollout files and the resolved options. Out: the number of verified rows.
Refuses, with `ConvertError`: the first row that does not say what its rollouts say, and a sidecar that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import EpisodeRecord, PairRecord, Record, TaskRecord, read_sidecar
from regimen.convert.verify import check_row
from regimen.errors import ConvertError
from regimen.rollouts.reader import RolloutReader
from regimen.rollouts.records import Rollout, Source

KIND_OF: dict[str, type[Any]] = {
    "openai": EpisodeRecord,
    "simple": EpisodeRecord,
    "preference": PairRecord,
    "binary": PairRecord,
    "gym": TaskRecord,
    "response": TaskRecord,
}


def verify_folder(folder: Path, paths: Sequence[Path], tasks: Path | str | None, options: ConvertOptions) -> int:
    """Compare every row of train.jsonl and val.jsonl with its rollouts, which are read again; return how many."""
    needed = {source for _, _, sources in _written(folder, options.format) for source in sources}
    rollouts: dict[Source, Rollout] = {}
    with RolloutReader(paths, tasks=tasks, max_bad=1.0) as reader:
        rollouts = {rollout.source: rollout for rollout in reader if rollout.source in needed}
    count = 0
    for where, line, sources in _written(folder, options.format):
        missing = [str(source) for source in sources if source not in rollouts]
        if missing:
            raise ConvertError(f"its rollout is not found again at {', '.join(missing)}", where=where)
        check_row(json.loads(line), [rollouts[source] for source in sources], options, where)
        count += 1
    return count


def _written(folder: Path, format_name: str) -> Iterator[tuple[str, bytes, list[Source]]]:
    """Each written row: its name, its line, and where its rollouts stand."""
    for name in ("train", "val"):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            continue
        records = read_sidecar(folder / f"{name}.sidecar.jsonl", KIND_OF[format_name])
        with path.open("rb") as lines:
            for number, (line, record) in enumerate(zip(lines, records, strict=True), start=1):
                yield f"{path.name}:{number}", line, _sources(record)


def _sources(record: Record) -> list[Source]:
    if isinstance(record, PairRecord):
        return [record.chosen.source, record.rejected.source]
    return [record.source]
