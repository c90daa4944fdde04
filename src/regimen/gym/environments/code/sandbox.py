"""A sandbox for a function that nobody has read: bubblewrap, a filter of system calls, and limits.

In: source code, the name of a function, lists of arguments. Out: what each call gave, and how the process ended.
Each run has a process of its own, in which there is no network, nothing to write to, no other process, no file but
Python's own and the system's libraries; processor time, memory, output and time are bounded. Results are JSON that the
process says, to be compared by who asked. Refuses to begin where bubblewrap or what it needs is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.environments.code.filter import seccomp_program

RUNNER = Path(__file__).with_name("runner.py")
READY = b"ready\n"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_FIX = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, or an AppArmor profile for bwrap); "
    "in a container also let it make them, as with docker run --security-opt seccomp=unconfined"
)


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20


class Called(msgspec.Struct, frozen=True):
    """What one call gave: a value, or the reason why there is none."""

    value: Any = None
    error: str | None = None


class Run(msgspec.Struct, frozen=True):
    """The calls that were answered, in order, and how the run ended: `finished`, or what stopped it."""

    calls: list[Called]
    ended: str


class Sandbox:
    """Up to `num_workers` runs at once. `run` may be awaited from any event loop."""

    def __init__(self, num_workers: int, limits: SandboxLimits | None = None) -> None:
        bubblewrap = shutil.which("bwrap")
        if sys.platform != "linux" or bubblewrap is None:
            raise ConfigError(
                "bubblewrap is not installed, and code that nobody has read runs nowhere else",
                where="environment 'code'",
                expected="Linux with the command bwrap",
                fix="install it: apt-get install bubblewrap, or dnf install bubblewrap",
            )
        self.limits = limits or SandboxLimits()
        self._bubblewrap = bubblewrap
        self._filter = seccomp_program()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="sandbox")
        self._check()

    def _check(self) -> None:
        try:
            found = self._run("def f():\n    return 1\n", "f", [[]])
        except GymError as error:
            raise ConfigError(error.message, where="environment 'code'", fix=_FIX) from error
        if found.calls != [Called(1)]:
            raise ConfigError(f"the sandbox gives {found} for 1", where="environment 'code'", fix=_FIX)

    async def run(self, code: str, function: str, calls: list[list[Any]]) -> Run:
        """Call `function` of `code` with each list of arguments. Raises `GymError` when the sandbox itself fails."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, code, function, calls)

    def _run(self, code: str, function: str, calls: list[list[Any]]) -> Run:
        limits = {"cpu_seconds": self.limits.cpu_seconds, "memory_bytes": self.limits.memory_bytes}
        request = {"code": code, "function": function, "calls": calls, "limits": limits}
        filter_end = self._filter_end()
        try:
            process = subprocess.Popen(
                [self._bubblewrap, *_command(filter_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                pass_fds=[filter_end],
            )
        except OSError as error:
            raise GymError(f"the sandbox did not start: {error}") from error
        finally:
            os.close(filter_end)
        return self._watched(process, json.dumps(request).encode(), len(calls))

    def _watched(self, process: subprocess.Popen[bytes], request: bytes, num_calls: int) -> Run:
        """Talk to the process until it ends, says too much or takes too long."""
        waited: list[float] = []

        def stop() -> None:
            waited.append(_seconds_waited(process.pid))
            process.kill()

        clock = threading.Timer(self.limits.wall_seconds, stop)
        clock.start()
        stdin, stdout, stderr = (cast("IO[bytes]", pipe) for pipe in (process.stdin, process.stdout, process.stderr))
        try:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(request)
                stdin.close()
            said = stdout.read(self.limits.output_bytes + 1)
        finally:
            clock.cancel()
            process.kill()  # nothing of it stays, whatever came
            code = process.wait()
            complaint = stderr.read(2000)
            for pipe in (stdin, stdout, stderr):
                with contextlib.suppress(OSError):
                    pipe.close()
        if not said.startswith(READY):
            reason = " ".join(complaint.decode("utf-8", "replace").split())
            raise GymError(f"the sandbox did not start (code {code}): {reason or 'it said nothing'}")
        if waited and waited[0] > self.limits.wall_seconds / 2:
            raise GymError(
                f"the machine was too busy: of {self.limits.wall_seconds:g} seconds the function waited "
                f"{waited[0]:.0f} for a processor",
                fix="lower num_workers of the environment, or raise its seconds",
            )
        is_flood = len(said) > self.limits.output_bytes
        calls = [_called(line) for line in said[len(READY) :].split(b"\n")[:-1]]
        ended = "too long" if waited else "too much output" if is_flood else _ending(calls, num_calls)
        return Run(calls, ended)

    def _filter_end(self) -> int:
        """A descriptor from which the filter is read."""
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(self._filter)
        return reader


def _seconds_waited(pid: int) -> float:
    """How long the innermost process was ready and had no processor; 0 where the system does not tell."""
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _ending(calls: list[Called], num_calls: int) -> str:
    if len(calls) == num_calls:
        return "finished"
    return "ended early" if len(calls) < num_calls else "more answers than calls"


def _called(line: bytes) -> Called:
    """A line of the process, which may hold anything."""
    try:
        found = cast("object", json.loads(line))
    except (ValueError, RecursionError):
        return Called(error="not JSON")
    if not isinstance(found, dict) or len(cast("dict[str, Any]", found)) != 1:
        return Called(error="no answer")
    answer = cast("dict[str, Any]", found)
    if "value" in answer:
        return Called(answer["value"])
    return Called(error=str(answer.get("error"))[:300])


def _installed() -> list[Path]:
    """Where packages lie among what the sandbox shows."""
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    return [library / "site-packages", library / "dist-packages", Path("/usr/lib/python3/dist-packages")]


def _command(filter_end: int) -> list[str]:
    """bubblewrap's arguments: an empty read-only world with Python's own files in it."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    seen = [place for place in _LIBRARIES if Path(place).exists()]
    seen += [python] if sys.base_prefix == "/usr" else [str(Path(sys.base_prefix, "lib")), python]
    binds = [word for place in seen for word in ("--ro-bind", place, place)]
    # What is installed is not for the candidate: this package is, with the makers of its tasks.
    hidden = [str(place) for place in _installed() if place.is_dir()]
    covers = [word for place in hidden for word in ("--tmpfs", place, "--remount-ro", place)]
    return [
        *("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"),
        *binds,
        *covers,
        *("--dev-bind", "/dev/null", "/dev/null", "--remount-ro", "/", "--chdir", "/"),
        *("--seccomp", str(filter_end), python, "-I", "-S", "-B", "-c", RUNNER.read_text(encoding="utf-8")),
    ]
