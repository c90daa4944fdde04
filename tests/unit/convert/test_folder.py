import os
import subprocess
import sys

import pytest

from regimen.convert.folder import folder_written_whole
from regimen.errors import ConvertError, UsageError


def test_the_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "set"
    with folder_written_whole(out, overwrite=False) as folder:
        (folder / "train.jsonl").write_text("{}\n")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["train.jsonl"]
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / "train.jsonl").write_text("old")

    def fail():
        with folder_written_whole(out, overwrite=True) as folder:
            (folder / "train.jsonl").write_text("new")
            raise ConvertError("no")

    with pytest.raises(ConvertError, match="no"):
        fail()
    assert (out / "train.jsonl").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_a_clear_error(tmp_path):
    with (
        pytest.raises(ConvertError, match="cannot be written: No space left on device"),
        folder_written_whole(tmp_path / "set", overwrite=False),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_converted_folders_only(tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    with folder_written_whole(out, overwrite=False) as folder:  # an empty folder is free
        (folder / "train.jsonl").write_text("old")
    with pytest.raises(UsageError, match="not empty"), folder_written_whole(out, overwrite=False):
        pass
    with folder_written_whole(out, overwrite=True) as folder:
        (folder / "val.jsonl").write_text("new")
    assert [path.name for path in out.iterdir()] == ["val.jsonl"]
    (out / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="thesis"), folder_written_whole(out, overwrite=True):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"), folder_written_whole(tmp_path / "file", overwrite=True):
        pass


def test_what_killed_conversions_left_goes_away(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    orphan, running, other = (
        tmp_path / name for name in (f".set.{ended.pid}.tmp", f".set.{os.getppid()}.tmp", f".other.{ended.pid}.tmp")
    )
    for folder in (orphan, running, other):
        folder.mkdir()
        (folder / "train.jsonl").write_text("half")
    with folder_written_whole(tmp_path / "set", overwrite=False):
        pass
    assert not orphan.exists()
    assert running.exists()
    assert other.exists()
