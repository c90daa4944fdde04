"""What code that wants out, or wants to cheat, meets. Every escape is tried for real."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.environments.code.filter import _ARCHITECTURES, _DENIED, seccomp_program
from regimen.gym.environments.code.sandbox import Called, Sandbox, SandboxLimits


async def call(sandbox: Sandbox, body: str, argument: Any = 1) -> Called:
    """What `f(x)` with this body gives."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    run = await sandbox.run(f"import os, sys\ndef f(x):\n{lines}\n", "f", [[argument]])
    return run.calls[0] if run.calls else Called(error=run.ended)


async def test_a_function_is_called_with_each_argument(sandbox: Sandbox) -> None:
    run = await sandbox.run("def f(a, b):\n    return [a, {'b': b}]\n", "f", [[1, 2], ["x", None], [[], True]])
    assert run.calls == [Called([1, {"b": 2}]), Called(["x", {"b": None}]), Called([[], {"b": True}])]
    assert run.ended == "finished"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def f(x):\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(x:\n", "SyntaxError"),
        ("def g(x):\n    return x\n", "KeyError: 'f'"),
        ("f = 3\n", "TypeError: 'int' object is not callable"),
        ("def f(x):\n    return {1, 2}\n", "TypeError: Object of type set is not JSON serializable"),
        ("def f(x):\n    return float('nan')\n", "ValueError: Out of range float values"),
        ("import no_such_module\ndef f(x): return x\n", "ModuleNotFoundError"),
    ],
)
async def test_errors_are_told_and_are_no_values(sandbox: Sandbox, code: str, error: str) -> None:
    run = await sandbox.run(code, "f", [[1], [2]])
    assert len(run.calls) == 2
    assert all(called.error is not None and called.error.startswith(error) for called in run.calls)


async def test_what_it_prints_goes_nowhere(sandbox: Sandbox) -> None:
    called = await call(sandbox, "print('{\"value\": 7}')\nsys.stderr.write('x' * 100000)\nos.write(1, b'x')\nreturn 2")
    assert called == Called(2)


ESCAPES = {
    "a socket": "import socket\nreturn socket.socket().fileno()",
    "a socket of this machine": "import socket\nreturn socket.socket(socket.AF_UNIX).fileno()",
    "a name": "import socket\nreturn socket.gethostbyname('localhost')",
    "a process": "return os.fork()",
    "a command": "import subprocess\nreturn subprocess.run(['/bin/sh', '-c', 'id']).returncode",
    "a shell": "assert os.system('exit 0') == 0\nreturn 1",
    "a thread": "import threading\nthreading.Thread(target=print).start()\nreturn 1",
    "a pool": "import multiprocessing\nreturn multiprocessing.Pool(2).map(abs, [1])",
    "a file in /tmp": "return open('/tmp/escaped', 'w').write('x')",
    "a file in the root": "return open('/escaped', 'w').write('x')",
    "a file beside Python": "return open(os.path.dirname(os.__file__) + '/escaped', 'w').write('x')",
    "a file among the packages": "return open(os.path.dirname(os.__file__) + '/site-packages/e.pth', 'w').write('x')",
    "a folder": "return os.mkdir('/dev/escaped')",
    "a device": "os.mknod('/disk', 0o600 | 0o60000, os.makedev(8, 0))\nreturn 1",
    "the mounts": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "assert libc.mount(b'none', b'/dev', b'tmpfs', 0, None) == 0\nreturn 1",
    "a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nreturn 1",
    "memory without a name": "return os.memfd_create('x')",
    "shared memory": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0\nreturn 1",
    "another process": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0\nreturn 1",
    "the passwords": "return open('/etc/shadow').read()",
    "the users": "return open('/etc/passwd').read()",
    "processes": "return os.listdir('/proc')",
    "its environment": "return open('/proc/self/environ').read()",
    "standard input again": "return sys.stdin.buffer.raw.read(1)[0]",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn 1",
    "more time": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nreturn 1",
    "root": "os.setuid(0)\nreturn 1",
    "packages": "return os.listdir(os.path.dirname(os.__file__) + '/site-packages')[0]",
}


@pytest.mark.parametrize("what", ESCAPES)
async def test_no_way_out(sandbox: Sandbox, what: str) -> None:
    called = await call(sandbox, ESCAPES[what])
    assert called.error is not None, called.value
    assert not Path("/tmp/escaped").exists()
    assert not Path("/escaped").exists()


async def test_it_sees_nothing_but_python(sandbox: Sandbox) -> None:
    called = await call(
        sandbox, "return [os.getuid(), len(os.listdir('/dev')), sorted(os.environ), os.path.exists('/home')]"
    )
    assert called.value[:2] == [65534, 1]
    assert set(called.value[2]) <= {"PWD", "LC_CTYPE"}
    assert called.value[3] is False


async def test_killing_reaches_nobody_outside(sandbox: Sandbox) -> None:
    # Its own sandbox may die of it: then the call has no value.
    called = await call(sandbox, "import signal\nos.kill(os.getppid() or 1, signal.SIGKILL)\nos.kill(-1, 9)\nreturn 1")
    assert called.error is not None
    assert await call(sandbox, "return 3") == Called(3)


async def test_memory_is_bounded(sandbox: Sandbox) -> None:
    called = await call(sandbox, "kept = []\nwhile True:\n    kept.append(bytearray(10_000_000))")
    assert called.error is not None
    assert called.error.startswith("MemoryError") or called.error == "ended early"


async def test_a_fork_bomb_is_one_process(sandbox: Sandbox) -> None:
    body = (
        "count = 0\nwhile count < 1000:\n    try:\n        os.fork()\n        return count\n"
        "    except OSError:\n        count += 1\nreturn 'none'"
    )
    assert await call(sandbox, body) == Called("none")


async def test_processor_time_is_bounded_whatever_it_catches(sandbox: Sandbox) -> None:
    body = (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
    )
    assert await call(sandbox, body) == Called(error="ended early")


@pytest.mark.usefixtures("sandbox")
async def test_time_is_bounded() -> None:
    sandbox = Sandbox(1, SandboxLimits(wall_seconds=3.0))
    assert await call(sandbox, "import time\ntime.sleep(1000)") == Called(error="too long")


@pytest.mark.usefixtures("sandbox")
async def test_a_machine_that_is_too_busy_is_a_failure_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(1, SandboxLimits(wall_seconds=2.0))
    monkeypatch.setattr("regimen.gym.environments.code.sandbox._seconds_waited", lambda _pid: 1.5)
    with pytest.raises(GymError, match=r"too busy: of 2 seconds the function waited 2 for a processor"):
        await call(sandbox, "import time\ntime.sleep(1000)")


async def test_output_is_bounded(sandbox: Sandbox) -> None:
    run = await sandbox.run("import os\ndef f(x):\n    while True:\n        os.write(4, b'x' * 65536)\n", "f", [[1]])
    assert (run.ended, run.calls) == ("too much output", [])
    run = await sandbox.run("def f(x):\n    return 'x' * 3_000_000\n", "f", [[1]])
    assert (run.ended, run.calls) == ("too much output", [])


async def test_results_that_it_writes_itself_are_one_too_many(sandbox: Sandbox) -> None:
    code = "import os\ndef f(x):\n    os.write(4, b'{\"value\": 9}\\n')\n    return x\n"
    run = await sandbox.run(code, "f", [[1], [2]])
    assert run.ended == "more answers than calls"


async def test_results_that_are_no_json_are_no_values(sandbox: Sandbox) -> None:
    deep = "[" * 50_000
    lines = ["nonsense", "[]", "null", '{"value": 1, "more": 2}', deep, '{"value": ' + "9" * 6000 + "}", "{}"]
    code = f"import os\nos.write(4, {chr(10).join(lines) + chr(10)!r}.encode())\nos._exit(0)\ndef f(x): pass\n"
    run = await sandbox.run(code, "f", [[1]] * len(lines))
    assert len(run.calls) == len(lines)
    assert all(called.error is not None for called in run.calls)


async def test_leaving_early_leaves_the_rest_unanswered(sandbox: Sandbox) -> None:
    run = await sandbox.run("import os\ndef f(x):\n    return x if x < 2 else os._exit(0)\n", "f", [[1], [2], [3]])
    assert (run.calls, run.ended) == ([Called(1)], "ended early")


async def test_several_runs_at_once_and_nothing_stays(sandbox: Sandbox) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert await call(sandbox, "return 5") == Called(5)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_without_bubblewrap_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"bubblewrap is not installed.*apt-get install bubblewrap"):
        Sandbox(1)


def test_where_namespaces_are_off_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"No permissions to create new namespace.*unprivileged user namespaces"):
        Sandbox(1)


async def test_a_sandbox_that_fails_later_is_no_answer(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "_bubblewrap", "/bin/sh")
    monkeypatch.setattr("regimen.gym.environments.code.sandbox._command", lambda _end: ["-c", "exit 3"])
    with pytest.raises(GymError, match=r"did not start \(code 3\)"):
        await sandbox.run("def f(): pass", "f", [[]])


def verdict_of(program: bytes, number: int, architecture: int) -> int:
    """What the filter says to a system call, by an interpreter of our own."""
    lines = [struct.unpack_from("<HBBI", program, start) for start in range(0, len(program), 8)]
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = architecture if value == 4 else number
            at += 1
        else:
            holds = loaded == value if code == 0x15 else loaded >= value
            at += 1 + (if_true if holds else if_false)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_what_it_lists_and_allows_the_rest(machine: str) -> None:
    program, architecture = seccomp_program(machine), _ARCHITECTURES[machine]
    denied = {n for n in range(600) if verdict_of(program, n, architecture) == 0x00050001}
    shared = {425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 440, 442, 447}
    assert denied == set(_DENIED[machine].values()) | shared
    assert {verdict_of(program, n, architecture) for n in set(range(600)) - denied} == {0x7FFF0000}
    assert verdict_of(program, 0, 0x40000003) == 0x80000000  # another architecture's call ends the process
    if machine == "x86_64":
        assert verdict_of(program, 0x40000000 + 56, architecture) == 0x00050001


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"riscv64.*x86_64, aarch64"):
        seccomp_program("riscv64")
