"""The form of a record of the index: numbers of fixed width, one record for each good row.

In: nothing. Out: the fields in their order, the `struct` that packs them, and what their numbers stand for.
Refuses nothing.
"""

from __future__ import annotations

import struct
from typing import Final

from regimen.rollouts.outcomes import Outcome

# (name, code of `struct`, code of numpy), in the order in which they stand in a record
FIELDS = (
    ("number", "Q", "<u8"),
    ("file", "I", "<u4"),
    ("line", "q", "<i8"),
    ("offset", "Q", "<u8"),
    ("size", "I", "<u4"),
    ("environment", "i", "<i4"),
    ("flags", "B", "u1"),
    ("outcome", "B", "u1"),
    ("task", "Q", "<u8"),
    ("rollout", "q", "<i8"),
    ("reward", "d", "<f8"),
    ("prompt", "Q", "<u8"),
    ("num_sampled", "I", "<u4"),
    ("alike", "Q", "<u8"),
)
# Places in a record.
NUMBER: Final = 0
FILE: Final = 1
ENVIRONMENT: Final = 5
FLAGS: Final = 6
TASK: Final = 8
ROLLOUT: Final = 9
REWARD: Final = 10
PROMPT: Final = 11
NUM_SAMPLED: Final = 12
ALIKE: Final = 13
RECORD = struct.Struct("<" + "".join(code for _, code, _ in FIELDS))
OUTCOMES = tuple(Outcome)
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
SIGN = 2**63  # moves signed numbers so that they sort as unsigned ones
HAS_TASK_INDEX, HAS_ROLLOUT_INDEX, SELECTED = 1, 2, 4  # flags

RecordTuple = tuple[int, int, int, int, int, int, int, int, int, int, float, int, int, int]
