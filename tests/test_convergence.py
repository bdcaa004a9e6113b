"""Where optimizers end on convex problems: at the constrained minimum in their own metric, and not in Euclid's norm."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.convergence import OPTIMIZERS, run
from benchmarks.problems import Problem, digits, least_squares, quadratics

CONVERGE = ["Adam", "amsgrad", "AdamW, no decay", "NAdam", "RAdam", "RMSprop", "Adagrad"]
QUADRATICS = {problem.name: problem for problem in quadratics()}
QUICK = {("quadratic, simplex", "Adam"), ("quadratic, max-norm per row", "RMSprop")}
PAIRS = [
    pytest.param(
        name, optimizer, id=f"{name}-{optimizer}", marks=() if (name, optimizer) in QUICK else pytest.mark.slow
    )
    for name in QUADRATICS
    for optimizer in CONVERGE
]


@cache
def least(name: str) -> float:
    return QUADRATICS[name].minimum()


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_torch_optimizers_get_to_the_minimum_in_their_metric(name: str, optimizer: str) -> None:
    (gap,) = run(QUADRATICS[name], optimizer, "optimizer", 2000, least(name), [2000])
    assert abs(gap) < 1e-6
    if (name, optimizer) in QUICK:
        (gap,) = run(QUADRATICS[name], optimizer, "euclidean", 2000, least(name), [2000])
        assert gap > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("make", [least_squares, *(lambda i=i: digits()[i] for i in range(3))])
def test_adam_gets_to_the_minimum_of_problems_from_practice(make: Any) -> None:
    pytest.importorskip("sklearn")
    problem: Problem = make()
    best = problem.minimum()
    (gap,) = run(problem, "Adam", "optimizer", 4000, best, [4000])
    assert abs(gap) < 1e-6


OPTAX = {
    "adam": lambda optax, rate: optax.adam(rate),
    "amsgrad": lambda optax, rate: optax.amsgrad(rate),
    "nadam": lambda optax, rate: optax.nadam(rate),
    "radam": lambda optax, rate: optax.radam(rate),
    "rmsprop": lambda optax, rate: optax.rmsprop(rate, decay=0.99, eps=1e-8),
    "adagrad": lambda optax, rate: optax.adagrad(rate, initial_accumulator_value=0.0),
}
FACTORS = {"amsgrad": 4.0, "radam": 4.0, "rmsprop": 0.4, "adagrad": 20.0}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTAX)
@pytest.mark.parametrize("name", QUADRATICS)
def test_optax_gets_to_the_minimum_in_its_metric(name: str, optimizer: str) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    import jax.numpy as jnp

    from projgrad.optax import projected

    problem, steps = QUADRATICS[name], 2000
    first = FACTORS.get(optimizer, 1.0) * problem.scale
    with jax.enable_x64(True):
        rate = optax.exponential_decay(first, steps, 1e-5)
        tx = projected(OPTAX[optimizer](optax, rate), {"w": problem.constraint}, metric="optimizer")

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            gradient = jax.grad(lambda p: problem.value(p["w"], jnp))(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = {"w": jnp.asarray(problem.start)}
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((params, tx.init(params)))
        value = float(problem.value(np.asarray(params["w"]), np))
    assert abs(value - least(name)) < 1e-6 * abs(least(name))


def test_all_that_converge_are_optimizers_of_the_benchmark() -> None:
    assert set(CONVERGE) <= set(OPTIMIZERS)
