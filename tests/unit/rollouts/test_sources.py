import gzip
import io
import json
import os
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from regimen.errors import RolloutError, UsageError
from regimen.rollouts import compression, lines
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.reader import RolloutReader, checked_paths, read_rollouts

ASKED = {"input": [{"role": "user", "content": "hi"}]}
SAID = [{"type": "message", "role": "assistant", "content": "a"}]


def row(number):
    return {"responses_create_params": ASKED, "output": SAID, "reward": number / 8, "_ng_task_index": number}


def text(*numbers):
    return "".join(json.dumps(row(number)) + "\n" for number in numbers).encode()


def tasks_read(paths, **options):
    """The task indices, as the reader and the index give them."""
    read = [rollout.task_index for rollout in read_rollouts(paths, **options)]
    with RolloutIndex.build(paths, **options) as index, index.open() as rows:
        assert [indexed.task_index for indexed in index.rows()] == read
        assert [rows.rollout(indexed).task_index for indexed in index.rows()] == read
    return read


def zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_the_first_bytes_say_how_a_file_is_packed(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(text(*range(3))))
    assert tasks_read(tmp_path / name) == [0, 1, 2]


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_packed_files_one_after_the_other(tmp_path, pack):
    (tmp_path / "r").write_bytes(pack(text(0, 1)) + pack(text(2)))
    assert tasks_read(tmp_path / "r") == [0, 1, 2]


def test_zeros_after_gzip_are_padding(tmp_path):
    (tmp_path / "r").write_bytes(gzip.compress(text(0)) + bytes(1000))
    assert tasks_read(tmp_path / "r") == [0]


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_packed_data_that_ends_too_early_gives_its_rows_first(tmp_path, pack):
    rows = b"".join(
        json.dumps({**row(number), "noise": os.urandom(200).hex()}).encode() + b"\n" for number in range(9000)
    )
    packed = pack(rows)
    (tmp_path / "r").write_bytes(packed[: len(packed) * 9 // 10])
    found = []
    with pytest.raises(RolloutError, match=r"r: the .* data end too early; the rows before"):
        gather(tmp_path / "r", found)
    assert found == list(range(len(found)))
    assert 7500 < len(found) < 9000
    with pytest.raises(RolloutError, match="end too early"):
        RolloutIndex.build(tmp_path / "r")


def gather(path, found):
    for rollout in read_rollouts(path):
        found.append(rollout.task_index)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstd(data, write_checksum=True)], ids=["gzip", "zstd"])
def test_packed_data_that_is_broken(tmp_path, pack):
    packed = bytearray(pack(text(*range(50))))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "r").write_bytes(packed)
    with pytest.raises(RolloutError, match=r"data (are broken|end too early)"):
        list(read_rollouts(tmp_path / "r"))


def test_packed_bombs_come_out_in_bounded_pieces(tmp_path):
    zeros = bytes(300 << 20)
    small = zlib.compressobj(9, wbits=31)
    packed = small.compress(zeros) + small.flush()
    assert max(map(len, compression.gunzip(iter([packed]), tmp_path))) <= 1 << 20
    assert max(map(len, compression.unzstd(iter([zstd(zeros)]), tmp_path))) <= 64 << 20


def test_lines_that_are_too_long_are_bad_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    monkeypatch.setattr(lines, "KEPT_OF_LONG_LINE", 300)
    long = json.dumps(row(1)).encode() + b" " * 2000  # its beginning alone would be a sound row
    (tmp_path / "r").write_bytes(text(0) + long + b"\n" + text(2) + b" " * 1001)
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "r").read_bytes()))
    for name in ("r", "packed"):
        assert tasks_read(tmp_path / name, max_bad=0.5) == [0, 2]
        with RolloutReader(tmp_path / name, max_bad=0.5, quarantine=tmp_path / f"{name}.bad") as reader:
            list(reader)
        bad = [json.loads(line) for line in (tmp_path / f"{name}.bad").read_text().splitlines()]
        size = len(json.dumps(row(1))) + 2001
        reason = "the line has {} bytes, of which the first 300 are kept here; expected at most 1000 bytes"
        assert [(b["line"], b["reason"]) for b in bad] == [(2, reason.format(size)), (4, reason.format(1001))]
        assert bad[0]["text"] == long[:300].decode()


def test_folders_give_their_rollouts_in_order_and_leave_out_what_stands_beside(tmp_path):
    inner = tmp_path / "b"
    inner.mkdir()
    (inner / "z.jsonl").write_bytes(text(2))
    (tmp_path / "a.jsonl").write_bytes(text(0))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text(3)))
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(text(4)))
    for name in (
        "a_materialized_inputs.jsonl", "a_failures.jsonl", "a_aggregate_metrics.json", "quarantine.jsonl",
        "train.sidecar.jsonl", ".hidden.jsonl", "notes.txt", "a_settings.json",
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"{}\n")
    (inner / "up").symlink_to(tmp_path)
    assert checked_paths(tmp_path) == [
        tmp_path / "a.jsonl", inner / "z.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl.zst",
    ]  # fmt: skip
    assert [rollout.task_index for rollout in read_rollouts(tmp_path)] == [0, 2, 3, 4]


def test_patterns(tmp_path):
    for number, name in enumerate(("a1.jsonl", "a2.jsonl", "a2_failures.jsonl", "b[1].jsonl")):
        (tmp_path / name).write_bytes(text(number))
    assert [path.name for path in checked_paths(tmp_path / "a*.jsonl")] == ["a1.jsonl", "a2.jsonl"]
    assert [path.name for path in checked_paths(f"{tmp_path}/**/*.jsonl")] == ["a1.jsonl", "a2.jsonl", "b[1].jsonl"]
    assert checked_paths(tmp_path / "b[1].jsonl") == [tmp_path / "b[1].jsonl"]
    assert [path.name for path in checked_paths(str(tmp_path.parent / f"{tmp_path.name[:-1]}?"))][:1] == ["a1.jsonl"]


def test_nothing_to_read_is_said(tmp_path):
    (tmp_path / "a_failures.jsonl").write_bytes(b"{}")
    for paths, said in (
        (tmp_path, "the folder holds no rollout files"),
        (tmp_path / "x*", "matches no file"),
        (tmp_path / "a*", r"matches only files that hold no rollouts \(.*a_failures.jsonl"),
        (tmp_path / "none.jsonl", "no such file"),
    ):
        with pytest.raises(UsageError, match=said):
            checked_paths(paths)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_standard_input(monkeypatch, pack):
    def give():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(text(0, 1)))))

    give()
    with RolloutReader("-") as reader:
        assert [(rollout.task_index, str(rollout.source)) for rollout in reader] == [(0, "-:1"), (1, "-:2")]
    give()
    with RolloutIndex.build("-") as index, index.open() as rows:
        assert [rows.rollout(indexed).task_index for indexed in index.rows()] == [0, 1]
    give()
    with RolloutIndex.build("-", num_processes=2) as index:
        assert index.num_rows == 2


def test_named_pipes(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if os.fork() == 0:
        pipe.write_bytes(gzip.compress(text(5)))
        os._exit(0)
    assert [rollout.task_index for rollout in read_rollouts(pipe)] == [5]
    os.wait()


def test_siblings_of_packed_files(tmp_path):
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text(0, 1)))
    tasks = b'{"_ng_task_index": 0, "truth": "a"}\n{"_ng_task_index": 1, "truth": "b"}\n'
    (tmp_path / "r_materialized_inputs.jsonl.zst").write_bytes(zstd(tasks))
    (tmp_path / "r_failures.jsonl").write_bytes(b'{"_ng_failure_class": "boom"}')
    with RolloutReader(tmp_path) as reader:
        assert [rollout.task["truth"] for rollout in reader] == ["a", "b"]
    assert reader.report.failures == {"boom": 1}
    with RolloutIndex.build(tmp_path) as index, index.open() as rows:
        found = list(index.rows())
        assert [rows.rollout(indexed).task["truth"] for indexed in found[:2]] == ["a", "b"]
        assert index.report == reader.report
        assert rows.rollout(found[2]).reason == "boom"


TABLE = pa.table(
    {
        "responses_create_params": [{"input": [{"role": "user", "content": "hi"}], "tools": [{"a": 1}, {"b": 2}]}]
        * 200,
        "response": [json.dumps({"output": [{**SAID[0], "id": None}]})] * 200,
        "reward": [number / 200 for number in range(200)],
        "_ng_task_index": list(range(200)),
        "accuracy": [None, 0.5] * 100,
        "output": ["[not a list"] * 200,
        "scores": pa.array([[("form", 1.0), ("fact", None)]] * 200, pa.map_(pa.string(), pa.float64())),
    }
)


def arrow(path, table=TABLE):
    path.parent.mkdir(exist_ok=True, parents=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=150)


def save_dataset(folder, *tables):
    """A folder as `datasets` saves it."""
    names = [f"data-{number:05}-of-{len(tables):05}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        arrow(folder / name, table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def check_table(paths):
    rollouts = list(read_rollouts(paths))
    assert [rollout.task_index for rollout in rollouts] == list(range(200))
    first, second = rollouts[:2]
    # The null columns of the row, and the members that only other tools have, are no fields of it.
    assert first.row == {
        "responses_create_params": {"input": [{"role": "user", "content": "hi"}], "tools": [{"a": 1}, {"b": 2}]},
        "response": {"output": [{**SAID[0], "id": None}]},
        "reward": 0.0,
        "_ng_task_index": 0,
        "output": "[not a list",
        "scores": {"form": 1.0},
    }
    assert second.metrics == {"accuracy": 0.5}
    assert tasks_read(paths) == list(range(200))


def test_parquet(tmp_path):
    pq.write_table(TABLE, tmp_path / "r.parquet", row_group_size=70)
    check_table(tmp_path / "r.parquet")
    check_table(tmp_path)


def test_arrow_streams_and_files(tmp_path):
    arrow(tmp_path / "stream")
    with pa.OSFile(str(tmp_path / "file"), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=150)
    check_table(tmp_path / "stream")
    check_table(tmp_path / "file")


def test_saved_datasets(tmp_path):
    save_dataset(tmp_path / "one", TABLE.slice(0, 90), TABLE.slice(90))
    check_table(tmp_path / "one")
    save_dataset(tmp_path / "two" / "val", TABLE.slice(0, 90))
    save_dataset(tmp_path / "two" / "train", TABLE.slice(90))
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["val", "train"]}')
    check_table(tmp_path / "two")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UsageError, match=r"00001-of-00002\.arrow: a part of the data set is not there"):
        checked_paths(tmp_path / "one")


def test_tables_that_are_broken(tmp_path):
    pq.write_table(TABLE, tmp_path / "r.parquet")
    arrow(tmp_path / "r.arrow")
    for name in ("r.parquet", "r.arrow"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
        with pytest.raises(RolloutError, match=f"{name}: the (Parquet|Arrow) data cannot be read"):
            list(read_rollouts(tmp_path / name))


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "r.zst").write_bytes(zstd(text(0)))
    pq.write_table(TABLE, tmp_path / "r.parquet")
    for package, name in (("zstandard", "r.zst"), ("pyarrow", "r.parquet")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=rf"needs the package {package}.*regimen-rl\[data\]"):
            list(read_rollouts(tmp_path / name))
