"""The paper that goes with an exported folder: from which configuration and files, and what was changed.

In: an export request that was carried out. Out: manifest.json. Refuses: nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from regimen.convert.manifest import FILE, InputFile, OutputFile, input_file, now, output_file, tool_version

VERSION = 1


class ExportManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported. `given` is the configuration as written, under today's names; `changes` are the notes."""

    version: int = VERSION
    created: str
    tool: dict[str, str]
    export: str
    algorithm: str
    source: str
    overrides: list[str]
    given: dict[str, Any]
    changes: list[str]
    inputs: list[InputFile]
    outputs: list[OutputFile]


def describe(
    folder: Path,
    *,
    export: str,
    algorithm: str,
    source: str,
    overrides: list[str],
    given: dict[str, Any],
    changes: list[str],
    inputs: list[Path],
    rows: dict[str, int],
) -> ExportManifest:
    """The manifest of the files that stand in `folder`; `rows` counts those that hold rows."""
    outputs: list[OutputFile] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        outputs.append(msgspec.structs.replace(output_file(path, rows.get(name, 0)), name=name))
    return ExportManifest(
        created=now(),
        tool={"name": "regimen", "version": tool_version()},
        export=export,
        algorithm=algorithm,
        source=source,
        overrides=overrides,
        given=given,
        changes=changes,
        inputs=[input_file(path, "data" if path.suffix == ".jsonl" else "configuration") for path in inputs],
        outputs=outputs,
    )


def write_export_manifest(manifest: ExportManifest, folder: Path) -> None:
    """Write manifest.json into `folder`."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / FILE).write_bytes(text + b"\n")


def is_export(folder: Path) -> bool:
    """Whether an export stands there, which may be replaced."""
    try:
        msgspec.json.decode((folder / FILE).read_bytes(), type=ExportManifest)
    except (OSError, msgspec.DecodeError):
        return False
    return True
