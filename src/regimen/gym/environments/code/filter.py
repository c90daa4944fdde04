"""The system calls that a candidate may not make, as a seccomp filter for bubblewrap.

In: the machine's architecture. Out: the filter's program. Denied, with EPERM, are new processes and threads (a limit on
their number does not bind root), sockets, memory that no limit counts, other processes' memory, mounts, namespaces and
what a function has no use for. Refuses: architectures whose numbers are not written here.
"""

from __future__ import annotations

import platform
import struct

from regimen.errors import ConfigError

# Newer calls have the same number everywhere: memfd_secret, clone3, io_uring, pidfd, the mount API.
_SHARED = (447, 435, 425, 426, 427, 434, 438, 440, 428, 429, 430, 431, 432, 433, 442)
_DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "ptrace": 101, "socket": 41, "socketpair": 53, "memfd_create": 319,
        "shmget": 29, "shmat": 30, "shmctl": 31, "msgget": 68, "semget": 64, "mq_open": 240, "add_key": 248,
        "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "unshare": 272,
        "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "process_vm_readv": 310,
        "process_vm_writev": 311, "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176,
        "inotify_init": 253, "inotify_init1": 294, "fanotify_init": 300, "splice": 275, "tee": 276, "vmsplice": 278,
        "name_to_handle_at": 303, "open_by_handle_at": 304,
    },
    "aarch64": {
        "clone": 220, "ptrace": 117, "socket": 198, "socketpair": 199, "memfd_create": 279, "shmget": 194,
        "shmat": 196, "shmctl": 195, "msgget": 186, "semget": 190, "mq_open": 180, "add_key": 217, "request_key": 218,
        "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "unshare": 97, "setns": 268,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "process_vm_readv": 270, "process_vm_writev": 271,
        "kexec_load": 104, "init_module": 105, "finit_module": 273, "delete_module": 106, "inotify_init1": 26,
        "fanotify_init": 262, "splice": 76, "tee": 77, "vmsplice": 75, "name_to_handle_at": 264,
        "open_by_handle_at": 265,
    },
}  # fmt: skip
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # numbers from here on are x86_64's calls once more, for another pointer size
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000


def seccomp_program(machine: str | None = None) -> bytes:
    """The filter for this machine, or for one of another architecture."""
    machine = machine or platform.machine()
    if machine not in _DENIED:
        raise ConfigError(
            f"the machine is a {machine}, for which no filter of system calls is written",
            where="environment 'code'",
            expected=f"one of {', '.join(_DENIED)}",
        )
    numbers = [*_DENIED[machine].values(), *_SHARED]
    checks = [(_EQUAL, number) for number in numbers]
    if machine == "x86_64":
        checks.insert(0, (_AT_LEAST, _X32))
    # A check that holds jumps over the rest and the permission, to the denial at the end.
    jumps = [_line(code, number, len(checks) - index, 0) for index, (code, number) in enumerate(checks)]
    return b"".join(
        [
            _line(_LOAD, 4),
            _line(_EQUAL, _ARCHITECTURES[machine], 1, 0),
            _line(_RETURN, _KILL),
            _line(_LOAD, 0),
            *jumps,
            _line(_RETURN, _ALLOW),
            _line(_RETURN, _DENY),
        ]
    )


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
