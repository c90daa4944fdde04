"""`env.nemo_gym`: a running NeMo Gym whose agents play the episodes of GRPO.

In: the section as NeMo RL's users have it, with keys of ours that say where the gym runs and where the trainer serves
its model to it. Out: a `NemoGymConfig`. Refuses: a gym that is not running (this build starts none), unknown keys, what
does not go with a gym.
"""

from __future__ import annotations

import shlex
from typing import Any, cast

from pydantic import Field, ValidationError

from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.config.section import Section
from regimen.config.source import Layers, Tree
from regimen.errors import ConfigError
from regimen.registry import nearest

NAME = "nemo_gym"
PATH = f"env.{NAME}"
TOKEN_VARIABLE = "REGIMEN_SERVER_TOKEN"  # noqa: S105 - a name, not a token
SWITCH, LOG_SWITCH = "should_use_nemo_gym", "should_log_nemo_gym_responses"
TRAINING_MODEL = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"


class NemoGymConfig(Section):
    """Where the gym runs, and where the trainer serves its model to it (ours).

    `agent` plays the rows that name none in `agent_ref`. `model_name` is what the gym calls the model: the policy's
    name where it says nothing. The token that the gym must send stands in `model_server_token_file`, or in the
    environment variable REGIMEN_SERVER_TOKEN.
    """

    head_server_url: str | None = None
    agent: str | None = None
    model_name: str | None = None
    model_server_host: str = "127.0.0.1"
    model_server_port: int = Field(default=8001, ge=0, le=65535)
    model_server_token_file: str | None = None
    episode_seconds: float = Field(default=1800.0, gt=0)


def take_switches(tree: Tree, layers: Layers) -> None:
    """NeMo RL's switches stand in `env` beside the environments: they are taken out of it."""
    env = tree.get("env")
    if not isinstance(env, dict):
        return
    sections = cast("Tree", env)
    if LOG_SWITCH in sections:
        del sections[LOG_SWITCH]
        layers.notes.append(f"no effect here, as every episode is written to the run folder: env.{LOG_SWITCH}")
    if SWITCH not in sections:
        return
    is_on = sections.pop(SWITCH)
    if is_on and NAME not in sections:
        raise layers.refusal(f"env.{SWITCH}", f"is true, but there is no {PATH}", None, f"set {PATH}.head_server_url")
    if not is_on and sections.pop(NAME, None) is not None:
        layers.notes.append(f"no effect here, as env.{SWITCH} is false: {PATH}")


def is_played_by_gym(config: TrainConfig, entry: DatasetConfig | None) -> bool:
    """Whether a gym plays the tasks of a data set."""
    if entry is None or NAME not in config.env:
        return False
    return entry.dataset_name == "NemoGymDataset" and entry.env_name in (None, NAME)


def nemo_gym_of(config: TrainConfig) -> NemoGymConfig | None:
    """The section, without what is the gym's own; None where no data is played by a gym."""
    if not is_played_by_gym(config, config.data.train):
        return None
    own = {key: value for key, value in config.env[NAME].items() if key in NemoGymConfig.model_fields}
    return NemoGymConfig(**own)


def check_nemo_gym(config: TrainConfig, layers: Layers) -> None:
    """The rules of `env.nemo_gym`; it is there."""
    section = config.env[NAME]
    _check_keys(section, layers)
    entries = {"train": config.data.train, "validation": config.data.validation}
    played = {name: is_played_by_gym(config, entry) for name, entry in entries.items() if entry is not None}
    if len(set(played.values())) > 1:
        other = next(name for name, by_gym in played.items() if not by_gym)
        raise layers.refusal(
            f"data.{other}", "is no data for a gym, but the other is", "both played by the gym, or neither",
            f"set data.{other}.dataset_name=NemoGymDataset and data.{other}.env_name={NAME}",
        )  # fmt: skip
    if not any(played.values()):
        raise layers.refusal(
            PATH, "no data names it", f"dataset_name NemoGymDataset with env_name {NAME}", f"remove {PATH}"
        )
    if section.get("head_server_url") is None:
        raise layers.refusal(
            PATH,
            "a gym plays the episodes, but this build starts none",
            f"{PATH}.head_server_url, the head server of a gym that runs",
            f"start it: {start_command(config)} and set {PATH}.head_server_url=http://127.0.0.1:11000",
        )
    layers.notes.append("no effect here, as the gym's agents bound their turns: grpo.max_rollout_turns")


def _check_keys(section: dict[str, Any], layers: Layers) -> None:
    """Our keys have their types; mappings and lists are the gym's; anything else is a slip."""
    own = NemoGymConfig.model_fields
    theirs = [key for key, value in section.items() if key not in own and isinstance(value, dict | list)]
    for key in section:
        if key not in own and key not in theirs:
            close = nearest(key, list(own))
            raise layers.refusal(
                f"{PATH}.{key}", "unknown key", f"one of {', '.join(own)}", f"did you mean {close}?" if close else None
            )
    if theirs and section.get("head_server_url") is not None:
        listed = ", ".join(f"{PATH}.{key}" for key in theirs)
        layers.notes.append(f"no effect here, as the gym that runs has its own configuration: {listed}")
    try:
        NemoGymConfig(**{key: value for key, value in section.items() if key in own})
    except ValidationError as error:
        first = error.errors()[0]
        raise layers.refusal(f"{PATH}.{first['loc'][0]}", str(first["msg"])) from None


def start_command(config: TrainConfig) -> str:
    """The command that starts the gym so that it asks this run's model."""
    section = config.env[NAME]
    given: object = section.get("config_paths")
    paths = [str(path) for path in cast("list[object]", given)] if isinstance(given, list) else []
    if not any("for_training" in path for path in paths):
        paths = [TRAINING_MODEL, *paths]
    port = section.get("model_server_port") or NemoGymConfig.model_fields["model_server_port"].default
    files = " ".join(f"--config {shlex.quote(path)}" for path in paths)
    name = shlex.quote(str(section.get("model_name") or config.policy.model_name))
    return (
        f"gym env start {files} --model {name} --model-url http://127.0.0.1:{port}/v1 "
        f'--model-api-key "${TOKEN_VARIABLE}"'
    )


def missing_token() -> ConfigError:
    """The gym must prove that it is the one that was started for this run."""
    return ConfigError(
        "there is no token for the model server",
        where=f"{PATH}.model_server_token_file",
        expected=f"a file with a token, or the variable {TOKEN_VARIABLE}",
        fix=f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32), and start the gym with it as --model-api-key",
    )
