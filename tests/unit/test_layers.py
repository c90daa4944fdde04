"""The direction table: which room may import which, read from the sources; and what quick commands leave unloaded."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "regimen"
FREE = {"errors", "registry", "config"}
EVERYTHING = None
# A room may import itself, the free modules, and what stands here: a room, or one module of it as "room/module".
ALLOWED: dict[str, set[str] | None] = {
    "errors": set(),
    "registry": set(),
    "config": set(),
    "rank": set(),  # which process this is, from the environment
    "rollouts": set(),
    "convert": {"rollouts"},
    "tokens": {"rollouts", "convert/sidecar"},
    "diagnosis": {"rollouts", "convert", "tokens", "adapters"},
    "adapters": set(),  # which layers adapters stand beside and what their folders are, without loading any
    "models": {"adapters"},  # loading a model folder, for the two rooms that hold one
    "connections": set(),  # to the server that an endpoint asks
    "endpoint": {"connections"},  # asking a server over HTTP, for the two rooms that do
    "generation": {"tokens", "models", "endpoint", "rank"},
    "policy": {"tokens", "models", "adapters"},
    "gym": {"rollouts", "tokens", "generation/base", "endpoint"},
    "serving": {"rollouts", "generation/base", "gym"},  # three servers behind one guard
    "algorithms": {"tokens", "policy/base"},
    "evaluation": {"rollouts"},
    "tracking": set(),
    "cluster": set(),
    "pipelines": EVERYTHING,
    "cli": EVERYTHING,
    "viewer": EVERYTHING,
}
TENSOR_LIBRARIES = {"torch", "transformers", "safetensors", "tensorboard"}
# Rooms that hold no tensors: none of their modules imports a tensor library, not even when called.
WITHOUT_TENSORS = {
    "rollouts",
    "convert",
    "diagnosis",
    "evaluation",
    "config",
    "gym",
    "serving",
    "connections",
    "endpoint",
    "errors",
    "registry",
    "adapters",
    "rank",
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and full name of everything a module imports, inside functions and for the type checker too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def is_allowed(room: str, name: str) -> bool:
    """Whether `room` may import `regimen.…` by that full name."""
    allowed = ALLOWED[room]
    parts = name.split(".")[1:]
    if allowed is EVERYTHING or not parts or parts[0] in FREE | {room, "__version__"}:
        return True
    return parts[0] in allowed or "/".join(parts[:2]) in allowed


def test_every_room_stands_in_the_table() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= set(ALLOWED)


@pytest.mark.parametrize("room", sorted(room for room in ALLOWED if (SOURCE / room).exists()))
def test_room_imports_only_what_the_table_allows(room: str) -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for path in modules()
        if room_of(path) == room
        for line, name in imports_of(path)
        if name.split(".")[0] == "regimen" and not is_allowed(room, name)
    ]
    assert wrong == []


def test_table_refuses_what_it_should() -> None:
    assert not is_allowed("rollouts", "regimen.tokens.forest")
    assert not is_allowed("gym", "regimen.generation.transformers.TransformersGeneration")
    assert not is_allowed("algorithms", "regimen.policy.local.LocalPolicy")
    assert not is_allowed("convert", "regimen.pipelines.convert.convert")
    assert is_allowed("gym", "regimen.generation.base.Generation")
    assert is_allowed("cli", "regimen.pipelines.train.train")
    assert is_allowed("rollouts", "regimen.errors.RolloutError")


def test_rooms_without_tensors_import_no_tensor_library() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for path in modules()
        if room_of(path) in WITHOUT_TENSORS
        for line, name in imports_of(path)
        if name.split(".")[0] in TENSOR_LIBRARIES
    ]
    assert wrong == []


def test_no_room_is_a_drawer_for_anything() -> None:
    names = {part for path in modules() for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert names.isdisjoint({"utils", "util", "common", "helpers", "misc"})


ROW = (
    '{"responses_create_params": {"input": "What is 2 + 2?"}, "reward": REWARD, "_ng_task_index": TASK,'
    ' "_ng_rollout_index": 0, "agent_ref": {"name": "sums"}, "response": {"output": [{"type": "message",'
    ' "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}]}}\n'
)


EXPORTED = ["data.train.data_path=pairs.jsonl", "sft.val_period=0", "sft.val_at_start=false"]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["version"],
        *[
            [verb, "--help"]
            for verb in (
                "collect",
                "serve",
                "inspect",
                "doctor",
                "plan",
                "convert",
                "export",
                "train",
                "evaluate",
                "iterate",
                "quickstart",
            )
        ],
        ["inspect", "rollouts.jsonl"],
        ["convert", "rollouts.jsonl", "--to", "sft", "--out", "sft"],
        ["export", "nemo-rl", "sft", "--out", "nemo", "data.train.dataset_name=ResponseDataset", *EXPORTED],
        ["export", "trl", "sft", "--out", "trl", "data.train.dataset_name=ResponseDataset", *EXPORTED],
        ["evaluate", "--rollouts", "rollouts.jsonl"],
    ],
    ids=" ".join,
)
def test_quick_command_imports_no_tensor_library(words: list[str], tmp_path: Path) -> None:
    """The command works, in a process of its own, and has loaded no tensor library when it ends."""
    rows = [ROW.replace("TASK", str(task)).replace("REWARD", str(task % 2)) for task in range(40)]
    (tmp_path / "rollouts.jsonl").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text('{"input": "q", "output": "a"}\n' * 40, encoding="utf-8")
    program = (
        "import sys; from regimen.cli.main import main; code = main(sys.argv[1:]); "
        f"print('LOADED', sorted(set(sys.modules) & {TENSOR_LIBRARIES!r})); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_importing_regimen_loads_no_room() -> None:
    program = "import sys, regimen; print(sorted(name for name in sys.modules if name.startswith('regimen')))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "['regimen']"
