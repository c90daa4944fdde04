import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

from regimen.errors import RolloutError, UsageError
from regimen.rollouts import order, parts
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.reader import RolloutReader, read_failures

SAID = [{"type": "message", "role": "assistant", "content": "a"}]
TOKENS = {"prompt_token_ids": [1], "generation_token_ids": [4, 5, 6], "generation_log_probs": [-0.5, -0.5, -0.5]}


def row(task=None, repeat=None, environment=None, **fields):
    stamps = {"_ng_task_index": task, "_ng_rollout_index": repeat, "agent_ref": {"name": environment}}
    asked = {"responses_create_params": {"input": "hi"}, "response": {"output": SAID}, "reward": 1.0}
    return {**asked, **{key: value for key, value in stamps.items() if value is not None}, **fields}


def write(path, *rows):
    path.write_text("".join((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in rows))
    return path


def everything(index):
    """All that an index says, for comparing two of them."""
    return list(index.rows()), list(index.groups()), index.report, index.files, index.num_rows


def test_rows_of_a_file_with_its_siblings(data):
    with RolloutIndex.build(data / "shop.jsonl") as index, index.open() as rows:
        found = list(index.rows())
        assert [(r.number, r.file, r.line, r.task_id, r.rollout_index, r.reward) for r in found] == [
            (0, 0, 1, "shop_agent/1", 1, 0.0),
            (1, 0, 2, "shop_agent/0", 1, 0.0),
            (2, 0, 3, "shop_agent/0", 0, 1.0),
            (3, 0, 4, "shop_agent/1", 0, 1.0),
            (4, 1, 1, "shop_agent/2", 0, None),
            (5, 1, 2, "shop_agent/2", 1, None),
        ]
        assert index.files == [str(data / "shop.jsonl"), str(data / "shop_failures.jsonl")]
        assert [r.outcome for r in found[4:]] == [Outcome.ENVIRONMENT_FAILED] * 2
        with RolloutReader(data / "shop.jsonl") as reader:
            read = [*reader, *read_failures(data / "shop.jsonl")]
        assert [rows.rollout(r) for r in found] == read
        assert index.report == reader.report
        lines = (data / "shop.jsonl").read_bytes().splitlines(keepends=True)
        assert [rows.line(r) for r in found[:4]] == lines
        assert [reward for some in index.rewards() for reward in some] == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["wild.jsonl", "broken.jsonl", "shop.jsonl"])
def test_the_index_agrees_with_the_reader(data, tmp_path, name):
    with RolloutReader(data / name, max_bad=1.0, quarantine=tmp_path / "reader") as reader:
        read = list(reader)
    with RolloutIndex.build(data / name, max_bad=1.0, quarantine=tmp_path / "index") as index:
        rows = [row for row in index.rows() if row.file == 0]
        late = {row.line for row in rows} - {rollout.source.line for rollout in read}
        assert late == ({11, 12} if name == "broken.jsonl" else set())  # broken token fields
        found = [(r.line, r.task_id, r.environment, r.outcome, r.reward) for r in rows if r.line not in late]
    assert found == [(r.source.line, r.task_id, r.environment, r.outcome, r.reward) for r in read]
    if reader.report.bad:
        bad = [json.loads(line)["line"] for line in (tmp_path / "reader").read_text().splitlines()]
        early = [json.loads(line)["line"] for line in (tmp_path / "index").read_text().splitlines()]
        assert early == [line for line in bad if line not in late]


def test_groups_are_tasks_in_order(tmp_path):
    rows = [
        row(2, 1, "b"), row(10, 0, "a"), row(2, 0, "b"), row(-1, 0, "a"), row(2, None, "a"), row(2, 3, "a"),
        row(environment="a"), row(5, 0), row(environment="a"), row(2, -4, "a"), row(2, None, "a"),
        row(environment="b", responses_create_params={"input": "other"}), row(2**63 - 1, 0, "a"), row(-(2**63), 0, "a"),
    ]  # fmt: skip
    with RolloutIndex.build(write(tmp_path / "r", *rows)) as index:
        groups = [[r.number for r in group] for group in index.groups()]
        assert groups == [[7], [13], [3], [9, 4, 10, 5], [1], [12], [6, 8], [2, 0], [11]]
        assert all(len({r.task_id for r in group}) == 1 for group in index.groups())
        assert [r.task_index for r in index.rows()][-2:] == [2**63 - 1, -(2**63)]


def test_rows_without_an_environment_share_their_ids_with_one_named_task(tmp_path):
    with RolloutIndex.build(
        write(tmp_path / "r", row(1), row(0, 0, "task"), row(1, 0, "task"), row(0, 0, "a"))
    ) as index:
        assert [[r.number for r in group] for group in index.groups()] == [[3], [1], [0, 2]]


def test_sorting_in_runs_is_sorting(tmp_path, monkeypatch):
    chance = random.Random(3)
    rows = [row(chance.randrange(40), chance.randrange(9), chance.choice("abc")) for _ in range(700)]
    path = write(tmp_path / "r", *rows)
    with RolloutIndex.build(path) as index:
        whole = list(index.groups())
    monkeypatch.setattr(order, "RUN", 50)
    monkeypatch.setattr(order, "RECORDS_AT_A_TIME", 30)
    monkeypatch.setattr(order, "RECORDS_OF_A_RUN", 7)
    with RolloutIndex.build(path) as index:
        assert list(index.groups()) == list(index.groups()) == whole
    flat = [r for group in whole for r in group]
    assert flat == sorted(flat, key=lambda r: (r.environment, r.task_index, r.rollout_index, r.number))


def test_several_processes_say_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALLEST_STRETCH", 2000)
    chance = random.Random(5)
    for name in ("a.jsonl", "b.jsonl"):
        rows = [row(n, n % 3, chance.choice("xyz"), reward=chance.choice((0.0, 1.0, "bad"))) for n in range(120)]
        lines = [
            line for r in rows for line in (json.dumps(r), *chance.choice(((), (), ("",), (f"no {r['reward']}",))))
        ]
        write(tmp_path / name, *lines)
    write(tmp_path / "b_failures.jsonl", *[{"_ng_failure_class": f"c{n % 4}"} for n in range(30)])
    write(tmp_path / "a_materialized_inputs.jsonl", *[{"_ng_task_index": n} for n in range(60)])
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    found = []
    for number in (1, 2):
        quarantine = tmp_path / "bad"
        with RolloutIndex.build(
            paths,
            max_bad=0.9,
            num_processes=number,
            quarantine=quarantine,
            overwrite=True,
            fields=["reward"],
            where=is_one,
        ) as index:
            found.append((*everything(index), quarantine.read_bytes()))
            assert sum(r.selected for r in index.rows()) == sum(float(some.sum()) for some in index.rewards())
    assert found[0] == found[1]
    assert len(list(parts.plan([(paths[0], False, None)], tmp_path, 2))) > 4
    with RolloutReader(paths, max_bad=0.9) as reader:
        list(reader)
    assert msgspec_equal(found[0][2], reader.report)


def is_one(fields):
    return fields.get("reward") == 1.0


def msgspec_equal(left, right):
    left.quarantine = right.quarantine
    return left == right


def dies(fields):
    os._exit(9)


def test_processes_that_cannot_work(tmp_path):
    path = write(tmp_path / "r", row(1))
    with pytest.raises(UsageError, match="where: cannot be given to other processes"):
        RolloutIndex.build(path, num_processes=2, where=lambda fields: True)
    with pytest.raises(RolloutError, match="a process died while it worked"):
        RolloutIndex.build(path, num_processes=2, where=dies)
    with pytest.raises(RolloutError, match=r"2 of 2 rows are bad: not JSON.*first at line 1"):
        RolloutIndex.build(write(tmp_path / "s", "no", "no"), num_processes=2)
    with pytest.raises(UsageError, match="num_processes: is 0"):
        RolloutIndex.build(path, num_processes=0)


def test_where_sees_the_named_fields(tmp_path):
    rows = [
        row(0, reward_components={"format": 1, "fact": 0}, accuracy=0.9),
        row(1, reward_components={"format": 0}, accuracy=float("nan")),  # read whole: NaN is no JSON
        row(2, mask_sample=True),
    ]
    seen = []
    fields = ["reward", "accuracy", "reward_components.format", "mask_sample"]

    def where(found):
        seen.append(found)
        return found.get("accuracy") == 0.9

    with RolloutIndex.build(write(tmp_path / "r", *rows), fields=fields, where=where) as index:
        assert [r.selected for r in index.rows()] == [True, False, False]
    assert seen[0] == {"reward": 1.0, "accuracy": 0.9, "reward_components": {"format": 1, "fact": 0}}
    assert sorted(seen[1]) == ["accuracy", "reward", "reward_components"]
    assert seen[2] == {"reward": 1.0, "mask_sample": True}
    whole = ["response.status", "responses_create_params.input"]
    with RolloutIndex.build(
        tmp_path / "r", fields=whole, where=lambda row: row["response"] == {"output": SAID}
    ) as index:
        assert [r.selected for r in index.rows()] == [True] * 3


def test_sampled_tokens_are_counted(tmp_path):
    rows = [
        row(0, response={"output": [{**SAID[0], **TOKENS}, *SAID, {**SAID[0], **TOKENS}]}),
        row(1, response=None, output=[{**SAID[0], **TOKENS}]),
        row(2, response={"output": [[{**SAID[0], **TOKENS}], SAID[0]]}, loss=float("inf")),
        row(3, response={"output": [{**SAID[0], "generation_token_ids": None}]}),
    ]
    with RolloutIndex.build(write(tmp_path / "r", *rows)) as index:
        assert [r.num_sampled for r in index.rows()] == [6, 3, 3, 0]


def test_prompts_that_are_written_alike_are_equal(tmp_path):
    ask = {"input": [{"role": "user", "content": "ä \ud800"}], "tools": [{"name": "t"}]}
    same = [
        row(0, responses_create_params=ask),
        row(1, "x", responses_create_params={**ask, "temperature": 2}, a=float("nan")),
    ]
    mask = row(2, responses_create_params={"tools": ask["tools"], "seed": 1, "input": ask["input"]}, mask_sample=True)
    plain = {"input": "hi"}
    others = [
        {**ask, "input": "ä"}, {**ask, "tools": []}, {**ask, "instructions": "x"}, {"input": ask["input"]}, plain,
    ]  # fmt: skip
    path = write(tmp_path / "r", *same, mask, *[row(3, responses_create_params=other) for other in others])
    with path.open("a") as file:  # the same request on the fast way and on the slow one
        file.write(json.dumps(row(9, responses_create_params=plain, note=float("nan"))) + "\n")
        file.write(
            " "
            + json.dumps(row(9, responses_create_params=plain)).replace('{"input": "hi"}', '{ "input" :"hi"\t}')
            + "\n"
        )
    with RolloutIndex.build(path) as index:
        prompts = [r.prompt for r in index.rows()]
    assert len(set(prompts[:3])) == 1
    assert len(set(prompts[2:8])) == 6
    assert prompts[7] == prompts[8] == prompts[9]


def test_the_request_may_come_from_the_task_row(tmp_path):
    path = write(tmp_path / "r.jsonl", *[row(n, responses_create_params=None) for n in (0, 1, 0)])
    asked = [{"_ng_task_index": n, "responses_create_params": {"input": f"q{n}"}} for n in (0, 1)]
    write(tmp_path / "r_materialized_inputs.jsonl", *asked, "no", "")
    with RolloutIndex.build(path) as index, index.open() as rows:
        found = list(index.rows())
        assert [rows.rollout(r).params["input"] for r in found] == ["q0", "q1", "q0"]
        assert (index.report.with_task, index.report.bad_task_rows) == (3, 1)
        assert found[0].prompt == found[2].prompt != found[1].prompt


def test_readers_are_sent_to_other_processes(tmp_path):
    with RolloutIndex.build(write(tmp_path / "r", row(4))) as index, index.open() as rows:
        (found,) = index.rows()
        rows.rollout(found)
        with pickle.loads(pickle.dumps(rows)) as copy:
            assert copy.rollout(found).task_index == 4


def test_what_only_the_whole_row_shows(tmp_path):
    broken = row(0, response={"output": [{**SAID[0], "generation_token_ids": [1]}]})
    with RolloutIndex.build(write(tmp_path / "r", broken)) as index, index.open() as rows:
        found = next(index.rows())
        with pytest.raises(RolloutError, match="has generation_token_ids but not"):
            rows.rollout(found)


def test_files_that_change_are_not_read_on(tmp_path):
    path = write(tmp_path / "r", row(0))
    with RolloutIndex.build(path) as index, index.open() as rows:
        write(path, row(1), row(2))
        with pytest.raises(RolloutError, match="changed after it was indexed"):
            rows.rollout(next(index.rows()))


def test_the_working_folder_goes_when_the_index_is_closed_or_fails(tmp_path):
    folder = tmp_path / "work" / "here"
    with RolloutIndex.build(write(tmp_path / "r", row(0)), folder=folder) as index:
        assert len(list(folder.iterdir())) == 1
        list(index.groups())
    assert list(folder.iterdir()) == []
    with pytest.raises(RolloutError, match="rows are bad"):
        RolloutIndex.build(write(tmp_path / "s", "no"), folder=folder, quarantine=tmp_path / "q")
    assert list(folder.iterdir()) == []
    assert json.loads((tmp_path / "q").read_text())["text"] == "no"


def test_empty_files_are_refused_like_the_reader_does(tmp_path):
    write(tmp_path / "a.jsonl", row(0))
    write(tmp_path / "b.jsonl", "", " ")
    write(tmp_path / "b_failures.jsonl", {"_ng_failure_class": "boom"})
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for read in (lambda: list(RolloutReader(paths)), lambda: RolloutIndex.build(paths)):
        with pytest.raises(RolloutError, match=r"b.jsonl: the file holds no rows; .*only failed episodes \(boom: 1\)"):
            read()


def test_bytes_that_are_no_text_survive(tmp_path):
    lines = [b'{"a": "\xff\x00"}\r', json.dumps(row(0)).encode(), "[ä]".encode()]
    (tmp_path / "r").write_bytes(b"\n".join(lines))
    RolloutIndex.build(tmp_path / "r", quarantine=tmp_path / "q", max_bad=1.0).close()
    first, second = (json.loads(line) for line in (tmp_path / "q").read_text().splitlines())
    assert (first["base64"], first["text"]) == ("eyJhIjogIv8AIn0N", '{"a": "\\xff\x00"}\r')
    assert (second["text"], "base64" in second) == ("[ä]", False)


MEASURE = """
import re, sys
from pathlib import Path
from regimen.rollouts.index import RolloutIndex
import numpy, sqlite3

def peak():  # getrusage counts the process that started this one too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
with RolloutIndex.build(sys.argv[1], folder=Path(sys.argv[1]).parent) as index:
    assert index.num_rows == sum(1 for _ in index.rows()) == sum(map(len, index.groups())) == int(sys.argv[2])
print(before, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(("filler", "num_rows"), [(97_000, 3_000), (0, 100_000)])
def test_memory_does_not_grow_with_the_file(tmp_path, data, filler, num_rows):
    path = tmp_path / "r.jsonl"
    given = json.loads((data / "shop.jsonl").read_text().splitlines()[0]) | {"filler": "x" * filler}
    with path.open("w") as file, (tmp_path / "r_materialized_inputs.jsonl").open("w") as tasks:
        for number in range(num_rows):
            given |= {"_ng_task_index": number * 7919 % 100_003, "_ng_rollout_index": number % 8}
            file.write(json.dumps(given) + "\n")
            tasks.write(json.dumps({"_ng_task_index": number, "_ng_rollout_index": 0}) + "\n")
    assert path.stat().st_size > 290_000_000
    words = [sys.executable, "-c", MEASURE, str(path), str(num_rows)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    before, more = map(float, done.stdout.split())
    assert before > 10
    assert 0 < more < 150, more


def test_every_order_of_files_is_kept(tmp_path):
    paths = [write(tmp_path / name, row(n)) for n, name in enumerate("cab")]
    for chosen in itertools.permutations(paths):
        with RolloutIndex.build(list(chosen)) as index:
            assert index.files == list(map(str, chosen))
            assert [r.task_index for r in index.rows()] == [paths.index(path) for path in chosen]


def test_fields_that_are_written_alike(tmp_path):
    rows = [row(0, 0, "e", answer="a"), row(0, 1, "e", answer="b"), row(0, 2, "e", answer="a"), row(0, 3, "e")]
    odd = row(0, 4, "e", answer="a", mask_sample="no")  # judged with more care, which takes no hashes
    with RolloutIndex.build(write(tmp_path / "r", *rows, odd), alike=["answer"]) as index:
        first, other, same, missing, last = [found.alike for found in index.rows()]
    assert first == same
    assert len({first, other, missing}) == 3
    assert (last, 0 in (first, other, missing)) == (0, False)
    with RolloutIndex.build(write(tmp_path / "r", *rows)) as index:
        assert [found.alike for found in index.rows()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(0, 0, "a"), row(0, 1, "a"), row(1, 0, "a")], True),
        ([row(0, 0, "a"), row(0, 0, "b")], False),  # two environments number their tasks alike
        ([row(0, 0, "a"), row(None, 0, "a")], False),
        ([row(0, 0, "a"), row(0, 1, "a", responses_create_params={"input": "other"})], False),
        ([row(0, 0, "a"), row(None, 0, "b", reward=None, failure_kind="timeout")], True),  # failures name nothing
        ([row(0, 0), row(1, 0, "task")], True),  # rows without an environment are "task"
    ],
)
def test_tasks_that_their_index_names(tmp_path, rows, expected):
    with RolloutIndex.build(write(tmp_path / "r", *rows)) as index:
        assert index.can_be_named() is expected
