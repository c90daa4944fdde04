from pathlib import Path

import pytest

from regimen.config.source import lookup, merge, read_source, shipped_names
from regimen.errors import ConfigError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def refusal(source: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_source(source)  # type: ignore[arg-type]
    return str(caught.value)


def test_later_wins_depth_first(tmp_path: Path):
    write(
        tmp_path,
        grandparent="a: 1\nb: 1\nc: 1\nd: {x: 1, y: 1}\n",
        parent="defaults: grandparent.yaml\nb: 2\nc: 2\nd: {y: 2}\n",
        uncle="c: 3\n",
        child="defaults: [parent.yaml, uncle.yaml]\nd: {z: 4}\n",
    )
    layers = read_source(tmp_path / "child.yaml")
    assert layers.tree == {"a": 1, "b": 2, "c": 3, "d": {"x": 1, "y": 2, "z": 4}}
    assert layers.where("d.y") == f"d.y ({tmp_path}/parent.yaml:4)"
    assert layers.where("d.z.0.n") == f"d.z.0.n ({tmp_path}/child.yaml:2)"
    assert layers.where("d.q") == "d.q"


def test_a_file_comes_before_a_shipped_base(tmp_path: Path):
    write(tmp_path, child="defaults: sft\n")
    assert read_source(tmp_path / "child.yaml").tree["sft"]["max_num_steps"] == 60
    (tmp_path / "sft").write_text("sft: {max_num_steps: 7}\n")
    assert read_source(tmp_path / "child.yaml").tree == {"sft": {"max_num_steps": 7}}


def test_a_file_may_have_the_name_of_its_shipped_parent(tmp_path: Path):
    write(tmp_path, sft="defaults: sft\nsft: {max_num_steps: 7}\n")
    assert read_source(tmp_path / "sft.yaml").tree["sft"]["max_num_steps"] == 7


def test_a_parent_in_another_checkout_is_the_shipped_one_with_a_note(tmp_path: Path):
    write(tmp_path, child="defaults: ../../grpo_math_1B.yaml\n")
    layers = read_source(tmp_path / "child.yaml")
    assert layers.tree["env"]["math"]["num_workers"] == 8
    assert "the shipped 'grpo_math_1B' was taken" in layers.notes[0]


def test_cycles_are_refused(tmp_path: Path):
    write(tmp_path, a="defaults: b.yaml\n", b="defaults: a.yaml\n")
    assert "inherits from itself: a.yaml -> b.yaml -> a.yaml" in refusal(tmp_path / "a.yaml")


def test_unknown_bases_are_refused_with_the_nearest(tmp_path: Path):
    write(tmp_path, a="policy: {}\ndefaults: grpo_math_1b\n", b="defaults: 3\n")
    message = refusal(tmp_path / "a.yaml")
    assert message.startswith(f"{tmp_path}/a.yaml:2: defaults names 'grpo_math_1b'")
    assert "did you mean 'grpo_math_1B'?" in message
    assert "expected a name or a list of names" in refusal(tmp_path / "b.yaml")


def test_missing_sources(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "none.yaml")
    assert "did you mean 'quickstart/grpo'?" in refusal("quickstart/grp")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("a: 1\nb: [1,\nc: 2\n", ":4", "malformed YAML"),
        ("a: 1\n\tb: 2\n", ":2", "malformed YAML"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", ":4", "the key a.b stands twice, first on line 2"),
        ("- a\n- b\n", "", "is not a mapping"),
        ("# nothing\n", "", "holds no keys"),
        ("a: 1\non: 2\n", ":2", "the key True is not text"),
        ("a: !!python/object:os.system x\n", ":1", "could not determine a constructor"),
        ("a: &x\n  b: *x\n", ":1", "contains itself"),
    ],
)
def test_malformed_files_name_the_line(tmp_path: Path, text: str, place: str, expected: str):
    write(tmp_path, bad=text)
    message = refusal(tmp_path / "bad.yaml")
    assert message.startswith(f"{tmp_path}/bad.yaml{place}: ")
    assert expected in message
    assert "\n" not in message


def test_not_text(tmp_path: Path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(tmp_path / "bad.yaml")


def test_values(tmp_path: Path):
    write(tmp_path, a="small: 5e-6\nneg: -1E3\nday: 2026-01-31\nint: 1_000\ntext: 5e\nmerged: {<<: {p: 1}, q: 2}\n")
    assert read_source(tmp_path / "a.yaml").tree == {
        "small": 5e-6,
        "neg": -1000.0,
        "day": "2026-01-31",
        "int": 1000,
        "text": "5e",
        "merged": {"p": 1, "q": 2},
    }


def test_merge_changes_neither():
    below, above = {"a": {"b": 1}}, {"a": {"c": [1]}, "d": None}
    assert merge(below, above) == {"a": {"b": 1, "c": [1]}, "d": None}
    assert (below, above) == ({"a": {"b": 1}}, {"a": {"c": [1]}, "d": None})
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_lookup():
    tree = {"a": {"b": [{"c": None}]}}
    assert lookup(tree, "a.b.0.c") == (True, None)
    assert lookup(tree, "a.b.1.c") == (False, None)
    assert lookup(tree, "a.x") == (False, None)


def test_shipped_names():
    assert {"sft", "dpo", "grpo", "grpo_math_1B", "grpo_math_8B", "quickstart/sft"} <= set(shipped_names())
