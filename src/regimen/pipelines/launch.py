"""Starting the processes of a training run on this machine, where nobody else did.

In: a configuration and the words of the command. Out: the exit code of the first process that failed, else 0.
Every process is the same command with torchrun's environment variables. When one fails the others are ended; signals
are handed on. Refuses: more processes than GPUs, several machines (torchrun starts those).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from regimen.config.schema import TrainConfig
from regimen.errors import UsageError

GRACE_SECONDS = 30.0  # for the others to end by themselves


def processes_to_start(config: TrainConfig) -> int:
    """How many processes this command starts; 1 where it is to train by itself."""
    if not config.policy.dtensor_cfg.enabled or "WORLD_SIZE" in os.environ:
        return 1
    cluster, num_gpus = config.cluster, _num_gpus()
    if cluster.num_nodes > 1:
        raise UsageError(
            f"is {cluster.num_nodes}, but this command starts processes on one machine only",
            where="cluster.num_nodes",
            fix="run `torchrun --nnodes ... -m regimen.cli.main train ...` on each, or set cluster.num_nodes=1",
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

    def hand_on(received: int, _: object) -> None:
        for process in processes:
            process.send_signal(received)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        return _wait(processes)
    finally:
        signal.signal(signal.SIGTERM, before)
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


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first that failed, once all have ended."""
    failed, deadline = 0, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if not failed and any(codes):
            rank, failed = next((rank, code) for rank, code in enumerate(codes) if code)
            deadline = time.monotonic() + GRACE_SECONDS
            if failed < 0:
                print(f"error: process {rank} was ended by signal {-failed}", file=sys.stderr, flush=True)
        if None not in codes or time.monotonic() > deadline:
            return 128 - failed if failed < 0 else failed
        with contextlib.suppress(KeyboardInterrupt):  # the terminal told the processes too
            time.sleep(0.1)
