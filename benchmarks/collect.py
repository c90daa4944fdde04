"""How fast episodes are collected when the model answers at once, and whether any is lost when it misbehaves.

    python benchmarks/collect.py --episodes 2000 --concurrency 1 64 1024
    python benchmarks/collect.py --chaos 10000
    python benchmarks/collect.py --gym http://127.0.0.1:11000 --agent NAME --tasks tasks.jsonl

An episode is two model calls and one tool call of the calculator. `loop` has the model in the process: what the episode
itself costs. `http` asks a server process that answers at once: what the endpoint costs on top. Each measurement is a
process of its own, with its peak of memory. `--chaos` collects while the server is killed and restarted and a fifth of
its answers go wrong, and fails where an episode is lost. `--gym` lets an agent of a NeMo Gym that runs play the tasks,
to compare with the gym's own collector on the same servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from collection.chaos import ModelServer, collect_in_chaos
from collection.server import CALL

from regimen.config.load import load_collect_config
from regimen.generation.base import Reply, Sampling
from regimen.gym.agent import play_with
from regimen.gym.collect import Player, collect_episodes
from regimen.gym.environment import Task, load_environment
from regimen.pipelines.collect import collect

NUM_TASKS = 50


class InstantModel:
    """Calls the calculator, then repeats what it said."""

    async def chat(self, messages: Sequence[Any], tools: Sequence[Any], sampling: Sampling, seed: int) -> Reply:  # noqa: ARG002
        """Answer at once."""
        last = messages[-1]
        message: dict[str, Any] = {"role": "assistant", "content": f"The answer is {last['content']}."}
        if last["role"] != "tool":
            message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        return Reply(message=message, stop_reason="stop", num_input_tokens=3, num_output_tokens=3)

    async def close(self) -> None:
        """Nothing is held."""


def measure_loop(repeats: int, concurrency: int, output: Path) -> float:
    """Seconds of a collection with the model in this process."""
    environment, model = load_environment("calculator"), InstantModel()

    async def one(task: Task, repeat: int) -> dict[str, Any]:
        return await play_with(task, repeat, environment, model, Sampling(), 0)

    player = Player(name="calculator", identity={}, settings={}, play=one)
    tasks = environment.tasks("train", NUM_TASKS)
    found = asyncio.run(collect_episodes(tasks, repeats, player, concurrency=concurrency, output=output))
    return checked(found, repeats * NUM_TASKS)


def measure_http(repeats: int, concurrency: int, output: Path) -> float:
    """Seconds of a collection with the model in another process."""
    server = ModelServer()
    try:
        source = {"environment": {"name": "calculator"}, "num_tasks": NUM_TASKS, "model": "policy"}
        source |= {"model_url": server.url, "num_repeats": repeats, "concurrency": concurrency, "output": str(output)}
        return checked(collect(load_collect_config(source)), repeats * NUM_TASKS)
    finally:
        server.kill()


def measure_gym(options: argparse.Namespace, concurrency: int, output: Path) -> dict[str, Any]:
    """Episodes a second through the agent of a gym that runs."""
    source: dict[str, Any] = {
        "environment": {"name": options.agent},
        "gym": options.gym,
        "agent": options.agent,
        "tasks": options.tasks,
        "output": str(output),
    }
    found = collect(load_collect_config({**source, "num_repeats": options.repeats, "concurrency": concurrency}))
    rate = round(found.num_episodes / found.seconds, 1)
    return {"episodes": found.num_episodes, "failed": len(found.failures), "episodes_per_second": rate}


def checked(found: Any, number: int) -> float:
    """The seconds; every episode must have ended well."""
    if len(found.rows) != number:
        raise SystemExit(f"error: {len(found.failures)} of {number} episodes failed: {found.failures[0]}")
    return float(found.seconds)


def measured(kind: str, episodes: int, concurrency: int) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, "--episodes", str(episodes)]
    command += ["--concurrency", str(concurrency)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise SystemExit(f"error: {kind} at {concurrency}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: str, episodes: int, concurrency: int) -> dict[str, Any]:
    """The measurement itself; the first episodes, in which libraries are loaded, are not timed."""
    repeats = max(1, episodes // NUM_TASKS)
    work = measure_loop if kind == "loop" else measure_http
    with tempfile.TemporaryDirectory() as folder:
        work(1, concurrency, Path(folder) / "first.jsonl")
        before, began = time.process_time(), time.monotonic()
        seconds = work(repeats, concurrency, Path(folder) / "rollouts.jsonl")
        whole, processor = time.monotonic() - began, time.process_time() - before
    number = repeats * NUM_TASKS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "kind": kind,
        "concurrency": concurrency,
        "episodes": number,
        "episodes_per_second": round(number / seconds, 1),
        "processor_ms_per_episode": round(1000 * processor / number, 2),
        "whole_seconds": round(whole, 2),
        "peak_mib": round(peak),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The measurements as a table."""
    lines = ["| model | concurrent | episodes | episodes/s | processor, ms/episode | peak, MiB |", "| --- " * 6 + "|"]
    names = ("kind", "concurrency", "episodes", "episodes_per_second", "processor_ms_per_episode", "peak_mib")
    return "\n".join([*lines, *(f"| {' | '.join(str(result[name]) for name in names)} |" for result in results)])


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2000, help="of each measurement")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 64, 1024])
    parser.add_argument("--chaos", type=int, metavar="EPISODES", help="collect these in chaos, and count")
    parser.add_argument("--gym", help="head server of a NeMo Gym that runs")
    parser.add_argument("--agent", help="the gym's agent")
    parser.add_argument("--tasks", help="task rows for the agent")
    parser.add_argument("--repeats", type=int, default=20, help="of each task, with --gym")
    parser.add_argument("--measure", choices=("loop", "http"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.episodes, options.concurrency[0])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if options.chaos:
            found = collect_in_chaos(Path(folder), NUM_TASKS, max(1, options.chaos // NUM_TASKS))
            print(json.dumps(found, indent=2))
        elif options.gym:
            for concurrency in options.concurrency:
                output = Path(folder) / f"{concurrency}.jsonl"
                print(concurrency, json.dumps(measure_gym(options, concurrency, output)))
        else:
            print(
                table([measured(kind, options.episodes, at) for kind in ("loop", "http") for at in options.concurrency])
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
