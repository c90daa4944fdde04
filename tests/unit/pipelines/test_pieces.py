"""Lines of a piece: what rows share is encoded once, and says the same; a writer's failure reaches the conversion."""

import json
from pathlib import Path

import pytest

from regimen.pipelines.converted import _Output
from regimen.pipelines.pieces import ENCODER, _kept, _lines, _Shared

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SYSTEM, ASKED = {"role": "system", "content": "Be \u00e9xact.\n"}, {"role": "user", "content": 'Say "3".'}


def _row(answer: str, tools: object = TOOLS) -> dict[str, object]:
    said = {"role": "assistant", "content": answer}
    return {"messages": [SYSTEM, ASKED, said], "tools": tools, "reward": 1.0}


@pytest.mark.parametrize(
    "rows",
    [
        [_row("3")],
        [_row("3"), _row("4"), _row("5")],
        [_row("3"), _row("3")],
        [_row("3"), _row("4", tools=[])],
        [_row("3", tools=None), _row("4", tools=None)],
        [{"messages": [SYSTEM]}, {"messages": [SYSTEM]}],
        [{"messages": []}, {"messages": [SYSTEM]}],
        [{"prompt": "p"}, {"prompt": "q"}],
    ],
)
def test_shared_parts_change_no_byte(rows):
    assert _lines(_Shared().encoded(rows), are_odd=False) == b"".join(ENCODER.encode(row) + b"\n" for row in rows)


def test_tools_of_one_task_are_not_those_of_the_next():
    shared = _Shared()
    other = [{"type": "function", "function": {"name": "look"}}]
    for tools in (TOOLS, other, None, TOOLS):
        [written] = _lines(shared.encoded([_row("3", tools=tools)]), are_odd=False).splitlines()
        assert json.loads(written)["tools"] == tools


def test_what_cannot_be_encoded_quickly_is_written_all_the_same():
    lone = {"role": "user", "content": "\ud800"}
    rows = [{"messages": [lone, {"role": "assistant", "content": str(n)}]} for n in range(2)]
    assert [json.loads(line) for line in _lines(_Shared().encoded(rows), are_odd=False).splitlines()] == rows


def test_many_lines_go_by_a_file(tmp_path: Path):
    lines = b"a line\n" * 100_000
    name = _kept(lines, str(tmp_path))
    assert isinstance(name, str)
    output = _Output(tmp_path / "train.jsonl")
    output.write(name)
    output.write(b"the last\n")
    output.close()
    assert (tmp_path / "train.jsonl").read_bytes() == lines + b"the last\n"
    assert output.size == len(lines) + 9
    assert not Path(name).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told():
    output = _Output(Path("/dev/full"))
    output.write(b"a line\n")
    with pytest.raises(OSError, match="No space left"):
        output.close()
