"""What it costs to record what the projections do, and to look for weights that are not finite: a step of Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
import torch

import projgrad as pg
import projgrad.optax
from benchmarks.harness import Candidate, Comparison
from projgrad.torch import ProjectedOptimizer

SETS = [pg.NonNeg(), pg.MaxNorm(1.0, axis=1), pg.Simplex(1.0, axis=1)]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """A step with and without, for sets whose projections cost little and more."""
    torch.manual_seed(0)
    start = torch.randn((64, 32) if quick else (1000, 1000)) / 30
    gradient = torch.randn_like(start)

    def step(constraint: pg.Constraint | None, **options: Any) -> Callable[[], object]:
        w = torch.nn.Parameter(start.clone())
        w.grad = gradient
        adam: torch.optim.Optimizer = torch.optim.Adam([("w", w)], lr=1e-3)
        return (adam if constraint is None else ProjectedOptimizer(adam, {"w": constraint}, **options)).step

    for constraint in SETS:
        yield _compiled(constraint, jax.numpy.asarray(start.numpy()))
        yield _compared("a step of Adam", step, constraint, start)


def _compiled(constraint: pg.Constraint, start: jax.Array) -> Comparison:
    params = projgrad.optax.project_params({"w": start}, {"w": constraint})
    gradient = {"w": start[::-1]}

    def step(constraint: pg.Constraint | None, **options: Any) -> Callable[[], object]:
        tx = optax.adam(1e-3)
        tx = tx if constraint is None else optax.chain(tx, projgrad.optax.project({"w": constraint}, **options))
        state = tx.init(params)

        @jax.jit
        def update(params: Any, state: Any) -> Any:
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return lambda: jax.block_until_ready(update(params, state))

    return _compared("a compiled step of optax's Adam", step, constraint, start)


def _compared(what: str, step: Callable[..., Any], constraint: pg.Constraint, start: Any) -> Comparison:
    calls = {
        "projected": step(constraint),
        "record=True": step(constraint, record=True),
        'nonfinite="warn"': step(constraint, nonfinite="warn"),
        "Adam alone": step(None),
    }
    title = f"{constraint}, {what}, {start.shape[0]} x {start.shape[1]} float32"
    return Comparison(title, [Candidate(*call) for call in calls.items()], ["projected", "Adam alone"], start.nbytes)
