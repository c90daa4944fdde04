import numpy as np
import pytest
import xxhash

from regimen.convert.manifest import read_manifest, rewards_of, xxh128_of
from regimen.errors import ConvertError


def test_the_hash_is_of_the_bytes(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 500_000)  # more than one block
    assert xxh128_of(path) == xxhash.xxh3_128_hexdigest(b"abc" * 500_000)
    path.write_bytes(b"")
    assert xxh128_of(path) == "99aa06d3014798d86001c324468d497f"  # the published value for no bytes


def test_rewards_are_summarised():
    summary = rewards_of([np.array([0.0, 1.0]), np.array([]), np.array([1.0, 0.0])])
    assert (summary.num_scored, summary.kind, summary.lowest, summary.highest, summary.mean) == (4, "binary", 0, 1, 0.5)
    assert rewards_of([np.array([0.0]), np.array([0.5])]).kind == "continuous"
    assert rewards_of([]).kind == "none"


def test_a_folder_without_a_manifest_or_with_a_wrong_one_is_refused(tmp_path):
    with pytest.raises(ConvertError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(ConvertError, match="not a manifest"):
        read_manifest(tmp_path)
