"""How fast episodes are collected when the model answers at once, and whether any is lost when it misbehaves.

    python benchmarks/collect.py --episodes 2000 --concurrency 1 64 1024
    python benchmarks/collect.py --chaos 10000
    python benchmarks/collect.py --gym http://127.0.0.1:11000 --agent NAME --tasks tasks.jsonl
    python benchmarks/collect.py --beside GYM/bin/gym --agent NAME --num-tasks 12 --episodes 480 --concurrency 1 64

An episode is two model calls and one tool call of the calculator. `loop` has the model in the process: what the episode
itself costs. `http` asks a server process that answers at once: what the endpoint costs on top. `served` asks Regimen's
agent server, which has the environment beside it, and asks that model server: what the agent's wire costs on top. Each
measurement is a process of its own, with its peak of memory. `--chaos` collects while the server is killed and
restarted and a fifth of its answers go wrong, and fails where an episode is lost. `--gym` lets an agent of a NeMo Gym
that runs play the tasks, to compare with the gym's own collector on the same servers. `--beside` does that comparison:
NeMo Gym's collector (its command `gym`), `regimen collect` on the gym's servers, `served` and `http`, in turns.
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

from collection.agent import AGENT, AgentServer
from collection.beside import THEIRS, measure_theirs
from collection.beside import table as table_beside
from collection.chaos import ModelServer, collect_in_chaos
from collection.server import CALL

from regimen.config.load import load_collect_config
from regimen.generation.base import Reply, Sampling
from regimen.gym.agent import play_with
from regimen.gym.collect import Player, collect_episodes
from regimen.gym.environment import Task, load_environment
from regimen.pipelines.collect import collect

NUM_TASKS = 50
KINDS = ("loop", "http", "served")


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


def measure_loop(num_tasks: int, repeats: int, concurrency: int, output: Path) -> float:
    """Seconds of a collection with the model in this process."""
    environment, model = load_environment("calculator"), InstantModel()

    async def one(task: Task, repeat: int) -> dict[str, Any]:
        return await play_with(task, repeat, environment, model, Sampling(), 0)

    player = Player(name="calculator", identity={}, settings={}, play=one)
    tasks = environment.tasks("train", num_tasks)
    found = asyncio.run(collect_episodes(tasks, repeats, player, concurrency=concurrency, output=output))
    return checked(found, repeats * num_tasks)


def measure_http(num_tasks: int, repeats: int, concurrency: int, output: Path) -> float:
    """Seconds of a collection with the model in another process."""
    server = ModelServer()
    try:
        source = {"environment": {"name": "calculator"}, "num_tasks": num_tasks, "model": "policy"}
        source |= {"model_url": server.url, "num_repeats": repeats, "concurrency": concurrency, "output": str(output)}
        return checked(collect(load_collect_config(source)), repeats * num_tasks)
    finally:
        server.kill()


def measure_served(num_tasks: int, repeats: int, concurrency: int, output: Path) -> float:
    """Seconds of a collection whose episodes Regimen's agent server plays, with the model in a third process."""
    server = ModelServer()
    try:
        agent = AgentServer(server.url)
        try:
            tasks = write_tasks(output.with_name("tasks.jsonl"), num_tasks)
            source: dict[str, Any] = {"environment": {"name": AGENT}, "gym": agent.url, "agent": AGENT}
            source |= {"tasks": str(tasks), "concurrency": concurrency, "num_repeats": 1, "overwrite": True}
            first = output.with_name("warm.jsonl")  # the server's first episodes, in which it loads libraries
            checked(collect(load_collect_config({**source, "output": str(first)})), num_tasks)
            found = collect(load_collect_config({**source, "num_repeats": repeats, "output": str(output)}))
            return checked(found, repeats * num_tasks)
        finally:
            agent.kill()
    finally:
        server.kill()


def write_tasks(path: Path, num_tasks: int) -> Path:
    """The rows of the tasks that the other measurements play too."""
    tasks = load_environment("calculator").tasks("train", num_tasks)
    path.write_text("".join(json.dumps(task.row) + "\n" for task in tasks), encoding="utf-8")
    return path


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


def measured(kind: str, num_tasks: int, episodes: int, concurrency: int) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, "--episodes", str(episodes)]
    command += ["--num-tasks", str(num_tasks), "--concurrency", str(concurrency)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise SystemExit(f"error: {kind} at {concurrency}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: str, num_tasks: int, episodes: int, concurrency: int) -> dict[str, Any]:
    """The measurement itself; the first episodes, in which libraries are loaded, are not timed."""
    repeats = max(1, episodes // num_tasks)
    work = {"loop": measure_loop, "http": measure_http, "served": measure_served}[kind]
    with tempfile.TemporaryDirectory() as folder:
        work(num_tasks, 1, concurrency, Path(folder) / "first.jsonl")
        before, began = time.process_time(), time.monotonic()
        seconds = work(num_tasks, repeats, concurrency, Path(folder) / "rollouts.jsonl")
        whole, processor = time.monotonic() - began, time.process_time() - before
    number = repeats * num_tasks
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
    lines = ["| played | concurrent | episodes | episodes/s | processor, ms/episode | peak, MiB |", "| --- " * 6 + "|"]
    names = ("kind", "concurrency", "episodes", "episodes_per_second", "processor_ms_per_episode", "peak_mib")
    return "\n".join([*lines, *(f"| {' | '.join(str(result[name]) for name in names)} |" for result in results)])


def measure_beside(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """NeMo Gym's collector and ours on its servers, and what Regimen has without them, in turns."""
    tasks = write_tasks(folder / "tasks.jsonl", options.num_tasks)
    repeats = max(1, options.episodes // options.num_tasks)
    options = argparse.Namespace(**{**vars(options), "tasks": str(tasks), "repeats": repeats})
    options.gym = options.gym or "http://127.0.0.1:11000"

    def rate(kind: str, at: int, output: Path) -> float:
        if kind == THEIRS:
            return measure_theirs(options.beside, options.agent, tasks, repeats, at, output)
        if kind == "gym":
            return measure_gym(options, at, output)["episodes_per_second"]
        return measured(kind, options.num_tasks, options.episodes, at)["episodes_per_second"]

    measure_theirs(options.beside, options.agent, tasks, 1, 1, folder / "first.jsonl")  # the servers' first episodes
    kinds = [THEIRS, "gym", "served", "http"]
    results: list[dict[str, Any]] = []
    for turn in range(1, options.turns + 1):
        for at in options.concurrency:
            for kind in kinds if turn % 2 else reversed(kinds):
                found = rate(kind, at, folder / f"{turn}-{at}-{kinds.index(kind)}.jsonl")
                one = {"kind": kind, "concurrency": at, "turn": turn, "episodes": repeats * options.num_tasks}
                results.append({**one, "episodes_per_second": round(found, 1)})
                print(json.dumps(results[-1]), flush=True)
    return sorted(results, key=lambda result: kinds.index(result["kind"]))


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
    parser.add_argument("--num-tasks", type=int, default=NUM_TASKS, help="of the calculator, without --gym")
    parser.add_argument("--beside", metavar="GYM", help="NeMo Gym's command; its servers run, at --gym")
    parser.add_argument("--turns", type=int, default=2, help="of each measurement, with --beside")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.beside and not options.agent:
        parser.error("--beside needs --agent: the gym's agent that plays the calculator")
    if options.measure:
        print(json.dumps(measure(options.measure, options.num_tasks, options.episodes, options.concurrency[0])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if options.chaos:
            found = collect_in_chaos(Path(folder), NUM_TASKS, max(1, options.chaos // NUM_TASKS))
            print(json.dumps(found, indent=2))
        elif options.beside:
            print(table_beside(measure_beside(options, Path(folder))))
        elif options.gym:
            for concurrency in options.concurrency:
                output = Path(folder) / f"{concurrency}.jsonl"
                print(concurrency, json.dumps(measure_gym(options, concurrency, output)))
        else:
            sizes = options.num_tasks, options.episodes
            print(table([measured(kind, *sizes, at) for kind in KINDS for at in options.concurrency]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
