"""Where optimizers end under constraints, in the Euclidean norm and in their own: `python -m benchmarks.convergence`.

Every optimizer of PyTorch, on convex problems with a known constrained minimum, with a step that decays: the relative
gap to the minimum, once with ``metric="euclidean"`` and once with ``metric="optimizer"``. It prints a table, and writes
it as JSON, with a plot of gap against steps, to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import environment
from benchmarks.problems import Problem, digits, least_squares, quadratics
from projgrad.torch import ProjectedOptimizer

Optimizer = torch.optim.Optimizer
METRICS = ("euclidean", "optimizer")

# each with the multiple of a problem's step that it starts with
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "Adam": (torch.optim.Adam, 1.0),
    "amsgrad": (lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True), 4.0),
    "AdamW, no decay": (lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0), 1.0),
    "NAdam": (torch.optim.NAdam, 1.0),
    "RAdam": (torch.optim.RAdam, 4.0),
    "Adamax": (torch.optim.Adamax, 4.0),
    "RMSprop": (torch.optim.RMSprop, 0.4),
    "RMSprop, centered": (lambda p, lr: torch.optim.RMSprop(p, lr=lr, centered=True), 0.4),
    "Adagrad": (torch.optim.Adagrad, 20.0),
    "Adadelta": (torch.optim.Adadelta, 1000.0),
    "Adafactor": (torch.optim.Adafactor, 100.0),
    "AdamW, decay 0.01": (lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.01), 1.0),
    "SGD": (torch.optim.SGD, 0.0),
}


def run(problem: Problem, optimizer: str, metric: str, steps: int, least: float, marks: Sequence[int]) -> list[float]:
    """The relative gaps after so many steps."""
    make, factor = OPTIMIZERS[optimizer]
    first = factor * problem.scale if factor else 1.0 / problem.curvature
    w = torch.nn.Parameter(torch.tensor(problem.start))
    wrapped = ProjectedOptimizer(make([("w", w)], lr=first), {"w": problem.constraint}, metric=metric)
    gaps = []
    for step in range(1, steps + 1):
        for group in wrapped.param_groups:
            group["lr"] = first * (1e-5 ** (step / steps) if factor else 1.0)
        wrapped.zero_grad()
        problem.value(w, torch).backward()
        wrapped.step()
        if step in marks:
            with torch.no_grad():
                gaps.append((float(problem.value(w, torch)) - least) / abs(least))
    return gaps


def draw(results: dict[str, dict[str, dict[str, list[float]]]], marks: Sequence[int], path: Path) -> None:
    """A panel per problem: gap against steps, a line per optimizer, dashed in the Euclidean norm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.4 * columns, 2.5 * rows),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    colours = [plt.get_cmap("tab20")(i) for i in range(len(names))]
    for ax, (problem, found) in zip(axes.flat, results.items(), strict=False):
        for name, gaps in found.items():
            for metric, style in zip(METRICS, ("--", "-"), strict=True):
                shown = np.maximum(gaps[metric], 1e-16)
                ax.loglog(
                    marks, shown, style, color=colours[names.index(name)], lw=1, label=name if style == "-" else None
                )
        ax.set_title(problem, fontsize=8)
        ax.tick_params(labelsize=7)
    for ax in axes.flat[len(results) :]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=7, fontsize=7, frameon=False)
    figure.supxlabel("steps", fontsize=9)
    figure.supylabel("relative gap: dashed in the Euclidean norm, solid in the optimizer's metric", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(results: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The last gaps as a Markdown table, ``euclidean / optimizer``."""
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    lines = [f"| | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for problem, found in results.items():
        cells = [" / ".join(_short(found[name][metric][-1]) for metric in METRICS) for name in names]
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(gap: float) -> str:
    return "0" if gap < 1e-14 else f"{gap:.0e}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of each run (default: 1000)")
    parser.add_argument("--problems", nargs="+", default=[""], help="parts of names of problems to run (default: all)")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="folder for the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps = 20 if args.quick else args.steps
    marks = sorted({int(m) for m in np.geomspace(1, steps, 40)})
    problems = [p for p in (*quadratics(), least_squares(), *digits()) if any(part in p.name for part in args.problems)]
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for problem in problems:
        least, found = problem.minimum(), {}
        for name in args.optimizers:
            found[name] = {metric: run(problem, name, metric, steps, least, marks) for metric in METRICS}
        results[problem.name] = found
        ends: Any = {name: " / ".join(_short(gaps[m][-1]) for m in METRICS) for name, gaps in found.items()}
        print(problem.name, ends, flush=True)
    print(f"\n{table(results)}")
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"environment": environment(), "steps": steps, "marks": marks, "gaps": results}
    (args.out / "convergence.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(results, marks, args.out / "convergence.png")


if __name__ == "__main__":
    main()
