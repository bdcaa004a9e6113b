"""The networks of `maxnorm.py` in Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from projgrad.keras import ProjectedOptimizer, violations


def mlp(dropout: float) -> list:
    hidden = []
    for name in ("first", "second"):
        hidden += [layers.Dense(256, activation="relu", name=name), layers.Dropout(dropout)]
    return [layers.Flatten(), *hidden]


def cnn(dropout: float) -> list:
    hidden = []
    for name, filters in (("first", 16), ("second", 32)):
        hidden += [layers.Conv2D(filters, 3, activation="relu", name=name), layers.MaxPooling2D()]
    return [layers.Reshape((28, 28, 1)), *hidden, layers.Flatten(), layers.Dropout(dropout)]


def lstm(dropout: float) -> list:
    return [layers.LSTM(64, name="lstm"), layers.Dropout(dropout)]


def keras_name(name: str) -> str:
    """The name without that of a cell."""
    layer, *_, attribute = name.split("/")
    return f"{layer}/{attribute}"


def named(model: Any) -> Iterator[tuple[str, Any]]:
    return ((f"{layer.name}/{variable.name}", variable) for layer in model.layers for variable in layer.weights)


def build(network: str, weights: Mapping[str, np.ndarray], dropout: float, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    hidden = {"MLP": mlp, "CNN": cnn, "LSTM": lstm}[network](dropout)
    model = keras.Sequential([keras.Input((28, 28)), *hidden, layers.Dense(10, name="output")])
    for name, variable in named(model):
        variable.assign(weights[name])
    return model


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in named(model)}


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    return model.predict(images, batch_size=500, verbose=0)


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
    for seed, start in enumerate(starts):
        model = build(network, start, dropout, seed)
        optimizer = keras.optimizers.Adam(0.003)
        if rules:  # such as {"*kernel": pg.MaxNorm(3.0), "*/bias": pg.MaxNorm(3.0, axis=0), "output*": None}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
        progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tick(1))
        history = model.fit(
            train_x,
            train_y,
            batch_size=50,
            epochs=epochs,
            validation_data=(test_x, test_y),
            validation_batch_size=500,
            callbacks=[progress],
            verbose=0,
        )
        right = logits(model, train_x).argmax(1) == train_y
        largest = max(violations(model, rules).values(), default=0.0)
        yield history.history["val_accuracy"], float(right.mean()), weights(model), largest
