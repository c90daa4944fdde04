"""A configuration without its secrets, as trackers may have it.

In: a configuration's tree. Out: the same with every value that is, or may be, a secret replaced by `REDACTED`: values
under names like `api_key`, `hf_token` or `password`, texts in the shape of well-known keys, passwords in addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

REDACTED = "(redacted)"
_NAMES = re.compile(
    r"(api|access|secret|private|auth|signing|encryption)[_-]?keys?$|(^|[_-])key$|secret|passw|passphrase|credential"
    r"|authorization|bearer|cookie|(^|[_-])(token|pat)$|(access|auth|api|refresh|session|hf|github)[_-]?tokens?$",
    re.IGNORECASE,
)
# Keys that name a column of the data, and not a secret.
_HARMLESS = frozenset({"input_key", "output_key", "prompt_key", "chosen_key", "rejected_key", "chat_key", "tool_key"})
_VALUES = re.compile(
    r"\b(sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[a-z]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|\bAKIA[A-Z0-9]{12,}|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{10,}|\bnvapi-[\w-]{16,}|\beyJ[\w-]+\.[\w-]+\.[\w-]+"
)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def redacted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tree` that holds no secret."""
    return {key: REDACTED if _is_secret(key, value) else _clean(value) for key, value in tree.items()}


def _is_secret(name: str, value: object) -> bool:
    is_given = value not in (None, "", False, True) and not isinstance(value, Mapping)
    return is_given and name not in _HARMLESS and _NAMES.search(_snake(name)) is not None


def _snake(name: str) -> str:
    """`apiKey` and `api-key` as `api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redacted(cast("Mapping[str, Any]", value))
    if isinstance(value, str):
        return _USER_IN_ADDRESS.sub(REDACTED, _VALUES.sub(REDACTED, value))
    if isinstance(value, Sequence):
        return [_clean(item) for item in cast("Sequence[Any]", value)]
    return value
