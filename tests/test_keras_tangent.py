"""Gradients, steps and momentum without what points out of the set, in Keras, on whatever backend it runs."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests.orthants import MOMENTUM, RATE, orthant_problems

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer
from tests.keras_values import BACKEND, array, tensor, variable

SPHERE = pg.UnitNorm(axis=1)
NESTED = "PROJGRAD_NESTED" in os.environ
OPTIONS = pytest.mark.parametrize("option", ["gradient", "update"])


def random(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((16, 32)).astype("float32")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).max())


class Stepper:
    """An optimizer on variables of given values, called with gradients; on JAX, and if asked for, it is compiled."""

    def __init__(self, inner: Any, rules: Any, *values: np.ndarray, compiled: bool = False) -> None:
        self.variables = [variable(x, name) for x, name in zip(values, "wv", strict=False)]
        self.inner, self.optimizer = inner, ProjectedOptimizer(inner, rules)
        self.optimizer.build(self.variables)
        if BACKEND == "tensorflow" and compiled:
            import tensorflow as tf

            self._apply = tf.function(
                lambda *gradients: self.optimizer.apply(gradients, self.variables), jit_compile=True
            )
        elif BACKEND == "jax":
            import jax

            self._apply = jax.jit(self.optimizer.stateless_apply)
        else:
            self._apply = lambda *gradients: self.optimizer.apply(gradients, self.variables)

    def step(self, *gradients: np.ndarray) -> list[np.ndarray]:
        given = [tensor(g) for g in gradients]
        if BACKEND != "jax":
            self._apply(*given)
        else:
            state = self.optimizer.variables
            found = self._apply([v.value for v in state], given, [v.value for v in self.variables])
            for some, values in zip((self.variables, state), found, strict=True):
                for v, value in zip(some, values, strict=True):
                    v.assign(value)
        return [array(v) for v in self.variables]

    def momentum(self) -> list[np.ndarray]:
        name = next(name for name in ("_momentums", "momentums", "_m") if getattr(self.inner, name, None))
        return [array(m) for m in getattr(self.inner, name)]


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_optimizer_gets_a_tangent_gradient(calls: int, scale: float | None) -> None:
    """Also of the sum where gradients are accumulated."""
    inside = pg.Box(-0.5, 0.5)  # not the sum of tangent gradients
    inner = optimizers.SGD(0.1, momentum=0.5, gradient_accumulation_steps=None if calls == 1 else calls)
    outer = inner if scale is None else optimizers.LossScaleOptimizer(inner, initial_scale=scale)
    stepper = Stepper(
        outer,
        {"w": pg.Tag(SPHERE, tangent="gradient"), "v": pg.Tag(inside, tangent="gradient")},
        *(random(seed) for seed in (0, 1)),
    )
    starts = [array(v) for v in stepper.variables]
    given = [[random(10 * i + j) for j in range(2)] for i in range(1, calls + 1)]
    for gradients in given:
        ends = stepper.step(*(g * (scale or 1.0) for g in gradients))
    w, v = (np.mean([g[j] for g in given], axis=0) for j in range(2))
    w = w - (w * starts[0]).sum(1, keepdims=True) * starts[0]
    v = np.where((np.abs(starts[1]) >= 0.5) & (starts[1] * v < 0), 0, v)
    moved = starts[0] - 0.1 * w
    np.testing.assert_allclose(ends[0], moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(ends[1], np.clip(starts[1] - 0.1 * v, -0.5, 0.5), atol=1e-6)


INNER: dict[str, Any] = {
    "Adam": lambda: optimizers.Adam(1e-2),
    "AdamW": lambda: optimizers.AdamW(1e-2, weight_decay=0.1),
    "Nadam": lambda: optimizers.Nadam(1e-2),
    "Adamax": lambda: optimizers.Adamax(1e-2),
    "Lamb": lambda: optimizers.Lamb(1e-2),
    "Lion": lambda: optimizers.Lion(1e-3),
    "SGD": lambda: optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda: optimizers.RMSprop(1e-2, momentum=0.5, centered=True),
    "Muon": lambda: optimizers.Muon(1e-2),
}


@OPTIONS
@pytest.mark.parametrize("name", ["Adam", "SGD"] if NESTED else INNER)
def test_steps_and_momentum_are_tangent(option: str, name: str) -> None:
    stepper = Stepper(INNER[name](), {"w": pg.Tag(SPHERE, tangent=option)}, random(0))
    for i in range(3):
        start = array(stepper.variables[0])
        (end,) = stepper.step(random(i + 1))
        if option == "update":  # what is left along the weight is what leads back to the sphere
            along, across = ((end - start) * start).sum(1), np.square(end - start).sum(1)
            np.testing.assert_allclose(along, -across / 2, atol=1e-6)
        assert cosine(stepper.momentum()[0], end) < 1e-6
        assert np.abs(end - start).max() > 1e-4


@OPTIONS
def test_momentum_keeps_what_leads_back_from_a_bound(option: str) -> None:
    """Whether an optimizer subtracts its momentum or adds it."""
    for inner in (optimizers.SGD(0.1, momentum=0.9), optimizers.Adam(0.1)):
        stepper = Stepper(inner, {"w": pg.Tag(pg.NonNeg(), tangent=option)}, np.zeros((2, 2)))
        sign = 1 if isinstance(inner, optimizers.SGD) else -1
        for gradient in (np.ones((2, 2)), np.asarray([[-1.0, 1.0], [1.0, -1.0]])):
            (end,) = stepper.step(gradient)
            np.testing.assert_array_equal(end > 0, gradient < 0)
            np.testing.assert_array_equal(np.sign(stepper.momentum()[0]), sign * (gradient < 0))


@pytest.mark.skipif(NESTED, reason="long")
def test_fewer_steps_on_an_orthant() -> None:
    matrix, vector, start, goal = orthant_problems()[0]

    def steps(tangent: str | None) -> int:
        rules = {"w": pg.Tag(pg.NonNeg(), tangent=tangent)}
        stepper = Stepper(optimizers.SGD(RATE, momentum=MOMENTUM), rules, start, compiled=True)
        x = array(stepper.variables[0])
        for i in range(3000):
            if 0.5 * x @ matrix @ x - vector @ x <= goal + 1e-6 * abs(goal):  # in single precision
                return i
            (x,) = stepper.step(matrix @ x - vector)
        return 3000

    plain = steps(None)
    assert plain < 3000
    assert max(steps("gradient"), steps("update")) < plain


@OPTIONS
def test_a_set_over_two_variables(option: str) -> None:
    rules = {"*": pg.Joint(pg.UnitNorm(axis=1), tangent=option)}
    stepper = Stepper(optimizers.Adam(1e-2), rules, random(0), random(1)[:, 0])
    w, v = stepper.step(random(2), random(3)[:, 0])
    m, n = stepper.momentum()
    assert cosine(np.column_stack([m, n]), np.column_stack([w, v])) < 1e-6


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_variables_without_a_gradient_and_other_tags_are_left_alone() -> None:
    w, free = variable(random(0), "w"), variable(random(1), "free")
    rules = {"w": pg.Tag(SPHERE, tangent="gradient"), "free": pg.MaxNorm(100.0, axis=1)}
    optimizer = ProjectedOptimizer(optimizers.SGD(1.0, momentum=0.5), rules)
    optimizer.build([w, free])
    start = array(free)
    optimizer.apply([None, tensor(np.ones((16, 32)))])
    np.testing.assert_allclose(array(free), start - 1, atol=1e-6)


def test_fit_and_a_saved_model(tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="out")])
    rules = {"out/kernel": pg.Tag(pg.UnitNorm(), tangent="update"), "out/bias": pg.Tag(pg.NonNeg(), tangent="gradient")}
    optimizer = ProjectedOptimizer(optimizers.Adam(0.1), rules, model=model)
    again = ProjectedOptimizer.from_config(json.loads(json.dumps(optimizer.get_config())))
    again.build(model.trainable_variables)
    assert again.plan == optimizer.plan
    model.compile(optimizer, "mse")
    model.fit(random(1)[:, :3], random(2)[:, :4], batch_size=8, epochs=2, verbose=0)
    momentum, kernel = (array(v) for v in (optimizer.inner._momentums[0], model.layers[0].kernel))
    assert cosine(momentum.T, kernel.T) < 1e-6
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").optimizer.plan == optimizer.plan


def test_errors() -> None:
    with pytest.raises(ValueError, match="w cannot have tangent='gradient': .*not implemented"):
        ProjectedOptimizer(optimizers.SGD(), {"w": pg.Tag(pg.SpectralNorm(), tangent="gradient")}).build(
            [variable(random(0))]
        )
    if BACKEND == "tensorflow":
        import tensorflow as tf

        optimizer = ProjectedOptimizer(optimizers.SGD(), {"w": pg.Tag(SPHERE, tangent="gradient")})
        sparse = tf.IndexedSlices(tf.ones((1, 32)), tf.constant([0]), tf.constant([16, 32]))
        with pytest.raises(ValueError, match="w: its gradient is sparse"):
            optimizer.apply([sparse], [variable(random(0))])
