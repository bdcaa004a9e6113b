"""Small runs of Keras, and the same by hand: the bare optimizer, and a projection in NumPy after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import numpy as np

import projgrad as pg

__all__ = ["BALL", "RULES", "Steps", "X", "Y", "array", "by_hand", "in_ball", "network", "same", "train"]

BALL = 0.3
# on a network; they bind from the start
RULES: dict[str, Any] = {
    "hidden/kernel": pg.MaxNorm(pg.Schedule({0: 1.0, 8: BALL}), axis=0).every(2),
    "out/kernel": pg.UnitNorm(axis=0, rate=0.5),
    "out/bias": pg.NonNeg(),
}
_random = np.random.default_rng(0)
X, Y = _random.normal(size=(32, 6)).astype("float32"), 5 * _random.normal(size=(32, 2)).astype("float32")


def network(seed: int = 0, **options: Any) -> Any:
    """A network of which hidden/kernel has columns of norms around 1."""
    keras.utils.set_random_seed(seed)
    parts = [
        keras.layers.Dense(8, activation="tanh", name="hidden", **options),
        keras.layers.Dense(2, name="out", bias_initializer=keras.initializers.Constant(-0.1)),
    ]
    return keras.Sequential([keras.Input((6,)), *parts], name="net")


def train(model: Any, steps: int) -> Any:
    """So many steps of a compiled model, each on other rows."""
    for _ in range(steps):
        start = 8 * (int(model.optimizer.iterations) % 4)
        model.train_on_batch(X[start : start + 8], Y[start : start + 8])
    return model


def array(x: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x))


def same(one: Any, other: Any) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return all(np.array_equal(array(a), array(b)) for a, b in zip(one.weights, other.weights, strict=True))


def in_ball(w: Any, radius: float = BALL) -> np.ndarray:
    """The nearest matrix with columns in a ball."""
    x = array(w).astype("float64")
    return x * np.minimum(1, radius / np.linalg.norm(x, axis=0))


class Steps:
    """Steps of an optimizer on a linear map, with the gradient written by hand; on JAX they are stateless ones."""

    rules: ClassVar[dict[str, Any]] = {
        "w": pg.MaxNorm(pg.Schedule({0: 1.0, 8: BALL}), axis=0).every(2),
        "b": pg.UnitNorm(axis=0, rate=0.5),
    }

    def __init__(self, optimizer: Any) -> None:
        rng = np.random.default_rng(1)
        self.w = keras.Variable(rng.normal(size=(6, 2)).astype("float32"), name="w")
        self.b = keras.Variable(np.asarray([3.0, 4.0], "float32"), name="b")
        self.optimizer, self.variables = optimizer, [self.w, self.b]
        self.calls = 0
        optimizer.build(self.variables)
        if keras.backend.backend() == "jax":
            import jax

            self._stateless = jax.jit(optimizer.stateless_apply)

    def step(self, *, overflow: bool = False) -> None:
        """One call, with gradients that are scaled as losses are; or with one that is infinite."""
        rows = slice(8 * (self.calls % 4), 8 * (self.calls % 4) + 8)
        error = X[rows] @ array(self.w) + array(self.b) - Y[rows]
        gradients = [X[rows].T @ error / 8, error.mean(0)]
        if overflow:
            gradients[0][0, 0] = -np.inf
        else:
            self.calls += 1
        scaled = [self.optimizer.scale_loss(keras.ops.convert_to_tensor(g)) for g in gradients]
        if keras.backend.backend() != "jax":
            return self.optimizer.apply(scaled, self.variables)
        state = [v.value for v in self.optimizer.variables]
        found = self._stateless(state, scaled, [v.value for v in self.variables])
        for some, values in zip((self.variables, self.optimizer.variables), found, strict=True):
            for variable, value in zip(some, values, strict=True):
                variable.assign(value)

    def finish(self) -> None:
        self.optimizer.finalize_variable_values(self.variables)

    def weights(self) -> list[np.ndarray]:
        return [array(v).copy() for v in self.variables]


def by_hand(bare: Any, calls: int, per_step: int = 1) -> Iterator[Steps]:
    """The run of `Steps.rules` with a bare optimizer, after each of its calls, and then after `finish`."""

    def project(step: int, *, every: int, rate: float) -> None:
        if step % every == 0:
            steps.w.assign(in_ball(steps.w, np.interp(step, [0, 8], [1.0, BALL])).astype("float32"))
        b = array(steps.b).astype("float64")
        steps.b.assign((1 - rate) * b + rate * b / np.linalg.norm(b))

    steps = Steps(bare)
    project(0, every=1, rate=0.5)
    for call in range(1, calls + 1):
        steps.step()
        if call % per_step == 0:
            project(call // per_step, every=2, rate=0.5)
        yield steps
    steps.finish()
    project(calls // per_step, every=1, rate=0.5)
    yield steps
