"""Constraints in a bare TensorFlow training loop."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg

tf = pytest.importorskip("tensorflow")

from projgrad.rules import resolve
from projgrad.tensorflow import project_params, violations


class Layer(tf.Module):  # type: ignore[name-defined]
    def __init__(self, n, m):
        super().__init__()
        self.w = tf.Variable(np.full((n, m), 2.0, dtype="float32"))
        self._b = tf.Variable(-np.ones(m, dtype="float32"))
        self.steps = tf.Variable(0, trainable=False)


class Network(tf.Module):  # type: ignore[name-defined]
    def __init__(self):
        super().__init__()
        self.layers = [Layer(3, 4), Layer(4, 2)]
        self.heads = {"a": Layer(2, 2)}
        self.itself = self

    def __call__(self, x):
        for layer in self.layers:
            x = tf.nn.relu(x @ layer.w + layer._b)
        return x


def norms(variable):
    return np.linalg.norm(variable.numpy().astype("float64"), axis=0)


def test_the_variables_of_a_module_are_named_by_attribute_path():
    found = violations(Network(), {"*": pg.Box(-9, 9)})
    expected = {f"{part}/{name}" for part in ("layers/0", "layers/1", "heads/a") for name in ("w", "_b")}
    assert set(found) == expected


def test_project_params_writes_in_place():
    network = Network()
    project_params(network, {"layers/*/w": pg.UnitNorm(axis=0), "*_b": pg.NonNeg(), "heads/*": None})
    np.testing.assert_allclose(norms(network.layers[0].w), 1, atol=1e-6)
    assert np.all(network.layers[1]._b.numpy() == 0)
    assert np.all(network.heads["a"]._b.numpy() == -1)


@pytest.mark.parametrize("jit", [False, True])
def test_a_compiled_step_stays_on_the_set_and_resolves_names_once(jit, monkeypatch):
    from projgrad_backends.tensorflow import params

    calls = []

    def counted(*given):
        calls.append(1)
        return resolve(*given)

    monkeypatch.setattr(params, "resolve", counted)
    network = Network()
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 3)), tf.float32)

    @tf.function(jit_compile=jit)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((network(x) - 1.0) ** 2)
        variables = [layer.w for layer in network.layers]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.01 * gradient)
        project_params(network, {"layers/*/w": pg.UnitNorm(axis=0)})

    for _ in range(5):
        step()
    assert calls == [1]
    for layer in network.layers:
        np.testing.assert_allclose(norms(layer.w), 1, atol=1e-6)


def test_a_list_of_variables_has_their_names():
    a, b = tf.Variable([3.0, 4.0], name="a"), tf.Variable([3.0, 4.0], name="b")
    project_params([a, b], {"a": pg.MaxNorm(1.0, axis=0)})
    np.testing.assert_allclose(a.numpy(), [0.6, 0.8], atol=1e-6)
    assert b.numpy().tolist() == [3.0, 4.0]


def test_a_mapping_has_its_own_names():
    variables = {"first": tf.Variable([3.0, 4.0]), "second": tf.Variable([3.0, 4.0])}
    assert violations(variables, {"*": pg.MaxNorm(1.0, axis=0)}) == {"first": 4.0, "second": 4.0}


def test_equal_names_count_as_one():
    variables = [tf.Variable([3.0, 4.0]), tf.Variable([6.0, 8.0])]
    assert violations(variables, {"Variable": pg.MaxNorm(1.0, axis=0)}) == {"Variable": 9.0}


def test_tied_variables_are_one_parameter():
    network = Network()
    network.tied = network.layers[0].w
    rules = {"layers/0/w": pg.UnitNorm(axis=0)}
    project_params(network, rules)
    np.testing.assert_allclose(norms(network.tied), 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"tied: layers/0/w, tied"):
        project_params(network, {**rules, "tied": pg.UnitNorm(axis=1)})


def test_incoming_asks_for_axes():
    with pytest.raises(ValueError, match="give the axes as numbers"):
        project_params(Network(), {"*/w": pg.UnitNorm()})


def test_a_rule_that_selects_nothing_changes_nothing():
    network = Network()
    with pytest.raises(ValueError, match=r"selects no parameter.*layers/0/w"):
        project_params(network, {"*/w": pg.UnitNorm(axis=0), "layer/0/w": pg.NonNeg()})
    assert np.all(network.layers[0].w.numpy() == 2)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        project_params({"n": tf.Variable(1)}, {"n": pg.NonNeg()})


@pytest.mark.parametrize("thing", [tf.Variable(1.0), "w", 3, [np.ones(2)], {"w": tf.ones(2)}])
def test_other_things_are_refused(thing):
    with pytest.raises(TypeError, match=r"tf\.Variable"):
        project_params(thing, {"*": pg.NonNeg()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_every_dtype(dtype):
    w = tf.Variable(tf.cast(np.full((4, 2), 3.0), dtype), name="w")
    project_params([w], {"w": pg.MaxNorm(2.0, axis=0)})
    assert w.dtype == dtype
    assert violations([w], {"w": pg.MaxNorm(2.0, axis=0)})["w"] <= pg.tolerance(dtype, 4, 2.0)


def test_violations_in_numbers():
    found = violations({"w": tf.Variable([[3.0, 0.0], [4.0, 1.0]])}, {"w": pg.UnitNorm(axis=0)})
    assert found == {"w": 4.0}
    assert type(found["w"]) is float
    assert np.isnan(violations({"w": tf.Variable([1.0, np.nan])}, {"w": pg.NonNeg()})["w"])
    assert violations({"w": tf.Variable(tf.zeros((0, 2)))}, {"w": pg.UnitNorm(axis=0)}) == {"w": 0.0}


def test_gradients_of_a_tape_are_not_disturbed():
    w = tf.Variable([[3.0], [4.0]], name="w")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w)
        project_params([w], {"w": pg.UnitNorm(axis=0)})
    np.testing.assert_array_equal(tape.gradient(loss, w).numpy(), [[1.0], [1.0]])
