"""What a training run is made of, before its first step: model, data or environment, algorithm, validation.

In: a `TrainConfig`. Out: `Prepared`. Refuses what cannot work, before anything heavy is loaded where possible.
"""

from __future__ import annotations

import copy
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
from regimen.config.schema_policy import GenerationConfig
from regimen.errors import ConfigError, UsageError
from regimen.generation.base import Sampling
from regimen.gym.agent import Limits
from regimen.gym.environment import Environment, Task
from regimen.pipelines.ahead import AheadBatches
from regimen.pipelines.batch import with_reference
from regimen.pipelines.batches import BatchSource, DatasetBatches, EpisodeBatches, EpisodePlayer, Player
from regimen.pipelines.datasets import Dataset, has_no_rows, load_rows
from regimen.pipelines.models import check_positions, load_renderer, refuse_adapters, resolve_model
from regimen.pipelines.reference_cache import ReferenceCache
from regimen.pipelines.tasks import tasks_to_play, training_tasks
from regimen.policy.base import LogprobReader
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.policy.lora import LoraOptions
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
    reference: LogprobReader | None = None
    player: EpisodePlayer | None = None
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
    refuse_adapters(config.policy.model_name, "policy.model_name")
    check_positions(config.policy)  # before the model is loaded
    renderer = load_renderer(config.policy)
    if algorithm.batches == "episodes":
        return _with_episodes(config, cast("GRPO", algorithm), renderer, folder, for_training)
    return _with_rows(config, algorithm, renderer, for_training)


def _check_files(config: TrainConfig) -> None:
    """A missing data file is said at once, before a model is loaded."""
    for data in config.data.train.sources if config.data.train is not None else ():
        if data.data_path is not None and not Path(data.data_path).is_file():
            raise UsageError("there is no such file", where=data.data_path, fix="check data.train.data_path")


def _with_rows(config: TrainConfig, algorithm: Algorithm, renderer: Renderer, for_training: bool) -> Prepared:
    train, validation = config.data.train, config.data.validation
    if train is None:
        raise ConfigError("there is no training data", where="data.train", expected="dataset_name and data_path")
    train_rows = load_rows(config, train, renderer)
    held_out = None if validation is None or has_no_rows(validation) else load_rows(config, validation, renderer)
    policy = load_policy(config, train=for_training)
    if algorithm.needs_reference and for_training:
        datasets = [dataset for dataset in (train_rows, held_out) if dataset is not None]
        _add_references(datasets, config, renderer, policy)
    prepared = Prepared(
        algorithm,
        renderer,
        policy,
        DatasetBatches.of(config, train_rows),
        ledger=Counter(train_rows.buckets),
        data={"train": _accounts(train_rows)},
    )
    if held_out is not None:
        prepared.validation = _row_validation(config, algorithm, held_out)
        prepared.data["validation"] = _accounts(held_out)
        prepared.ledger.update(_validation_buckets(held_out))
    return prepared


def _accounts(dataset: Dataset) -> dict[str, dict[str, int]]:
    return {"rows": dict(dataset.buckets), "tokens": dict(dataset.tokens)}


def _validation_buckets(held_out: Dataset) -> dict[str, int]:
    """Every row of the validation file once, under names that no training row has."""
    used = "trained"  # what a data set calls the rows that it keeps
    return {("validation" if name == used else f"validation_{name}"): n for name, n in held_out.buckets.items()}


def _add_references(datasets: Sequence[Dataset], config: TrainConfig, renderer: Renderer, policy: LocalPolicy) -> None:
    """The reference's log-probabilities of all examples: kept from an earlier run, or computed once before training."""
    assert config.dpo is not None  # no other algorithm on rows has a reference
    examples = [example for dataset in datasets for example in dataset.examples]
    sequences = [sequence for example in examples for sequence in example.sequences]
    cache = ReferenceCache.of(config, renderer, sequences) if config.dpo.cache_reference_logprobs else None
    values = None if cache is None else cache.load()
    is_kept = all(current_ranks().gather(values is not None))  # computed by all processes or by none
    if values is None or not is_kept:
        reference = _reference(config, policy)
        # Each by itself: pairs are numbered anew in each data set, and nothing here compares their sides.
        alone = [replace(sequence, pair=-1) for sequence in sequences]
        values = logprobs_of(reference, alone, config.policy.logprob_token_budget)
        if cache is not None:
            cache.save(values)
    filled = iter(with_reference(sequences, values))
    for example in examples:
        example.sequences[:] = [next(filled) for _ in example.sequences]


def _reference(config: TrainConfig, policy: LocalPolicy) -> LogprobReader:
    """The model that the run begins with: the policy without its adapters, or a copy for reading."""
    return load_policy(config, train=False) if policy.adapters is None else policy.without_adapters()


def logprobs_of(policy: LogprobReader, sequences: Sequence[TrainingSequence], budget: int) -> list[np.ndarray]:
    """Log-probabilities of each sequence's trained tokens, `[num_trained]` float32, in the order of `sequences`.

    Those of a sequence that is masked as a whole are not computed: zeros.
    """
    forests = micro_batches(sequences, budget, num_shares=policy.num_shares, padded=policy.unrolled is not None)
    found: list[np.ndarray] = [np.zeros(sequence.num_trained, np.float32) for sequence in sequences]
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
        budget, padded = config.policy.logprob_token_budget, policy.unrolled is not None
        forests = micro_batches(batch.sequences, budget, num_shares=policy.num_shares, padded=padded)
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
        "torch_compile": policy.torch_compile,
        "trust_remote_code": policy.trust_remote_code,
        "with_entropy": config.grpo is not None and config.loss_fn.entropy_coefficient is not None,
        "train": train,
        "lora": _lora(config) if train else None,
    }
    model, parallel = resolve_model(policy.model_name), policy.dtensor_cfg
    if not parallel.enabled:
        return resolve("policy", "local").load(model, LocalPolicyOptions(**settings))
    from regimen.policy.dtensor import DTensorPolicyOptions  # a second of imports that one process does without

    settings["tensor_parallel_size"] = parallel.tensor_parallel_size
    settings["sequence_parallel"] = parallel.sequence_parallel and parallel.tensor_parallel_size > 1
    settings["cpu_offload"] = parallel.cpu_offload
    return resolve("policy", "dtensor").load(model, DTensorPolicyOptions(**settings))


def _lora(config: TrainConfig) -> LoraOptions | None:
    section = config.policy.dtensor_cfg.lora_cfg
    if not section.enabled:
        return None
    return LoraOptions(
        dim=section.dim,
        alpha=section.alpha,
        target_modules=tuple(section.target_modules),
        exclude_modules=tuple(section.exclude_modules),
        dropout=section.dropout,
        init=section.lora_A_init,
        seed=config.seed,
        in_4bit=section.load_in_4bit,
    )


def _with_episodes(
    config: TrainConfig, algorithm: GRPO, renderer: Renderer, folder: Path, for_training: bool
) -> Prepared:
    assert config.grpo is not None
    if config.policy.generation is None:
        raise ConfigError("there is no generation", where="policy.generation", expected="GRPO plays episodes")
    environment, tasks = training_tasks(config)
    policy = load_policy(config, train=for_training)
    player = _player(config, environment, renderer, tasks)
    if config.policy.dtensor_cfg.lora_cfg.load_in_4bit and for_training:
        player.update(0, policy.named_tensors())  # the generator has read weights of more bits
    source: BatchSource = EpisodeBatches(config, algorithm, player, tasks, folder)
    if config.grpo.async_grpo.enabled and for_training:
        source = AheadBatches(source, config.grpo.async_grpo.max_trajectory_age_steps)
    return Prepared(
        algorithm=algorithm,
        renderer=renderer,
        policy=policy,
        source=source,
        reference=_reference(config, policy) if algorithm.needs_reference and for_training else None,
        player=player,
        validation=_episode_validation(config, player, folder),
    )


def load_generation(config: TrainConfig, generation: GenerationConfig) -> Any:
    """The engine that plays episodes, with the weights of the configured model."""
    return resolve("generation", generation.backend).load(
        resolve_model(config.policy.model_name),
        precision=generation.precision or config.policy.precision,
        max_batch_size=generation.max_batch_size,
        trust_remote_code=config.policy.trust_remote_code,
    )


def _player(
    config: TrainConfig, environment: Environment | None, renderer: Renderer, tasks: list[Task]
) -> EpisodePlayer:
    generation, grpo = config.policy.generation, config.grpo
    assert generation is not None
    assert grpo is not None
    stops = (*renderer.stop_ids, *(generation.stop_token_ids or ()))
    sampling = Sampling(
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        max_new_tokens=generation.max_new_tokens,
        stop_ids=tuple(dict.fromkeys(stops)),
    )
    # One at a time, no tool that answers late can regroup the batches of the engine.
    concurrency = 1 if config.run.deterministic else config.episodes_per_step
    # Episodes that are played ahead are exchanged by another thread than the one that trains.
    ranks = current_ranks().apart() if grpo.async_grpo.enabled else current_ranks()
    if environment is None:
        from regimen.pipelines.nemo_gym import WithoutGym, gym_player  # a server, which other runs do without

        if not ranks.is_first:
            return WithoutGym(sampling, concurrency, ranks)
        backend = load_generation(config, generation)
        return gym_player(config, backend, renderer, sampling, concurrency, tasks, ranks)
    return Player(
        environment=environment,
        generation=load_generation(config, generation),
        renderer=renderer,
        sampling=sampling,
        limits=Limits(
            max_turns=grpo.max_rollout_turns,
            max_sequence_length=config.policy.max_total_sequence_length,
            episode_seconds=None,  # the engine shares this machine: its load must not decide how an episode ends
        ),
        concurrency=concurrency,
        model_name=config.policy.model_name,
        ranks=ranks,
    )


def _episode_validation(config: TrainConfig, player: EpisodePlayer, folder: Path) -> Validation | None:
    """Play the validation tasks with the `val_` settings; None without validation data."""
    grpo, generation = config.grpo, config.policy.generation
    if config.data.validation is None or grpo is None or generation is None:
        return None
    environment, tasks = tasks_to_play(config, config.data.validation, "validation")
    tasks = tasks[: grpo.max_val_samples]
    if not tasks:
        raise ConfigError(
            "there are no validation tasks",
            where="data.validation",
            expected="at least 1",
            fix="check data.validation.num_tasks and grpo.max_val_samples, or leave data.validation out",
        )
    concurrency = 1 if config.run.deterministic else grpo.val_batch_size or len(tasks)
    judge = _judge(player, generation, environment, concurrency)

    def validate(_: LocalPolicy, step: int) -> dict[str, float]:
        judge.on_episode = player.on_episode
        output = folder / "rollouts" / f"validation_{step}.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        played = judge.play(tasks, grpo.val_num_generations_per_prompt, grpo.seed, 0, output)
        reward = math.nan if played.mean_reward is None else played.mean_reward
        return {"reward": reward, "num_failed": float(len(played.failures))}

    return validate


def _judge(
    player: EpisodePlayer, generation: GenerationConfig, environment: Environment | None, concurrency: int
) -> EpisodePlayer:
    """The player with the sampling of validation."""
    own = cast("Player", player)  # or a GymPlayer, which has these attributes too
    sampling = msgspec.structs.replace(
        own.sampling,
        temperature=_either(generation.val_temperature, generation.temperature),
        top_p=_either(generation.val_top_p, generation.top_p),
        top_k=_either(generation.val_top_k, generation.top_k),
        max_new_tokens=_either(generation.val_max_new_tokens, generation.max_new_tokens),
    )
    judge = copy.copy(own)
    judge.sampling, judge.concurrency = sampling, concurrency
    if environment is not None:
        judge.environment = environment
    return judge


def _either(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
