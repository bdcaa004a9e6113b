"""The network of `moons.py` in Keras 3: trained in a compiled loop on TensorFlow, or by the tutorial's `model.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from projgrad.keras import ProjectedOptimizer, violations


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(500, activation="relu", name="hidden"),
            keras.layers.Dense(1, activation="sigmoid", name="output"),
        ]
    )


def by_fit(model: Any, data: Sequence[np.ndarray], chunks: Sequence[int], tick: Callable[[int], object]) -> np.ndarray:
    """`model.fit`, as in the tutorial."""
    train_x, train_y, *test = data
    progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tick(1))
    history = model.fit(
        train_x, train_y, validation_data=test, epochs=sum(chunks), verbose=0, callbacks=[progress]
    ).history
    curves = np.stack([history["accuracy"], history["val_accuracy"]], axis=1)[np.cumsum(chunks) - 1]
    curves[-1] = [model.evaluate(*part, verbose=0)[1] for part in ((train_x, train_y), test)]
    return curves


def by_loop(model: Any, data: Sequence[np.ndarray], chunks: Sequence[int], tick: Callable[[int], object]) -> np.ndarray:
    """A compiled loop with the same optimizer, which spares the 40 ms and more that an epoch of `fit` costs."""
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise SystemExit("the compiled loop is for KERAS_BACKEND=tensorflow; on other backends, add --fit")
    train_x, train_y, test_x, test_y = map(tf.constant, data)
    model.optimizer.build(model.trainable_variables)  # no variable can be made in a tf.function

    @tf.function(jit_compile=True)
    def advance(epochs):
        for _ in tf.range(epochs):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(keras.losses.binary_crossentropy(train_y, model(train_x, training=True)))
            gradients = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply(gradients, model.trainable_variables)

    curve = []
    for epochs in chunks:
        advance(tf.constant(epochs))
        parts = ((train_x, train_y), (test_x, test_y))
        curve.append([np.mean((model(x).numpy() > 0.5) == (y.numpy() > 0.5)) for x, y in parts])
        tick(epochs)
    return np.array(curve)


def train(
    data: Sequence[np.ndarray],
    rules: dict,
    seeds: int,
    chunks: Sequence[int],
    tick: Callable[[int], object],
    metric: str = "euclidean",
    fit: bool = False,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], float]]:
    """Train once per seed; yield the accuracies after every chunk of epochs, the final norms and the violation."""
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = network()
        optimizer = keras.optimizers.Adam()
        if rules:  # such as {"hidden/kernel": pg.UnitNorm()}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model, metric=metric)
        model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])

        curve = (by_fit if fit else by_loop)(model, data, chunks, tick)

        kernel, bias = model.get_layer("hidden").get_weights()
        norms = {
            "hidden": np.linalg.norm(kernel, axis=0),
            "output": np.linalg.norm(model.get_layer("output").get_weights()[0], axis=0),
            "hidden bias": np.linalg.norm(bias, axis=0, keepdims=True),
        }
        yield curve, norms, max(violations(model, rules).values(), default=0.0)
