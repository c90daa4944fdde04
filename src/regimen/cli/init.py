"""`regimen init environment`: the files that an environment of one's own begins with.

In: a name, which may be the path of a folder that does not exist. Out: that folder, which passes
`regimen test environment` as it is, and the commands to go on with.
Refuses: a name that is no Python name, and whatever stands in the folder's place already.
"""

from __future__ import annotations

import json
import keyword
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from regimen.errors import UsageError
from regimen.gym.environment import load_environment, shipped_environments

TEMPLATES = "regimen.cli.templates"
NUM_EXAMPLES = 5


def init(
    kind: Annotated[str, typer.Argument(metavar="environment", help="What to write.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Its name, or a path that ends with it.", show_default=False)],
) -> None:
    """Write the files that an environment of your own begins with."""
    check_kind(kind)
    folder = Path(name)
    write_environment(folder)
    path = folder if folder.is_absolute() or len(folder.parts) > 1 else f"./{folder}"
    typer.echo(f"wrote {path}: environment.py, README.md, example.jsonl")
    typer.echo(f"edit {path}/environment.py, then:")
    typer.echo(f"  regimen test environment {path}")
    typer.echo(f"  regimen collect --model MODEL --environment {path} --num-tasks 20 --output rollouts.jsonl")


def check_kind(kind: str) -> None:
    """Refuse whatever is not an environment."""
    if kind != "environment":
        raise UsageError(f"{kind!r} is nothing to write or to test", expected="environment")


def write_environment(folder: Path) -> None:
    """Write the template, under the folder's name, into `folder`, which must not exist."""
    name = folder.name
    if not (name.isidentifier() and name.isascii() and name == name.lower()) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name an environment", expected="lower-case letters, digits and _")
    if name in shipped_environments():
        raise UsageError(f"{name!r} is the name of an environment that ships with Regimen", fix="choose another name")
    if folder.exists() or folder.is_symlink():
        raise UsageError("it exists", where=str(folder), fix="choose another name, or remove it")
    folder.mkdir(parents=True)
    class_name = "".join(part.capitalize() for part in name.split("_"))
    for template in ("environment.py", "README.md"):
        text = (files(TEMPLATES) / f"{template}.template").read_text(encoding="utf-8")
        text = text.replace("@name@", name).replace("@class@", class_name)
        (folder / template).write_text(text, encoding="utf-8")
    rows = [
        task.row for task in load_environment(str(folder / f"environment.py:{class_name}")).tasks("train", NUM_EXAMPLES)
    ]
    (folder / "example.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
