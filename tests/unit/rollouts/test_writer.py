import json

import msgspec
import pytest

from regimen.errors import RolloutError, UsageError
from regimen.rollouts.writer import JsonLinesWriter, encode_row, write_rows_atomically


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write({"a": "é", "b": [1, 2.5]})
        assert path.read_text() == '{"a":"é","b":[1,2.5]}\n'
        writer.write({})
        assert writer.num_written == 2
    writer.close()
    with JsonLinesWriter(path) as writer:
        writer.write({"c": None})
    assert path.read_text() == '{"a":"é","b":[1,2.5]}\n{}\n{"c":null}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"a":1}\n{"b":', '{"a":1}\n{"z":0}\n'),
        ('{"a":1}\n{"b":2}', '{"a":1}\n{"b":2}\n{"z":0}\n'),
        ('{"half', '{"z":0}\n'),
        ("", '{"z":0}\n'),
    ],
)
def test_a_half_written_line_is_removed(tmp_path, before, after):
    path = tmp_path / "r.jsonl"
    path.write_text(before)
    with JsonLinesWriter(path) as writer:
        writer.write({"z": 0})
    assert path.read_text() == after


def test_a_long_half_written_line_is_removed(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a":1}\n{"b":"' + "x" * 200_000)
    JsonLinesWriter(path).close()
    assert path.read_text() == '{"a":1}\n'


def test_what_json_cannot_say_is_refused():
    for row in ({"a": float("nan")}, {"a": float("-inf")}, {"a": object()}):
        with pytest.raises(RolloutError, match="cannot be written as JSON"):
            encode_row(row)


def test_structs_and_lone_surrogates():
    class Row(msgspec.Struct):
        a: int

    assert encode_row(Row(1)) == b'{"a":1}\n'
    assert json.loads(encode_row({"a": "\ud800"})) == {"a": "\ud800"}


def test_all_rows_or_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    assert write_rows_atomically(path, [{"a": 1}, {"a": 2}]) == 2
    with pytest.raises(UsageError, match="the file exists"):
        write_rows_atomically(path, [])
    with pytest.raises(RolloutError):
        write_rows_atomically(path, [{"a": 3}, {"a": float("nan")}], overwrite=True)
    assert path.read_text() == '{"a":1}\n{"a":2}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.jsonl"]
    assert write_rows_atomically(path, [], overwrite=True) == 0
    assert path.read_text() == ""


def test_what_the_system_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RolloutError, match="cannot be written"):
        JsonLinesWriter(tmp_path / "file" / "r.jsonl")
    with pytest.raises(RolloutError, match="cannot be written"):
        write_rows_atomically(tmp_path / "file" / "r.jsonl", [{}])
