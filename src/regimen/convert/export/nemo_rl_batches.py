"""Batches that NeMo RL can fill: its loaders drop the rows of an incomplete last batch, without a word.

In: the tree of a configuration and the number of rows of each data set. Out: batch sizes in it that the rows fill and
the GPUs share, and a note for each that changed and for the rows that an epoch leaves out.
Refuses: fewer rows than GPUs that work in parallel.
"""

from __future__ import annotations

from typing import Any, cast

from regimen.config.source import Tree, lookup
from regimen.convert.export.request import ExportRequest
from regimen.errors import ConfigError


def num_ranks(tree: Tree) -> int:
    """Copies of the model that share a batch: all GPUs, by those that one copy takes."""
    cluster, policy = tree["cluster"], tree["policy"]
    names = ["dtensor_cfg.tensor_parallel_size", "dtensor_cfg.context_parallel_size"]
    if policy["megatron_cfg"]["enabled"]:
        sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
        names = [f"megatron_cfg.{name}" for name in sizes]
    gpus, per_copy = int(cluster["gpus_per_node"]) * int(cluster["num_nodes"]), 1
    for name in names:
        per_copy *= int(lookup(policy, name)[1] or 1)
    if gpus % per_copy:
        raise ConfigError(
            f"{gpus} GPUs hold no whole number of copies of {per_copy} GPUs each",
            where="cluster",
            expected=f"a multiple of {per_copy}: {' x '.join(names)}",
        )
    return gpus // per_copy


def fitting_batch(num_rows: int, asked: int, ranks: int) -> int | None:
    """`asked`, where the rows fill it and the ranks share it; else the largest power of two of the ranks below it."""
    if asked <= num_rows and asked % ranks == 0:
        return asked
    shares = min(asked, num_rows) // ranks
    return ranks << (shares.bit_length() - 1) if shares else None


def fitting_micro_batch(batch: int, asked: int, ranks: int) -> int:
    """The largest divisor of a rank's share of the batch that is at most `asked`."""
    share = batch // ranks
    return max(size for size in range(1, min(asked, share) + 1) if share % size == 0)


def set_batches(tree: Tree, request: ExportRequest, num_rows: dict[str, int]) -> None:
    """Set the batch sizes in `tree`."""
    config, policy, ranks = request.config, cast("Tree", tree["policy"]), num_ranks(tree)
    if config.grpo is not None:
        _set_grpo(tree, request, num_rows["train"], ranks)
    else:
        asked = config.global_batch_size
        batch = _fitted(request, "policy.train_global_batch_size", num_rows["train"], asked, ranks)
        policy["train_global_batch_size"] = batch
        _tell_incomplete(request, "train", num_rows["train"], batch)
    batch = policy["train_global_batch_size"]
    _set_micro(request, policy, "train_micro_batch_size", "policy", batch, ranks)
    if config.grpo is None and "validation" in num_rows:
        section = cast("Tree", tree[config.algorithm])
        key = f"{config.algorithm}.val_global_batch_size"
        batch = _fitted(request, key, num_rows["validation"], section["val_global_batch_size"], ranks)
        section["val_global_batch_size"] = batch
        _tell_incomplete(request, "validation", num_rows["validation"], batch)
        _set_micro(request, section, "val_micro_batch_size", config.algorithm, batch, ranks)


def _set_grpo(tree: Tree, request: ExportRequest, num_rows: int, ranks: int) -> None:
    """GRPO: a step takes `num_prompts_per_step` rows; its episodes are a whole number of training batches."""
    grpo, asked = cast("Tree", tree["grpo"]), request.config.global_batch_size
    prompts = _fitted(request, "grpo.num_prompts_per_step", num_rows, grpo["num_prompts_per_step"], 1)
    grpo["num_prompts_per_step"] = prompts
    _tell_incomplete(request, "train", num_rows, prompts)
    episodes = prompts * int(grpo["num_generations_per_prompt"])
    batch = asked if episodes % asked == 0 else episodes
    if batch % ranks:
        raise ConfigError(
            f"{batch} episodes cannot be shared by {ranks} GPUs",
            where="policy.train_global_batch_size",
            expected=f"a multiple of {ranks}",
            fix="change grpo.num_prompts_per_step or num_generations_per_prompt, or cluster",
        )
    if batch != asked:
        request.note(f"policy.train_global_batch_size: {asked} -> {batch}, the episodes of a step")
    tree["policy"]["train_global_batch_size"] = batch


def _fitted(request: ExportRequest, key: str, num_rows: int, asked: int, ranks: int) -> int:
    batch = fitting_batch(num_rows, asked, ranks)
    if batch is None:
        raise ConfigError(
            f"{num_rows} rows cannot be shared by {ranks} GPUs",
            where=key,
            expected=f"at least {ranks} rows",
            fix="use fewer GPUs (cluster.gpus_per_node, cluster.num_nodes), or more rows",
        )
    if batch != asked:
        why = f"as there are {num_rows} rows" if asked > num_rows else f"as {ranks} GPUs share it"
        request.note(f"{key}: {asked} -> {batch}, {why}")
    return batch


def _set_micro(request: ExportRequest, section: Tree, name: str, prefix: str, batch: int, ranks: int) -> None:
    asked: Any = section[name]
    size = fitting_micro_batch(batch, asked, ranks)
    if size != asked:
        request.note(f"{prefix}.{name}: {asked} -> {size}, which divides a batch of {batch} on {ranks} GPUs")
    section[name] = size


def _tell_incomplete(request: ExportRequest, name: str, num_rows: int, batch: int) -> None:
    left = num_rows % batch
    if left:
        which = "another choice each epoch" if name == "train" and request.config.data.shuffle else "the last ones"
        request.note(
            f"data.{name}: {num_rows} rows in batches of {batch}; {left} rows fill no batch and are left out by "
            f"NeMo RL ({which})"
        )
