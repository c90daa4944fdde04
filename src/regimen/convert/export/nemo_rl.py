"""A folder that NeMo RL trains from as it stands: config.yaml, the rows, the chat template, and how to launch it.

In: an export request; with a checkout, config.yaml inherits the example of that checkout and holds what differs.
Out: the files, and the changes in the request's notes.
Refuses: a folder that is no checkout, and what the rows and the configuration refuse.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import yaml

from regimen.config.source import Tree, lookup, merge, nest
from regimen.convert.export.nemo_rl_batches import fitting_batch, fitting_micro_batch, num_ranks
from regimen.convert.export.nemo_rl_config import example_values, leaves, nemo_rl_config
from regimen.convert.export.nemo_rl_rows import DataSet, write_data
from regimen.convert.export.request import ExportRequest
from regimen.errors import ConfigError, UsageError

BASES = {"sft": "sft.yaml", "dpo": "dpo.yaml", "grpo": "grpo_math_1B.yaml"}
# Read without a default, or set to something else by the example: written whatever is inherited.
ALWAYS = (
    "policy.model_name",
    "policy.tokenizer",
    "policy.megatron_cfg.enabled",
    "policy.draft.enabled",
    "checkpointing",
    "data",
)


def export_nemo_rl(request: ExportRequest) -> None:
    """Write the folder."""
    data = write_data(request)
    tree = nemo_rl_config(request, data)
    written = tree if request.checkout is None else _inheriting(tree, request, request.checkout)
    text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=118)
    config = request.write_text("config.yaml", text)
    request.write_text("README.md", _readme(request, tree, data, config))


def _inheriting(tree: Tree, request: ExportRequest, checkout: Path) -> Tree:
    """What differs from the example values, on top of the checkout's example."""
    base = checkout.absolute() / "examples" / "configs" / BASES[request.config.algorithm]
    if not base.is_file():
        raise UsageError(
            f"there is no examples/configs/{base.name}",
            where=str(checkout),
            expected="the folder of a NeMo RL checkout",
        )
    values = example_values(request.config.algorithm)
    result: Tree = {"defaults": str(base)}
    for path, value in leaves(tree):
        if path.startswith(ALWAYS) or lookup(values, path) != (True, value):
            result = merge(result, nest(path, value))
    request.inputs.append(base)
    return result


def _script(request: ExportRequest, data: dict[str, DataSet]) -> str:
    if data["train"].keys["dataset_name"] == "NemoGymDataset":
        return "examples/nemo_gym/run_grpo_nemo_gym.py"
    return f"examples/run_{request.config.algorithm}.py"


def _launch(request: ExportRequest, tree: Tree, data: dict[str, DataSet], config: str, gpus: int, nodes: int) -> str:
    """The command for so many GPUs, with the batch sizes that they need; or why there is none."""
    cluster = {"gpus_per_node": gpus, "num_nodes": nodes}
    try:
        batches = _batches(request, merge(tree, {"cluster": cluster}), data)
    except ConfigError as error:
        return f"# {error.message}"
    words = ["uv", "run", _script(request, data), "--config", config]
    words += [f"cluster.{key}={value}" for key, value in cluster.items()]
    return " ".join([*map(shlex.quote, words), *batches])


def _batches(request: ExportRequest, tree: Tree, data: dict[str, DataSet]) -> list[str]:
    """Overrides of batch sizes that this many GPUs cannot share."""
    ranks, algorithm = num_ranks(tree), request.config.algorithm
    policy, section = cast("Tree", tree["policy"]), cast("Tree", tree[algorithm])
    places: list[tuple[str, Tree, str, int]] = [("policy", policy, "train", data["train"].num_rows)]
    if algorithm == "grpo":
        places = [("policy", policy, "train", policy["train_global_batch_size"])]
    elif "validation" in data:
        places.append((algorithm, section, "val", data["validation"].num_rows))
    changes: dict[str, Any] = {}
    for prefix, values, kind, num_rows in places:
        asked, micro = int(values[f"{kind}_global_batch_size"]), int(values[f"{kind}_micro_batch_size"])
        batch = fitting_batch(num_rows, asked, ranks)
        if batch is None or (algorithm == "grpo" and batch != asked):
            raise ConfigError(f"{num_rows} rows of a batch cannot be shared by {ranks} GPUs")
        sizes = {
            f"{kind}_global_batch_size": batch,
            f"{kind}_micro_batch_size": fitting_micro_batch(batch, micro, ranks),
        }
        changes |= {f"{prefix}.{name}": size for name, size in sizes.items() if values[name] != size}
    return [f"{key}={value}" for key, value in changes.items()]


def _readme(request: ExportRequest, tree: Tree, data: dict[str, DataSet], config: str) -> str:
    one, node = (_launch(request, tree, data, config, gpus, 1) for gpus in (1, 8))
    home = shlex.quote(str(request.home))
    slurm = node if node.startswith("#") else _slurm(node, home)
    paths = " ".join(f"data.{name}.data_path=<folder>/data/gym_{name}/rows.jsonl" for name in data)
    if request.chat_template is not None:
        paths += " policy.tokenizer.chat_template=<folder>/chat_template.jinja"
    changes = "\n".join(f"- {note}" for note in request.notes) or "Nothing."
    listed = "\n".join(f"- `{name}`: {rows:,} rows" for name, rows in request.rows.items())
    inherits = "complete by itself" if request.checkout is None else f"inherits `{BASES[request.config.algorithm]}`"
    return f"""# {request.config.algorithm.upper()} with NeMo RL

For NeMo RL 0.6. All commands run in the root of a NeMo RL checkout.

## One GPU

```bash
{one}
```

## One node of 8 GPUs

```bash
{node}
```

## Slurm

```bash
{slurm}
```

For more nodes set `cluster.num_nodes` and `--nodes` alike; `policy.train_global_batch_size` has to be a multiple of
the number of GPUs.

## What is here

- `config.yaml`: NeMo RL's configuration, {inherits}
{listed}
- `manifest.json`: where all this comes from, with hashes

Paths are absolute. Where the folder stands elsewhere, add to the command:

```bash
{paths}
```

## What was changed on the way

{changes}
"""


def _slurm(command: str, home: str) -> str:
    return f"""COMMAND={shlex.quote(command)} \\
CONTAINER=<container image> \\
MOUNTS="$PWD:$PWD,"{home}:{home} \\
sbatch --nodes=1 --gres=gpu:8 --account=<account> --partition=<partition> --time=4:0:0 ray.sub"""
