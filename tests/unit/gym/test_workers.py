"""Scripts in processes of their own: answers, limits, what they cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from regimen.errors import GymError
from regimen.gym.workers import Workers

SCRIPT = """
import os, socket, subprocess

def prepare():
    global ready
    ready = True
    print("noise that must not reach the answers")

def answer(request):
    print("more noise")
    try:
        return {"value": eval(request["code"])}
    except BaseException as error:
        return {"error": type(error).__name__}
"""


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return Workers(script, 1, 0.5, task="the sum")


def test_answers_and_preparation(workers: Workers) -> None:
    assert workers.ask_now({"code": "ready and 1 + 1"}, "here") == {"value": 2}


def test_time_is_limited_and_the_next_request_is_answered(workers: Workers) -> None:
    with pytest.raises(GymError, match=r"here: the sum took more than 0\.5 seconds of processor time"):
        workers.ask_now({"code": "[x for x in iter(int, 1)]"}, "here")
    assert workers.ask_now({"code": "2 + 2"}, "here") == {"value": 4}


def test_memory_is_limited(workers: Workers) -> None:
    assert workers.ask_now({"code": "len(bytes(1 << 33))"}, "here") == {"error": "MemoryError"}


def test_a_process_that_ends_by_itself_is_named(workers: Workers) -> None:
    with pytest.raises(GymError, match="the process for the sum ended with code 3"):
        workers.ask_now({"code": "os._exit(3)"}, "here")


@pytest.mark.parametrize(
    "code",
    [
        "open('written', 'w')",
        "os.open('written', os.O_CREAT | os.O_WRONLY)",
        "subprocess.run(['true'])",
        "os.system('true')",
        "os.fork()",
        "socket.create_connection(('127.0.0.1', 9))",
        "os.remove('script.py')",
        "os.kill(os.getppid(), 0)",
    ],
)
def test_files_processes_and_connections_are_refused(workers: Workers, code: str) -> None:
    assert workers.ask_now({"code": code}, "here") == {"error": "PermissionError"}
