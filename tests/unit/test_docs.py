"""The documentation is held to the code: paths exist, commands and their options exist, Python blocks compile and
name things that exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from regimen.cli.main import VERBS, load_command
from regimen.config.load import load_collect_config, load_iterate_config, load_train_config
from regimen.config.source import shipped_names

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
CODE = re.compile(r"`([^`\n]+)`")
TOP_FOLDERS = ("src/", "docs/", "tests/", "examples/", "configs/", "benchmarks/", ".ci/")
VARIABLE = re.compile(r"[<>*$…]")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(text: str, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(text) if language in languages]


def prose_of(text: str) -> str:
    return BLOCK.sub("", text)


def commands_of(text: str) -> list[list[str]]:
    """Command lines in the page: those of shell blocks, and `regimen …` in the prose."""
    lines: list[str] = []
    for body in blocks_of(text, "bash", "console", "sh"):
        lines += [line.removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines()]
    lines += [code for code in CODE.findall(prose_of(text)) if code.split()[0] in ("regimen", "make")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def paths_of(page: Path, text: str) -> list[Path]:
    """Files and folders that the page names: links, code in the prose, words of commands, and the tree."""
    found = [page.parent / link for link in LINK.findall(prose_of(text)) if "://" not in link]
    words = [*CODE.findall(prose_of(text)), *(word for line in commands_of(text) for word in line)]
    found += [ROOT / word for word in words if word.startswith(TOP_FOLDERS) and not VARIABLE.search(word)]
    for body in blocks_of(text, "text"):
        found += tree_of(body)
    return found


def tree_of(body: str) -> list[Path]:
    """Paths of an indented tree; a block that does not begin with a folder is no tree."""
    lines = [line for line in body.splitlines() if line.strip()]
    if not lines or not lines[0].split()[0].endswith("/"):
        return []
    found: list[Path] = []
    folders: dict[int, Path] = {}
    for line in lines:
        indent = len(line) - len(line.lstrip())
        parent = next((folders[depth] for depth in sorted(folders, reverse=True) if depth < indent), ROOT)
        path = parent / line.split()[0]
        folders = {depth: folder for depth, folder in folders.items() if depth < indent} | {indent: path}
        found.append(path)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    missing = [str(path.relative_to(ROOT)) for path in paths_of(page, text_of(page)) if not path.exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    problems = [problem for words in commands_of(text_of(page)) for problem in problems_of(words)]
    assert problems == []


def problems_of(words: list[str]) -> list[str]:
    """What is wrong with one command line."""
    line = " ".join(words)
    if words[0] == "make":
        targets = re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), re.MULTILINE)
        return [f"{line}: no target {word}" for word in words[1:] if "=" not in word and word not in targets]
    if words[0] != "regimen" or len(words) == 1 or words[1] in ("COMMAND", "--help", "…"):
        return []
    if words[1] not in VERBS:
        return [f"{line}: no command {words[1]}"]
    if words[1:2] == ["train"] and words[2:3] and words[2] in shipped_names():
        load_train_config(words[2], [word for word in words[3:] if not word.startswith("-")])
    known = {option for parameter in load_command(words[1]).params for option in parameter.opts} | {"--help", "--debug"}
    return [
        f"{line}: no option {word}" for word in words[2:] if word.startswith("-") and word.split("=")[0] not in known
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile_and_name_what_exists(page: Path) -> None:
    for body in blocks_of(text_of(page), "python"):
        tree = ast.parse(body)
        compile(tree, str(page), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "regimen":
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "regimen":
                assert hasattr(importlib.import_module("regimen"), node.attr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_configurations_that_load(page: Path) -> None:
    for body in blocks_of(text_of(page), "yaml"):
        tree = yaml.safe_load(body)
        if "policy" in tree:
            assert load_train_config(tree).policy.model_name == "models/base"
        else:
            load = load_iterate_config if "rounds" in tree else load_collect_config
            assert load(tree).model == "models/base"


def test_forest_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (body,) = blocks_of(text_of(ROOT / "docs" / "tokens-and-forest.md"), "python")
    exec(compile(body, "tokens-and-forest.md", "exec"), {})
    said = re.findall(r"(\[[\d ]+\])$", body, re.MULTILINE)
    assert said == capsys.readouterr().out.splitlines()


async def test_environment_example_works() -> None:
    *_, body = blocks_of(text_of(ROOT / "docs" / "environments.md"), "python")
    names: dict[str, Any] = {}
    exec(compile(body, "environments.md", "exec"), names)
    environment = names["Capitals"]()
    (task,) = environment.tasks("test")
    session = await environment.seed(task)
    assert await environment.call(session, "atlas", {"country": "Kenya"}) == "Nairobi"
    verdict = await environment.verify(session, task, [{"type": "message", "content": "Nairobi."}])
    assert (verdict.reward, verdict.metrics) == (1.0, {"num_items": 1})


def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "See [it](gone.md) and `src/regimen/gone.py`, run `make nothing`.\n"
        "```bash\nregimen inspect x --no-such-option\nregimen nothing\n```\n",
        encoding="utf-8",
    )
    text = text_of(page)
    assert [path.name for path in paths_of(page, text) if not path.exists()] == ["gone.md", "gone.py"]
    assert [problem for words in commands_of(text) for problem in problems_of(words)] == [
        "regimen inspect x --no-such-option: no option --no-such-option",
        "regimen nothing: no command nothing",
        "make nothing: no target nothing",
    ]


def test_tree_paths_follow_the_indentation() -> None:
    body = "src/regimen/\n  rollouts/   episodes\n  errors.py   errors\ndocs/   pages\n"
    assert [str(path.relative_to(ROOT)) for path in tree_of(body)] == [
        "src/regimen",
        "src/regimen/rollouts",
        "src/regimen/errors.py",
        "docs",
    ]
