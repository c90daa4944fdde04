"""A process that answers requests by running a script of somebody's library under limits. Runs by itself.

In: the script's path, its limits, and on standard input lines of JSON, `{"seconds": ..., "request": {...}}`. The script
defines `prepare()`, which loads what it needs, off the clock, and `answer(request)`. Out: the line `ready`, then a line
of JSON for each.
Requests are answered under limits of processor time and memory: past the first the system ends the process, which is
how its owner learns of it. From the first request on the process writes no file, starts no other and opens no
connection, as far as the system and the interpreter can hold it to that.
Nothing of Regimen is imported, so that the process starts fast.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import os
import signal
import sys
from typing import Any

READY = "ready"
CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
REFUSED = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "pty.spawn"),
    *("subprocess.", "socket.", "ftplib.", "smtplib.", "urllib.", "webbrowser.", "ctypes.dlopen"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("worker_script", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker_script"] = module
    spec.loader.exec_module(module)
    return module


def _leave_network() -> None:
    """Enter a network of its own, without devices, where the system lets this process."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):  # not on every system
        return
    if unshare(CLONE_NEWNET) != 0:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _set_limits(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on every system
        return
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """What the interpreter is about to do that no library needs for an answer."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is refused here")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        raise PermissionError("writing is refused here")


def _set_clock(seconds: float) -> None:
    """End this process after so much processor time; 0 stops the clock. Load of the machine does not count."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main(path: str, memory: int) -> None:
    """Answer every line of standard input. Whatever a library prints cannot reach the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _leave_network()  # before libraries start threads, which forbid it
    logging.disable(logging.CRITICAL)
    script = _script(path)
    script.prepare()
    _set_limits(memory)
    sys.addaudithook(_refuse)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        _set_clock(asked["seconds"])
        result = script.answer(asked["request"])
        _set_clock(0)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
