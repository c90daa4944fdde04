"""A process alone, and environments that cannot be joined. Several processes: `test_dtensor.py`."""

from __future__ import annotations

import pytest

from regimen.errors import OtherRankError, PolicyError, UsageError
from regimen.policy import ranks
from regimen.policy.ranks import Ranks, connected, current_ranks


def test_a_process_alone_gathers_its_own_value() -> None:
    alone = current_ranks()
    assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
    assert alone.gather({"a": 1}) == [{"a": 1}]


def test_without_torchrun_one_process_is_connected_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with connected() as found:
        assert found == Ranks(0, 1)
        with connected() as inner:  # a run inside a run
            assert inner == found
    with pytest.raises(PolicyError, match="as it was"), connected():
        raise PolicyError("as it was")
    with connected():  # and again
        pass


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), (None, "2"), ("x", "4")])
def test_a_place_that_cannot_be_is_refused(rank: str | None, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(UsageError, match=f"RANK={rank} WORLD_SIZE={size}.*torchrun"), connected():
        pass


def test_processes_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match="MASTER_PORT=None"), connected():
        pass


class Store:
    """Counts as the processes' store does."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def add(self, _: str, amount: int) -> int:
        self.failures += amount
        return self.failures


class Gone:
    """The store of a process that ended."""

    def add(self, *_: object) -> int:
        raise RuntimeError("connection reset")


def test_the_first_to_fail_says_why_and_the_others_end_quietly() -> None:
    error = PolicyError("broken")
    assert ranks._first_of(Store(0), error) is error  # type: ignore
    assert isinstance(ranks._first_of(Store(1), error), OtherRankError)  # type: ignore
    assert isinstance(ranks._first_of(Gone(), error), OtherRankError)  # type: ignore
    lost = ranks._first_of(Store(0), RuntimeError("[gloo/transport/tcp/pair.cc] Connection reset"))  # type: ignore
    assert "another process ended without a word" in str(lost)
