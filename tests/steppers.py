"""The same few steps of plain gradient descent through every wrapper, for tests of what they have in common."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Weights = dict[str, np.ndarray]


def by_torch(rules: Any, start: Weights, gradient: Weights, steps: int) -> list[Weights]:
    import torch

    from projgrad.torch import ProjectedOptimizer

    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    optimizer = ProjectedOptimizer(torch.optim.SGD(list(params.items()), lr=1.0), rules)
    found = [{name: p.detach().numpy().copy() for name, p in params.items()}]
    for _ in range(steps):
        for name, p in params.items():
            p.grad = torch.tensor(gradient[name])
        optimizer.step()
        found.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return found


def by_optax(rules: Any, start: Weights, gradient: Weights, steps: int) -> list[Weights]:
    import jax
    import jax.numpy as jnp
    import optax

    import projgrad.optax as po

    params = po.project_params({name: jnp.asarray(x) for name, x in start.items()}, rules, step=0)
    tx = optax.chain(optax.sgd(1.0), po.project(rules))
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    found = [params]
    for _ in range(steps):
        params, state = step(params, state)
        found.append(params)
    return [{name: np.asarray(x) for name, x in weights.items()} for weights in found]


def by_keras(rules: Any, start: Weights, gradient: Weights, steps: int) -> list[Weights]:
    import keras

    from projgrad.keras import ProjectedOptimizer

    params = {name: keras.Variable(x, name=name) for name, x in start.items()}
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), rules)
    optimizer.build(list(params.values()))
    found = [{name: keras.ops.convert_to_numpy(v).copy() for name, v in params.items()}]
    for _ in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(gradient[name]) for name in params])
        found.append({name: keras.ops.convert_to_numpy(v).copy() for name, v in params.items()})
    return found


def by_tensorflow(rules: Any, start: Weights, gradient: Weights, steps: int) -> list[Weights]:
    import tensorflow as tf

    from projgrad.tensorflow import project_params

    params = {name: tf.Variable(x) for name, x in start.items()}
    project_params(params, rules, step=0)

    @tf.function
    def step(n: Any) -> None:
        for name, v in params.items():
            v.assign_sub(gradient[name])
        project_params(params, rules, step=n)

    found = [{name: v.numpy() for name, v in params.items()}]
    for n in range(1, steps + 1):
        step(tf.constant(n))
        found.append({name: v.numpy() for name, v in params.items()})
    return found


Stepper = Callable[[Any, Weights, Weights, int], list[Weights]]
STEPPERS: dict[str, Stepper] = {
    "torch": by_torch,
    "optax": by_optax,
    "keras": by_keras,
    "tensorflow": by_tensorflow,
}


def stepper(name: str) -> Stepper:
    """The steps of one wrapper, or a skipped test."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return STEPPERS[name]


every_wrapper = pytest.mark.parametrize("wrapper", STEPPERS)


def same_steps(wrapper: str, rules: Any, start: Weights, gradient: Weights, expected: list[Weights]) -> None:
    """Assert that a wrapper goes through the expected weights, of which the first are those at the start."""
    found = stepper(wrapper)(rules, start, gradient, len(expected) - 1)
    for n, (weights, wanted) in enumerate(zip(found, expected, strict=True)):
        for name, x in wanted.items():
            assert weights[name].dtype == start[name].dtype
            np.testing.assert_allclose(weights[name], x, rtol=2e-5, atol=1e-6, err_msg=f"{name} after {n} steps")
