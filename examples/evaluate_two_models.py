"""Is a model better than its base? Play the same test tasks with both, and say so with an interval.

    python examples/evaluate_two_models.py runs/sft/model models/base

The numbers come back as records: scores, intervals, the paired difference and a verdict.
"""

import argparse
from pathlib import Path

from regimen.config.schema import EnvironmentConfig, EvaluateConfig, SamplingConfig
from regimen.evaluation.compare import comparison_text
from regimen.evaluation.report import estimate_text
from regimen.pipelines.evaluate import evaluate


def main() -> None:
    """Evaluate, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("base")
    parser.add_argument("--num-tasks", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"))
    arguments = parser.parse_args()

    config = EvaluateConfig(
        models=[arguments.model],
        against=arguments.base,
        environment=EnvironmentConfig(name="calculator"),
        split="test",
        num_tasks=arguments.num_tasks,
        generation=SamplingConfig(temperature=0.0),
        output=str(arguments.output),
    )
    evaluation = evaluate(config)

    for result in evaluation.models:
        score = result.score
        print(f"{score.label}: {score.num_scored} scored, {score.num_failed} failed, {score.num_truncated} truncated")
        print(f"  mean reward {estimate_text(score.reward)}")
    if evaluation.comparison is not None:
        print(f"{comparison_text(evaluation.comparison)}: {evaluation.comparison.verdict}")
    print(f"page: {arguments.output / 'report.html'}")


if __name__ == "__main__":
    main()
