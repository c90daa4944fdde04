"""A model server that answers at once, and one that misbehaves: what collecting is measured and tried against.

    python benchmarks/collection/server.py --port 8001 [--chaos 0.2 --seed 1]

It asks for the calculator once and then repeats what the tool said, in OpenAI's chat completions; where
log-probabilities are asked for, their tokens are spelled `token_id:11`, as NeMo Gym's `vllm_model` reads them.
`/tokenize` has an answer too. `--chaos` is the share of requests that go wrong: status 500, status 429, no answer, an
answer cut off, an answer that is not JSON, an answer that comes late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from typing import Any

import msgspec

CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "2 + 3"}'}}
IDS = [11, 12, 13]
KINDS = ("status 500", "status 429", "no answer", "cut off", "not JSON", "late")


class Said(msgspec.Struct):
    """A message of a request, as far as it decides the answer."""

    role: str
    content: Any = None


class Asked(msgspec.Struct):
    """A request, as far as it decides the answer."""

    messages: list[Said] = []
    logprobs: bool | None = None


class Connection(asyncio.Protocol):
    """One connection; requests come one after the other, with their length in the head."""

    def __init__(self, chaos: float, luck: random.Random) -> None:
        self.chaos = chaos
        self.luck = luck
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        lowered = head.lower()
        start = lowered.find(b"content-length:")
        length = int(lowered[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(rest) < length:
            return
        self.received = rest[length:]
        self.answer(head.split(b" ", 2)[1], rest[:length])

    def answer(self, path: bytes, body: bytes) -> None:
        """Answer, or go wrong."""
        content = tokenized() if path.endswith(b"/tokenize") else completion(body)
        if self.luck.random() >= self.chaos:
            return self.send(200, content)
        kind = self.luck.choice(KINDS)
        if kind == "status 500":
            self.send(500, b'{"error": {"message": "chaos"}}')
        elif kind == "status 429":
            self.send(429, b'{"error": {"message": "slow down"}}', "retry-after: 0\r\n")
        elif kind == "no answer":
            self.transport.close()
        elif kind == "cut off":
            self.transport.write(self.head(200, len(content)) + content[: len(content) // 2])
            self.transport.close()
        elif kind == "not JSON":
            self.send(200, content[:-2])
        else:
            asyncio.get_running_loop().call_later(self.luck.uniform(0.1, 1.0), self.send, 200, content)
        return None

    def send(self, status: int, content: bytes, more: str = "") -> None:
        """Send a whole answer."""
        if not self.transport.is_closing():
            self.transport.write(self.head(status, len(content), more) + content)

    @staticmethod
    def head(status: int, length: int, more: str = "") -> bytes:
        """The head of an answer."""
        kind = "content-type: application/json\r\n"
        return f"HTTP/1.1 {status} X\r\n{kind}content-length: {length}\r\n{more}\r\n".encode()


def tokenized() -> bytes:
    """The answer of `/tokenize`."""
    return json.dumps({"count": len(IDS), "max_model_len": 4096, "tokens": IDS}).encode()


def completion(body: bytes) -> bytes:
    """The tool call, or the answer behind its output."""
    asked = msgspec.json.decode(body or b"{}", type=Asked)
    last = asked.messages[-1] if asked.messages else Said("user")
    message: dict[str, Any] = {"role": "assistant", "content": f"The answer is {last.content}."}
    if last.role != "tool":
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None}
    choice["finish_reason"] = "stop" if last.role == "tool" else "tool_calls"
    if asked.logprobs:
        entries = [{"token": f"token_id:{i}", "logprob": -0.5, "bytes": None, "top_logprobs": []} for i in IDS]
        choice["logprobs"] = {"content": entries}
    usage = {"prompt_tokens": len(IDS), "completion_tokens": len(IDS), "total_tokens": 2 * len(IDS)}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "policy"}
    return msgspec.json.encode({**head, "choices": [choice], "usage": usage})


async def serve(port: int, chaos: float, seed: int) -> None:
    """Serve until killed; the port is printed."""
    luck = random.Random(seed)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(chaos, luck), "127.0.0.1", port, backlog=4096, reuse_address=True
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chaos", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.chaos, options.seed))
