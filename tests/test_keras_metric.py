"""`metric="optimizer"` in `projgrad.keras`: the metric is that of the step, on whatever backend Keras runs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer
from tests.quadratic import minimum, quadratic

BACKEND = keras.backend.backend()
SIMPLEX = pg.Simplex(1.0, axis=0)
STEPS = 5
SHORT = BACKEND == "torch" and "PROJGRAD_NESTED" in os.environ  # torch takes minutes for what others compile
NO_SCALE = "a LossScaleOptimizer on JAX is for stateless_apply"


def variable(values, name="w", dtype="float32"):
    return keras.Variable(np.asarray(values), dtype=dtype, name=name)


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x), dtype=np.float64)


def tensor(x):
    return keras.ops.convert_to_tensor(np.asarray(x), dtype="float32")


def gradients(shape=(6, 3), seed=0):
    """Gradients of very different sizes, of which some are always zero."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 1, shape)
    scale[0] = 0
    return [scale * rng.standard_normal(shape) for _ in range(STEPS)]


# -- the textbook -------------------------------------------------------------------------------------------------


def moving(values, decay, start=0.0):
    total = start
    for value in values:
        total = decay * total + (1 - decay) * value
    return total


def squares(gs):
    return [g**2 for g in gs]


def adam(gs, b2=0.999, eps=1e-7, corrected=False):
    correction = 1 - b2 ** len(gs) if corrected else 1.0
    return np.sqrt(moving(squares(gs), b2) / correction) + eps


def amsgrad(gs):
    return np.maximum.reduce([adam(gs[: t + 1]) for t in range(len(gs))])


def adamax(gs, b2=0.999, eps=1e-7):
    most = 0.0
    for g in gs:
        most = np.maximum(b2 * most, np.abs(g))
    return most + eps


def rmsprop(gs, rho=0.9, eps=1e-7, centred=False):
    return np.sqrt(moving(squares(gs), rho) - (moving(gs, rho) ** 2 if centred else 0) + eps)


def adadelta(gs, rho=0.95, eps=1e-7):
    seen = moved = h = 0.0
    for g in gs:
        seen = rho * seen + (1 - rho) * g**2
        h = np.sqrt(seen + eps) / np.sqrt(moved + eps)
        moved = rho * moved + (1 - rho) * (g / h) ** 2
    return h


def adafactor(gs):
    rows = columns = np.zeros(())
    for t, g in enumerate(gs, 1):
        decay = 1 - float(t) ** -0.8
        rows = decay * rows + (1 - decay) * (g**2 + 1e-30).mean(1, keepdims=True)
        columns = decay * columns + (1 - decay) * (g**2 + 1e-30).mean(0, keepdims=True)
    return np.sqrt(rows * columns / rows.mean())


BY_THE_BOOK: dict[str, tuple[Any, Any]] = {
    "adam": (lambda: optimizers.Adam(0.1), adam),
    "adam, its numbers": (lambda: optimizers.Adam(0.1, beta_2=0.9, epsilon=1e-2), partial(adam, b2=0.9, eps=1e-2)),
    "amsgrad": (lambda: optimizers.Adam(0.1, amsgrad=True), amsgrad),
    "adamw": (lambda: optimizers.AdamW(0.1), adam),
    "nadam": (lambda: optimizers.Nadam(0.1, epsilon=1e-2), partial(adam, eps=1e-2, corrected=True)),
    "lamb": (lambda: optimizers.Lamb(0.1, epsilon=1e-2), partial(adam, eps=1e-2, corrected=True)),
    "adamax": (lambda: optimizers.Adamax(0.1), adamax),
    "rmsprop": (lambda: optimizers.RMSprop(0.1, momentum=0.9), rmsprop),
    "rmsprop, centred": (
        lambda: optimizers.RMSprop(0.1, epsilon=1e-3, centered=True),
        partial(rmsprop, eps=1e-3, centred=True),
    ),
    "adagrad": (lambda: optimizers.Adagrad(0.1), lambda gs: np.sqrt(0.1 + sum(squares(gs)) + 1e-7)),
    "adadelta": (lambda: optimizers.Adadelta(100.0), adadelta),
    "adafactor": (lambda: optimizers.Adafactor(0.1), adafactor),
    "sgd": (lambda: optimizers.SGD(0.1, momentum=0.9), lambda gs: np.ones_like(gs[0])),
    "clipped": (lambda: optimizers.Adam(0.1, global_clipnorm=1e9), adam),
    "scaled": (lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.1), initial_scale=1.0), adam),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_THE_BOOK)
@pytest.mark.parametrize("way", ["apply", "stateless"])
def test_the_metric_is_that_of_the_book(name, way):
    if way == "stateless" and BACKEND == "tensorflow":
        pytest.skip("Keras has no stateless_apply on TensorFlow")
    if name == "scaled" and way == "apply" and BACKEND == "jax":
        pytest.skip(NO_SCALE)
    make, book = BY_THE_BOOK[name]
    start, gs = np.full((6, 3), 1 / 6), gradients()
    w, free = variable(start), variable(start)
    ours, plain = ProjectedOptimizer(make(), {"w": SIMPLEX}, metric="optimizer"), make()
    plain = getattr(plain, "inner_optimizer", plain)
    ours.build([w])
    plain.build([free])
    for g in gs:
        free.assign(w.value)  # what the optimizer remembers does not depend on where the weights are
        plain.apply([tensor(g)], [free])
        if way == "apply":
            ours.apply([tensor(g)], [w])
        else:
            (value,), state = ours.stateless_apply([v.value for v in ours.variables], [tensor(g)], [w.value])
            w.assign(value)
            for v, new in zip(ours.variables, state, strict=True):
                v.assign(new)
    expected = SIMPLEX.project(array(free), metric=np.maximum(np.broadcast_to(book(gs), (6, 3)), 1e-30))
    np.testing.assert_allclose(array(w), expected, rtol=2e-3, atol=2e-5)


# -- where it leads to --------------------------------------------------------------------------------------------


def settle(optimizer, start, matrix, vector, steps):
    """The point after so many compiled steps, in double precision."""
    w = variable(start, dtype="float64")
    optimizer.build([w])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        a, b = tf.constant(matrix), tf.constant(vector)

        @tf.function
        def train():
            for _ in tf.range(steps):
                optimizer.apply([tf.linalg.matvec(a, w.value) - b], [w])

        train()
    elif BACKEND == "jax":
        import jax

        def one(carry, _):
            x, state = carry
            (x,), state = optimizer.stateless_apply(state, [matrix @ x - vector], [x])
            return (x, state), None

        state = [v.value for v in optimizer.variables]
        (x, _), _ = jax.jit(lambda c: jax.lax.scan(one, c, None, steps))((w.value, state))
        return np.asarray(x)
    else:
        import torch

        a, b = torch.from_numpy(matrix), torch.from_numpy(vector)
        for _ in range(steps):
            optimizer.apply([a @ w.value.detach() - b], [w])
    return array(w)


@pytest.fixture
def double():
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.skipif(SHORT, reason="long")
@pytest.mark.parametrize("constraint", [pg.Simplex(1.0, axis=0), pg.MaxNorm(1.0, axis=0)], ids=["simplex", "ball"])
def test_adam_settles_on_the_minimum_only_in_its_own_metric(constraint, double):
    matrix, vector = quadratic()
    best = minimum(matrix, vector, constraint)
    steps = 6000

    def gap(metric):
        rate = optimizers.schedules.ExponentialDecay(0.1, steps, 1e-6)
        optimizer = ProjectedOptimizer(optimizers.Adam(rate), {"w": constraint}, metric=metric)
        x = settle(optimizer, constraint.project(np.full(len(vector), 0.01)), matrix, vector, steps)
        return (0.5 * x @ matrix @ x - vector @ x - best) / abs(best)

    assert abs(gap("optimizer")) < 1e-8
    assert gap("euclidean") > 1e-2
