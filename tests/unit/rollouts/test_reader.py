import json

import pytest

from regimen.errors import RolloutError, UsageError
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.reader import RolloutReader, read_failures, read_rollouts

GOOD = json.dumps(
    {"responses_create_params": {"input": "hi"}, "output": [{"role": "assistant", "content": "a"}], "reward": 1}
)


def write(path, *lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


def test_a_file_with_its_siblings(data):
    with RolloutReader(data / "shop.jsonl") as reader:
        rollouts = list(reader)
    assert [(r.task_index, r.rollout_index, r.reward, r.source.line) for r in rollouts] == [
        (1, 1, 0.0, 1),
        (0, 1, 0.0, 2),
        (0, 0, 1.0, 3),
        (1, 0, 1.0, 4),
    ]
    assert [r.task["expected_total"] for r in rollouts] == [9, 5, 5, 9]
    report = reader.report
    assert (report.rows, report.good, report.bad, report.with_task) == (4, 4, 0, 4)
    assert report.outcomes == {"ok": 4}
    assert report.failures == {"agent_run_error": 2}


def test_failures_are_unscored_rollouts(data):
    failures = list(read_failures(data / "shop.jsonl"))
    assert [(f.task_id, f.outcome, f.reward) for f in failures] == [
        ("shop_agent/2", Outcome.ENVIRONMENT_FAILED, None)
    ] * 2
    assert failures[0].reason == "agent_run_error: 500, message='Internal Server Error'"
    assert list(read_failures(data / "wild.jsonl")) == []


def test_failure_rows_without_a_class_and_unreadable_ones_are_counted(tmp_path):
    path = write(tmp_path / "r.jsonl", GOOD)
    write(tmp_path / "r_failures.jsonl", "{}", '{"_ng_failure_type": "Boom", "reward": 0}', "half", "[1]")
    with RolloutReader(path) as reader:
        assert len(list(reader)) == 1
    assert reader.report.failures == {"unknown": 1, "Boom": 1, "unreadable": 2}


def test_the_wild(data):
    rollouts = list(read_rollouts(data / "wild.jsonl"))
    assert [(r.reward, r.outcome) for r in rollouts] == [
        (1.0, Outcome.OK),
        (0.25, Outcome.OK),
        (0.5, Outcome.TRUNCATED),
        (None, Outcome.TIMED_OUT),
        (None, Outcome.VERIFIER_FAILED),
    ]
    assert rollouts[0].task_id == rollouts[1].task_id != rollouts[2].task_id
    assert [item["role"] for item in rollouts[1].output] == ["assistant", "user", "assistant"]
    assert rollouts[1].row["note"] == "kept"


BROKEN = {
    1: "not JSON: Expecting value at character 1",
    3: "the row is a list; expected an object",
    4: "the row has no reward; expected a number in `reward`",
    5: "output is missing; expected a list of items in response.output",
    6: "responses_create_params is missing; expected an object with `input`",
    7: "reward is a string ('1.0'); expected a number",
    8: "reward is nan; expected a finite number",
    9: "reward is -inf; expected a finite number",
    10: "reward is true or false ('True'); expected a number",
    11: "output[0]: has prompt_token_ids, generation_token_ids but not generation_log_probs",
    12: "output[0]: 2 sampled ids but 1 log-probabilities",
    13: "responses_create_params.input is missing; expected a string or a list of items",
    14: "output[0] is a string; expected an object",
    16: "regimen.outcome is 'fine'; expected one of ok, model_failed, environment_failed, verifier_failed, timed_out, "
    "truncated",
}


def test_bad_rows_go_to_quarantine_with_line_reason_and_text(data, tmp_path):
    path, quarantine = data / "broken.jsonl", tmp_path / "bad.jsonl"
    with RolloutReader(path, quarantine=quarantine, max_bad=1.0) as reader:
        assert [rollout.source.line for rollout in reader] == [2]
    rows = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert {row["line"]: row["reason"] for row in rows} == BROKEN
    lines = path.read_text().splitlines()
    assert all(row["file"] == str(path) and row["text"] == lines[row["line"] - 1] for row in rows)
    report = reader.report
    assert (report.rows, report.good, report.bad, report.blank_lines) == (15, 1, 14, 1)
    assert report.quarantine == str(quarantine)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.jsonl"]


def test_too_many_bad_rows_end_the_reading_after_the_good_ones(tmp_path):
    path = write(tmp_path / "r.jsonl", *[GOOD] * 98, "no", "no")
    with pytest.raises(RolloutError, match=r"2 of 100 rows are bad: not JSON.*\(2 rows\), first at line 99") as caught:
        list(read_rollouts(path))
    assert caught.value.exit_code == 1
    assert len(list(read_rollouts(path, max_bad=0.02))) == 98


def test_good_rows_come_before_the_error(tmp_path):
    rows = read_rollouts(write(tmp_path / "r.jsonl", "no", GOOD))
    assert next(rows).source.line == 2
    with pytest.raises(RolloutError):
        next(rows)


def test_a_file_where_every_row_is_bad_fails_whatever_is_allowed(tmp_path):
    path = write(tmp_path / "r.jsonl", "no", "no")
    with pytest.raises(RolloutError, match="2 of 2 rows are bad"):
        list(read_rollouts(path, max_bad=1.0))


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_files(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(RolloutError, match="the file holds no rows"):
        list(read_rollouts(path))


def test_an_empty_file_with_failures_says_so(tmp_path):
    path = write(tmp_path / "r.jsonl", "", end="")
    write(tmp_path / "r_failures.jsonl", '{"_ng_failure_class": "agent_run_error"}')
    with pytest.raises(RolloutError, match=r"only failed episodes \(agent_run_error: 1\)"):
        list(read_rollouts(path))


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("[", "begins with a JSON list"),
        ('[{"agent_metrics": {}}]', "begins with a JSON list"),
    ],
)
def test_files_that_are_something_else(tmp_path, first, said):
    with pytest.raises(RolloutError, match=said):
        list(read_rollouts(write(tmp_path / "r.jsonl", first, GOOD)))


def test_a_log_line_in_brackets_is_one_bad_row(tmp_path):
    path = write(tmp_path / "r.jsonl", "[INFO] collecting", GOOD)
    assert [rollout.source.line for rollout in read_rollouts(path, max_bad=0.5)] == [2]


def test_task_rows_with_numbers_that_json_does_not_know(tmp_path):
    path = write(tmp_path / "r.jsonl", GOOD[:-1] + ', "_ng_task_index": 0}')
    write(tmp_path / "r_materialized_inputs.jsonl", '{"_ng_task_index": 0, "truth": 1, "tolerance": NaN}', "half")
    with RolloutReader(path) as reader:
        (rollout,) = reader
    assert rollout.task["truth"] == 1
    assert reader.report.bad_task_rows == 1


def test_task_rows_given_as_rollouts(data):
    with pytest.raises(RolloutError, match="these are task rows"):
        list(read_rollouts(data / "shop_materialized_inputs.jsonl"))


def test_misuse(tmp_path):
    path = write(tmp_path / "r.jsonl", GOOD)
    for paths, said in (
        (tmp_path / "x", "no such file"),
        ([], "no rollout file"),
        ([path, path], "given twice"),
    ):
        with pytest.raises(UsageError, match=said):
            read_rollouts(paths)
    with pytest.raises(UsageError, match="--max-bad: is 2"):
        read_rollouts(path, max_bad=2)
    with pytest.raises(UsageError, match="the file exists"):
        read_rollouts(path, quarantine=path)


def test_windows_line_ends_byte_order_mark_and_no_last_newline(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode())
    assert [rollout.source.line for rollout in read_rollouts(path)] == [1, 3]


def test_a_half_written_last_line_says_so(tmp_path):
    quarantine = tmp_path / "q.jsonl"
    path = write(tmp_path / "r.jsonl", *[GOOD] * 3, GOOD[:20], end="")
    assert len(list(read_rollouts(path, max_bad=0.5, quarantine=quarantine))) == 3
    assert "the writer may have been stopped" in quarantine.read_text()


def test_numbers_that_json_writers_produce(tmp_path):
    nan = GOOD[:-1] + ', "loss": NaN, "far": Infinity, "big": 123456789012345678901234567890}'
    (rollout,) = read_rollouts(write(tmp_path / "r.jsonl", nan))
    assert rollout.row["big"] == 123456789012345678901234567890
    assert rollout.metrics == {"big": 1.2345678901234568e29}


def test_text_that_is_not_utf8_and_deep_nesting_are_bad_rows(tmp_path):
    path, quarantine = tmp_path / "r.jsonl", tmp_path / "q.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"a": "\xff"}\n' + b"[" * 100_000 + b"\n")
    assert len(list(read_rollouts(path, max_bad=1.0, quarantine=quarantine))) == 1
    reasons = [json.loads(line)["reason"] for line in quarantine.read_text().splitlines()]
    assert reasons[0] == "not UTF-8 text: invalid start byte at byte 8"
    assert reasons[1].startswith("not readable JSON")


def test_tasks_by_both_indices_or_by_the_task_alone(tmp_path):
    stamps = [(0, 0), (0, 5), (1, 0), (7, 0)]
    rows = [json.dumps({**json.loads(GOOD), "_ng_task_index": t, "_ng_rollout_index": r}) for t, r in stamps]
    path = write(tmp_path / "r.jsonl", *rows, GOOD)
    tasks = [{"_ng_task_index": 0, "_ng_rollout_index": 0, "truth": "a"}, {"_ng_task_index": 1, "truth": "b"}]
    given = write(tmp_path / "t.jsonl", *map(json.dumps, tasks), "broken")
    found = [rollout.task and rollout.task["truth"] for rollout in read_rollouts(path, tasks=given)]
    assert found == ["a", "a", "b", None, None]
    with pytest.raises(RolloutError, match="no task row carries _ng_task_index"):
        list(read_rollouts(path, tasks=write(tmp_path / "u.jsonl", '{"truth": 1}')))


def test_several_files_in_order(data):
    with RolloutReader([data / "wild.jsonl", str(data / "shop.jsonl")]) as reader:
        assert [rollout.source.line for rollout in reader] == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert reader.report.rows == 9


def test_stopping_early_is_no_error(tmp_path):
    path, quarantine = write(tmp_path / "r.jsonl", "no", GOOD, GOOD), tmp_path / "q.jsonl"
    with RolloutReader(path, quarantine=quarantine) as reader:
        for rollout in reader:
            assert rollout.source.line == 2
            break
    assert len(quarantine.read_text().splitlines()) == 1


def test_quarantine_is_replaced_only_when_asked(tmp_path):
    path, quarantine = write(tmp_path / "r.jsonl", GOOD), write(tmp_path / "q.jsonl", "old")
    list(read_rollouts(path, quarantine=quarantine, overwrite=True))
    assert not quarantine.exists()
