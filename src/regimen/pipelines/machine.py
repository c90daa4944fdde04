"""The memory of this machine, and of this process.

In: nothing. Out: bytes. Of a GPU what its driver says is free; of the processor what the system says is available, or
less where a control group limits it. Refuses nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from regimen.diagnosis.plan import MachineMemory

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> MachineMemory:
    """Of the GPU that this process would train on, where there is one; else of the machine."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return MachineMemory(kind="GPU", total=total, available=free)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = min([total, *_limits()])
    return MachineMemory(kind="RAM", total=limit, available=min(limit, _available() or limit))


def _limits() -> list[int]:
    found: list[int] = []
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            found.append(int(Path(name).read_text(encoding="ascii")))
    return found


def _available() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def resident_bytes() -> int:
    """What this process holds now; where the system does not tell that, the most it has held."""
    return _kilobytes("/proc/self/status", "VmRSS:") or peak_bytes()


def peak_bytes() -> int:
    """The most that this process has held; of its own image where the system tells that."""
    peak = _kilobytes("/proc/self/status", "VmHWM:")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _kilobytes(file: str, name: str) -> int | None:
    """The figure of a line like `VmRSS:  350 kB`, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None
