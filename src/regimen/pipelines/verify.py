"""Reading a converted folder back: every written row compared with the rollouts it was made of.

In: the folder as it is being written, the index of the rollouts and the resolved options. Out: the number of rows.
Refuses, with `ConvertError`: the first row that does not say what its rollouts say, and a sidecar that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import EpisodeRecord, PairRecord, Record, TaskRecord, read_sidecar
from regimen.convert.verify import check_row
from regimen.errors import ConvertError
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.records import Source

KIND_OF: dict[str, type[Any]] = {
    "openai": EpisodeRecord,
    "simple": EpisodeRecord,
    "preference": PairRecord,
    "binary": PairRecord,
    "gym": TaskRecord,
    "response": TaskRecord,
}


def verify_folder(folder: Path, index: RolloutIndex, options: ConvertOptions) -> int:
    """Compare every row of train.jsonl and val.jsonl with its rollouts, which are read again; return how many."""
    places = {name: number for number, name in enumerate(index.files)}
    count = 0
    with index.open() as reader:
        for where, line, sources in _written(folder, options.format):
            rows = [index.find(places[source.path], source.line) for source in sources]
            missing = [str(source) for source, row in zip(sources, rows, strict=True) if row is None]
            if missing:
                raise ConvertError(f"its rollout is not found again at {', '.join(missing)}", where=where)
            check_row(json.loads(line), [reader.rollout(row) for row in rows if row is not None], options, where)
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
