"""Options of tags, schedules and joint sets on Keras, on each of its backends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from projgrad.keras import ProjectedOptimizer, constrain, project_params, violations
from tests.steppers import same_steps
from tests.test_tags import GRADIENT, START, expected


@pytest.mark.parametrize("accumulate", [None, 2])
def test_keras_counts_steps_not_calls(accumulate: int | None) -> None:
    v = keras.Variable(START["w"], name="w")
    inner = keras.optimizers.SGD(1.0, gradient_accumulation_steps=accumulate)
    optimizer = ProjectedOptimizer(inner, {"w": pg.MaxNorm(1.0, axis=1, rate=0.5).every(2)})
    optimizer.build([v])
    wanted = expected(4, w=(pg.MaxNorm(1.0, axis=1, rate=0.5), 2))
    for n in range(1, 5):
        for _ in range(accumulate or 1):
            optimizer.apply([keras.ops.convert_to_tensor(GRADIENT["w"])])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(v), wanted[n]["w"], rtol=1e-5)


def test_keras_fits_saves_and_loads_tags(tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")])
    tags: Any = {"out/kernel": pg.MaxNorm(pg.Schedule({0: 1.0, 4: 0.1})).every(2), "out/bias": pg.NonNeg()}
    for rules, given in ((tags, model), ({"out/bias": pg.NonNeg().every(3)}, None)):
        optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), rules, model=given)
        again = ProjectedOptimizer.from_config(json.loads(json.dumps(optimizer.get_config())))
        for each in (optimizer, again):
            each.build(model.trainable_variables)
        assert again.plan == optimizer.plan
    model.compile(optimizer=ProjectedOptimizer(keras.optimizers.SGD(1.0), tags, model=model), loss="mse")
    x, y = np.ones((4, 3)), np.full((4, 2), 9.0)
    for _ in range(3):
        model.train_on_batch(x, y)
    assert violations(model, tags, step=3)["out/kernel"] > 0.1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.plan == model.optimizer.plan
    loaded.train_on_batch(x, y)
    assert violations(loaded, tags, step=4)["out/kernel"] < 1e-6
    loaded.fit(x, y, epochs=1, verbose=0, batch_size=4)  # which ends in the set
    assert violations(loaded, tags, step=5)["out/kernel"] < 1e-6
    with pytest.raises(ValueError, match="changes with the step"):
        project_params(loaded, tags)


def test_layers_take_no_options() -> None:
    layer = keras.layers.Dense(2)
    constrain(layer, kernel=pg.Tag(pg.UnitNorm()))
    assert layer.kernel_constraint == pg.UnitNorm(axis=0)
    with pytest.raises(ValueError, match="give them as a rule"):
        constrain(layer, kernel=pg.UnitNorm().every(2))


def test_a_keras_layer_is_saved_with_its_joint_set(tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(1)])
    rules: Any = {"hidden/*": pg.Joint(pg.MaxNorm(0.5))}
    model.compile(optimizer=ProjectedOptimizer(keras.optimizers.SGD(1.0), rules, model=model), loss="mse")
    x, y = np.ones((4, 3)), np.full((4, 1), 9.0)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.plan == model.optimizer.plan
    loaded.train_on_batch(x, y)
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in loaded.layers[0].weights)
    norms = np.sqrt((kernel**2).sum(0) + bias**2)
    assert norms.max() == pytest.approx(0.5, rel=1e-6)
    assert violations(loaded, rules)["hidden/kernel + hidden/bias"] < 1e-6


def test_options_work_together():
    ball = pg.MaxNorm(pg.Schedule({0: 1.0, 4: 0.5}), axis=1, rate=0.5)
    x, found = START["w"].astype("float64"), []
    for n in range(6):
        x = x - (GRADIENT["w"] if n else 0.0)
        x = ball.at(n).project(x) if n % 2 == 0 else x
        found.append({"w": x})
    same_steps("keras", {"w": ball.every(2)}, {"w": START["w"]}, {"w": GRADIENT["w"]}, found)
