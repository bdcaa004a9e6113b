"""`metric="optimizer"` in `projgrad.keras`: the metric is that of the step, on whatever backend Keras runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer
from tests.keras_values import BACKEND, NO_SCALE, array, tensor, variable
from tests.textbook import adadelta, adafactor, gradients, moving, squares

SIMPLEX = pg.Simplex(1.0, axis=0)


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
    "adadelta": (lambda: optimizers.Adadelta(100.0), partial(adadelta, rho=0.95, eps=1e-7)),
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
    start, gs = np.full((6, 3), 1 / 6), gradients(-3)
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
