"""Starting the processes of a training run, where nobody else did: on this machine, or on those of a Ray cluster.

In: a configuration and the words of the command. Out: the exit code of the first process that failed, else 0.
Every process is the same command with torchrun's environment variables. When one fails the others are ended; signals
are handed on. Refuses: more processes than GPUs, several machines without a cluster (torchrun starts those).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from regimen.config.schema import TrainConfig
from regimen.errors import OtherRankError, UsageError

GRACE_SECONDS = 30.0  # for the others to end by themselves


class Started(Protocol):
    """A process that was started, here or elsewhere."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Send a signal."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def starts_on_ray(config: TrainConfig) -> bool:
    """Whether a Ray cluster gets the processes: by `cluster.launcher`, or RAY_ADDRESS where that is auto."""
    launcher = config.cluster.launcher
    wanted = launcher == "ray" or (launcher == "auto" and bool(os.environ.get("RAY_ADDRESS")))
    return wanted and config.policy.dtensor_cfg.enabled and "WORLD_SIZE" not in os.environ


def launch_on_ray(words: Sequence[str], config: TrainConfig) -> int:
    """Run `regimen WORDS` in the processes of `cluster`, on a Ray cluster, and wait for them all."""
    from regimen.cluster.ray import Layout, started

    cluster = config.cluster
    layout = Layout(cluster.num_nodes, cluster.gpus_per_node, cluster.num_processes)
    where = "cluster.launcher=ray" if cluster.launcher == "ray" else "RAY_ADDRESS"
    with started([sys.executable, "-m", "regimen.cli.main", *words], layout, where) as processes:
        # The terminal tells this process alone of an interrupt.
        return _supervise(processes, (signal.SIGTERM, signal.SIGINT))


def processes_to_start(config: TrainConfig) -> int:
    """How many processes this command starts; 1 where it is to train by itself."""
    if not config.policy.dtensor_cfg.enabled or "WORLD_SIZE" in os.environ:
        return 1
    cluster, num_gpus = config.cluster, _num_gpus()
    if cluster.num_nodes > 1:
        raise UsageError(
            f"is {cluster.num_nodes}, but this command starts processes on one machine only",
            where="cluster.num_nodes",
            fix="set RAY_ADDRESS or cluster.launcher=ray to start them in a Ray cluster, run `torchrun --nnodes ... -m "
            "regimen.cli.main train ...` on each, or set cluster.num_nodes=1",
        )
    number = cluster.num_processes or (cluster.gpus_per_node if num_gpus else 1) or 1
    if num_gpus and number > num_gpus:
        key = "num_processes" if cluster.num_processes else "gpus_per_node"
        raise UsageError(
            f"asks for {number} processes on a machine with {num_gpus} GPUs",
            where=f"cluster.{key}",
            fix=f"set cluster.{key}={num_gpus}",
        )
    return number


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def launch(words: Sequence[str], number: int) -> int:
    """Run `regimen WORDS` in `number` processes and wait for them all."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    command = [sys.executable, "-m", "regimen.cli.main", *words]
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)  # where they meet; it outlives each of them
    processes = [subprocess.Popen(command, env=_environment(rank, number, store.port)) for rank in range(number)]
    return _supervise(processes, (signal.SIGTERM,))


def _supervise(processes: Sequence[Started], signals: Sequence[signal.Signals]) -> int:
    """Wait for all, handing `signals` on; the exit code of the first that failed."""

    def hand_on(received: int, _: object) -> None:
        for process in processes:
            process.send_signal(received)

    before = {number: signal.signal(number, hand_on) for number in signals}
    try:
        return _wait(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            process.kill()


def _environment(rank: int, number: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // number)
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **place}


def _wait(processes: Sequence[Started]) -> int:
    """The exit code of the first that failed, once all have ended; the first to fail need not be the first to end."""
    failed, deadline = 0, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if not failed:
            reasons = ((rank, code) for rank, code in enumerate(codes) if code and code != OtherRankError.exit_code)
            rank, failed = next(reasons, (0, 0))
            if failed < 0:
                print(f"error: process {rank} was ended by signal {-failed}", file=sys.stderr, flush=True)
        if None not in codes or time.monotonic() > deadline:
            return 128 - failed if failed < 0 else failed or int(any(codes))
        with contextlib.suppress(KeyboardInterrupt):  # the terminal told the processes too
            time.sleep(0.1)
