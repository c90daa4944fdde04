"""From rollouts to a better model in Python: read, inspect, convert, train, evaluate.

    regimen collect quickstart/collect output=runs/rollouts.jsonl
    python examples/python_api.py runs/rollouts.jsonl smollm2-135m-instruct

Each call is what the command of the same name does, and returns what the command prints as a record.
"""

import argparse
from pathlib import Path

import regimen
from regimen.config.load import assignment, load_evaluate_config, load_train_config
from regimen.convert.options import ConvertOptions
from regimen.evaluation.compare import comparison_text


def main(rollouts: Path, model: str, output: Path, environment: str = "calculator", num_tasks: int = 200) -> None:
    """Fine-tune `model` on the best episodes in `rollouts`, then say whether it got better on unseen tasks."""
    scored = [rollout for rollout in regimen.read_rollouts(rollouts) if rollout.reward is not None]
    print(f"{len(scored)} scored episodes of {len({rollout.task_id for rollout in scored})} tasks")

    inspection = regimen.inspect(rollouts)
    print(inspection.recommendation.summary)

    manifest = regimen.convert(rollouts, to="sft", out=output / "sft", options=ConvertOptions(max_per_task=2))
    print(f"{manifest.counts.train_rows} training rows; where every row went: {manifest.ledger.rows}")

    values = {
        "policy.model_name": model,
        "data.train.data_path": str(output / "sft" / "train.jsonl"),
        "data.validation.data_path": str(output / "sft" / "val.jsonl"),
        "checkpointing.checkpoint_dir": str(output / "run"),
        "logger.log_dir": str(output / "run"),
    }
    overrides = [assignment(key, value) for key, value in values.items()]
    trained = regimen.train(load_train_config("quickstart/sft", overrides))
    print(trained)

    values = {
        "models": [str(trained.model)],
        "against": model,
        "environment.name": environment,
        "num_tasks": num_tasks,
        "output": str(output / "evaluation"),
    }
    # The shipped configuration has options for its own environment, which another one need not know.
    overrides = ["~environment.options", *(assignment(key, value) for key, value in values.items())]
    evaluation = regimen.evaluate(load_evaluate_config("quickstart/evaluate", overrides))
    assert evaluation.comparison is not None
    print(f"{comparison_text(evaluation.comparison)}: {evaluation.comparison.verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("model")
    parser.add_argument("--output", type=Path, default=Path("runs/python_api"))
    given = parser.parse_args()
    main(given.rollouts, given.model, given.output)
