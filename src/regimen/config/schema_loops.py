"""The configurations of `collect`, `evaluate` and `iterate`. All keys are ours."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PrivateAttr

from regimen.config.schema_policy import SamplingConfig
from regimen.config.section import Section

Split = Literal["train", "validation", "test"]


class Noted(Section):
    """A whole configuration. `notes` are what the loader has to say: translated keys, keys without effect."""

    _notes: list[str] = PrivateAttr(default_factory=lambda: list[str]())

    @property
    def notes(self) -> list[str]:
        """One sentence each, to be shown before the work begins."""
        return self._notes


class EnvironmentConfig(Section):
    """An environment by name (shipped, installed or `file.py:Class`), and its options.

    `reward_function`: `path/to/file.py:function`, which judges instead; `mcp_servers`: servers whose tools it has too.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=lambda: dict[str, Any]())
    reward_function: str | None = None
    mcp_servers: dict[str, dict[str, Any]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that `load_environment` takes besides the name, as a section `env.<name>` has it too."""
        own = {"reward_function": self.reward_function, "mcp_servers": self.mcp_servers}
        return {**self.options, **{key: value for key, value in own.items() if value is not None}}


class PlayConfig(Noted):
    """What playing episodes needs, whatever for."""

    environment: EnvironmentConfig
    num_tasks: int | None = Field(default=None, ge=1)
    num_repeats: int = Field(default=1, ge=1)
    seed: int = 0
    concurrency: int = Field(default=32, ge=1)
    max_turns: int | None = Field(default=None, ge=1)
    max_sequence_length: int = Field(default=2048, ge=2)
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    trust_remote_code: bool = False
    generation: SamplingConfig = SamplingConfig()


class CollectConfig(PlayConfig):
    """`regimen collect`: episodes of `split` into the file `output`.

    The policy is `model` in this process; or with `model_url` the model of that name at an OpenAI-compatible endpoint,
    with its token ids when `token_ids` asks for them; or with `gym` the `agent` of a running NeMo Gym, found through
    its head server, which plays and judges the rows of the file `tasks` by itself.
    """

    model: str = ""
    model_url: str | None = None
    token_ids: bool = False
    gym: str | None = None
    agent: str | None = None
    tasks: str | None = None
    split: Split = "train"
    output: str
    resume: bool = False
    overwrite: bool = False


class EvaluateConfig(PlayConfig):
    """`regimen evaluate`: `models` on the same tasks, each against `against`, into the folder `output`.

    `model` in a file is accepted for a single one. `pass_at` are the k of pass@k.
    """

    models: list[str] = Field(min_length=1)
    against: str | None = None
    split: Split = "test"
    pass_at: list[int] = Field(default_factory=lambda: [1], min_length=1)
    output: str
    overwrite: bool = False


class RoundCollectConfig(PlayConfig):
    """`iterate.collect`: as in collect; the model and the file are the round's."""

    split: Split = "train"


class RoundEvaluateConfig(PlayConfig):
    """`iterate.evaluate`: as in evaluate; the models are the round's. `final_split` is looked at once, at the end."""

    split: Split = "validation"
    final_split: Split = "test"
    pass_at: list[int] = Field(default_factory=lambda: [1], min_length=1)


class RoundTrainConfig(Section):
    """`iterate.train`: a shipped configuration or a file, and overrides. Model, data and folders are the round's."""

    config: str
    overrides: list[str] = Field(default_factory=lambda: list[str]())


class IterateConfig(Noted):
    """`regimen iterate`: rounds of collect, convert, train, evaluate.

    A round's model is kept when its mean reward on the validation tasks beats the best so far by `min_improvement`.
    """

    model: str
    rounds: int = Field(default=1, ge=1)
    collect: RoundCollectConfig
    convert: dict[str, Any]
    train: RoundTrainConfig
    evaluate: RoundEvaluateConfig
    output: str
    min_improvement: float = Field(default=0.0, ge=0)
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
