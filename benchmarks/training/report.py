"""Figures of a benchmark run: from the steps to medians and ratios, as JSON and as Markdown tables."""

from __future__ import annotations

import statistics
from typing import Any

OURS = "regimen forest"
STATE_BYTES = 12  # of each weight: itself and AdamW's two moments, in float32
# Where the step of ours that does as much is another variant.
LIKE_FOR_LIKE = {("dpo", "trl default"): "regimen reference", ("grpo", "trl default"): "regimen checkpointed"}
GIB = 2**30


def summarise(contestant: dict[str, Any], warmup: int, parameters: int) -> dict[str, Any]:
    """A contestant's medians over the measured steps, and its peak above libraries, weights and optimiser."""
    steps = contestant["steps"][warmup:]
    summary: dict[str, Any] = {
        "step_seconds": statistics.median(step["seconds"] for step in steps),
        "fastest_seconds": min(step["seconds"] for step in steps),
        "slowest_seconds": max(step["seconds"] for step in steps),
        "trained_tokens": statistics.median(step["trained_tokens"] for step in steps),
        "computed_tokens": statistics.median(step["computed_tokens"] for step in steps),
        "trained_tokens_per_second": statistics.median(step["trained_tokens"] / step["seconds"] for step in steps),
        "computed_tokens_per_second": statistics.median(step["computed_tokens"] / step["seconds"] for step in steps),
        "peak_bytes": contestant["peak_bytes"],
        "above_bytes": contestant["peak_bytes"] - contestant["base_bytes"] - STATE_BYTES * parameters,
        "peak_covers": contestant["peak_covers"],
        "first_loss": contestant["steps"][0]["loss"],
    }
    if "update_flops" in steps[0]:
        summary["useful_flops_per_second"] = statistics.median(
            step["update_flops"] / step["update_seconds"] for step in steps
        )
    if "generation_seconds" in steps[0]:
        summary["generation_seconds"] = statistics.median(step["generation_seconds"] for step in steps)
    return summary


def add_ratios(algorithm: str, contestants: dict[str, dict[str, Any]]) -> None:
    """Write into every other contestant how many times faster ours of the like is, and its share of the memory."""
    for name, figures in contestants.items():
        if name.startswith("regimen"):
            continue
        wanted = [LIKE_FOR_LIKE.get((algorithm, name), OURS), OURS, *contestants]
        ours = next((own for own in wanted if own in contestants and own.startswith("regimen")), None)
        if ours is None:
            continue
        rate = contestants[ours]["trained_tokens_per_second"]
        figures["compared_with"] = ours
        figures["times_faster"] = rate / figures["trained_tokens_per_second"]
        figures["our_share_of_memory"] = contestants[ours]["above_bytes"] / figures["above_bytes"]


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    parts = [_environment(results)]
    best = (results.get("ceiling") or {}).get("square")
    for algorithm, contestants in results["algorithms"].items():
        parts.append(_algorithm(algorithm, contestants, best))
    if results.get("forest"):
        parts.append(_forest(results["forest"]))
        parts.append(_curve(results["curve"], best))
    every = [figures for contestants in results["algorithms"].values() for figures in contestants.values()]
    if any(figures["peak_covers"] == "process" for figures in every):
        parts.append("Peaks cover loading too: this system cannot forget a process's peak.")
    if results["left_out"]:
        parts.append("\n".join(f"Left out: {reason}." for reason in results["left_out"]))
    return "\n\n".join(parts) + "\n"


def _environment(results: dict[str, Any]) -> str:
    lines = [", ".join(f"{name} {value}" for name, value in results["environment"].items()) + "."]
    if results["quick"]:
        lines.insert(0, "A tiny random model: these figures only show that the benchmark runs.")
    sizes = ("steps", "warmup", "conversations", "pairs", "prompts", "group_size", "new_tokens", "forest_completion")
    sizes += ("micro_batch_tokens", "micro_batch_rows")
    lines.append(", ".join(f"{name.replace('_', ' ')} {results['settings'][name]}" for name in sizes) + ".")
    if results.get("ceiling"):
        rates = ", ".join(f"{name.replace('_', ' ')} {rate / 1e9:.0f}" for name, rate in results["ceiling"].items())
        lines.append(f"{results['settings']['dtype']} matrix products at best, GFLOP/s: {rates}.")
    return "\n\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _algorithm(algorithm: str, contestants: dict[str, dict[str, Any]], best: float | None) -> str:
    head = ["", "step, s", "fastest to slowest", "tokens trained", "computed", "trained/s", "computed/s", "peak, GiB"]
    head += [
        "above the state, GiB",
        "useful GFLOP/s of the update",
        "Regimen is faster",
        "with this share of the memory",
    ]
    rows: list[list[str]] = []
    for name, figures in contestants.items():
        row = [
            name,
            f"{figures['step_seconds']:.3g}",
            f"{figures['fastest_seconds']:.3g} to {figures['slowest_seconds']:.3g}",
            f"{figures['trained_tokens']:.0f}",
            f"{figures['computed_tokens']:.0f}",
            f"{figures['trained_tokens_per_second']:.1f}",
            f"{figures['computed_tokens_per_second']:.1f}",
            f"{figures['peak_bytes'] / GIB:.2f}",
            f"{figures['above_bytes'] / GIB:.2f}",
            _rate(figures.get("useful_flops_per_second"), best),
        ]
        if "times_faster" in figures:
            note = "" if figures["compared_with"] == OURS else f" ({figures['compared_with']})"
            row += [f"{figures['times_faster']:.2f}x{note}", f"{figures['our_share_of_memory']:.2f}"]
        else:
            row += ["", ""]
        rows.append(row)
    text = f"### {algorithm.upper()}\n\n{_table(head, rows)}"
    ours = contestants.get(OURS, {})
    if "generation_seconds" in ours:
        text += f"\n\nOf {OURS}'s step, {ours['generation_seconds']:.2f} s are generation."
    return text


def _rate(rate: float | None, best: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate / 1e9:.0f}" + (f" ({rate / best:.0%} of the best)" if best else "")


def _forest(cases: list[dict[str, Any]]) -> str:
    head = ["prompt / completion", "group", "tokens: forest", "packed", "padded", "seconds: forest", "packed", "padded"]
    head += ["faster than packed", "than padded"]
    rows: list[list[str]] = []
    for case in cases:
        tokens, seconds = case["tokens"], case["seconds"]
        rows.append(
            [
                f"{case['ratio']:g}",
                str(case["group"]),
                *(str(tokens[name]) for name in ("forest", "packed", "padded")),
                *(f"{seconds[name]:.3g}" for name in ("forest", "packed", "padded")),
                *(f"{seconds[name] / seconds['forest']:.2f}x" for name in ("packed", "padded")),
            ]
        )
    return f"### The forest alone: forward and backward\n\n{_table(head, rows)}"


def _curve(rows: list[dict[str, float]], best: float | None) -> str:
    head = ["tokens", "seconds", "tokens/s", "useful GFLOP/s"]
    lines = [
        [
            f"{row['tokens']:.0f}",
            f"{row['seconds']:.3g}",
            f"{row['tokens'] / row['seconds']:.0f}",
            _rate(row["flops_per_second"], best),
        ]
        for row in rows
    ]
    return f"### The cost of length: forward and backward of one sequence\n\n{_table(head, lines)}"
