import msgspec
import pytest

from regimen.convert.sidecar import EpisodeRecord, PairRecord, read_sidecar, record_of
from regimen.errors import ConvertError


def test_a_record_is_written_in_the_documented_shape_and_read_back(make_episode, tmp_path):
    record = record_of(make_episode(task="env/3", task_index=3, reward=0.5, tokenizer="fp"))
    assert msgspec.to_builtins(record) == {
        "version": 1,
        "source": {"path": "rollouts.jsonl", "line": 1},
        "task_id": "env/3",
        "task_index": 3,
        "rollout_index": 1,
        "reward": 0.5,
        "tokenizer": "fp",
        "template": None,
        "num_prompt_messages": 1,
        "sequences": [{"ids": [1, 2, 3], "spans": [(1, 3)], "logprobs": [-0.5, -0.5]}],
    }
    path = tmp_path / "train.sidecar.jsonl"
    path.write_bytes(msgspec.json.encode(record) + b"\n")
    assert list(read_sidecar(path, EpisodeRecord)) == [record]


def test_another_shape_or_version_is_refused_by_its_line(make_episode, tmp_path):
    record = record_of(make_episode())
    path = tmp_path / "train.sidecar.jsonl"
    path.write_bytes(msgspec.json.encode(record) + b"\n")
    with pytest.raises(ConvertError, match=r"sidecar\.jsonl:1: not a PairRecord"):
        list(read_sidecar(path, PairRecord))
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, version=9)) + b"\n")
    with pytest.raises(ConvertError, match="version 9"):
        list(read_sidecar(path, EpisodeRecord))
