"""The two passes: the same folder whatever reads the files, how many processes work and where; bounded memory."""

import gzip
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from regimen.convert.options import ConvertOptions
from regimen.errors import UsageError
from regimen.pipelines import convert as passes
from regimen.pipelines.convert import convert
from regimen.pipelines.engine import map_ordered
from regimen.rollouts.indexed import RowReader
from regimen.rollouts.processes import MOST_PROCESSES, Processes, num_cores, processes_for

NUM_TASKS, NUM_REPEATS = 40, 3
CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at": "it"}'}
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


def _row(task, repeat):
    said = {"type": "message", "role": "assistant", "content": f"answer {task} {repeat}"}
    ids = {"prompt_token_ids": [1, 2], "generation_token_ids": [task, repeat], "generation_log_probs": [-0.5, -0.25]}
    output = [CALL, {"type": "function_call_output", "call_id": "c", "output": "seen"}, {**said, **ids}]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": f"question {task}"}], "tools": [TOOL]},
        "response": {"output": output},
        "reward": float((task + repeat) % 3 == 0),
        "expected_answer": str(task),
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
        "agent_ref": {"name": "looker"},
    }


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    """In completion order, with a failed and a broken row in between."""
    rows = [_row(task, repeat) for repeat in reversed(range(NUM_REPEATS)) for task in range(NUM_TASKS)]
    rows[7]["failure_kind"] = "timeout"
    lines = [json.dumps(row) for row in rows]
    lines.insert(50, '{"reward": 1.0}')
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _contents(folder, but=("manifest.json",)):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in but}


def _manifest(folder, source):
    text = (folder / "manifest.json").read_text().replace(str(source), "SOURCE")
    manifest = json.loads(text)
    return {key: value for key, value in manifest.items() if key not in ("created", "inputs")}


@pytest.mark.parametrize("to", ["sft", "dpo", "grpo"])
def test_several_processes_write_the_same_bytes(rollouts, tmp_path, monkeypatch, to):
    monkeypatch.setattr(passes, "ROWS_OF_A_PIECE", 10)  # many pieces, in any order of completion
    for number in (1, 2):
        convert(rollouts, to, tmp_path / str(number), num_processes=number, verify=True)
    assert _contents(tmp_path / "1") == _contents(tmp_path / "2")
    assert _manifest(tmp_path / "1", rollouts) == _manifest(tmp_path / "2", rollouts)


def test_progress_ends_with_every_row(rollouts, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "ROWS_OF_A_PIECE", 50)
    told = []
    convert(rollouts, "sft", tmp_path / "set", progress=lambda *told_now: told.append(told_now))
    # 40 tasks of 3 good rows, the failed one among them; the broken one is not in the index
    assert told == [("index", 1, 1), ("convert", 51, 120), ("convert", 102, 120), ("convert", 120, 120)]


def test_pieces_do_not_show(rollouts, tmp_path, monkeypatch):
    convert(rollouts, "dpo", tmp_path / "one")
    monkeypatch.setattr(passes, "ROWS_OF_A_PIECE", 1)
    convert(rollouts, "dpo", tmp_path / "many")
    assert _contents(tmp_path / "one") == _contents(tmp_path / "many")


def test_pieces_of_pairs_across_tasks_do_not_show(tmp_path, monkeypatch):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(_row(task, 0) | {"reward": float(task % 2)}) + "\n" for task in range(60)))
    options = ConvertOptions(strategy="stratified", across_tasks=True)
    one = convert(path, "dpo", tmp_path / "one", options)
    assert one.ledger.uses["pairs_across_tasks"] > 10
    monkeypatch.setattr(passes, "ROWS_OF_A_PIECE", 1)
    convert(path, "dpo", tmp_path / "many", options)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "many")
    assert _manifest(tmp_path / "one", path) == _manifest(tmp_path / "many", path)


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_bytes(rollouts, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(passes, "ROWS_OF_A_PIECE", 10)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for to in ("sft", "dpo", "grpo"):
        convert(rollouts, to, tmp_path / to / "here")
        convert(rollouts, to, tmp_path / to / "there", engine="ray")
        assert _contents(tmp_path / to / "here") == _contents(tmp_path / to / "there")
        assert _manifest(tmp_path / to / "here", rollouts) == _manifest(tmp_path / to / "there", rollouts)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"ray is not installed.*regimen-rl\[ray\]"):
        list(map_ordered(str, [1], processes=Processes(1), engine="ray"))


def test_gzip_and_standard_input_give_the_rows_of_the_plain_file(rollouts, tmp_path, monkeypatch):
    convert(rollouts, "sft", tmp_path / "plain")
    zipped = tmp_path / "rollouts.jsonl.gz"
    zipped.write_bytes(gzip.compress(rollouts.read_bytes()))
    convert(zipped, "sft", tmp_path / "zipped", verify=True)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(rollouts.read_bytes())))
    manifest = convert("-", "sft", tmp_path / "piped", verify=True)
    rows = ("train.jsonl", "val.jsonl")
    for name in ("zipped", "piped"):
        assert [(tmp_path / name / row).read_bytes() for row in rows] == [
            (tmp_path / "plain" / row).read_bytes() for row in rows
        ]
    (given,) = manifest.inputs
    assert (given.path, given.size) == ("-", rollouts.stat().st_size)


def test_a_task_changes_sides_where_chance_leaves_one_empty(rollouts, tmp_path):
    """Of two tasks at least one validates; bad rows are set aside once although the rows are written twice."""
    few = tmp_path / "few.jsonl"
    rows = [_row(task, repeat) for task in (0, 1) for repeat in range(NUM_REPEATS)]
    rows.append({**_row(1, 9), "reward": 1.0, "response": {"output": [{"type": "computer_call"}]}})
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(4):
        out = tmp_path / f"set{seed}"
        manifest = convert(few, "grpo", out, ConvertOptions(seed=seed, validation_fraction=0.01, max_bad=0.5))
        assert (manifest.counts.train_tasks, manifest.counts.validation_tasks) == (1, 1)
        manifest = convert(few, "sft", tmp_path / f"sft{seed}", ConvertOptions(seed=seed, max_bad=0.5))
        assert manifest.ledger.rows["quarantined"] == 1
        assert len((tmp_path / f"sft{seed}" / "quarantine.jsonl").read_text().splitlines()) == 1


def test_processes_are_for_large_files(rollouts, tmp_path):
    assert processes_for([rollouts]) == 1
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        file.truncate(10 << 30)  # takes no room on disk
    assert processes_for([large]) == min(num_cores(), MOST_PROCESSES)
    with pytest.raises(UsageError, match="processes"):
        convert(rollouts, "sft", tmp_path / "set", num_processes=0)


PEAK = """
import resource, sys
from regimen.pipelines.convert import convert
before = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
convert(sys.argv[1], sys.argv[2], sys.argv[3])
after = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print((after - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["sft", "dpo", "grpo"])
def test_memory_does_not_grow_with_the_file(tmp_path, to):
    peaks = []
    for num_tasks in (400, 3200):
        path = tmp_path / f"{num_tasks}.jsonl"
        with path.open("w") as file:
            for repeat in range(8):
                for task in range(num_tasks):
                    row = _row(task, repeat)
                    row["response"]["output"][1]["output"] = "seen " * 2000
                    file.write(json.dumps(row) + "\n")
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), to, str(tmp_path / f"set{num_tasks}")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append(int(out.stdout))
    assert peaks[1] < peaks[0] + 40  # MiB, for 230 MB more of rows
    assert max(peaks) < 150


def test_the_index_is_gone_afterwards(rollouts, tmp_path):
    convert(rollouts, "sft", tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert not [path for path in (tmp_path / "set").iterdir() if path.is_dir()]
    assert Path(rollouts).exists()


def test_a_script_needs_no_guard_to_ask_for_processes(rollouts, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom regimen.pipelines.convert import convert\n"
        "print('begun')\nconvert(sys.argv[1], 'sft', sys.argv[2], num_processes=2)\n"
    )
    command = [sys.executable, str(script), str(rollouts), str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["begun"]
    assert (tmp_path / "set" / "train.jsonl").exists()


def test_grpo_reads_a_task_once_where_its_repeats_have_the_truth_alike(tmp_path, monkeypatch):
    rows = [_row(task, repeat) | {"topic": "sums"} for task in range(4) for repeat in range(3)]
    for repeat, row in enumerate(rows[:3]):
        row["topic"] = f"topic {repeat}"  # of task 0: what differs between repeats is no ground truth
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = []
    line = RowReader.line
    monkeypatch.setattr(RowReader, "line", lambda self, row: read.append(row.task_id) or line(self, row))
    convert(path, "grpo", tmp_path / "set", ConvertOptions(validation_fraction=0))
    assert Counter(read) == {"looker/0": 3, "looker/1": 1, "looker/2": 1, "looker/3": 1}
    written = [json.loads(text) for text in (tmp_path / "set" / "train.jsonl").read_text().splitlines()]
    assert [(row["expected_answer"], row.get("topic")) for row in written] == [
        ("0", None), ("1", "sums"), ("2", "sums"), ("3", "sums")
    ]  # fmt: skip


def test_rows_with_numbers_that_are_none_are_put_aside_where_these_would_be_written(tmp_path):
    rows = [_row(task, 0) | {"reward": 1.0} for task in range(4)]
    rows[1]["measured"] = float("nan")  # a verifier's, and no truth
    rows[2]["expected_answer"] = [float("inf")]
    rows[3]["responses_create_params"]["tools"] = [{**TOOL, "parameters": {"default": float("nan")}}]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for to, lines in (("sft", [4]), ("grpo", [3, 4])):
        manifest = convert(path, to, tmp_path / to, ConvertOptions(max_bad=1.0))
        assert manifest.ledger.rows["quarantined"] == len(lines)
        bad = [json.loads(line) for line in (tmp_path / to / "quarantine.jsonl").read_text().splitlines()]
        assert [one["line"] for one in bad] == lines
        assert all("Out of range float values" in one["reason"] for one in bad)
        written = (tmp_path / to / "train.jsonl").read_text() + (tmp_path / to / "val.jsonl").read_text()
        assert "measured" not in written


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_ctrl_c_is_for_the_process_that_started_the_others():
    blocked = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    with Processes(2) as processes:
        assert all(signal.SIGINT in mask for mask in processes.map(blocked, [[], [], []]))
    assert signal.SIGINT not in blocked([])
