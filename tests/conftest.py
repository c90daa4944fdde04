"""What every test run does: skip what this machine cannot run, and end by saying what was left out and why."""

from __future__ import annotations

import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import tiny_model

LEFT_OUT = {
    "slow": "minutes long; `make test-all` runs them",
    "gpu": "need a CUDA device; `make test-all` runs them where one is",
}
deselected: Counter[str] = Counter()


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tests/fixtures/tiny_model.py`: makers of tiny random models and tokenizers."""
    return tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with a byte-level tokenizer and the shipped chat template."""
    return tiny.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@cache
def missing(mark: str) -> str | None:
    """Why this machine cannot run tests with a mark, or None when it can."""
    if mark == "gpu":
        return None if has_cuda() else "no CUDA device"
    return None


def has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in LEFT_OUT:
        if item.get_closest_marker(mark) and (reason := missing(mark)):
            pytest.skip(reason)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        marks = [mark for mark in LEFT_OUT if item.get_closest_marker(mark)]
        deselected[marks[0] if marks else "named otherwise"] += 1


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for mark, count in sorted(deselected.items()):
        reason = LEFT_OUT.get(mark, "not chosen on the command line")
        terminalreporter.write_line(f"left out: {count} {mark} tests: {reason}")
