"""Broken bytes: no traceback, no lost row, and the reader and the index say the same of every line."""

import copy
import json
import random

import msgspec
import pytest

from regimen.errors import RegimenError, RolloutError
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.reader import RolloutReader
from regimen.rollouts.report import BadRow

SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "7 – sieben", "a": None}]}
CALL = {"type": "function_call", "name": "add", "arguments": '{"a": 3, "b": 4}', "call_id": "c1"}
BACK = {"type": "function_call_output", "call_id": "c1", "output": "7"}
TOKENS = {"prompt_token_ids": [1, 2, 3], "generation_token_ids": [4, 5], "generation_log_probs": [-0.5, -1e-7]}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
ASKED = {"input": [{"role": "user", "content": "3 + 4?"}], "tools": [TOOL], "temperature": 1.0, "metadata": None}
STAMPS = {"_ng_task_index": 3, "_ng_rollout_index": 1, "agent_ref": {"name": "calculator"}}
BASE = {"responses_create_params": ASKED, "reward": 1.0, "accuracy": 0.5, "note": "a\u2028b\U0001f600"}
FULL = {**BASE, "response": {"output": [CALL, BACK, SAID], "status": "completed", "usage": {"output_tokens": 2}}}

ROWS = [
    {**FULL, **STAMPS},
    {**FULL, "mask_sample": False, "failure_kind": None, "reward_components": {"format": 1, "fact": 0.5}},
    {**BASE, **STAMPS, "response": {"output": [{**CALL, **TOKENS}, BACK, {**SAID, **TOKENS}]}},
    {**BASE, "output": [SAID], "reward": 1},
    {**BASE, "output": "sieben", "responses_create_params": {"input": "3 + 4?", "instructions": "Add."}},
    {**FULL, **STAMPS, "mask_sample": True, "failure_kind": "agent_timeout"},
    {**FULL, "regimen": {"outcome": "truncated", "reason": "token limit"}, "_ng_environment_server": "calculator"},
    {**FULL, "response": {"output": [SAID], "status": "incomplete", "incomplete_details": {"reason": "length"}}},
    {**STAMPS, "_ng_failure_class": "agent_run_error", "_ng_failure_message": "500"},
    {**FULL, **STAMPS, "terminated": False, "truncated": True, "info": {"judged": False}},
    {**FULL, **STAMPS, "terminated": True, "truncated": False, "info": {"won": True, "reward_components": {"a": 1}}},
]
VALUES = [
    None, True, False, 0, -1, 1.5, 1e308, 10**30, -(2**63) - 1, 2**63, 10**400, "", "x", "1.0", [], {}, [1], ["a"],
    [[]], [None], {"a": 1}, {"name": None}, {"outcome": "ok"}, {"outcome": 3}, {"output": []}, "\ud800", float("nan"),
    float("inf"), [1, "2"], [True], {"input": None}, "completed", "failed", "\0",
]  # fmt: skip
PIECES = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\\q", b'"', b"{", b"}", b"[", b"]", b",", b":", b"null",
    b"NaN", b"-Infinity", b"1e999", b"-", b"01", b"9" * 30, b"1" * 5000, b"\r", b"\t", b" ", b"\x0b", b"\x1f",
    b"\xef\xbb\xbf", b"\xc3\xa4", b"/*", b'"reward":"no",', b'"reward":0.25,', b'"response":null,', b'"output":[],',
    b'"_ng_task_index":7.0,', b'"_ng_task_index":true,', b'"_ng_task_index":99999999999999999999,', b'"regimen":{},',
    b'"responses_create_params":{"input":3},', b'"deep":' + b"[" * 400 + b"]" * 400 + b",",
]  # fmt: skip
# What only the whole row shows: the index may learn it in the second pass.
LATE = ("prompt_token_ids", "generation_", "log-probabilities", "not readable JSON", "nested too deeply")


def swapped(row, chance: random.Random):
    """The row with one value, somewhere inside, replaced or removed or given another name."""
    row = copy.deepcopy(row)
    inside = row
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not keys:
            return row
        key = chance.choice(keys)
        if isinstance(inside[key], (dict, list)) and inside[key] and chance.random() < 0.7:
            inside = inside[key]
            continue
        how = chance.random()
        if how < 0.8:
            inside[key] = chance.choice(VALUES)
        elif how < 0.9 or isinstance(inside, list):
            del inside[key]
        else:
            inside[key + "x"] = inside.pop(key)
        return row


def mutated(chance: random.Random) -> bytes:
    row, swaps = chance.choice(ROWS), chance.choice((0, 0, 1, 1, 1, 2, 4))
    for _ in range(swaps):
        row = swapped(row, chance)
    line = bytearray(json.dumps(row, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(chance.choice((0, 0, 0, 1) if swaps else (1, 1, 1, 2, 5))):
        place, how = chance.randrange(len(line) + 1), chance.randrange(6)
        if how == 0 and place < len(line):
            line[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            del line[place:]
        elif how == 2:
            del line[place : place + chance.randrange(1, 40)]
        elif how == 3:
            line[place:place] = chance.choice(PIECES)
        elif how == 4:
            line[1:1] = chance.choice(PIECES)
        else:
            line[place:place] = line[place : place + chance.randrange(1, 60)]
    return bytes(line).replace(b"\n", b" ")


def fields_of(row):
    stamps = (row.task_id, row.task_index, row.rollout_index, row.environment)
    return (*stamps, row.outcome, row.reward)


def quarantined(path) -> dict[int, BadRow]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {bad.line: bad for bad in map(msgspec.json.Decoder(BadRow).decode, lines)}


def check(folder, lines: list[bytes]) -> None:
    path = folder / "rollouts.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with RolloutReader(path, quarantine=folder / "reader.jsonl", max_bad=1.0, overwrite=True) as reader:
        read = {rollout.source.line: rollout for rollout in reader}
    bad = quarantined(folder / "reader.jsonl")
    assert len(read) + len(bad) + reader.report.blank_lines == len(lines)
    assert all(bad[line].bytes == lines[line - 1] for line in bad)
    with RolloutIndex.build(path, quarantine=folder / "index.jsonl", max_bad=1.0, overwrite=True) as index:
        found = {row.line: row for row in index.rows()}
        early = quarantined(folder / "index.jsonl")
        assert len(found) + len(early) + index.report.blank_lines == len(lines)
        assert {line: bad[line] for line in early} == early
        with index.open() as rows:
            for line in bad.keys() - early.keys():
                assert any(word in bad[line].reason for word in LATE), bad[line]
                with pytest.raises(RolloutError) as caught:
                    rows.rollout(found[line])
                assert str(caught.value) == bad[line].reason
        for line, rollout in read.items():
            assert fields_of(found[line]) == fields_of(rollout)
            ids = [item.get("generation_token_ids") for item in rollout.output]
            assert found[line].num_sampled == sum(len(some) for some in ids if isinstance(some, list))


def test_mutated_rows(tmp_path):
    chance = random.Random(7)
    check(tmp_path, [json.dumps(ROWS[0]).encode(), *(mutated(chance) for _ in range(3000))])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_many_mutated_rows(tmp_path, seed):
    chance = random.Random(f"many {seed}")
    check(tmp_path, [json.dumps(ROWS[0]).encode(), *(mutated(chance) for _ in range(4000))])


def test_whole_files_of_mutated_bytes(tmp_path):
    """Files whose first line, task rows and failed episodes are broken too."""
    chance = random.Random(11)
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("r.jsonl", "r_failures.jsonl", "r_materialized_inputs.jsonl"):
            (folder / name).write_bytes(b"\n".join(mutated(chance) for _ in range(chance.randrange(4))))
        read, found = lines_or_error(lines_read, folder), lines_or_error(lines_indexed, folder)
        assert read == found or ("are bad" in read and any(word in read for word in LATE))


def lines_or_error(read, folder):
    try:
        return read(folder)
    except RegimenError as error:
        return str(error)


def lines_read(folder):
    return [rollout.source.line for rollout in RolloutReader(folder, max_bad=1.0)]


def lines_indexed(folder):
    """The lines of the rows that can be read whole; those of the failures file must all be."""
    with RolloutIndex.build(folder, max_bad=1.0) as index, index.open() as rows:
        found = list(index.rows())
        failed = [rows.rollout(row) for row in found if row.file]
        assert len(failed) == sum(index.report.failures.values())
        return [row.line for row in found if not row.file and is_whole(rows, row)]


def is_whole(rows, row):
    try:
        return bool(rows.rollout(row))
    except RolloutError:
        return False
