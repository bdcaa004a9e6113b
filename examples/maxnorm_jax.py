"""The networks of `maxnorm.py` in JAX, with flax nnx and optax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import projgrad.optax

# how Keras calls the parameters of a recurrent layer; all have the same axes in both
KERAS = {"lstm/cell/dense_i/kernel": "lstm/kernel", "lstm/cell/dense_h/kernel": "lstm/recurrent_kernel"}
KERAS["lstm/cell/dense_h/bias"] = "lstm/bias"


class MLP(nnx.Module):
    def __init__(self, dropout: float, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(784, 256, rngs=rngs), nnx.Linear(256, 256, rngs=rngs)
        self.output = nnx.Linear(256, 10, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x.reshape(len(x), -1)
        for layer in (self.first, self.second):
            x = self.dropout(nnx.relu(layer(x)))
        return self.output(x)


class CNN(nnx.Module):
    def __init__(self, dropout: float, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 16, (3, 3), padding="VALID", rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), padding="VALID", rngs=rngs)
        self.output = nnx.Linear(800, 10, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x[..., None]
        for layer in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), strides=(2, 2))
        return self.output(self.dropout(x.reshape(len(x), -1)))


class LSTM(nnx.Module):
    def __init__(self, dropout: float, rngs: nnx.Rngs) -> None:
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(28, 64, rngs=rngs))
        self.output = nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.output(self.dropout(self.lstm(x)[:, -1]))


def keras_name(name: str) -> str:
    return KERAS.get(name, name)


def named(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """The parameters by Keras's names."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield keras_name("/".join(map(str, path))), variable


def build(network: str, weights: Mapping[str, np.ndarray], dropout: float, seed: int) -> nnx.Module:
    model: nnx.Module = {"MLP": MLP, "CNN": CNN, "LSTM": LSTM}[network](dropout, nnx.Rngs(seed))
    for name, variable in named(model):
        variable[...] = jnp.asarray(weights[name])
    return model


def weights(model: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable[...]) for name, variable in named(model)}


@nnx.jit
def predict(model: nnx.Module, images: Any) -> Any:
    return nnx.view(model, deterministic=True)(images)


def logits(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    return np.asarray(predict(model, images))


def accuracy(model: nnx.Module, images: np.ndarray, digits: np.ndarray) -> float:
    return float((logits(model, images).argmax(1) == digits).mean())


@nnx.jit
def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any, y: Any) -> None:
    def loss(model: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def train(
    network: str,
    starts: Sequence[Mapping[str, np.ndarray]],
    rules: dict,
    dropout: float,
    data: Sequence[np.ndarray],
    epochs: int,
    tick: Callable[[int], object],
) -> Iterator[tuple[list[float], float, dict[str, np.ndarray], float]]:
    """Train from each of the starts; yield the test accuracies, the training accuracy, the weights, the violation."""
    train_x, train_y, test_x, test_y = data
    tx: optax.GradientTransformation = optax.adam(0.003, eps=1e-7)
    if rules:  # such as {"*/kernel": pg.MaxNorm(3.0), "*/bias": pg.MaxNorm(3.0, axis=0), "output*": None}
        model = build(network, starts[0], dropout, 0)
        tx = optax.chain(tx, projgrad.optax.project(rules, model=model))
    for seed, start in enumerate(starts):
        rng = np.random.default_rng(seed)
        model = build(network, start, dropout, seed)
        if rules:
            projgrad.optax.project_params(model, rules)  # optax cannot change where the parameters start
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        curve = []
        for _ in range(epochs):
            for part in np.split(rng.permutation(len(train_x)), len(train_x) // 50):
                step(model, optimizer, train_x[part], train_y[part])
            curve.append(accuracy(model, test_x, test_y))
            tick(1)
        largest = float(max(projgrad.optax.violations(model, rules).values(), default=0.0)) if rules else 0.0
        yield curve, accuracy(model, train_x, train_y), weights(model), largest
