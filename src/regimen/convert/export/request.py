"""What an exporter is given and what it gives back.

In: a typed training configuration, and the tree that was written. Out: files in a folder, and a note for everything
that is said otherwise there, or cannot be said at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from regimen.config.schema import DatasetConfig, TrainConfig
from regimen.config.source import Tree, lookup
from regimen.errors import ConfigError

ENTRIES = ("train", "validation")


@dataclass
class ExportRequest:
    """`given` is the tree as written: today's names, interpolated. `folder` is written, and will stand at `home`.

    `tasks_of` gives the task rows of an entry that an environment makes, `turns` in which order the data sets of a
    mixture, numbered and with their weights, take turns.
    """

    config: TrainConfig
    given: Tree
    folder: Path
    home: Path
    tasks_of: Callable[[str], list[dict[str, Any]]]
    turns: Callable[[Mapping[int, float]], Iterator[int]]
    chat_template: str | None = None
    checkout: Path | None = None
    notes: list[str] = field(default_factory=lambda: list[str]())
    inputs: list[Path] = field(default_factory=lambda: list[Path]())
    rows: dict[str, int] = field(default_factory=lambda: dict[str, int]())

    def note(self, text: str) -> None:
        """Say `text` once."""
        if text not in self.notes:
            self.notes.append(text)

    def is_given(self, path: str) -> bool:
        """Whether the dotted key was written, by the user or by what the configuration inherits."""
        return lookup(self.given, path)[0]

    def given_of(self, name: str) -> list[Tree]:
        """`data.<name>` as written, over `data.default`; of a mixture, each of its data sets."""
        default = cast("Tree", lookup(self.given, "data.default")[1] or {})
        entry = cast("Tree", lookup(self.given, f"data.{name}")[1] or {})
        return [{**default, **part} for part in cast("list[Tree]", entry.get("parts") or [entry])]

    def data_path(self, name: str, entry: DatasetConfig) -> Path | None:
        """The file behind `data.<name>`; None for validation that a conversion left without rows."""
        path = Path(entry.data_path or "")
        if not path.exists() and name == "validation" and (path.parent / "manifest.json").is_file():
            self.note(f"data.validation: {path} was left without rows by the conversion; nothing validates")
            return None
        if not path.is_file():
            raise ConfigError("there is no such file", where=f"data.{name}.data_path: {path}", fix="check the path")
        if path not in self.inputs:
            self.inputs.append(path)
        return path

    def write_text(self, name: str, text: str) -> str:
        """Write a file of the folder; returns the path where it will stand."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(self.home / name)
