"""The rows of an index, and reading them by their place.

In: an `IndexedRow` and the files of its index. Out: its `Rollout`, whole or only what was said in it.
Refuses, with `RolloutError`: what only the whole reading finds broken, and a file that was changed since.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import msgspec

from regimen.errors import RolloutError
from regimen.rollouts.lines import decode_row
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.reader import failed_rollout
from regimen.rollouts.records import Rollout, Source, check_tokens, rollout_from_row
from regimen.rollouts.siblings import TaskIndex, TaskPlaces
from regimen.rollouts.sources import open_file
from regimen.rollouts.usual import Request, Teller, Told

MOST_OPEN_FILES = 64
RESPONSE = ("response", "output")


class IndexedRow(msgspec.Struct, frozen=True, gc=False):
    """What is known of a row without decoding it.

    `number` counts the good rows over all input: files in order, then the failures files. `offset` and `size` are the
    byte range in the plain or copied file. `reward` is None exactly when the outcome is not scored. `prompt` is equal
    for requests whose input, instructions and tools are written alike. `selected` is what `where` said. `alike` is
    equal for rows whose fields of that name are written alike, and 0 where they were not looked at.
    """

    number: int
    file: int
    line: int
    offset: int
    size: int
    task_id: str
    task_index: int | None
    rollout_index: int | None
    environment: str | None
    outcome: Outcome
    reward: float | None
    prompt: int
    num_sampled: int
    selected: bool
    alike: int = 0


class IndexedFile(msgspec.Struct, frozen=True):
    """A file of the index: its name, the plain file that holds its rows, and what that file was when it was read."""

    name: str
    path: str
    is_failures: bool
    tasks: TaskPlaces | None
    size: int
    changed: int


class _Output(msgspec.Struct):
    output: list[dict[str, Any]]


class _Said(msgspec.Struct):
    """What an episode is made of; the request as it stands in the line."""

    responses_create_params: msgspec.Raw
    response: _Output
    regimen: dict[str, Any] | None = None


_decode_said = msgspec.json.Decoder(_Said).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RowReader:
    """Reads the rollouts of indexed rows; each process opens its own files.

    `met_odd_rows` tells whether a row was not the JSON of the standard, so that it may hold numbers that are none.
    """

    def __init__(self, sources: list[IndexedFile]) -> None:
        self.met_odd_rows = False
        self._sources = sources
        self._files: dict[int, BinaryIO] = {}
        self._tasks: dict[str, TaskIndex] = {}
        self._params: tuple[bytes, dict[str, Any]] = b"", {}
        self._teller = Teller()
        self._known: tuple[Request | None, bytes, dict[str, Any]] = None, b"", {}
        self._tools: tuple[bytes, Any] = b"null", None

    def __reduce__(self) -> tuple[Any, ...]:
        return RowReader, (self._sources,)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a reader that is used again opens them again."""
        for opened in (*self._files.values(), *self._tasks.values()):
            opened.close()
        self._files, self._tasks = {}, {}

    def rollout(self, row: IndexedRow) -> Rollout:
        """The rollout of a row, with its task row; raises `RolloutError`, without the place, where it is broken."""
        source = self._sources[row.file]
        line, where = self.line(row), Source(source.name, row.line)
        if source.is_failures:
            return failed_rollout(line, where)
        try:
            decoded = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.met_odd_rows = True
            decoded = decode_row(line)
        task = self._task_index(source.tasks).find(decoded) if source.tasks is not None else None
        return rollout_from_row(decoded, where, task)

    def said(self, row: IndexedRow) -> Rollout:
        """The rollout of a scored row without what does not belong to the conversation, in a third of the time.

        `row` holds the stamp alone, and there are no metrics, components and task. Rows that ask the same, one after
        the other, share their `params`. Raises as `rollout` does.
        """
        line = self.line(row)
        try:
            found = _decode_said(line)
            params = self._params_of(bytes(found.responses_create_params))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.rollout(row)
        check_tokens(found.response.output)
        return self._scored(row, {"regimen": found.regimen}, params, found.response.output, None)

    def asked(self, row: IndexedRow) -> Rollout:
        """The rollout of a scored row with everything but its response and output, in half the time.

        There are no metrics and components. Rows with the same tools, one after the other, share these. Raises as
        `rollout` does, except for what stands in the response.
        """
        try:
            members = _decode_members(self.line(row))
            decoded = {
                name: self._request(value) if name == "responses_create_params" else msgspec.json.decode(value)
                for name, value in members.items()
                if name not in RESPONSE
            }
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.rollout(row)
        params, places = decoded.get("responses_create_params"), self._sources[row.file].tasks
        if not isinstance(params, dict):
            return self.rollout(row)
        task = self._task_index(places).find(decoded) if places is not None else None
        return self._scored(row, decoded, cast("dict[str, Any]", params), [], task)

    def _scored(
        self,
        row: IndexedRow,
        fields: dict[str, Any],
        params: dict[str, Any],
        output: list[dict[str, Any]],
        task: dict[str, Any] | None,
    ) -> Rollout:
        return Rollout(
            source=Source(self._sources[row.file].name, row.line),
            row=fields,
            params=params,
            output=output,
            reward=row.reward,
            outcome=row.outcome,
            reason=None,
            task_index=row.task_index,
            rollout_index=row.rollout_index,
            task_id=row.task_id,
            environment=row.environment,
            metrics={},
            components={},
            task=task,
        )

    def told(self, row: IndexedRow) -> tuple[Told, dict[str, Any], Source] | None:
        """What a scored row of the usual shape tells, its request and its place; None for a row that `said` must read.

        Of the request there is what the model saw. Rows that ask the same, one after the other, share it; rows with
        the same tools share these.
        """
        if row.num_sampled:
            return None
        found = self._teller.told_of(self.line(row))
        if found is None:
            return None
        try:
            return found, self._request_of(found.request), Source(self._sources[row.file].name, row.line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _params_of(self, asked: bytes) -> dict[str, Any]:
        if asked != self._params[0]:
            self._params = asked, msgspec.json.decode(asked, type=dict[str, Any])
        return self._params[1]

    def _request_of(self, request: Request) -> dict[str, Any]:
        known, asked, params = self._known
        if request is known:
            return params
        tools, known_asked = bytes(request.tools), asked
        asked = b"\n".join((request.instructions, request.input, tools))
        if asked != known_asked:
            params = {"input": msgspec.json.decode(request.input), "tools": self._tools_of(tools)}
            params["instructions"] = msgspec.json.decode(request.instructions)
        self._known = request, asked, params
        return params

    def _request(self, request: msgspec.Raw) -> Any:
        """A whole request as it stands in the line."""
        if not bytes(request).startswith(b"{"):
            return msgspec.json.decode(request)
        members = _decode_members(request)
        return {
            name: self._tools_of(bytes(value)) if name == "tools" else msgspec.json.decode(value)
            for name, value in members.items()
        }

    def _tools_of(self, tools: bytes) -> Any:
        if tools != self._tools[0]:
            self._tools = tools, msgspec.json.decode(tools)
        return self._tools[1]

    def line(self, row: IndexedRow) -> bytes:
        """The bytes of a row, with its newline where it has one."""
        return os.pread(self._file(row.file).fileno(), row.size, row.offset)

    def _file(self, number: int) -> BinaryIO:
        opened = self._files.get(number)
        if opened is None:
            if len(self._files) >= MOST_OPEN_FILES:
                self.close()
            opened = self._files[number] = _open_unchanged(self._sources[number])
        return opened

    def _task_index(self, places: TaskPlaces) -> TaskIndex:
        opened = self._tasks.get(places.database)
        if opened is None:
            opened = self._tasks[places.database] = TaskIndex(places)
        return opened


def _open_unchanged(source: IndexedFile) -> BinaryIO:
    file = open_file(Path(source.path))
    state = os.fstat(file.fileno())
    if source.size >= 0 and (state.st_size, state.st_mtime_ns) != (source.size, source.changed):
        file.close()
        raise RolloutError(
            "the file was changed after it was indexed",
            where=source.name,
            fix="run again on files that stay as they are",
        )
    return file
