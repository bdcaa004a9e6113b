"""The network of `morphology.py` in Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product
from typing import Any

import keras
import numpy as np

from projgrad.keras import ProjectedOptimizer, violations

SPATIAL = (0, 1)  # of kernels of shape (height, width, 1, filters)
KERNEL = "dilation/kernel"


class Dilation(keras.layers.Layer):
    """Largest sum of image and kernel over each window."""

    def __init__(self, filters: int, size: int, **options: Any) -> None:
        super().__init__(**options)
        self.filters, self.size = filters, size

    def build(self, shape: tuple) -> None:
        self.kernel = self.add_weight((self.size, self.size, 1, self.filters), "zeros", name="kernel")

    def call(self, images: Any) -> Any:
        height, width = (n - self.size + 1 for n in images.shape[1:3])
        windows = product(range(self.size), repeat=2)
        sums = (images[:, y : y + height, x : x + width] + self.kernel[y, x] for y, x in windows)
        return reduce(keras.ops.maximum, sums)


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            Dilation(8, 5, name="dilation"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def train(
    data: list[np.ndarray], rules: dict, seeds: int, epochs: int, tick: Callable[[int], object]
) -> Iterator[tuple[list[float], np.ndarray, np.ndarray, np.ndarray, float]]:
    """Train once per seed; yield the accuracies, kernels, dilated images, digits found, and the violation."""
    train_x, train_y, test_x, test_y = data
    train_x, test_x = train_x[..., None], test_x[..., None]
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = network()
        optimizer = keras.optimizers.Adam(0.01)
        if rules:  # such as {"dilation/kernel": pg.NonNeg()}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model)
        model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [
            keras.callbacks.EarlyStopping(monitor="loss", patience=10, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(patience=3, factor=0.5),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tick(1)),
        ]
        batches = {"batch_size": 128, "validation_batch_size": 497}  # which divide the images
        history = model.fit(
            train_x, train_y, validation_data=(test_x, test_y), epochs=epochs, verbose=0, callbacks=callbacks, **batches
        )
        curve = history.history["val_accuracy"]
        tick(epochs - len(curve))

        layer = model.get_layer("dilation")
        kernels = np.moveaxis(np.asarray(layer.kernel)[:, :, 0], -1, 0)
        dilated = keras.Sequential([keras.Input((28, 28, 1)), layer]).predict(test_x, batch_size=497, verbose=0)
        found = model.predict(test_x, batch_size=497, verbose=0).argmax(1)
        violation = max(violations(model, rules).values(), default=0.0)
        yield curve, kernels, np.moveaxis(dilated, -1, 1), found, violation
