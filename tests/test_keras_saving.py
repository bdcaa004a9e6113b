"""Saving and loading models that projgrad constrains."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import layers

from projgrad.keras import ProjectedOptimizer, constrain, violations

once = pytest.mark.skipif("PROJGRAD_NESTED" in os.environ, reason="the same on every backend")
X, Y = np.random.default_rng(0).normal(size=(16, 3)), np.ones((16, 2))


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x))


def network(optimizer=None, hidden="hidden", **options):
    parts = [layers.Dense(4, name=hidden, **options), layers.Dense(2, name="out")]
    model = keras.Sequential([keras.Input((3,)), *parts], name="net")
    if optimizer is not None:
        model.compile(optimizer=optimizer, loss="mse")
    return model


def trained(rules, **options):
    model = network(**options)
    model.compile(optimizer=ProjectedOptimizer(keras.optimizers.Adam(0.1), rules, model=model), loss="mse")
    model.fit(X, Y, verbose=0)
    return model


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout.strip(), done.stderr


def test_a_loaded_model_is_constrained_and_trains_on(tmp_path):
    rules = {layers.Dense: {"kernel": pg.UnitNorm()}, "*bias": pg.Box(-float("inf"), 0.01), "out/bias": None}
    model = trained(rules)
    loaded = reloaded(model, tmp_path)
    assert loaded.optimizer.plan == model.optimizer.plan
    assert len(loaded.optimizer.plan) == 3
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b))
    for m in (model, loaded):
        m.fit(X, Y, verbose=0, shuffle=False)
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=1e-6)
    assert max(violations(loaded, {"*kernel": pg.UnitNorm()}).values()) < 1e-6


def test_the_state_of_the_inner_optimizer_is_saved_once(tmp_path):
    import zipfile

    sizes = []
    for wrap in (False, True):
        optimizer = keras.optimizers.Adam()
        model = keras.Sequential([keras.Input((300,)), layers.Dense(300, name="out")])
        model.compile(
            optimizer=ProjectedOptimizer(optimizer, {"*kernel": pg.NonNeg()}) if wrap else optimizer, loss="mse"
        )
        model.optimizer.build(model.trainable_variables)
        model.save(tmp_path / "model.keras")
        with zipfile.ZipFile(tmp_path / "model.keras") as file:
            sizes.append(file.getinfo("model.weights.h5").file_size)
    assert sizes[1] < 1.1 * sizes[0]


def test_a_model_loads_in_a_process_that_only_imports_the_door(tmp_path):
    model = trained({"*kernel": pg.UnitNorm()}, bias_constraint=pg.MinMaxNorm(0.5, float("inf"), axis=0))
    model.save(tmp_path / "model.keras")
    code = f"""
import numpy as np, projgrad.keras, keras
model = keras.models.load_model({str(tmp_path / "model.keras")!r})
model.fit(np.ones((4, 3)), np.zeros((4, 2)), verbose=0)
norms = [np.linalg.norm(keras.ops.convert_to_numpy(w), axis=0) for w in model.weights if w.name == "kernel"]
print(type(model.layers[0].bias_constraint).__module__, max(abs(n - 1).max() for n in norms) < 1e-6)
"""
    _, out, err = fresh(code)
    assert out == "projgrad.sets.norms True", err


@once
@pytest.mark.parametrize("first", ["keras", "projgrad"])
def test_without_the_door_the_class_of_keras_is_never_loaded_instead(tmp_path, first):
    network(kernel_constraint=pg.MinMaxNorm(0.5, 1.0, axis=0)).save(tmp_path / "model.keras")
    second = {"keras": "projgrad", "projgrad": "keras"}[first]
    code = f"""
import {first}, {second}
model = keras.models.load_model({str(tmp_path / "model.keras")!r})
print(repr(model.layers[0].kernel_constraint))
"""
    status, out, err = fresh(code)
    assert status != 0, out
    assert "import projgrad.keras before loading" in err


@once
def test_in_one_process_importing_projgrad_is_enough(tmp_path):
    code = f"""
import projgrad as pg, keras, numpy as np
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_constraint=pg.MinMaxNorm(1.0, 1.0, axis=0))])
model.compile(optimizer="adam", loss="mse")
model.fit(np.ones((4, 3)), np.zeros((4, 2)), verbose=0)
model.save({str(tmp_path / "model.keras")!r})
print(repr(keras.models.load_model({str(tmp_path / "model.keras")!r}).layers[0].kernel_constraint))
"""
    _, out, err = fresh(code)
    assert out.startswith("MinMaxNorm(min_value=1.0"), err


@pytest.mark.parametrize(
    "constraint",
    [
        pg.MaxNorm(3.0, axis=0),
        pg.UnitNorm(axis=(0, 1), rate=0.5),
        pg.MinMaxNorm(0.5, float("inf"), axis=-1),
        pg.NonNeg(),
        pg.NonPos(rate=0.5),
        pg.Box(-float("inf"), [[1.0, 2.0, 3.0, 4.0]]),
    ],
    ids=lambda c: type(c).__name__,
)
def test_constraints_on_layers_are_saved(constraint, tmp_path):
    model = network(keras.optimizers.SGD(0.1), kernel_constraint=constraint)
    loaded = reloaded(model, tmp_path)
    assert loaded.layers[0].kernel_constraint == constraint
    assert loaded.layers[0].kernel.constraint == constraint
    cloned = keras.models.clone_model(model)
    assert cloned.layers[0].kernel_constraint == constraint


def test_what_constrain_sets_is_saved(tmp_path):
    model = network()
    constrain(model.layers[0], kernel=pg.UnitNorm())
    assert reloaded(model, tmp_path).layers[0].kernel.constraint == pg.UnitNorm(axis=0)
    rnn = keras.Sequential([keras.Input((4, 3)), layers.Bidirectional(layers.GRU(2))])
    constrain(rnn.layers[0], recurrent_kernel=pg.UnitNorm())
    loaded = reloaded(rnn, tmp_path)
    assert len(violations(loaded)) == 2


def test_a_users_constraint_is_saved(tmp_path):
    from dataclasses import dataclass

    from projgrad.registry import _registered

    @pg.register("tests.Halves")
    @dataclass(frozen=True)
    class Halves(pg.Constraint):
        def solve(self, x, xp, metric=None):
            return pg.Clip(-0.5, 0.5)

    try:
        model = trained({"out/kernel": Halves()}, kernel_constraint=Halves())
        loaded = reloaded(model, tmp_path)
        assert loaded.layers[0].kernel_constraint == Halves()
        assert loaded.optimizer.plan == model.optimizer.plan
    finally:
        del _registered["tests.Halves"]


def test_a_constraint_of_keras_in_the_rules_is_saved(tmp_path):
    loaded = reloaded(trained({"hidden/kernel": keras.constraints.MaxNorm(0.1, axis=0)}), tmp_path)
    loaded.fit(X, Y, verbose=0)
    assert np.linalg.norm(array(loaded.layers[0].kernel), axis=0).max() < 0.1 + 1e-6


def test_an_unregistered_function_is_refused_when_saving(tmp_path):
    model = trained({"hidden/kernel": lambda w: w})
    with pytest.raises(ValueError, match=r"projgrad\.register"):
        model.save(tmp_path / "model.keras")


def test_rules_that_are_not_resolved_yet_are_saved(tmp_path):
    model = network(ProjectedOptimizer(keras.optimizers.SGD(), {"*kernel": pg.UnitNorm(axis=0), "out/*": None}))
    loaded = reloaded(model, tmp_path)
    assert [e.name for e in loaded.optimizer.plan] == ["hidden/kernel"]


def test_a_plan_that_waits_for_a_model_cannot_be_saved():
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(), {"kernel": pg.NonNeg()}, model=layers.Dense(2))
    with pytest.raises(ValueError, match="not built"):
        optimizer.get_config()


def test_the_config_is_plain_and_comes_back():
    import json

    model = network()
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.5), {"*kernel": pg.UnitNorm()}, model=model, name="mine")
    config = json.loads(json.dumps(optimizer.get_config()))
    again = ProjectedOptimizer.from_config(config)
    assert again.name == "mine"
    assert again.get_config() == config
    again.build(model.trainable_variables)
    assert again.plan == optimizer.plan
    assert float(again.learning_rate) == 0.5


def test_special_characters_in_names_are_no_patterns(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a[1]*?"), layers.Dense(2, name="a1xx")])
    model.compile(
        optimizer=ProjectedOptimizer(keras.optimizers.SGD(), {"*kernel": pg.UnitNorm(), "a1xx/*": None}, model=model)
    )
    model.optimizer.build(model.trainable_variables)
    loaded = reloaded(model, tmp_path)
    assert [e.name for e in loaded.optimizer.plan] == ["a[1]*?/kernel"]
    loaded.layers[0].kernel.assign(np.full((3, 4), 9.0))
    loaded.optimizer.apply([keras.ops.zeros(v.shape) for v in loaded.trainable_variables])
    np.testing.assert_allclose(np.linalg.norm(array(loaded.layers[0].kernel), axis=0), 1, atol=1e-6)


def test_layers_that_keras_numbers_anew_are_found_by_their_order():
    model = network(hidden="dense_7")
    config = ProjectedOptimizer(keras.optimizers.SGD(), {"dense_7/kernel": pg.UnitNorm()}, model=model).get_config()
    again, other = ProjectedOptimizer.from_config(config), network(hidden="dense")
    again.build(other.trainable_variables)
    again.inner.learning_rate = 0.0
    np.testing.assert_allclose(np.linalg.norm(array(other.layers[0].kernel), axis=0), 1, atol=1e-6)


def test_a_plan_of_another_model_is_refused():
    config = ProjectedOptimizer(keras.optimizers.SGD(), {"*kernel": pg.UnitNorm()}, model=network()).get_config()
    again = ProjectedOptimizer.from_config(config)
    with pytest.raises(ValueError, match="wrap the optimizer anew"):
        again.build(network().trainable_variables[:2])
