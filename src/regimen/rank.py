"""Which of the many processes of a run this is, before they have met.

In: the environment, as torchrun sets it. Out: whether this is the first one, which alone speaks for all. Refuses
nothing: meeting does (`regimen.policy.ranks`).
"""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the first process, or the only one."""
    return os.environ.get("RANK", "0") == "0"
