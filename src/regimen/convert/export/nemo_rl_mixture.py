"""Which mixtures of data sets NeMo RL can train on. Those are written as one file, their rows in turn by weight.

In: an export request. Out: nothing. A list of data sets, which NeMo RL has too, would not be the same: it knows no
weights, is read one data set after the other where it is not shuffled, validates on its first rows alone, and in 0.6
only the environment of `data.default` is made.
Refuses: gym rows in a run that plays others, environments that differ outside a gym, settings that one file has once.
"""

from __future__ import annotations

from regimen.config.known import KNOWN
from regimen.config.schema import DatasetConfig
from regimen.convert.export.request import ENTRIES, ExportRequest
from regimen.errors import ConfigError

# Keys of a data set that are passed on to NeMo RL as they are written.
PASSED_ON = (*(key.removeprefix("data.train.") for key in KNOWN.off_values if key.startswith("data.train.")), "seed")
PROMPT_FILES = ("prompt_file", "system_prompt_file")


def check_mixtures(request: ExportRequest) -> None:
    """Raise `ConfigError` for data that one run of NeMo RL cannot play together."""
    _check_players(request)
    for name in ENTRIES:
        entry: DatasetConfig | None = getattr(request.config.data, name)
        if entry is not None and entry.parts is not None:
            _check_environments(entry.parts, name)
            _check_settings(request, name)


def _check_players(request: ExportRequest) -> None:
    """In a run with NeMo Gym the gym plays every row, validation too."""
    entries: list[DatasetConfig | None] = [getattr(request.config.data, name) for name in ENTRIES]
    kinds = {part.dataset_name for entry in entries if entry is not None for part in entry.sources}
    if {"NemoGymDataset", "ResponseDataset"} <= kinds:
        raise ConfigError(
            "has gym tasks (NemoGymDataset) and questions (ResponseDataset), and in one run of NeMo RL a gym plays "
            "every row or none",
            where="data",
            expected="data sets of one of the two kinds",
            fix="export each by itself, or write the questions as tasks of a gym: `regimen convert --to grpo "
            "--format gym`",
        )


def _check_environments(parts: list[DatasetConfig], name: str) -> None:
    """Questions of several environments would have to be a list, of which 0.6 makes one environment."""
    names = sorted({part.env_name or "math" for part in parts if part.dataset_name == "ResponseDataset"})
    if len(names) > 1:
        raise ConfigError(
            f"mixes questions of the environments {' and '.join(names)}; of a list of data sets NeMo RL 0.6 makes the "
            "environment of data.default alone, and ends with a KeyError at the others",
            where=f"data.{name}",
            expected="one env_name",
            fix="export the data of each environment by itself, or let a gym play all of it: NemoGymDataset, with the "
            "agent of each task in its agent_ref",
        )


def _check_settings(request: ExportRequest, name: str) -> None:
    sources = request.given_of(name)
    for key in (*PASSED_ON, *PROMPT_FILES):
        values = {str(source.get(key)) for source in sources}
        if len(values) > 1:
            raise ConfigError(
                f"the data sets differ in {key} ({', '.join(sorted(values))}), and they become one file, which has one",
                where=f"data.{name}",
                expected=f"the same {key} for all",
                fix="give it in data.default, or write what differs into the rows",
            )
