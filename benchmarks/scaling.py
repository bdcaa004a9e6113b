"""Time against size: every job from 64 x 64 on, with the exponent that fits, and the time per entry in a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import projgrad as pg
from benchmarks.harness import Candidate, Comparison, Result
from projgrad.torch import project_

__all__ = ["comparisons", "draw", "fits"]

LARGE = 2**16  # entries, from which on the fixed cost of a call matters little
LINEAR, SORTED, CUBIC = "n", "n log n", "n^1.5"  # with n entries; the last is the cube of the side
OURS, JIT, FLOOR = "projgrad", "projgrad, JAX compiled", "floor: read, write (mul_)"


@dataclass(frozen=True)
class Job:
    """A set, and what its docstring says of its cost.

    Args:
        constraint: given the side of the matrix.
        law: the cost.
        most: the largest side that is tried.
        compiled: try it in JAX too.
    """

    constraint: Callable[[int], pg.Constraint]
    law: str
    most: int
    compiled: bool = False


JOBS = {
    "NonNeg": Job(lambda d: pg.NonNeg(), LINEAR, 8192, compiled=True),
    "MaxNorm": Job(lambda d: pg.MaxNorm(1.0, axis=1), LINEAR, 8192, compiled=True),
    "Simplex": Job(lambda d: pg.Simplex(axis=1), LINEAR, 8192, compiled=True),
    "L1Ball": Job(lambda d: pg.L1Ball(axis=1), LINEAR, 8192),
    "L1InfBall": Job(lambda d: pg.L1InfBall(1.0), LINEAR, 2048),
    "Monotone": Job(lambda d: pg.Monotone(axis=1), LINEAR, 2048),
    "CappedSimplex": Job(lambda d: pg.CappedSimplex(1.0, 0.0, 0.2, axis=1), LINEAR, 2048),
    "Cardinality": Job(lambda d: pg.Cardinality(10, axis=1), SORTED, 2048, compiled=True),
    "SpectralNorm": Job(lambda d: pg.SpectralNorm(d**0.5), CUBIC, 1024),
    "Orthogonal": Job(lambda d: pg.Orthogonal(), CUBIC, 1024),
}


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Every set on square matrices of random numbers, in place, against one pass that reads and writes."""
    for name, job in list(JOBS.items())[: 3 if quick else None]:
        side = 16 if quick else 64
        while side <= (32 if quick else job.most):
            yield _comparison(name, job, side)
            side *= 2


def _comparison(name: str, job: Job, side: int) -> Comparison:
    start = torch.randn((side, side), generator=torch.Generator().manual_seed(side))
    constraint, w, x = job.constraint(side), start.clone(), start.clone()
    candidates = [Candidate(OURS, lambda: project_(w, constraint), lambda: w.copy_(start))]
    if job.compiled:
        project, y = jax.jit(constraint.project), jnp.asarray(start.numpy())
        candidates.append(Candidate(JIT, lambda: project(y).block_until_ready()))
    candidates.append(Candidate(FLOOR, lambda: x.mul_(1.0)))
    return Comparison(f"{name}, {side} x {side}", candidates, [OURS], start.nbytes)


Times = dict[str, dict[int, float]]  # by the name of a set, and by the number of entries


def _times(results: Sequence[Result], candidate: str) -> Times:
    """Seconds of a candidate."""
    found: Times = {}
    for result in results:
        name, _, size = result.title.rpartition(", ")
        for timing in result.timings:
            if timing.name == candidate:
                found.setdefault(name, {})[int(size.split(" x ")[0]) ** 2] = timing.median
    return found


def _exponent(times: dict[int, float], law: str) -> float | None:
    """The p for which ``n^p``, or ``n^p log n`` where that is the law, fits the times of large arrays best."""
    sizes = np.array([n for n in times if n >= LARGE], dtype=float)
    if len(sizes) < 2:
        return None
    seconds = np.array([times[int(n)] for n in sizes]) / (np.log(sizes) if law == SORTED else 1.0)
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def fits(results: Sequence[Result]) -> str:
    """The exponents as a Markdown table, with the times per entry at every size.

    That of the floor tells how much is due to the caches, in which small arrays stay.
    """
    lines = [
        "| | threads | law | exponent | JAX, compiled | ns per entry at the sizes |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]
    for threads in dict.fromkeys(r.threads for r in results):
        here = [r for r in results if r.threads == threads]
        compiled = _times(here, JIT)
        for name, times in (_times(here, OURS) | {FLOOR: _longest(_times(here, FLOOR))}).items():
            law = JOBS[name].law if name in JOBS else LINEAR
            found = (_exponent(times, law), _exponent(compiled.get(name, {}), law))
            cells = ["" if p is None else f"{p:.2f}" for p in found]
            each = ", ".join(f"{math.isqrt(n)}: {1e9 * t / n:.3g}" for n, t in times.items())
            lines.append(f"| {name} | {threads} | {law} | {cells[0]} | {cells[1]} | {each} |")
    return "\n".join(lines)


def _longest(times: Times) -> dict[int, float]:
    return max(times.values(), key=len)


def draw(results: Sequence[Result], path: Path) -> None:
    """Time per entry against size, a panel per number of threads and a line per set, dashed where it is compiled."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = list(dict.fromkeys(r.threads for r in results))
    figure, axes = plt.subplots(
        1, len(threads), figsize=(6.5 * len(threads), 5.5), layout="constrained", sharey=True, squeeze=False
    )
    colours = dict(zip(JOBS, plt.get_cmap("tab10").colors, strict=True))  # type: ignore[attr-defined]
    for ax, count in zip(axes[0], threads, strict=True):
        here = [r for r in results if r.threads == count]
        for candidate, style in ((OURS, "o-"), (JIT, "s--")):
            for name, times in _times(here, candidate).items():
                p = _exponent(times, JOBS[name].law)
                label = f"{name}{', JAX compiled' if candidate == JIT else ''}: {_law(JOBS[name].law, p)}"
                _line(ax, times, style, color=colours[name], label=label)
        _line(ax, _longest(_times(here, FLOOR)), ":", color="#777777", label="one pass that reads and writes")
        ax.set_title(f"threads: {count}", fontsize=9, loc="left")
        ax.set_xlabel("entries of the matrix", fontsize=9)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes[0, 0].set_ylabel("ns per entry: level where time is linear in the size", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _line(ax: Any, times: dict[int, float], style: str, **options: Any) -> None:
    ax.loglog(list(times), [1e9 * t / n for n, t in times.items()], style, lw=1.2, ms=3.5, **options)


def _law(law: str, exponent: float | None) -> str:
    if exponent is None:
        return law
    return f"n^{exponent:.2f}{' log n' if law == SORTED else ''}"
