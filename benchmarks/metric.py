"""What a diagonal metric costs: the projection in the Euclidean norm against the one in the metric of Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch

import projgrad as pg
from benchmarks.harness import Candidate, Comparison
from projgrad.torch import ProjectedOptimizer

Start = Callable[[torch.Tensor], torch.Tensor]


def far(x: torch.Tensor) -> torch.Tensor:
    """All groups outside, by as much as random numbers are."""
    return x


def inside(x: torch.Tensor) -> torch.Tensor:
    """All groups in the set."""
    return 1e-3 * x


def stepped(x: torch.Tensor) -> torch.Tensor:
    """All groups outside, as far as a step of Adam with the rate 1e-3 goes."""
    w = x / x.norm(dim=1, keepdim=True)
    return w + 1e-3 * w.sign() * torch.rand_like(w)


SETS: list[tuple[str, pg.Constraint, Start]] = [
    ("Simplex", pg.Simplex(1.0, axis=1), far),
    ("L1Ball", pg.L1Ball(1.0, axis=1), far),
    ("CappedSimplex", pg.CappedSimplex(1.0, 0.0, 0.2, axis=1), far),
    ("SumTo", pg.SumTo(1.0, axis=1), far),
    ("MaxNorm, far outside", pg.MaxNorm(1.0, axis=1), far),
    ("MaxNorm, after a step", pg.MaxNorm(1.0, axis=1), stepped),
    ("MaxNorm, all inside", pg.MaxNorm(1.0, axis=1), inside),
    ("UnitNorm, after a step", pg.UnitNorm(axis=1), stepped),
    ("GroupL1Ball", pg.GroupL1Ball(1.0), far),
    ("L1InfBall", pg.L1InfBall(1.0), far),
    ("Monotone", pg.Monotone(axis=1), far),
    ("Cardinality", pg.Cardinality(10, axis=1), far),
]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Each set, eager in PyTorch and compiled in JAX."""
    torch.manual_seed(0)
    shape = (64, 32) if quick else (1000, 1000)
    moment = (torch.randn(shape) * 1e-2) ** 2
    for name, constraint, start in SETS[: 2 if quick else None]:
        yield _eager(name, constraint, start(torch.randn(shape)), moment)
        yield _compiled(name, constraint, start(torch.randn(shape)), moment)


def steps(quick: bool = False) -> Iterator[Comparison]:
    """A whole step of Adam, in three ways."""
    torch.manual_seed(0)
    for name, constraint, _ in (SETS[0], SETS[5]):
        yield _step(name, constraint, torch.randn((64, 32) if quick else (1000, 1000)))


def _weights(moment: torch.Tensor) -> torch.Tensor:
    return (moment / 0.1).sqrt() + 1e-8


def _eager(name: str, constraint: pg.Constraint, x: torch.Tensor, moment: torch.Tensor) -> Comparison:
    h = _weights(moment)
    other = torch.empty_like(x)
    calls: dict[str, Callable[[], object]] = {
        "Euclidean": lambda: constraint.project(x),
        "metric": lambda: constraint.project(x, metric=h),
        "metric, and forming it": lambda: constraint.project(x, metric=_weights(moment)),
        "floor: read and write": lambda: torch.mul(x, 0.5, out=other),
    }
    return _comparison(f"{name}, PyTorch eager, {_shape(x)}", calls, x)


def _compiled(name: str, constraint: pg.Constraint, x: torch.Tensor, moment: torch.Tensor) -> Comparison:
    values, second = (jax.numpy.asarray(a.numpy()) for a in (x, moment))
    h = jax.numpy.sqrt(second / 0.1) + 1e-8
    euclidean = jax.jit(constraint.project)
    given = jax.jit(lambda x, h: constraint.project(x, metric=h))
    formed = jax.jit(lambda x, v: constraint.project(x, metric=jax.numpy.sqrt(v / 0.1) + 1e-8))
    half = jax.jit(lambda x: 0.5 * x)
    calls: dict[str, Callable[[], object]] = {
        "Euclidean": lambda: euclidean(values).block_until_ready(),
        "metric": lambda: given(values, h).block_until_ready(),
        "metric, and forming it": lambda: formed(values, second).block_until_ready(),
        "floor: read and write": lambda: half(values).block_until_ready(),
    }
    return _comparison(f"{name}, JAX compiled, {_shape(x)}", calls, x)


def _step(name: str, constraint: pg.Constraint, start: torch.Tensor) -> Comparison:
    def stepper(metric: str | None) -> Callable[[], Any]:
        w = torch.nn.Parameter(start.clone())
        w.grad = torch.randn_like(start)
        adam: torch.optim.Optimizer = torch.optim.Adam([("w", w)], lr=1e-3)
        if metric is not None:
            adam = ProjectedOptimizer(adam, {"w": constraint}, metric=metric)
        return adam.step

    calls: dict[str, Callable[[], object]] = {
        "Euclidean": stepper("euclidean"),
        "metric": stepper("optimizer"),
        "Adam alone": stepper(None),
    }
    return _comparison(f"{name}, a step of Adam, PyTorch eager, {_shape(start)}", calls, start)


def _comparison(title: str, calls: dict[str, Callable[[], object]], x: torch.Tensor) -> Comparison:
    candidates = [Candidate(name, call) for name, call in calls.items()]
    return Comparison(title, candidates, [next(iter(calls)), list(calls)[-1]], x.nbytes)


def _shape(x: torch.Tensor) -> str:
    return f"{x.shape[0]} x {x.shape[1]} float32"
