"""Transformations of optax end at the constrained minimum in their own metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp

from projgrad.optax import projected
from tests.minima import check, gap, pairs, problem, steps

# each with the multiple of a problem's step that it starts with
OPTIMIZERS: dict[str, tuple[Any, float]] = {
    "adam": (optax.adam, 1.0),
    "amsgrad": (optax.amsgrad, 4.0),
    "adamw, no decay": (lambda rate: optax.adamw(rate, weight_decay=0.0), 1.0),
    "nadam": (optax.nadam, 1.0),
    "radam": (optax.radam, 4.0),
    "adamax": (optax.adamax, 4.0),
    "rmsprop": (lambda rate: optax.rmsprop(rate, decay=0.99), 0.4),
    "adagrad": (lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0), 20.0),
}
QUICK = {("quadratic, simplex", "adam"), ("quadratic, max-norm per row", "adamax")}


def end(name: str, optimizer: str, metric: str) -> Any:
    """Where it is after the last step, in double precision."""
    made, (make, factor) = problem(name), OPTIMIZERS[optimizer]
    rate = optax.exponential_decay(factor * made.scale, steps(name), 1e-5)
    tx = projected(make(rate), {"w": made.constraint}, metric=metric)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        gradient = jax.grad(lambda p: made.value(p["w"], jnp))(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params: Any) -> Any:
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps(name))
        return params

    return np.asarray(train({"w": jnp.asarray(made.start)})["w"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "optimizer"), pairs(OPTIMIZERS, QUICK))
def test_the_minimum_is_reached_in_the_metric(name: str, optimizer: str) -> None:
    check(lambda metric: gap(name, end(name, optimizer, metric)), name, (name, optimizer) in QUICK)
