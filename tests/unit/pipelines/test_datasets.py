"""Rows to training sequences: sampled ids where the sidecar has them, exact masks of the text otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConvertError, UsageError
from regimen.pipelines.datasets import Dataset, load_dataset
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.template import Renderer

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
ROW = {"messages": [USER, ANSWER], "tools": []}


@pytest.fixture(scope="module")
def renderer(tiny: ModuleType) -> Renderer:
    return Renderer(tiny.tiny_tokenizer())


def write(folder: Path, rows: list[Any], records: list[Any] | None = None) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if records is not None:
        (folder / "train.sidecar.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(
    renderer: Renderer,
    sequences: list[tuple[list[int], list[tuple[int, int]]]],
    num_prompt_messages: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    made = [[ids, spans, [-0.5] * sum(b - a for a, b in spans)] for ids, spans in sequences]
    return {
        "version": 1,
        "source": {"path": "rollouts.jsonl", "line": 1},
        "task_id": "t",
        "task_index": 0,
        "rollout_index": 0,
        "reward": 1.0,
        "tokenizer": renderer.fingerprint,
        "template": renderer.template_fingerprint,
        "num_prompt_messages": num_prompt_messages,
        "sequences": [dict(zip(("ids", "spans", "logprobs"), part, strict=True)) for part in made],
        **changes,
    }


def load(
    path: Path,
    renderer: Renderer,
    *,
    name: str = "openai_format",
    length: int = 1000,
    only_final: bool = False,
    **keys: Any,
) -> Dataset:
    config = DatasetConfig(dataset_name=name, data_path=str(path), **keys)
    return load_dataset(config, renderer, length, pairs="Preference" in name, only_final=only_final)


def trained(renderer: Renderer, sequence: TrainingSequence) -> list[str]:
    return [renderer.decode([int(i) for i in sequence.ids[a:b]]) for a, b in sequence.spans]


def test_sampled_ids_are_used_as_they_are(renderer: Renderer, tmp_path: Path) -> None:
    sampled = [5, 6, 7, 1]  # not what encoding the text gives
    path = write(tmp_path, [ROW], [record(renderer, [([50, 51, *sampled], [(2, 6)])])])
    dataset = load(path, renderer)
    [[sequence]] = [example.sequences for example in dataset.examples]
    assert list(sequence.ids) == [50, 51, *sampled]
    assert list(sequence.spans) == [(2, 6)]
    assert dataset.buckets == {"trained": 1}
    assert dataset.tokens == {"trained": 4, "masked": 2}


def test_text_is_tokenised_where_there_are_no_ids(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path, [ROW])
    [example] = load(path, renderer).examples
    assert trained(renderer, example.sequences[0]) == ["4<|im_end|>"]
    path = write(tmp_path, [ROW], [record(renderer, [])])
    [again] = load(path, renderer).examples
    assert list(again.sequences[0].ids) == list(example.sequences[0].ids)


def test_ids_of_another_tokenizer(renderer: Renderer, tmp_path: Path) -> None:
    spelled = [*renderer.encode("x"), *renderer.encode("4<|im_end|>")]
    foreign = {"tokenizer": "another"}
    path = write(tmp_path, [ROW], [record(renderer, [(spelled, [(1, 3)])], **foreign)])
    assert list(load(path, renderer).examples[0].sequences[0].ids) == spelled  # they spell the row
    for ids in ([50, 51, 52], [50, 100_000, 100_001]):
        path = write(tmp_path, [ROW], [record(renderer, [(ids, [(1, 3)])], **foreign)])
        with pytest.raises(ConvertError, match="another tokenizer") as caught:
            load(path, renderer)
        assert caught.value.where == f"{path}:1"


def test_assistant_messages_of_the_prompt_do_not_train(renderer: Renderer, tmp_path: Path) -> None:
    shown = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    row = {"messages": [*shown, USER, ANSWER]}
    path = write(tmp_path, [row], [record(renderer, [], num_prompt_messages=3)])
    assert trained(renderer, load(path, renderer).examples[0].sequences[0]) == ["4<|im_end|>"]
    (tmp_path / "train.sidecar.jsonl").unlink()  # nothing tells them apart any more
    assert trained(renderer, load(path, renderer).examples[0].sequences[0]) == ["2<|im_end|>", "4<|im_end|>"]


def test_what_is_not_trained_is_counted(renderer: Renderer, tmp_path: Path) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "4" * 200}]}
    silent = {"messages": [USER]}
    dataset = load(write(tmp_path, [ROW, long, silent, ROW]), renderer, length=120)
    assert dataset.buckets == {"trained": 2, "too_long": 1, "nothing_to_train": 1}
    assert [example.line for example in dataset.examples] == [1, 4]
    assert [sequence.episode for example in dataset.examples for sequence in example.sequences] == [0, 1]
    with pytest.raises(UsageError, match="no row can be trained on") as caught:
        load(write(tmp_path, [long]), renderer, length=120)
    assert "max_total_sequence_length" in str(caught.value)


def test_an_episode_of_several_sequences_stays_one_example(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path, [ROW], [record(renderer, [([5, 6, 1], [(1, 3)]), ([9, 6, 1], [(1, 3)])])])
    [example] = load(path, renderer).examples
    assert [list(s.ids) for s in example.sequences] == [[5, 6, 1], [9, 6, 1]]


@pytest.mark.parametrize("num_records", [1, 3])
def test_a_sidecar_of_another_length_is_refused(renderer: Renderer, tmp_path: Path, num_records: int) -> None:
    """Otherwise rows would train the ids of their neighbours."""
    path = write(tmp_path, [ROW, ROW], [record(renderer, [([5, 6, 1], [(1, 3)])])] * num_records)
    with pytest.raises(ConvertError, match="sidecar"):
        load(path, renderer)


def test_questions_and_answers(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path, [{"q": "2 + 2?", "a": 4}])
    dataset = load(path, renderer, name="ResponseDataset", input_key="q", output_key="a")
    assert trained(renderer, dataset.examples[0].sequences[0]) == ["4<|im_end|>"]
    with pytest.raises(ConvertError, match="no field 'input'"):
        load(path, renderer, name="ResponseDataset")


BINARY = {"prompt": [USER], "chosen": "4", "rejected": "five"}
RANKED = {
    "context": [USER],
    "completions": [
        {"rank": 1, "completion": [{"role": "assistant", "content": "five"}]},
        {"rank": 0, "completion": [ANSWER]},
    ],
}


@pytest.mark.parametrize("name, row", [("BinaryPreferenceDataset", BINARY), ("PreferenceDataset", RANKED)])
def test_pairs(renderer: Renderer, tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    dataset = load(write(tmp_path, [row, row]), renderer, name=name)
    for index, example in enumerate(dataset.examples):
        chosen, rejected = example.sequences
        assert (chosen.is_chosen, rejected.is_chosen) == (True, False)
        assert chosen.pair == rejected.pair == index
        assert trained(renderer, chosen) == ["4<|im_end|>"]
        assert trained(renderer, rejected) == ["five<|im_end|>"]


@pytest.mark.parametrize("name, row", [("BinaryPreferenceDataset", BINARY), ("PreferenceDataset", RANKED)])
def test_pairs_train_only_the_completion(renderer: Renderer, tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    key = "prompt" if "prompt" in row else "context"
    shown = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}, USER]
    [example] = load(write(tmp_path, [{**row, key: shown}]), renderer, name=name).examples
    assert [trained(renderer, side) for side in example.sequences] == [["4<|im_end|>"], ["five<|im_end|>"]]


def test_pairs_with_sampled_ids(renderer: Renderer, tmp_path: Path) -> None:
    sides = {
        "chosen": record(renderer, [([5, 6, 1], [(1, 3)])]),
        "rejected": record(renderer, [([5, 7, 1], [(1, 3)])]),
    }
    split = {**sides, "rejected": record(renderer, [([5, 7, 1], [(1, 3)]), ([8, 7, 1], [(1, 3)])])}
    path = write(tmp_path, [RANKED, RANKED], [{"version": 1, **sides}, {"version": 1, **split}])
    dataset = load(path, renderer, name="PreferenceDataset")
    assert dataset.buckets == {"trained": 1, "not_one_sequence": 1}
    assert [list(s.ids) for s in dataset.examples[0].sequences] == [[5, 6, 1], [5, 7, 1]]


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", UsageError, "the file is empty"),
        ("{broken\n", ConvertError, "not JSON"),
        ("[]\n", ConvertError, "not a JSON object"),
        ("{}\n", ConvertError, "no field 'messages'"),
        ('{"messages": "hi"}\n', ConvertError, "not a list"),
    ],
)
def test_files_that_are_no_data(
    renderer: Renderer, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=message):
        load(path, renderer)
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "missing.jsonl", renderer)


def test_only_the_final_turn_trains_when_asked(renderer: Renderer, tmp_path: Path) -> None:
    more = [USER, ANSWER, {"role": "user", "content": "and 5?"}, {"role": "assistant", "content": "9"}]
    path = write(tmp_path, [{"messages": more, "tools": []}])
    everything = load(path, renderer)
    assert trained(renderer, everything.examples[0].sequences[0]) == ["4<|im_end|>", "9<|im_end|>"]
    final = load(path, renderer, only_final=True)
    [sequence] = final.examples[0].sequences
    assert trained(renderer, sequence) == ["9<|im_end|>"]
    assert final.tokens["trained"] + final.tokens["masked"] == sum(everything.tokens.values())
    assert final.buckets == {"trained": 1}


def test_only_the_final_turn_of_sampled_ids_trains_when_asked(renderer: Renderer, tmp_path: Path) -> None:
    """Two sequences, as a template that rewrites history leaves them: the last turn of the last one."""
    made = [([50, 51, 5, 6], [(2, 4)]), ([50, 52, 7, 8, 53, 9], [(2, 4), (5, 6)])]
    path = write(tmp_path, [ROW], [record(renderer, made)])
    [sequence] = load(path, renderer, only_final=True).examples[0].sequences
    assert (list(sequence.ids), list(sequence.spans)) == ([50, 52, 7, 8, 53, 9], [(5, 6)])
