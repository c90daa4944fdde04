"""The processes of a run: which one this is, and the few things that they tell each other.

In: torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without them the run is
this process alone. Out: `Ranks`. gloo carries what lies on processors, NCCL what lies on GPUs.
Values are sent as MessagePack, so that no process runs what another one sends. Refuses: environment variables that
contradict each other, more processes than GPUs on a machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from regimen.errors import OtherRankError, RegimenError, RunError, UsageError, first_line

# Others wait while one process plays long episodes or writes a checkpoint; one that died is noticed at once.
PATIENCE = timedelta(hours=2)
_FAILED = "regimen/failed"


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all. The first one writes and prints; every one must make the same calls in the same order.

    `group`: what carries their values; None: what carries everything else too.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process calls this with, in the order of ranks; plain values (numbers, texts, lists, bytes)."""
        if self.size == 1:
            return [value]
        packed = msgspec.msgpack.encode(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(packed)]), group=self.group)
        longest = max(int(length) for length in lengths)
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        found = zip(parts, lengths, strict=True)
        return [msgspec.msgpack.decode(part.numpy()[: int(length)].tobytes()) for part, length in found]

    def wait(self) -> None:
        """Return when every process is here."""
        self.gather(None)

    def apart(self) -> Ranks:
        """The same processes for another thread, whose calls do not get between those of this one."""
        if not dist.is_initialized():
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE))


def current_ranks() -> Ranks:
    """This process's place in the run that is connected; alone where none is."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


@contextmanager
def connected() -> Generator[Ranks]:
    """Join the other processes while the block runs; what one raises ends all, and is reported by the first to fail.

    The processes that fail because of it raise `OtherRankError`.
    """
    if dist.is_initialized():  # a run inside a run shares its processes
        yield current_ranks()
        return
    store = _join()
    try:
        yield current_ranks()
        current_ranks().wait()  # nobody leaves while another one still sends
    except Exception as error:
        if current_ranks().size > 1:
            raise _first_of(store, error) from error
        raise
    finally:
        dist.destroy_process_group()


def _join() -> Store:
    rank, size = _place()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        _choose_gpu(rank, size)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if size == 1:
        store: Store = HashStore()
    else:
        store = _shared_store(rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return store


def _place() -> tuple[int, int]:
    """Rank and number of processes from the environment."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] in (None, "1"):
        return 0, 1
    try:
        rank, size = int(given["RANK"] or ""), int(given["WORLD_SIZE"] or "")
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise UsageError(
            f"RANK={given['RANK']} WORLD_SIZE={given['WORLD_SIZE']}",
            where="environment variables",
            expected="a rank below the number of processes",
            fix="start the run with torchrun, or unset both",
        )
    return rank, size


def _choose_gpu(rank: int, size: int) -> None:
    local, available = int(os.environ.get("LOCAL_RANK", rank if size > 1 else 0)), torch.cuda.device_count()
    if local >= available:
        raise UsageError(
            f"LOCAL_RANK={local} on a machine with {available} GPUs",
            fix=f"start at most {available} processes on it",
        )
    torch.cuda.set_device(local)


def _shared_store(rank: int, size: int) -> Store:
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UsageError(
            f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}",
            where="environment variables",
            expected="where the first process listens",
            fix="start the run with torchrun",
        ) from None
    # torchrun keeps the store in its own process, where it outlives every rank.
    is_server = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(host, port, size, is_server, timeout=timedelta(minutes=5))
    except (RuntimeError, TimeoutError) as error:
        raise RunError(f"the processes cannot meet ({first_line(error)})", where=f"{host}:{port}") from None
    return PrefixStore("regimen", store)


def _first_of(store: Store, error: Exception) -> Exception:
    """The error to raise here: the own one where no other process failed before."""
    try:
        is_first = store.add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):  # the process that kept the store is gone, so it failed first
        is_first = False
    if not is_first:
        return OtherRankError("another process failed first")
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return RunError("another process ended without a word", fix="look for an out-of-memory kill on its machine")
    if isinstance(error, RegimenError) and current_ranks().rank > 0:
        error.args = (f"rank {current_ranks().rank}: {error}",)
    return error
