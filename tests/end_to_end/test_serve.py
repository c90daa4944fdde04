"""`regimen serve` as a process of its own: what it prints, who is answered, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

SOURCE = Path(__file__).parents[2] / "src"


@contextmanager
def served(*words: str) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """The lines a server prints before it answers, and its process."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    environment.pop("REGIMEN_SERVER_TOKEN", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "regimen.cli.main", "serve", *words, "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while not lines or not lines[-1].startswith("stop with"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            lines.append(line.strip())
        yield lines, process
    finally:
        process.kill()
        process.communicate()


def url_of(lines: list[str]) -> str:
    return lines[0].rpartition(" at ")[2].replace("0.0.0.0", "127.0.0.1")


@contextmanager
def ready(url: str, **headers: str) -> Iterator[httpx.Client]:
    """A client of a server that answers."""
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        assert client.get("/health").json() == {"status": "ok"}
        yield client


def test_an_environment_until_interrupted() -> None:
    with served("--environment", "calculator") as (lines, process):
        assert lines[0].startswith("environment calculator at http://127.0.0.1:")
        assert lines[1] == "no token: only this machine is answered"
        with ready(url_of(lines)) as client:
            row = {"responses_create_params": {"input": "1 + 1?"}, "expected_answer": "2"}
            assert client.post("/seed_session", json=row).status_code == 200
            assert client.post("/calculator", json={"expression": "1 + 1"}).text == "2"
            assert client.post("/seed_session", json=row, headers={"host": "evil.example"}).status_code == 421
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.strip() == "interrupted: the server has stopped"


def test_elsewhere_a_token_is_made_shown_once_and_required() -> None:
    with served("--environment", "calculator", "--host", "0.0.0.0") as (lines, _):
        head, _, token = lines[1].rpartition(" ")
        assert head == "token, shown this once:"
        with ready(url_of(lines)) as client:
            assert client.get("/openapi.json").status_code == 401
        with ready(url_of(lines), authorization=f"Bearer {token}") as client:
            assert client.get("/openapi.json").status_code == 200


@pytest.mark.slow
def test_a_model_and_the_agent_that_asks_it(tiny_folder: Path) -> None:
    with served(str(tiny_folder), "--name", "tiny", "--token-ids", "--max-new-tokens", "8") as (lines, _):
        url = url_of(lines)
        client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], seed=1)
        message = answer.choices[0].message
        assert len(message.generation_token_ids) == len(message.generation_log_probs) == answer.usage.completion_tokens
        words = ["tiny", "--model-url", f"{url}/v1", "--environment", "calculator", "--max-new-tokens", "8"]
        with served(*words) as (agent_lines, _), ready(url_of(agent_lines)) as agent:
            row = {"responses_create_params": {"input": "1 + 1?"}, "expected_answer": "2"}
            played = agent.post("/run", json=row, timeout=60).json()
            assert played["reward"] == 0.0
            assert played["response"]["status"] == "incomplete"
            assert "calculator_agent" in json.loads(agent.get("/global_config_dict_yaml").text)
