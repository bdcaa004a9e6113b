"""A run of Keras that is resumed goes on bit for bit as if it had not stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import optimizers

from projgrad.keras import ProjectedOptimizer
from tests.integrations.keras_runs import RULES, X, Y, array, network, same, train
from tests.integrations.processes import killed

BACKEND = keras.backend.backend()
STEPS = 10
CASES: dict[str, Any] = {
    "every, schedule, rate": (RULES, lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 5, 0.9))),
    "averages": (
        RULES,
        lambda: optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=5),
    ),
    "metric, tangent": (
        {
            "hidden/kernel": pg.Tag(pg.SumTo(1.0, axis=0), every=3, metric="optimizer"),
            "out/kernel": pg.Tag(pg.UnitNorm(axis=0), tangent="update"),
        },
        lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.1)),
    ),
}


def run(case: str, seed: int = 0) -> Any:
    """A compiled model; another seed gives other weights, which a checkpoint replaces."""
    rules, make = CASES[case]
    model = network(seed)
    model.compile(ProjectedOptimizer(make(), rules, model=model), "mse", run_eagerly=BACKEND != "jax")
    return model


def built(model: Any) -> Any:
    model.optimizer.build(model.trainable_variables)
    return model


def by_model_file(model: Any, again: Callable[[], Any], folder: Path) -> Any:
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def by_weights_file(model: Any, again: Callable[[], Any], folder: Path) -> Any:
    model.save_weights(folder / "model.weights.h5")
    other = built(again())
    other.load_weights(folder / "model.weights.h5")
    return other


def checkpoint(model: Any) -> Any:
    import tensorflow as tf

    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def by_checkpoint(model: Any, again: Callable[[], Any], folder: Path) -> Any:
    other = built(again())
    checkpoint(other).restore(checkpoint(model).save(str(folder / "checkpoint"))).assert_consumed()
    return other


def by_checkpoint_before_the_first_step(model: Any, again: Callable[[], Any], folder: Path) -> Any:
    """TensorFlow keeps the values until the optimizer makes its variables."""
    other = again()
    checkpoint(other).restore(checkpoint(model).save(str(folder / "checkpoint")))
    return other


WAYS = [by_model_file, by_weights_file]
if BACKEND == "tensorflow":
    WAYS += [by_checkpoint, by_checkpoint_before_the_first_step]


@pytest.mark.parametrize(
    "case", [name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CASES)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_goes_on_bit_for_bit(way: Any, case: str, tmp_path: Path) -> None:
    whole = train(run(case), STEPS)
    stopped = train(run(case), 1)
    for stop in (4, 7, STEPS):
        stopped = train(way(stopped, lambda: run(case, seed=1), tmp_path), stop - int(stopped.optimizer.iterations))
        assert int(stopped.optimizer.iterations) == stop
    assert same(stopped, whole)
    for a, b in zip(stopped.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b))


def test_a_state_without_steps_is_projected() -> None:
    """Also where the inner optimizer was built before, as for a training that begins without constraints."""
    model, rules = network(), {"*kernel": pg.MaxNorm(0.3, axis=0)}
    inner = optimizers.Adam(0.1)
    model.compile(inner, "mse", run_eagerly=BACKEND != "jax")
    train(model, 2)
    ProjectedOptimizer(inner, rules, model=model).build(model.trainable_variables)
    assert np.linalg.norm(array(model.layers[0].kernel), axis=0).max() < 0.3 + 1e-6


# -- interrupted and killed ---------------------------------------------------------------------------------------

KILLED, EPOCHS = "every, schedule, rate", 12


Callback: Any = keras.callbacks.Callback


class Slowly(Callback):
    """Notes that a backup was made, and gives time to kill the run before the next, which Keras writes in two parts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(0.2)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._file.write_text(str(epoch))


class Interrupt(Callback):
    """Stops a run after an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 2:
            raise InterruptedError


def fit(model: Any, *callbacks: Any, epochs: int = EPOCHS) -> Any:
    model.fit(X, Y, epochs=epochs, batch_size=16, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def test_backup_and_restore(tmp_path: Path) -> None:
    whole = fit(run(KILLED), epochs=5)
    with pytest.raises(InterruptedError):
        fit(run(KILLED), keras.callbacks.BackupAndRestore(tmp_path), Interrupt(), epochs=5)
    assert same(fit(run(KILLED, seed=1), keras.callbacks.BackupAndRestore(tmp_path), epochs=5), whole)


def main(folder: Path) -> None:
    """What a process does that is killed: it goes on where its backup ends."""
    model = run(KILLED, seed=int((folder / "backup").exists()))
    fit(model, keras.callbacks.BackupAndRestore(folder / "backup"), Slowly(folder / "epoch")).save(
        folder / "model.keras"
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integrations.test_keras_resume", str(tmp_path)]
    epoch = tmp_path / "epoch"
    killed(command, lambda: epoch.stat().st_mtime_ns if epoch.exists() else None, patience=200)
    assert same(keras.models.load_model(tmp_path / "model.keras"), fit(run(KILLED)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
