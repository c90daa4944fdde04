"""Collecting while the model server is killed, restarted and misbehaves: is every episode there exactly once?

In: a folder, a number of tasks and repeats. Out: counts. The collection is resumed until nothing is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regimen.config.load import load_collect_config
from regimen.pipelines.collect import collect

SERVER = Path(__file__).with_name("server.py")


class ModelServer:
    """The server as a process that can be killed and started again on the same port."""

    def __init__(self, chaos: float = 0.0) -> None:
        self.chaos = chaos
        self.port = 0
        self.num_starts = 0
        self.start()

    def start(self) -> None:
        """Start, on the port of before."""
        command = [sys.executable, str(SERVER), "--port", str(self.port), "--chaos", str(self.chaos)]
        command += ["--seed", str(self.num_starts)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.num_starts += 1

    def kill(self) -> None:
        """Kill it, as by `kill -9`."""
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        """Where the model is."""
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def killed_now_and_then(server: ModelServer, seconds_up: float, seconds_down: float) -> Iterator[None]:
    """While the block runs, the server is killed every `seconds_up` and is away for `seconds_down`."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(seconds_up):
            server.kill()
            time.sleep(seconds_down)
            server.start()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def collect_in_chaos(
    folder: Path,
    num_tasks: int,
    num_repeats: int,
    *,
    concurrency: int = 64,
    chaos: float = 0.2,
    seconds_up: float = 5.0,
) -> dict[str, Any]:
    """Collect, resuming until every episode is there; raises `AssertionError` where one is lost or twice there."""
    server = ModelServer(chaos)
    output = folder / "rollouts.jsonl"
    rounds = 0
    failed: Counter[str] = Counter()
    began = time.monotonic()
    try:
        with killed_now_and_then(server, seconds_up, 0.5):
            missing = num_tasks * num_repeats
            while missing:
                config = load_collect_config(
                    {
                        "environment": {"name": "calculator"},
                        "num_tasks": num_tasks,
                        "num_repeats": num_repeats,
                        "model": "policy",
                        "model_url": server.url,
                        "concurrency": concurrency,
                        "output": str(output),
                        "resume": rounds > 0,
                    }
                )
                found = collect(config)
                failed.update(row["_ng_failure_class"] for row in found.failures)
                assert all("reward" not in row for row in found.failures), "a failure has a reward"
                assert found.num_episodes == num_tasks * num_repeats, "an episode is lost"
                missing = len(found.failures)
                rounds += 1
                assert rounds <= 20, f"{missing} episodes still fail after {rounds} rounds"
    finally:
        server.kill()
    with output.open(encoding="utf-8") as lines:
        pairs = Counter((row["_ng_task_index"], row["_ng_rollout_index"]) for row in map(json.loads, lines))
    assert len(pairs) == num_tasks * num_repeats, "an episode is not on disk"
    assert set(pairs.values()) == {1}, "an episode is there twice"
    return {
        "episodes": len(pairs),
        "rounds": rounds,
        "failed_and_played_again": dict(failed),
        "server_starts": server.num_starts,
        "seconds": round(time.monotonic() - began, 1),
    }
