"""Processes of a run on the machines of a Ray cluster, which must see the same files and have the same packages.

In: a command, how many machines and processes. Out: running processes with torchrun's environment variables, each in
a place of its own in the cluster, that are polled and signalled like processes of this machine. What the first one says
comes to this terminal; of the others, what the first to fail said last.
Refuses: Ray that is not installed; more machines, GPUs or processors than the cluster has.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimen.errors import RunError, UsageError

PATIENCE = 60.0  # seconds for the cluster to give the places
_LAST = 50  # pieces of output that are kept of a process that nobody listens to
_OF_A_MACHINE = ("RAY_", "CUDA_")  # beginnings of variables that do not travel


@dataclass(frozen=True, slots=True)
class Layout:
    """`num_nodes` machines, `num_processes` in all; None: one for each of `gpus_per_node`, one where there is none."""

    num_nodes: int = 1
    gpus_per_node: int = 1
    num_processes: int | None = None

    def per_node(self, has_gpus: bool) -> int:
        """Processes of a machine. Raises `UsageError` where they cannot be alike on all machines."""
        if self.num_processes is None:
            return max(1, self.gpus_per_node) if has_gpus else 1
        if self.num_processes % self.num_nodes:
            raise UsageError(
                f"is {self.num_processes}, but there are {self.num_nodes} machines",
                where="cluster.num_processes",
                expected="a multiple of cluster.num_nodes",
            )
        return self.num_processes // self.num_nodes


def import_ray(where: str) -> Any:
    """The package. Raises `UsageError` where it is not installed; `where` asked for it."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise UsageError(
            "the Python package ray is not installed",
            where=where,
            fix=f"pip install 'regimen-rl[ray]', or leave {where} out",
        ) from None


class Place:
    """Lives in the cluster, on the machine of the process that it starts. `listened`: whether all output is kept."""

    def __init__(self, listened: bool) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.said: deque[tuple[str, bytes]] = deque(maxlen=None if listened else _LAST)
        self.readers: list[threading.Thread] = []
        self.store: Any = None

    def open_store(self) -> tuple[str, int]:
        """Where the processes meet; it outlives each of them."""
        from ray.util import get_node_ip_address
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address = get_node_ip_address()
        self.store = TCPStore(address, 0, None, True, wait_for_workers=False)
        return address, self.store.port

    def start(self, command: Sequence[str], place: dict[str, str], along: dict[str, str], folder: str) -> None:
        """Start the process in `folder`; of the variables that come `along`, those count that this machine lacks."""
        self.child = subprocess.Popen(
            command,
            env={**along, **os.environ, **place},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, stream in (("stdout", self.child.stdout), ("stderr", self.child.stderr)):
            self.readers.append(threading.Thread(target=self._read, args=(name, stream), daemon=True))
            self.readers[-1].start()

    def _read(self, name: str, stream: Any) -> None:
        while part := stream.read1(65536):
            self.said.append((name, part))

    def poll(self) -> tuple[int | None, list[tuple[str, bytes]]]:
        """The exit code, None while the process runs; what it said since the last call, or said last."""
        assert self.child is not None
        code = self.child.poll()
        if code is None and self.said.maxlen is not None:
            return None, []
        for reader in self.readers if code is not None else ():
            reader.join(5)  # a child of its own may hold the pipe open
        said: list[tuple[str, bytes]] = []
        while self.said:
            said.append(self.said.popleft())
        return code, said

    def send(self, number: int) -> None:
        """Send a signal, if there is still something to send it to."""
        assert self.child is not None
        self.child.send_signal(number)


class RemoteProcess:
    """What `subprocess.Popen` is on this machine."""

    def __init__(self, ray: Any, actor: Any, rank: int) -> None:
        self.ray, self.actor, self.rank = ray, actor, rank
        self.code: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        """The exit code, None while the process runs; hands on signals, and what it said to this terminal."""
        if self.code is not None:
            return self.code
        try:
            while self.signals:
                self.ray.get(self.actor.send.remote(self.signals.pop(0)))
            code, said = self.ray.get(self.actor.poll.remote())
        except self.ray.exceptions.RayError as error:
            print(f"error: Ray lost process {self.rank} ({type(error).__name__})", file=sys.stderr, flush=True)
            self.code = 1
            return self.code
        if self.rank == 0 or code:
            for name, part in said:
                stream = sys.stdout if name == "stdout" else sys.stderr
                stream.write(part.decode(errors="replace"))
                stream.flush()
        self.code = code
        return code

    def send_signal(self, number: int) -> None:
        """Kept until the next `poll`: a handler of signals may interrupt one that waits for the cluster."""
        self.signals.append(number)

    def kill(self) -> None:
        """End the place, and with it the process."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.get(self.actor.send.remote(9), timeout=5)
        self.ray.kill(self.actor)


@contextmanager
def connected(where: str) -> Generator[Any]:
    """The package, in a cluster; one that this process was not in already is left at the end. As `import_ray`."""
    ray = import_ray(where)
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, include_dashboard=False)  # RAY_ADDRESS names a cluster that runs already
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


@contextmanager
def started(command: Sequence[str], layout: Layout, where: str) -> Generator[list[RemoteProcess]]:
    """The processes that run `command`, in the order of their ranks; their places are given back at the end."""
    with connected(where) as ray:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        per_node = layout.per_node(has_gpus)
        group = _reserve(ray, layout.num_nodes, per_node, has_gpus)
        try:
            actors = [
                _actor(ray, group, node, has_gpus, listened=node + local == 0)
                for node in range(layout.num_nodes)
                for local in range(per_node)
            ]
            _start(ray, actors, command, per_node, has_gpus)
            yield [RemoteProcess(ray, actor, rank) for rank, actor in enumerate(actors)]
        finally:
            importlib.import_module("ray.util").remove_placement_group(group)


def _reserve(ray: Any, num_nodes: int, per_node: int, has_gpus: bool) -> Any:
    """A placement group with one bundle for each machine."""
    bundle = {"CPU": per_node, **({"GPU": per_node} if has_gpus else {})}
    util = importlib.import_module("ray.util")
    group = util.placement_group([bundle] * num_nodes, strategy="STRICT_SPREAD" if num_nodes > 1 else "PACK")
    if not group.wait(PATIENCE):
        util.remove_placement_group(group)
        has = {name: ray.cluster_resources().get(name, 0) for name in bundle}
        wanted = ", ".join(f"{number} {name}" for name, number in bundle.items())
        raise UsageError(
            f"asks for {num_nodes} machine{'s' if num_nodes > 1 else ''} with {wanted} free on each, which the Ray "
            f"cluster did not give in {PATIENCE:g} seconds; it has {len(ray.nodes())} machines with {has} in all",
            where="cluster",
            fix="lower cluster.num_nodes, gpus_per_node or num_processes, or wait until the cluster is free",
        )
    return group


def _actor(ray: Any, group: Any, node: int, has_gpus: bool, *, listened: bool) -> Any:
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    strategy = strategies.PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=node)
    options = {"num_cpus": 1, "num_gpus": int(has_gpus), "scheduling_strategy": strategy}
    return ray.remote(**options)(Place).remote(listened)


def _start(ray: Any, actors: Sequence[Any], command: Sequence[str], per_node: int, has_gpus: bool) -> None:
    along = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_MACHINE)}
    try:
        address, port = ray.get(actors[0].open_store.remote())
        jobs: list[Any] = []
        for rank, actor in enumerate(actors):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": "0" if has_gpus else str(rank % per_node),  # Ray shows each process its own GPU alone
                "WORLD_SIZE": str(len(actors)),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            jobs.append(actor.start.remote(list(command), place, along, str(Path.cwd())))
        ray.get(jobs)
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RunError(
            f"the processes cannot be started in the Ray cluster ({reason})",
            fix="install regimen at the same place on all its machines, and start the run in a folder that all have",
        ) from None
