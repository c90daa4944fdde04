from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import UsageError
from regimen.serving.environment import environment_app
from regimen.serving.guard import ServerLimits
from regimen.serving.listen import TOKEN_VARIABLE, address_of, bind, server_of, token_for


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_loopback_needs_no_token_and_elsewhere_one_is_made() -> None:
    assert token_for("127.0.0.1", None) is None
    one, two = token_for("0.0.0.0", None), token_for("0.0.0.0", None)
    assert one is not None
    assert two is not None
    assert (one.is_new, len(one.value) >= 40, one.value != two.value) == (True, True, True)


def test_a_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "from the variable".replace(" ", "-"))
    found = token_for("127.0.0.1", None)
    assert found is not None
    assert (found.value, found.is_new) == ("from-the-variable", False)
    found = token_for("0.0.0.0", token_file(tmp_path, "from-the-file-0123\n"))
    assert found is not None
    assert found.value == "from-the-file-0123"


@pytest.mark.parametrize("text", ["", "short", "with spaces in between", "0123456789abcdef\nx", "0123456789abcdeé"])
def test_weak_tokens_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="at least 16 characters"):
        token_for("0.0.0.0", token_file(tmp_path, text))


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chmod 600"):
        token_for("0.0.0.0", token_file(tmp_path, "0123456789abcdef", 0o644))
    with pytest.raises(UsageError, match="no such file"):
        token_for("0.0.0.0", tmp_path / "gone")


def test_a_taken_address_is_refused() -> None:
    with bind("127.0.0.1", 0) as first:
        host, port = first.getsockname()
        assert address_of(first) == f"http://{host}:{port}"
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: address already in use"):
            bind("127.0.0.1", port)


async def test_no_answer_waits_for_an_acknowledgement(kit: Any) -> None:
    with bind("127.0.0.1", 0) as listening:
        server = server_of(environment_app(kit.Memory()), ServerLimits(), None)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        _, writer = await asyncio.open_connection(*listening.getsockname())
        async with asyncio.timeout(10):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
        (protocol,) = server.server_state.connections
        accepted: Any = protocol.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        server.should_exit = True
        await serving
