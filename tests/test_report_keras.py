"""What reports show of Keras weights, what the optimizer records for them, and the callback for `fit`."""

from __future__ import annotations

import os

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from projgrad.keras import ProjectedOptimizer, ReportCallback, report
from tests.keras_values import NO_SCALE, array, tensor, variable

BACKEND = keras.backend.backend()
once = pytest.mark.skipif("PROJGRAD_NESTED" in os.environ, reason="the same on every backend")
BALL = {"w": pg.MaxNorm(1.0, axis=0)}
W = np.asarray([[0.6, 0.0], [0.8, 0.5]])
G = np.asarray([[-0.5, -1.0], [0.25, -2.0]])
X, Y = np.random.default_rng(0).normal(size=(16, 3)).astype("float32"), np.ones((16, 2), "float32")


def by_hand(w, g):
    """The weights after a step of SGD and its projection, the largest violation before that, and how far it moved."""
    z = w - g
    norms = np.linalg.norm(z, axis=0)
    y = z / np.maximum(norms, 1)
    return y, norms.max() - 1, np.linalg.norm(y - z)


def network(rules=None, **options):
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(4, name="hidden"), keras.layers.Dense(2, name="out")]
    model = keras.Sequential([keras.Input((3,)), *parts], name="net")
    rules = rules or {"hidden/kernel": pg.UnitNorm()}
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.5), rules, model=model, **options)
    model.compile(optimizer, "mse")
    return model


def fit(model, *callbacks, y=Y, epochs=2):
    model.fit(X, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def eager(optimizer, w):
    return lambda g: optimizer.apply([g], [w])


def compiled(optimizer, w):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(eager(optimizer, w), jit_compile=True)
    step = optimizer.stateless_apply
    if BACKEND == "jax":
        import jax

        step = jax.jit(step)

    def apply(g):
        trained, state = step([v.value for v in optimizer.variables], [g], [w.value])
        for v, value in zip([w, *optimizer.variables], [*trained, *state], strict=True):
            v.assign(value)

    return apply


@pytest.mark.parametrize("how", [eager, compiled])
def test_the_report_says_what_the_last_projection_did(how):
    w, expected = variable(W), W
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), BALL, record=True)
    optimizer.build([w])
    assert optimizer.report()[0].before is None
    apply = how(optimizer, w)
    for _ in range(2):
        apply(tensor(G))
        expected, before, moved = by_hand(expected, G)
        (row,) = optimizer.report()
        np.testing.assert_allclose(array(w), expected, rtol=1e-5)
        np.testing.assert_allclose([row.before, row.moved], [before, moved], rtol=1e-5)
    np.testing.assert_allclose(row.violation, 0, atol=1e-6)
    assert (row.name, row.constraint, row.on_boundary) == ("w", "MaxNorm(max_value=1.0, axis=0)", 1.0)


def test_every_weight_is_listed_the_forgotten_ones_too():
    model = network()
    model.optimizer.build(model.trainable_variables)
    for rows in (report(model, {"hidden/kernel": pg.UnitNorm()}), model.optimizer.report()):
        assert [row.name for row in rows] == ["hidden/kernel", "hidden/bias", "out/kernel", "out/bias"]
        assert [row.constraint for row in rows] == ["UnitNorm(axis=0)", None, None, None]
        assert (rows[0].before, rows[0].groups) == (None, 4)
    norms = np.linalg.norm(array(model.weights[0]), axis=0)
    np.testing.assert_allclose(rows[0].norms, (norms.min(), norms.max()), rtol=1e-6)


def test_what_is_not_due_keeps_its_last_record_and_schedules_know_their_step():
    w, rules = variable(W), {"w": pg.Tag(pg.MaxNorm(pg.Schedule({0: 3.0, 4: 1.0}), axis=0), every=2)}
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), rules, record=True)
    optimizer.build([w])
    apply, seen = compiled(optimizer, w), []
    for _ in range(3):
        outside = array(w) - 2 * G
        apply(tensor(2 * G))
        seen.append(optimizer.report().to_dict()["w"])
    assert seen[0]["before"] is None
    assert seen[1]["before"] == seen[2]["before"] > 0
    np.testing.assert_allclose(seen[2]["violation"], np.linalg.norm(outside, axis=0).max() - 1.5, rtol=1e-5)


def test_a_recording_optimizer_trains_the_same_and_loads_what_another_saved(tmp_path):
    plain, recording = fit(network()), fit(network(record=True))
    for a, b in zip(plain.weights, recording.weights, strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-6)
    assert recording.optimizer.report()[0].before > 0
    for saved, into in ((plain, network(record=True)), (recording, network())):
        saved.save_weights(tmp_path / "x.weights.h5")
        into.optimizer.build(into.trainable_variables)
        into.load_weights(tmp_path / "x.weights.h5")
        assert int(array(into.optimizer.iterations)) == 4
        np.testing.assert_array_equal(array(into.weights[0]), array(saved.weights[0]))
    recording.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert loaded.optimizer.report()[0].before is None
    assert fit(loaded).optimizer.report()[0].before > 0


def test_a_recording_model_gives_its_state_as_a_tree():
    model = network({"*/kernel": pg.UnitNorm(), "*bias": pg.Joint(pg.MaxNorm(1.0, axis=None))}, record=True)
    recording = fit(model).get_state_tree("numpy_array")["optimizer_variables"]
    names = ("hidden_kernel", "out_kernel", "hidden_bias___out_bias")
    assert {f"{what}_{name}" for name in names for what in ("violation_before", "moved")} < set(recording)
    assert recording["moved_hidden_kernel"] == np.float32(model.optimizer.report()[0].moved) > 0


@pytest.mark.skipif(BACKEND == "jax", reason=NO_SCALE)
def test_the_record_is_kept_inside_of_a_loss_scale_optimizer():
    w = variable(W)
    inner = ProjectedOptimizer(keras.optimizers.SGD(1.0), BALL, record=True)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    outer.apply([tensor(4 * G)], [w])
    np.testing.assert_allclose([inner.report()[0].before, inner.report()[0].moved], by_hand(W, G)[1:], rtol=1e-5)


def test_the_callback_keeps_a_history_that_can_be_drawn(tmp_path):
    model, by_epoch = network(record=True), ReportCallback(nonfinite="raise")
    by_batch = ReportCallback(update_freq="batch")
    fit(model, by_epoch, by_batch)
    assert [step for step, _ in by_epoch.history] == [2, 4]
    assert [step for step, _ in by_batch.history] == [1, 2, 3, 4]
    assert by_batch.history[-1][1] == by_epoch.history[-1][1] == model.optimizer.report()
    assert len({made[0].moved for _, made in by_batch.history}) == 4
    pytest.importorskip("matplotlib")
    pg.plot_reports(by_batch.history, tmp_path / "reports.png")
    assert (tmp_path / "reports.png").stat().st_size > 1000


@once
def test_the_callback_reports_for_other_optimizers_by_its_rules():
    model = network()
    model.compile("sgd", "mse")
    callback = ReportCallback(rules={"out/kernel": pg.MaxNorm(0.1)})
    fit(model, callback, epochs=1)
    row = callback.history[-1][1].to_dict()["out/kernel"]
    norms = np.linalg.norm(array(model.get_layer("out").kernel), axis=0)
    np.testing.assert_allclose(row["violation"], norms.max() - 0.1, rtol=1e-5)


def test_a_weight_that_is_not_finite_is_named_after_the_batch():
    bad = Y.copy()
    bad[8:, 1] = np.inf
    with pytest.raises(RuntimeError, match="after a step: hidden/kernel, hidden/bias, out/kernel, out/bias$"):
        fit(network(), ReportCallback(nonfinite="raise"), y=bad, epochs=1)
    model = network()
    with pytest.warns(RuntimeWarning, match="after a step: hidden/kernel"):
        fit(model, ReportCallback(nonfinite="warn"), y=bad, epochs=1)
    assert not any(row.finite for row in model.optimizer.report())


@once
def test_the_callback_writes_for_tensorboard(tmp_path):
    pytest.importorskip("tensorflow")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    callback = ReportCallback(tmp_path / "constraints")
    fit(network(record=True), callback, keras.callbacks.TensorBoard(tmp_path))
    read = events.EventAccumulator(str(tmp_path / "constraints"))
    read.Reload()
    for step, made in callback.history:
        for name, value in made.scalars().items():
            (event,) = (event for event in read.Tensors(name) if event.step == step)
            np.testing.assert_allclose(tensor_util.make_ndarray(event.tensor_proto), value, rtol=1e-6)


@once
@pytest.mark.parametrize("wrong", [{"update_freq": 0}, {"update_freq": "step"}, {"nonfinite": "stop"}])
def test_an_option_of_the_callback_that_is_not_known_is_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReportCallback(**wrong)


@once
def test_without_tensorflow_there_is_no_log(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow.summary", None)
    with pytest.raises(ImportError, match="tf.summary.*install tensorflow"):
        ReportCallback(tmp_path)


@once
def test_bare_variables_are_reported_by_the_door_for_tensorflow():
    tf = pytest.importorskip("tensorflow")
    from projgrad.tensorflow import report

    rows = report({"a": tf.Variable(W), "b": tf.Variable([1.0, np.nan])}, {"a": pg.NonNeg()})
    assert [(row.name, row.constraint, row.groups, row.finite) for row in rows] == [
        ("a", "NonNeg()", 4, True),
        ("b", None, 1, False),
    ]
    assert (rows[0].on_boundary, rows[0].violation) == (0.25, 0.0)
