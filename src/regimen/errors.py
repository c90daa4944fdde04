"""Every error that Regimen raises on purpose, drawn as a tree.

RegimenError                   a message a person can act on: what, where, expected, fix
├── UsageError                 the command was called wrongly (missing file, wrong option)         exit 2
│   ├── ConfigError            a configuration key or value is wrong                               exit 2
│   └── RequestError           a request to a server is wrong or refused                           exit 2
└── WorkError                  the work itself failed                                              exit 1
    ├── RolloutError           a row or a file of rollouts cannot be read
    ├── ConvertError           rows cannot be converted, or the ledger does not balance
    ├── TokenError             a chat template, a mask or token ids are inconsistent
    ├── PolicyError            a model folder, a training step or a checkpoint failed
    │   └── NonFiniteError     a loss or a gradient is not finite; no step was taken
    ├── GenerationError        the generator failed, or disagrees with the policy
    ├── GymError               an environment, a tool or a verifier failed
    ├── EndpointError          a server that was asked did not answer, or not as it should
    └── RunError               a run folder cannot be written or resumed
        └── OtherRankError     another process of the run failed first, and says why               exit 3
"""

from __future__ import annotations


class RegimenError(Exception):
    """Base of all errors raised on purpose.

    `message` says what was seen; `where` names the file, line, field or row; `expected` what was expected;
    `fix` what to do. The text of the exception is one line made of those parts.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, where: str | None = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        self.message = message
        self.where = where
        self.expected = expected
        self.fix = fix
        parts = [f"{where}: {message}" if where else message]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(f"to fix: {fix}")
        super().__init__("; ".join(parts))


class UsageError(RegimenError):
    """The command or function was called wrongly."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, key or value is wrong."""


class RequestError(UsageError):
    """A request to a server is wrong or refused; `status` is the HTTP status, `code` a word for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, where=where, expected=expected, fix=fix)
        self.status = status
        self.code = code


class WorkError(RegimenError):
    """The work itself failed."""


class RolloutError(WorkError):
    """A row or a file of rollouts cannot be read."""


class ConvertError(WorkError):
    """Rows cannot be converted, or the ledger does not balance."""


class TokenError(WorkError):
    """A chat template, a mask or token ids are inconsistent."""


class PolicyError(WorkError):
    """A model folder, a training step or a checkpoint failed."""


class NonFiniteError(PolicyError):
    """A loss or a gradient is not finite; no step was taken."""


class GenerationError(WorkError):
    """The generator failed, or disagrees with the policy."""


class GymError(WorkError):
    """An environment, a tool or a verifier failed."""


class EndpointError(WorkError):
    """A server that was asked did not answer, or not as it should.

    `status` is its HTTP status, `body` the beginning of what it said; None where it said nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
        status: int | None = None,
        body: str | None = None,
    ) -> None:
        super().__init__(message, where=where, expected=expected, fix=fix)
        self.status = status
        self.body = body


class RunError(WorkError):
    """A run folder cannot be written or resumed."""


class OtherRankError(RunError):
    """Another process of the run failed first, and says why; this one only ends, with a code that tells the two."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """What a library says of its error in the first line; the error's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
