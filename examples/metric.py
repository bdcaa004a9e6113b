"""Why the Euclidean nearest point is the wrong one under Adam: `python examples/metric.py` draws it.

Adam divides each entry of its step by h, the root of its second moment. It rests where x = P(x - D g) with D = 1 / h.
For the Euclidean projection P onto a ball, that is where D g, rather than the gradient g, points along x: not the
minimum on the ball. In the metric h, where P minimises sum(h * (y - x)**2), the two weightings cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle

import projgrad as pg

BALL = pg.MaxNorm(1.0, axis=0)
CURVATURE, CENTER = np.array([[1.0, 0.0], [0.0, 9.0]]), np.array([0.9, 1.3])  # the minimum, outside of the ball
START = np.array([-0.7, -0.3])


def value(x: np.ndarray) -> np.ndarray:
    """The quadratic to minimise, for points along the last axis."""
    away = x - CENTER
    found: np.ndarray = 0.5 * (away @ CURVATURE * away).sum(-1)
    return found


def adam(in_metric: bool, steps: int = 3000, rate: float = 0.05) -> np.ndarray:
    """The points that Adam goes through, projected after every step, which decays."""
    x, m, v, path = START, np.zeros(2), np.zeros(2), [START]
    for step in range(1, steps + 1):
        g = (x - CENTER) @ CURVATURE
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        h = np.sqrt(v / (1 - 0.99**step)) + 1e-8
        x = x - rate * (1 - step / steps) * m / (1 - 0.9**step) / h
        x = BALL.project(x, metric=h if in_metric else None)
        path.append(x)
    return np.array(path)


def best() -> np.ndarray:
    """The minimum on the ball, looked for on its boundary, and again around what was found."""
    middle, reach = 0.0, np.pi
    for _ in range(3):
        angle = middle + np.linspace(-reach, reach, 20_001)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        middle, reach = angle[np.argmin(value(circle))], reach / 1000
    return np.array([np.cos(middle), np.sin(middle)])


def draw(paths: dict[str, np.ndarray], least: np.ndarray, out: Path) -> None:
    """The points that Adam goes through on the ball, and their gaps to the minimum."""
    figure, (plane, gaps) = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
    x, y = np.meshgrid(np.linspace(-1.25, 1.25, 300), np.linspace(-1.25, 1.25, 300))
    levels = value(np.stack([x, y], axis=-1))
    plane.contour(
        x, y, levels, levels=np.quantile(levels, np.linspace(0.005, 0.9, 22)), colors="#BBBBBB", linewidths=0.7
    )
    plane.contour(x, y, levels, levels=[float(value(least))], colors="black", linewidths=1.0)
    plane.add_patch(Circle((0, 0), 1, facecolor="#0072B2", alpha=0.08))
    plane.add_patch(Circle((0, 0), 1, fill=False, edgecolor="#0072B2", linewidth=1.2))
    colours = ["#D55E00", "#009E73"]
    for (name, path), colour in zip(paths.items(), colours, strict=True):
        plane.plot(*path.T, color=colour, linewidth=1.2)
        plane.plot(*path[-1], "o", color=colour, markersize=8, label=f"Adam ends, {name}")
        gap = np.maximum((value(path) - value(least)) / abs(value(least)), 1e-16)
        gaps.loglog(np.arange(1, len(path)), gap[1:], color=colour, label=name)
    plane.plot(*least, "*", color="black", markersize=13, label="the minimum on the ball")
    plane.set(aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), title="level lines, the ball, two limits")
    plane.legend(loc="lower left", fontsize=8)
    gaps.set(xlabel="steps", ylabel="relative gap to the minimum", title="the gap")
    gaps.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("metric", __doc__, "numpy")
    parser.add_argument("--steps", type=common.count, default=3000)
    args = common.parse(parser, argv, steps=300)
    least = best()
    ways = {"projected in the Euclidean norm": False, "projected in Adam's metric": True}
    paths = {name: adam(in_metric, args.steps) for name, in_metric in ways.items()}
    for name, path in paths.items():
        gap = float((value(path[-1]) - value(least)) / abs(value(least)))
        print(f"{name}: ends at ({path[-1][0]:.4f}, {path[-1][1]:.4f}), {gap:.1e} above the minimum (relative to it)")
    print(f"the minimum on the ball: ({least[0]:.4f}, {least[1]:.4f})")
    draw(paths, least, args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
