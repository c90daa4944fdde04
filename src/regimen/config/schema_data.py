"""The `data` and `env` sections: which rows, read how. `data.default` is merged into train and validation at load."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from regimen.config.section import Section

DatasetName = Literal[
    "ResponseDataset",
    "openai_format",
    "BinaryPreferenceDataset",
    "PreferenceDataset",
    "NemoGymDataset",
    "Environment",
    "Mixture",
]
# Which keys each data set reads, besides `dataset_name`.
FILE_KEYS = ("data_path", "split")
KEYS_OF: dict[str, tuple[str, ...]] = {
    "ResponseDataset": (*FILE_KEYS, "input_key", "output_key", "env_name", "prompt_file", "system_prompt_file"),
    "openai_format": (*FILE_KEYS, "chat_key", "tool_key"),
    "BinaryPreferenceDataset": (*FILE_KEYS, "prompt_key", "chosen_key", "rejected_key"),
    "PreferenceDataset": FILE_KEYS,
    "NemoGymDataset": (*FILE_KEYS, "env_name", "num_tasks"),
    "Environment": ("env_name", "split", "num_tasks"),
    "Mixture": ("parts",),
}


class DatasetConfig(Section):
    """One data set. A file is read whole; `Environment` (ours) makes the tasks of `split` of the environment.

    `Mixture` (ours) is what a list of several becomes, for GRPO: `parts`, whose tasks are drawn by their `weight`.

    `env_name` names the environment that plays and judges: a section `env.<env_name>` gives its options. For
    NemoGymDataset, None means: the one that each row's `agent_ref` names.
    """

    dataset_name: DatasetName
    data_path: str | None = None
    input_key: str = "input"
    output_key: str = "output"
    prompt_key: str = "prompt"
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    chat_key: str = "messages"
    tool_key: str = "tools"
    env_name: str | None = None
    split: str | None = None
    num_tasks: int | None = Field(default=None, ge=1)  # ours
    weight: float = Field(default=1.0, gt=0)  # ours
    parts: list[DatasetConfig] | None = Field(default=None, min_length=1)  # ours
    prompt_file: str | None = None
    system_prompt_file: str | None = None

    @property
    def sources(self) -> list[DatasetConfig]:
        """The data sets that it mixes: itself alone, mostly."""
        return self.parts or [self]

    @field_validator("dataset_name", mode="before")
    @classmethod
    def _known_name(cls, value: object) -> object:
        names = get_args(DatasetName)
        if isinstance(value, str) and value not in names:
            raise ValueError(f"one of {', '.join(names)}; write a data set that NeMo RL downloads to JSON lines first")
        return value


class DataConfig(Section):
    """Training and validation data. `max_input_seq_length`: None, or the policy's limit of whole sequences or more."""

    train: DatasetConfig | None = None
    validation: DatasetConfig | None = None
    shuffle: bool = True
    max_input_seq_length: int | None = Field(default=None, ge=1)
