"""What runs inside the sandbox: it calls a function of the candidate, and says what comes back. Runs by itself.

In: one JSON object on standard input: `code`, `function`, `calls` (lists of arguments), `limits`. Out: the line `ready`
once the limits are set, then for each call a line of JSON, `{"value": ...}` or `{"error": ...}`.
Whatever is written here may be a lie of the candidate, who shares the process. It knows no expected value, so that a
lie gains nothing; the comparison takes place outside.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

MAX_ERROR = 200


def set_limits(cpu_seconds: int, memory_bytes: int) -> None:
    """Bound this process for good: no limit can be raised again."""
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 1),
    ):
        resource.setrlimit(kind, (value, value))


def answer_of(function: Any, arguments: list[Any]) -> str:
    """The line that a call gives."""
    try:
        return json.dumps({"value": function(*arguments)}, allow_nan=False)
    except BaseException as error:  # SystemExit too: the next call is another test
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]})


def main() -> None:
    """Answer one request. What the candidate prints goes nowhere."""
    request = json.load(sys.stdin)
    null = os.open("/dev/null", os.O_RDWR)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    set_limits(**request["limits"])
    print("ready", file=answers, flush=True)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(request["code"], "solution.py", "exec"), namespace)  # noqa: S102 - what the sandbox is for
        function = namespace[request["function"]]
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:MAX_ERROR]
        lines = [json.dumps({"error": reason})] * len(request["calls"])
        print("\n".join(lines), file=answers, flush=True)
        return
    for arguments in request["calls"]:
        print(answer_of(function, arguments), file=answers, flush=True)


if __name__ == "__main__":
    main()
