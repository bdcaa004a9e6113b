"""Optimizers of Keras end at the constrained minimum in their own metric, on whatever backend it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer
from tests.keras_values import BACKEND, SHORT, variable
from tests.minima import check, gap, pairs, problem, steps

# each with the multiple of a problem's step that it starts with
OPTIMIZERS: dict[str, tuple[Any, float]] = {
    "Adam": (optimizers.Adam, 1.0),
    "amsgrad": (lambda rate: optimizers.Adam(rate, amsgrad=True), 4.0),
    "AdamW, no decay": (lambda rate: optimizers.AdamW(rate, weight_decay=0.0), 1.0),
    "Nadam": (optimizers.Nadam, 1.0),
    "Adamax": (optimizers.Adamax, 4.0),
    "RMSprop": (lambda rate: optimizers.RMSprop(rate, rho=0.99), 0.4),
    "Adagrad": (lambda rate: optimizers.Adagrad(rate, initial_accumulator_value=0.0), 20.0),
}
QUICK = {("quadratic, simplex", "Adam"), ("quadratic, max-norm per row", "Adamax")}


def end(name: str, optimizer: str, metric: str) -> np.ndarray:
    """Where it is after the last step, in double precision."""
    made, (make, factor) = problem(name), OPTIMIZERS[optimizer]
    rate = optimizers.schedules.ExponentialDecay(factor * made.scale, steps(name), 1e-5)
    ours = ProjectedOptimizer(make(rate), {"w": made.constraint}, metric=metric)
    w = variable(made.start, dtype="float64")
    ours.build([w])
    train = {"tensorflow": in_tensorflow, "jax": in_jax, "torch": in_torch}[BACKEND]
    return train(made.value, ours, w, steps(name))


def in_tensorflow(value: Any, optimizer: Any, w: Any, count: int) -> np.ndarray:
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp

    @tf.function(jit_compile=True)
    def train() -> None:
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                found = value(tf.convert_to_tensor(w.value), tnp)
            optimizer.apply([tape.gradient(found, w.value)], [w])

    train()
    return w.numpy()


def in_jax(value: Any, optimizer: Any, w: Any, count: int) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    def step(carry: Any, _: Any) -> Any:
        x, state = carry
        (x,), state = optimizer.stateless_apply(state, [jax.grad(lambda x: value(x, jnp))(x)], [x])
        return (x, state), None

    @jax.jit
    def train(x: Any, state: Any) -> Any:
        (x, _), _ = jax.lax.scan(step, (x, state), length=count)
        return x

    return np.asarray(train(w.value, [v.value for v in optimizer.variables]))


def in_torch(value: Any, optimizer: Any, w: Any, count: int) -> np.ndarray:
    import torch

    for _ in range(count):
        (gradient,) = torch.autograd.grad(value(w.value, torch), [w.value])
        optimizer.apply([gradient], [w])
    return w.value.detach().numpy()


@pytest.mark.skipif(SHORT, reason="long")
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "optimizer"), pairs(OPTIMIZERS, QUICK))
def test_the_minimum_is_reached_in_the_metric(name: str, optimizer: str) -> None:
    check(lambda metric: gap(name, end(name, optimizer, metric)), name, (name, optimizer) in QUICK)
