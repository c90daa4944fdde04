"""From a converted folder's rows to training sequences.

In: a data set's file, its sidecar where there is one, a renderer. Out: `Example`s: one sequence (SFT) or the two sides
of a pair (DPO), and counts of what each row became. Sampled ids are used where the sidecar has them and they belong to
this tokenizer; text is tokenised segment by segment otherwise.
Refuses: rows without the configured keys, and ids of another tokenizer that do not spell the row's text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.convert.sidecar import EpisodeRecord, PairRecord, read_sidecar
from regimen.errors import ConvertError, UsageError
from regimen.rollouts.turns import TokenSequence
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.template import Renderer

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """The sequences of one row: one or more of an episode, or those of both sides of a pair."""

    sequences: list[TrainingSequence]
    line: int


@dataclass(slots=True)
class Dataset:
    """Examples of a file; `buckets` counts every row once, `tokens` every token of the used ones."""

    examples: list[Example]
    buckets: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    path: str = ""


def load_dataset(
    config: DatasetConfig, renderer: Renderer, max_length: int, *, pairs: bool, only_final: bool = False
) -> Dataset:
    """Read `config.data_path` into memory as token sequences; `only_final` trains the last assistant turn of a row.

    Raises `UsageError` where the file is missing or empty, `ConvertError` for a row that is not of the data set's kind.
    """
    path = Path(config.data_path or "")
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), fix="check data.train.data_path")
    dataset = Dataset([], path=str(path))
    for number, row, record in rows_of(path, PairRecord if pairs else EpisodeRecord):
        where = f"{path}:{number}"
        sequences = _pair(row, record, config, renderer, where) if pairs else _row(row, record, config, renderer, where)
        sequences = _final_turn(sequences) if only_final else sequences
        _keep(dataset, sequences, number, max_length, pairs)
    if not dataset.examples:
        raise UsageError(
            f"no row can be trained on ({dict(dataset.buckets) or 'the file is empty'})",
            where=str(path),
            fix="raise policy.max_total_sequence_length" if dataset.buckets["too_long"] else "convert again",
        )
    return dataset


def load_rows(config: TrainConfig, data: DatasetConfig, renderer: Renderer) -> Dataset:
    """`load_dataset` of what SFT or DPO trains on or validates with."""
    return load_dataset(
        data,
        renderer,
        config.policy.max_total_sequence_length,
        pairs=config.dpo is not None,
        only_final=config.sft is not None and config.sft.only_unmask_final,
    )


def has_no_rows(config: DatasetConfig) -> bool:
    """Whether converting left no rows for this data set, and so no file."""
    path = Path(config.data_path or "")
    return not path.exists() and (path.parent / "manifest.json").is_file()


def _keep(dataset: Dataset, sequences: list[TrainingSequence], line: int, max_length: int, pairs: bool) -> None:
    bucket = "trained"
    if not sequences or any(sequence.num_trained == 0 for sequence in sequences):
        bucket = "nothing_to_train"
    elif max(len(sequence.ids) for sequence in sequences) > max_length:
        bucket = "too_long"
    elif pairs and len(sequences) != 2:
        bucket = "not_one_sequence"
    dataset.buckets[bucket] += 1
    if bucket == "trained":
        index = len(dataset.examples)
        tagged = [replace(s, episode=index, pair=index if pairs else -1) for s in sequences]
        dataset.examples.append(Example(tagged, line))
        trained = sum(sequence.num_trained for sequence in tagged)
        dataset.tokens["trained"] += trained
        dataset.tokens["masked"] += sum(len(sequence.ids) for sequence in tagged) - trained


def rows_of(path: Path, kind: Any) -> Iterator[tuple[int, dict[str, Any], Any]]:
    """The lines of a data set's file: number, row, and the sidecar's record of type `kind` (None without a sidecar)."""
    sidecar = path.with_name(f"{path.stem}.sidecar.jsonl")
    records = read_sidecar(sidecar, kind) if sidecar.is_file() else None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConvertError(f"not JSON ({error})", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise ConvertError("not a JSON object", where=f"{path}:{number}")
            record = None
            if records is not None:
                record = next(records, None)
                if record is None:
                    raise ConvertError(f"ends before line {number} of {path}", where=str(sidecar), fix="convert again")
            yield number, row, record
    if records is not None and next(records, None) is not None:
        raise ConvertError(f"goes on after the last line of {path}", where=str(sidecar), fix="convert again")


def _row(
    row: dict[str, Any], record: EpisodeRecord | None, config: DatasetConfig, renderer: Renderer, where: str
) -> list[TrainingSequence]:
    messages, tools = sft_messages(row, config, where)
    # Without a sidecar nothing tells examples in the prompt from answers: every assistant message trains.
    return _sequences(messages, tools, record, 0, renderer, where)


def _final_turn(sequences: list[TrainingSequence]) -> list[TrainingSequence]:
    """The sequence of the last turn with that turn alone to train; what no longer trains needs no computing."""
    return [replace(sequence, spans=sequence.spans[-1:]) for sequence in sequences[-1:]]


def sft_messages(row: dict[str, Any], config: DatasetConfig, where: str) -> tuple[list[Message], list[Message]]:
    """The conversation and the tools of an SFT row."""
    if config.dataset_name == "openai_format" or "messages" in row:
        return _messages(_field(row, config.chat_key, where), where), row.get(config.tool_key) or []
    question, answer = _field(row, config.input_key, where), _field(row, config.output_key, where)
    return [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answer)}], []


def pair_messages(
    row: dict[str, Any], config: DatasetConfig, where: str
) -> tuple[list[Message], list[list[Message]], list[Message]]:
    """The context of a DPO row, its two completions (the chosen one first) and its tools."""
    if config.dataset_name == "BinaryPreferenceDataset":
        prompt = _field(row, config.prompt_key, where)
        context = _messages(prompt, where) if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
        sides = [
            [{"role": "assistant", "content": str(_field(row, key, where))}]
            for key in (config.chosen_key, config.rejected_key)
        ]
    else:
        context = _messages(_field(row, "context", where), where)
        completions = sorted(_field(row, "completions", where), key=lambda completion: completion["rank"])
        if len(completions) != 2:
            raise ConvertError(f"{len(completions)} completions", where=where, expected="2")
        sides = [_messages(completion["completion"], where) for completion in completions]
    return context, sides, row.get("tools") or []


def _pair(
    row: dict[str, Any], record: PairRecord | None, config: DatasetConfig, renderer: Renderer, where: str
) -> list[TrainingSequence]:
    context, sides, tools = pair_messages(row, config, where)
    result: list[TrainingSequence] = []
    for is_chosen, completion in zip((True, False), sides, strict=True):
        side = None if record is None else (record.chosen if is_chosen else record.rejected)
        made = _sequences([*context, *completion], tools, side, len(context), renderer, where)
        result.extend(replace(sequence, is_chosen=is_chosen) for sequence in made)
    return result


def _sequences(
    messages: list[Message],
    tools: list[Message],
    record: EpisodeRecord | None,
    first_trained: int,
    renderer: Renderer,
    where: str,
) -> list[TrainingSequence]:
    if record is not None and record.sequences:
        _check_ids(record, messages, renderer, where)
        return [_training_sequence(sequence) for sequence in record.sequences]
    first = first_trained if record is None else record.num_prompt_messages
    written = renderer.conversation(messages, tools, first_trained=first)
    return [_training_sequence(sequence) for sequence in written]


def _training_sequence(sequence: TokenSequence) -> TrainingSequence:
    return TrainingSequence(ids=sequence.ids, spans=sequence.spans)


def _check_ids(record: EpisodeRecord, messages: list[Message], renderer: Renderer, where: str) -> None:
    """Ids of another tokenizer are accepted only where they spell what the row says."""
    if record.tokenizer == renderer.fingerprint:
        return
    size = len(renderer.tokenizer)
    spelled = "".join(
        renderer.decode(sequence.ids[start:stop]) if max(sequence.ids, default=0) < size else ""
        for sequence in record.sequences
        for start, stop in sequence.spans
    )
    said = [message.get("content") or "" for message in messages[record.num_prompt_messages :]]
    answers = [
        text
        for text, message in zip(said, messages[record.num_prompt_messages :], strict=True)
        if message["role"] == "assistant" and isinstance(text, str) and text.strip()
    ]
    if not spelled.strip() or any(text.strip() not in spelled for text in answers):
        raise ConvertError(
            "the sampled ids beside this row are of another tokenizer and do not spell its text",
            where=where,
            expected=f"ids of the tokenizer {renderer.fingerprint}, not {record.tokenizer}",
            fix="train the model that sampled them, or remove the sidecar file to tokenise the text again",
        )


def _field(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise ConvertError(f"has no field {key!r}", where=where, expected=f"one of {', '.join(row)} in the data keys")
    return row[key]


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(item, dict) and "role" in item for item in value):
        raise ConvertError("the messages are not a list of objects with a role", where=where)
    return value
