"""Names, rules, tags and errors of the Keras door."""

from __future__ import annotations

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import layers

from projgrad.keras import ProjectedOptimizer, constrain, project_params, violations


def network(name="net"):
    parts = [layers.Dense(4, name="hidden"), layers.BatchNormalization(name="bn"), layers.Dense(2, name="out")]
    return keras.Sequential([keras.Input((3,)), *parts], name=name)


def wrap(rules, model=None, optimizer=None):
    return ProjectedOptimizer(optimizer or keras.optimizers.SGD(), rules, model=model)


def planned(rules, model):
    return {e.name: e.constraint for e in wrap(rules, model).plan}


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x))


def test_names_leave_out_the_model_and_patterns_may_have_it():
    model = network()
    assert set(planned({"*/kernel": pg.NonNeg()}, model)) == {"hidden/kernel", "out/kernel"}
    assert set(planned({"net/hidden/kernel": pg.NonNeg()}, model)) == {"hidden/kernel"}
    assert set(planned({"hidden/kernel": pg.NonNeg()}, model)) == {"hidden/kernel"}


def test_without_a_model_the_names_are_the_same():
    model = network()
    for pattern in ("hidden/kernel", "net/hidden/kernel"):
        optimizer = wrap({pattern: pg.NonNeg()})
        optimizer.build(model.trainable_variables)
        assert [e.name for e in optimizer.plan] == ["hidden/kernel"]


def test_the_last_rule_wins_and_none_leaves_free():
    rules = {"*kernel": pg.NonNeg(), "out/*": None, "hidden/kernel": pg.UnitNorm(axis=0)}
    assert planned(rules, network()) == {"hidden/kernel": pg.UnitNorm(axis=0)}


def test_rules_by_layer_class():
    found = planned({layers.Dense: {"kernel": pg.MaxNorm(3.0), "bias": pg.NonNeg()}}, network())
    assert found["hidden/kernel"] == pg.MaxNorm(3.0, axis=0)
    assert set(found) == {"hidden/kernel", "hidden/bias", "out/kernel", "out/bias"}


def test_an_rnn_layer_stands_for_its_cell():
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")(inputs))
    found = planned({layers.LSTM: {"recurrent_kernel": pg.UnitNorm()}}, model)
    assert found == {f"both/{d}_lstm/lstm_cell/recurrent_kernel": pg.UnitNorm(axis=0) for d in ("forward", "backward")}


def test_statistics_are_no_parameters():
    model = network()
    optimizer = wrap({"*": pg.Box(-9, 9)}, model)
    assert not any("moving" in e.name for e in optimizer.plan)
    optimizer.build(model.trainable_variables)


def test_with_a_built_model_errors_come_at_once():
    with pytest.raises(ValueError, match=r"selects no parameter.*hidden/kernel"):
        wrap({"hiden/kernel": pg.NonNeg()}, network())


def test_with_an_unbuilt_model_the_rules_wait_for_it():
    model = keras.Sequential([layers.Dense(4, name="hidden"), layers.Dense(2, name="out")])
    optimizer = wrap({"hidden/kernel": pg.UnitNorm()}, model)
    with pytest.raises(ValueError, match="when the optimizer is built"):
        _ = optimizer.plan
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert [e.constraint for e in optimizer.plan] == [pg.UnitNorm(axis=0)]
    np.testing.assert_allclose(np.linalg.norm(array(model.layers[0].kernel), axis=0), 1, atol=1e-6)


def test_an_error_at_build_changes_nothing():
    model = network()
    model.layers[0].kernel.assign(np.full((3, 4), 5.0))
    optimizer = wrap({"hidden/kernel": pg.UnitNorm(axis=0), "nowhere": pg.NonNeg()})
    with pytest.raises(ValueError, match="selects no parameter"):
        optimizer.build(model.trainable_variables)
    assert not optimizer.built
    assert not optimizer.inner.built
    assert np.all(array(model.layers[0].kernel) == 5)


def test_incoming_without_a_model_asks_for_it():
    with pytest.raises(ValueError, match="pass model="):
        wrap({"*kernel": pg.UnitNorm()}).build(network().trainable_variables)


@pytest.mark.parametrize(("pattern", "words"), [("hidden/bias", "a bias has no incoming"), ("bn/gamma", "None rule")])
def test_incoming_of_a_parameter_that_has_none(pattern, words):
    with pytest.raises(ValueError, match=words):
        wrap({pattern: pg.UnitNorm()}, network())


def test_a_frozen_weight_that_is_constrained():
    model = network()
    model.layers[0].trainable = False
    optimizer = wrap({"*kernel": pg.UnitNorm()}, model)
    with pytest.raises(ValueError, match=r'does not train them.*"hidden/kernel": None'):
        optimizer.build(model.trainable_variables)
    wrap({"*kernel": pg.UnitNorm(), "hidden/*": None}, model).build(model.trainable_variables)


def test_weights_of_integers():
    count = keras.Variable(np.zeros(2, dtype="int32"), trainable=False, name="n")
    with pytest.raises(TypeError, match="floating-point"):
        project_params([count], {"n": pg.NonNeg()})


def test_an_axis_that_does_not_exist():
    with pytest.raises(ValueError, match="axis 2 does not exist"):
        wrap({"hidden/kernel": pg.UnitNorm(axis=2)}, network())


@pytest.mark.parametrize("rules", [[pg.NonNeg()], {layers.Dense: pg.NonNeg()}, {"*": pg.NonNeg}, {3: pg.NonNeg()}])
def test_what_is_no_rule_is_an_error_at_once_even_if_the_model_is_not_built(rules):
    with pytest.raises(TypeError):
        wrap(rules, layers.Dense(2))


def test_rules_by_layer_class_need_the_model():
    with pytest.raises(ValueError, match=r"\(Dense\) need the model"):
        wrap({layers.Dense: {"kernel": pg.NonNeg()}})


@pytest.mark.parametrize("thing", ["adam", keras.optimizers.SGD, None, object()])
def test_what_is_no_keras_optimizer(thing):
    with pytest.raises(TypeError, match=r"wraps a keras\.optimizers\.Optimizer"):
        ProjectedOptimizer(thing, {"*": pg.NonNeg()})


def test_wrapping_twice():
    once = wrap({"*": pg.NonNeg()})
    for again in (once, keras.optimizers.LossScaleOptimizer(once)):
        with pytest.raises(ValueError, match="is a ProjectedOptimizer already"):
            ProjectedOptimizer(again, {"*": pg.NonNeg()})


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match="model is a Keras model"):
        wrap({"*": pg.NonNeg()}, model="net")


def test_the_wrapper_finds_the_tags():
    model = network()
    constrain(model.layers[0], kernel=pg.MaxNorm(1.0))
    for optimizer in (wrap(None, model), wrap(None)):
        optimizer.build(model.trainable_variables)
        assert {e.name: e.constraint for e in optimizer.plan} == {"hidden/kernel": pg.MaxNorm(1.0, axis=0)}


def test_a_tag_with_incoming_axes_is_resolved_by_the_wrapper():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, kernel_constraint=pg.UnitNorm(), name="hidden")])
    model.compile(optimizer=wrap(None, model), loss="mse")
    model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
    assert model.layers[0].kernel.constraint == pg.UnitNorm(axis=0)
    np.testing.assert_allclose(np.linalg.norm(array(model.layers[0].kernel), axis=0), 1, atol=1e-6)


def test_a_rule_and_a_tag_that_disagree():
    model = network()
    constrain(model.layers[0], kernel=pg.MaxNorm(1.0))
    with pytest.raises(ValueError, match="the tag on its layer"):
        wrap({"hidden/kernel": pg.MaxNorm(2.0)}, model)
    wrap({"hidden/kernel": pg.MaxNorm(1.0)}, model)


def test_tied_weights_are_one_parameter_with_two_uses():
    class Decoder(layers.Layer):
        def __init__(self, embedding):
            super().__init__()
            self.embedding_weights = embedding.embeddings

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.embedding_weights))

    embedding = layers.Embedding(5, 3, name="tokens")
    embedding.build()
    model = keras.Sequential([keras.Input((2,), dtype="int32"), embedding, Decoder(embedding)])
    assert len(planned({"*embeddings": pg.UnitNorm(axis=1)}, model)) == 1
    with pytest.raises(ValueError, match=r"tied.*asks for"):
        wrap({layers.Embedding: {"*": pg.UnitNorm(axis=1)}, Decoder: {"*": pg.UnitNorm(axis=0)}}, model)


def test_project_params_and_violations():
    model = network()
    model.layers[0].kernel.assign(np.full((3, 4), 5.0))
    rules = {"hidden/kernel": pg.UnitNorm(), "out/bias": pg.NonNeg()}
    before = violations(model, rules)
    assert before == {"hidden/kernel": pytest.approx(5 * np.sqrt(3) - 1, rel=1e-6), "out/bias": 0.0}
    assert all(type(v) is float for v in before.values())
    project_params(model, rules)
    assert violations(model, rules)["hidden/kernel"] <= pg.tolerance("float32", 3, 1.0)


def test_project_params_by_tags_alone():
    model = network()
    constrain(model.layers[0], kernel=pg.UnitNorm())
    project_params(model)
    assert list(violations(model)) == ["hidden/kernel"]
    np.testing.assert_allclose(np.linalg.norm(array(model.layers[0].kernel), axis=0), 1, atol=1e-6)


def test_project_params_of_an_unbuilt_model():
    with pytest.raises(ValueError, match="is not built"):
        project_params(layers.Dense(3), {"*": pg.NonNeg()})
    with pytest.raises(TypeError, match="Keras model"):
        project_params(3, {"*": pg.NonNeg()})


def test_a_constraint_of_keras_can_be_a_rule():
    model = network()
    model.layers[0].kernel.assign(-np.ones((3, 4)))
    project_params(model, {"hidden/kernel": keras.constraints.NonNeg()})
    assert np.all(array(model.layers[0].kernel) == 0)


@pytest.mark.parametrize("own", [keras.constraints.NonNeg(), abs])
def test_a_constraint_of_keras_on_the_layer_and_a_rule(own):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_constraint=own, name="d")])
    kernel = array(model.layers[0].kernel)
    with pytest.raises(ValueError, match="d/kernel: its layer has the constraint (NonNeg|abs), which would not hold"):
        wrap({"d/kernel": pg.ZeroMean(axis=0)}, model)
    late = wrap({"d/kernel": pg.ZeroMean(axis=0)})
    with pytest.raises(ValueError, match="would not hold after the projection to ZeroMean"):
        late.build(model.trainable_variables)
    np.testing.assert_array_equal(array(model.layers[0].kernel), kernel)
    assert violations(model, {"d/kernel": pg.ZeroMean(axis=0)})["d/kernel"] > 0
    wrap({"d/bias": pg.NonNeg()}, model).build(model.trainable_variables)


def test_a_model_without_tags_needs_rules():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="nothing is tagged"):
        ProjectedOptimizer(keras.optimizers.SGD(), model=model)


def test_a_function_that_fails_changes_nothing():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    before = [np.array(keras.ops.convert_to_numpy(w)) for w in model.weights]

    def fails(w):
        return w[:1]

    with pytest.raises(ValueError, match="shape"):
        project_params(model, {"*/kernel": pg.MaxNorm(0.01), "*/bias": fails})
    for w, b in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(w), b)
