"""What a training run is made of, before its first step: model, data or environment, algorithm, validation.

In: a `TrainConfig`. Out: `Prepared`. Refuses what cannot work, before anything heavy is loaded where possible.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from regimen.algorithms.base import Algorithm
from regimen.algorithms.grpo import GRPO
from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConfigError, UsageError
from regimen.generation.base import Sampling
from regimen.gym.agent import Limits
from regimen.gym.environment import Environment
from regimen.pipelines.ahead import AheadBatches
from regimen.pipelines.batch import with_reference
from regimen.pipelines.batches import BatchSource, DatasetBatches, EpisodeBatches, Player
from regimen.pipelines.datasets import Dataset, load_dataset
from regimen.pipelines.models import check_length, resolve_model
from regimen.pipelines.reference_cache import ReferenceCache
from regimen.pipelines.tasks import environment_of, tasks_of_dataset
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.policy.ranks import current_ranks
from regimen.registry import resolve
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer

Validation = Callable[[LocalPolicy, int], dict[str, float]]


@dataclass(slots=True)
class Prepared:
    """The parts of a run. `reference` is there when each step needs it; `player` when episodes are played."""

    algorithm: Algorithm
    renderer: Renderer
    policy: LocalPolicy
    source: BatchSource
    reference: LocalPolicy | None = None
    player: Player | None = None
    validation: Validation | None = None
    ledger: Counter[str] = field(default_factory=Counter)
    data: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # split -> rows, tokens -> bucket -> count

    def close(self) -> None:
        """Free what holds threads or memory."""
        self.source.close()
        if self.player is not None:
            self.player.close()


def prepare(config: TrainConfig, folder: Path, *, for_training: bool) -> Prepared:
    """Load everything a run needs. Raises `ConfigError` for what does not fit together."""
    algorithm = cast("Algorithm", resolve("algorithm", config.algorithm)(config))
    _check_files(config)
    _check_lengths(config)
    renderer = Renderer.load(
        resolve_model(config.policy.tokenizer_name),
        config.policy.tokenizer.template,
        config.policy.tokenizer.chat_template_kwargs,
        trust_remote_code=config.policy.trust_remote_code,
    )
    if algorithm.batches == "episodes":
        return _with_episodes(config, cast("GRPO", algorithm), renderer, folder, for_training)
    return _with_rows(config, algorithm, renderer, for_training)


def _check_files(config: TrainConfig) -> None:
    """A missing data file is said at once, before a model is loaded."""
    for data in config.data.train.sources if config.data.train is not None else ():
        if data.data_path is not None and not Path(data.data_path).is_file():
            raise UsageError("there is no such file", where=data.data_path, fix="check data.train.data_path")


def _check_lengths(config: TrainConfig) -> None:
    """Positions that the model does not have are said before it is loaded."""
    policy, where = config.policy, "policy.max_total_sequence_length"
    check_length(policy.model_name, policy.max_total_sequence_length, where, trust=policy.trust_remote_code)


def _with_rows(config: TrainConfig, algorithm: Algorithm, renderer: Renderer, for_training: bool) -> Prepared:
    training = config.sft or config.dpo
    assert training is not None
    if config.data.train is None:
        raise ConfigError("there is no training data", where="data.train", expected="dataset_name and data_path")
    pairs = algorithm.batches == "pairs"
    length = config.policy.max_total_sequence_length
    only_final = config.sft is not None and config.sft.only_unmask_final

    def load(data: DatasetConfig) -> Dataset:
        return load_dataset(data, renderer, length, pairs=pairs, only_final=only_final)

    train_rows = load(config.data.train)
    held_out = (
        None if config.data.validation is None or _has_no_rows(config.data.validation) else load(config.data.validation)
    )
    policy = load_policy(config, train=for_training)
    if algorithm.needs_reference and for_training:
        _add_references([dataset for dataset in (train_rows, held_out) if dataset is not None], config, renderer)
    source = DatasetBatches(
        train_rows,
        config.global_batch_size,
        seed=training.seed,
        shuffle=config.data.shuffle,
        max_epochs=training.max_num_epochs,
        max_steps=training.max_num_steps,
    )
    validation = None if held_out is None else _row_validation(config, algorithm, held_out)
    ledger = Counter(train_rows.buckets)
    data = {"train": _accounts(train_rows)}
    if held_out is not None:
        data["validation"] = _accounts(held_out)
        ledger.update(_validation_buckets(held_out))
    return Prepared(algorithm, renderer, policy, source, validation=validation, ledger=ledger, data=data)


def _accounts(dataset: Dataset) -> dict[str, dict[str, int]]:
    return {"rows": dict(dataset.buckets), "tokens": dict(dataset.tokens)}


def _validation_buckets(held_out: Dataset) -> dict[str, int]:
    """Every row of the validation file once, under names that no training row has."""
    used = "trained"  # what a data set calls the rows that it keeps
    return {("validation" if name == used else f"validation_{name}"): n for name, n in held_out.buckets.items()}


def _has_no_rows(config: DatasetConfig) -> bool:
    """Whether converting left no rows for validation, and so no file."""
    path = None if config.data_path is None else Path(config.data_path)
    return path is not None and not path.exists() and (path.parent / "manifest.json").is_file()


def _add_references(datasets: Sequence[Dataset], config: TrainConfig, renderer: Renderer) -> None:
    """The reference's log-probabilities of all examples: kept from an earlier run, or computed once before training."""
    assert config.dpo is not None  # no other algorithm on rows has a reference
    examples = [example for dataset in datasets for example in dataset.examples]
    sequences = [sequence for example in examples for sequence in example.sequences]
    cache = ReferenceCache.of(config, renderer, sequences) if config.dpo.cache_reference_logprobs else None
    values = None if cache is None else cache.load()
    is_kept = all(current_ranks().gather(values is not None))  # computed by all processes or by none
    if values is None or not is_kept:
        reference = load_policy(config, train=False)
        # Each by itself: pairs are numbered anew in each data set, and nothing here compares their sides.
        alone = [replace(sequence, pair=-1) for sequence in sequences]
        values = logprobs_of(reference, alone, config.policy.logprob_token_budget)
        if cache is not None:
            cache.save(values)
    filled = iter(with_reference(sequences, values))
    for example in examples:
        example.sequences[:] = [next(filled) for _ in example.sequences]


def logprobs_of(policy: LocalPolicy, sequences: Sequence[TrainingSequence], budget: int) -> list[np.ndarray]:
    """Log-probabilities of each sequence's trained tokens, `[num_trained]` float32, in the order of `sequences`."""
    forests = micro_batches(sequences, budget, num_shares=policy.num_shares)
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(sequences)
    for forest, values in zip(forests, policy.logprobs(forests), strict=True):
        for place, row in enumerate(forest.row.tolist()):
            found[row] = values[forest.sequence == place]
    return found


def _row_validation(config: TrainConfig, algorithm: Algorithm, held_out: Dataset) -> Validation:
    training = config.sft or config.dpo
    assert training is not None
    count = min(len(held_out.examples), (training.val_batches or math.inf) * training.val_global_batch_size)
    batches = DatasetBatches(held_out, max(1, int(count)), seed=training.seed, shuffle=False, max_epochs=1, max_steps=1)

    def validate(policy: LocalPolicy, _: int) -> dict[str, float]:
        batch = batches.of_rows(list(range(int(count))))
        forests = micro_batches(batch.sequences, config.policy.logprob_token_budget, num_shares=policy.num_shares)
        result = policy.evaluate(forests, algorithm.loss)
        return {**result.metrics, "loss": result.loss, "num_rows": float(count)}

    return validate


def load_policy(config: TrainConfig, *, train: bool) -> LocalPolicy:
    """The configured model as a policy; not `train`: for reading only."""
    policy = config.policy
    temperature = policy.generation.temperature if policy.generation is not None and config.grpo is not None else 1.0
    settings: dict[str, Any] = {
        "precision": policy.precision,
        "temperature": temperature or 1.0,
        "max_grad_norm": policy.max_grad_norm,
        "optimizer": policy.optimizer.name,
        "optimizer_kwargs": policy.optimizer.kwargs,
        "schedule": policy.scheduler,
        "activation_checkpointing": policy.activation_checkpointing,
        "trust_remote_code": policy.trust_remote_code,
        "train": train,
    }
    model, parallel = resolve_model(policy.model_name), policy.dtensor_cfg
    if not parallel.enabled:
        return resolve("policy", "local").load(model, LocalPolicyOptions(**settings))
    from regimen.policy.dtensor import DTensorPolicyOptions  # a second of imports that one process does without

    settings["tensor_parallel_size"] = parallel.tensor_parallel_size
    settings["sequence_parallel"] = parallel.sequence_parallel and parallel.tensor_parallel_size > 1
    settings["cpu_offload"] = parallel.cpu_offload
    return resolve("policy", "dtensor").load(model, DTensorPolicyOptions(**settings))


def _with_episodes(
    config: TrainConfig, algorithm: GRPO, renderer: Renderer, folder: Path, for_training: bool
) -> Prepared:
    assert config.grpo is not None
    if config.policy.generation is None:
        raise ConfigError("there is no generation", where="policy.generation", expected="GRPO plays episodes")
    if config.data.train is None:
        raise ConfigError("there are no tasks", where="data.train", expected="dataset_name: Environment, env_name")
    environment = environment_of(config, config.data.train)
    tasks = tasks_of_dataset(config.data.train, environment, "train")
    if len(tasks) < config.tasks_per_generation:
        raise ConfigError(f"{len(tasks)} tasks", where="data.train", expected=f"at least {config.tasks_per_generation}")
    policy = load_policy(config, train=for_training)
    player = _player(config, environment, renderer)
    source: BatchSource = EpisodeBatches(config, algorithm, player, tasks, folder)
    if config.grpo.async_grpo.enabled and for_training:
        source = AheadBatches(source, config.grpo.async_grpo.max_trajectory_age_steps)
    return Prepared(
        algorithm=algorithm,
        renderer=renderer,
        policy=policy,
        source=source,
        reference=load_policy(config, train=False) if algorithm.needs_reference and for_training else None,
        player=player,
        validation=_episode_validation(config, player, folder),
    )


def _player(config: TrainConfig, environment: Environment, renderer: Renderer) -> Player:
    generation, grpo = config.policy.generation, config.grpo
    assert generation is not None
    assert grpo is not None
    backend = resolve("generation", generation.backend).load(
        resolve_model(config.policy.model_name),
        precision=generation.precision or config.policy.precision,
        max_batch_size=generation.max_batch_size,
        trust_remote_code=config.policy.trust_remote_code,
    )
    stops = (*renderer.stop_ids, *(generation.stop_token_ids or ()))
    return Player(
        environment=environment,
        generation=backend,
        renderer=renderer,
        sampling=Sampling(
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            max_new_tokens=generation.max_new_tokens,
            stop_ids=tuple(dict.fromkeys(stops)),
        ),
        limits=Limits(
            max_turns=grpo.max_rollout_turns,
            max_sequence_length=config.policy.max_total_sequence_length,
            episode_seconds=None,  # the engine shares this machine: its load must not decide how an episode ends
        ),
        # One at a time, no tool that answers late can regroup the batches of the engine.
        concurrency=1 if config.run.deterministic else config.episodes_per_step,
        model_name=config.policy.model_name,
    )


def _episode_validation(config: TrainConfig, player: Player, folder: Path) -> Validation | None:
    """Play the validation tasks with the `val_` settings; None without validation data."""
    grpo, generation = config.grpo, config.policy.generation
    if config.data.validation is None or grpo is None or generation is None:
        return None
    environment = environment_of(config, config.data.validation)
    tasks = tasks_of_dataset(config.data.validation, environment, "validation")[: grpo.max_val_samples]
    if not tasks:
        raise ConfigError(
            "there are no validation tasks",
            where="data.validation",
            expected="at least 1",
            fix="check data.validation.num_tasks and grpo.max_val_samples, or leave data.validation out",
        )
    sampling = msgspec.structs.replace(
        player.sampling,
        temperature=_either(generation.val_temperature, generation.temperature),
        top_p=_either(generation.val_top_p, generation.top_p),
        top_k=_either(generation.val_top_k, generation.top_k),
        max_new_tokens=_either(generation.val_max_new_tokens, generation.max_new_tokens),
    )
    judge = Player(
        environment,
        player.generation,
        player.renderer,
        sampling,
        player.limits,
        1 if config.run.deterministic else grpo.val_batch_size or len(tasks),
        player.model_name,
    )

    def validate(_: LocalPolicy, step: int) -> dict[str, float]:
        judge.on_episode = player.on_episode
        output = folder / "rollouts" / f"validation_{step}.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        played = judge.play(tasks, grpo.val_num_generations_per_prompt, grpo.seed, 0, output)
        reward = math.nan if played.mean_reward is None else played.mean_reward
        return {"reward": reward, "num_failed": float(len(played.failures))}

    return validate


def _either(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
