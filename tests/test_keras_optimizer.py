"""What the Keras wrapper promises while it trains, on whatever backend Keras runs."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from projgrad.keras import ProjectedOptimizer, violations

TENSORFLOW = keras.backend.backend() == "tensorflow"
SPHERE = {"*kernel": pg.UnitNorm(axis=0)}


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(32, 6)).astype("float32"), rng.normal(size=(32, 2)).astype("float32")


def network(**options):
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(8, activation="relu", name="hidden", **options), keras.layers.Dense(2, name="out")]
    return keras.Sequential([keras.Input((6,)), *parts], name="net")


def fitted(optimizer, model, epochs=2, **options):
    model.compile(optimizer=optimizer, loss="mse", **options)
    model.fit(*data(), epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")), dtype=np.float64)


def on_sphere(model):
    return all(np.allclose(np.linalg.norm(array(w), axis=0), 1, atol=1e-6) for w in model.weights if w.ndim == 2)


def variable(values, name="w", dtype="float32"):
    return keras.Variable(np.asarray(values), dtype=dtype, name=name)


@pytest.mark.parametrize("jit", [False, True])
def test_fit_stays_on_the_set_compiled_or_not(jit):
    model = network()
    before = [array(w) for w in model.weights]
    fitted(
        ProjectedOptimizer(keras.optimizers.Adam(0.05), {"*kernel": pg.UnitNorm()}, model=model), model, jit_compile=jit
    )
    assert on_sphere(model)
    assert not any(np.allclose(array(w), b) for w, b in zip(model.weights, before, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0),
        lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1, clipnorm=1.0),
        lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    ],
    ids=["loss scale", "accumulation", "weight decay", "averages"],
)
def test_any_optimizer_can_be_inside(make):
    model = network()
    before = array(model.weights[0])
    fitted(ProjectedOptimizer(make(), SPHERE, model=model), model)
    assert on_sphere(model)
    assert not np.allclose(array(model.weights[0]), before)


def test_it_can_be_inside_a_loss_scale_optimizer():
    model = network()
    inner = ProjectedOptimizer(keras.optimizers.SGD(0.1, loss_scale_factor=64.0), SPHERE, model=model)
    fitted(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), model)
    assert on_sphere(model)
    assert inner.inner.loss_scale_factor is None


def test_a_loss_scale_does_not_change_the_steps():
    trained = []
    for optimizer in (keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, loss_scale_factor=64.0)):
        model = network()
        fitted(ProjectedOptimizer(optimizer, SPHERE, model=model), model)
        trained.append(array(model.weights[0]))
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    model = network(dtype=policy)
    keras.config.set_dtype_policy(policy)
    try:
        fitted(ProjectedOptimizer(keras.optimizers.SGD(0.05), SPHERE, model=model), model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert on_sphere(model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_low_precision(dtype):
    w = variable(np.full((4, 2), 3.0), dtype=dtype)
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.5), {"w": pg.MaxNorm(2.0, axis=0)})
    optimizer.apply([keras.ops.ones((4, 2), dtype=dtype)], [w])
    assert violations([w], {"w": pg.MaxNorm(2.0, axis=0)})["w"] <= pg.tolerance(dtype, 4, 2.0)
    assert keras.backend.standardize_dtype(w.dtype) == dtype


def test_weights_are_projected_when_the_optimizer_is_built():
    w = variable([[3.0], [4.0]])
    ProjectedOptimizer(keras.optimizers.SGD(), {"w": pg.MaxNorm(1.0, axis=0)}).build([w])
    np.testing.assert_allclose(array(w), [[0.6], [0.8]], atol=1e-7)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_without_a_gradient_are_projected():
    a, b = variable([[1.0], [0.0]], "a"), variable([[3.0], [4.0]], "b")
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(), {"b": pg.UnitNorm(axis=0)})
    optimizer.build([a, b])
    b.assign([[30.0], [40.0]])
    optimizer.apply([keras.ops.ones((2, 1)), None])
    np.testing.assert_allclose(array(b), [[0.6], [0.8]], atol=1e-6)


def test_averages_that_are_written_back_are_projected():
    model = network()
    fitted(ProjectedOptimizer(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9), SPHERE, model=model), model)
    assert on_sphere(model)


def test_a_step_is_the_inner_step_and_then_the_projection():
    w = variable([[0.6], [0.8]])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), {"w": pg.UnitNorm(axis=0)})
    optimizer.apply_gradients([(keras.ops.convert_to_tensor([[-1.0], [0.0]]), w)])
    np.testing.assert_allclose(array(w), np.array([[1.6], [0.8]]) / np.hypot(1.6, 0.8), atol=1e-6)
    assert int(optimizer.iterations) == 1


def test_rate_acts_once_a_step_also_on_a_tagged_layer():
    model = network(kernel_constraint=pg.MaxNorm(1.0, axis=0, rate=0.5))
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.0), model=model)
    optimizer.build(model.trainable_variables)
    kernel = model.layers[0].kernel
    kernel.assign(np.full((6, 8), 4 / np.sqrt(6)))
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    np.testing.assert_allclose(np.linalg.norm(array(kernel), axis=0), 2.5, atol=1e-5)
    assert kernel.constraint == pg.MaxNorm(1.0, axis=0, rate=0.5)


def test_unconstrained_weights_take_the_plain_step():
    plain, wrapped = network(), network()
    fitted(keras.optimizers.Adam(0.01), plain)
    fitted(ProjectedOptimizer(keras.optimizers.Adam(0.01), {"out/kernel": pg.Box(-1e6, 1e6)}), wrapped)
    for a, b in zip(plain.weights, wrapped.weights, strict=True):
        np.testing.assert_array_equal(array(a), array(b))


def test_fifty_steps_agree_with_the_constraints_of_keras():
    trained = []
    for own in (True, False):
        model = network(kernel_constraint=keras.constraints.UnitNorm() if own else None)
        kernel = model.layers[0].kernel
        kernel.assign(pg.UnitNorm(axis=0)(array(kernel)))
        optimizer = keras.optimizers.SGD(0.1)
        rules = {"hidden/kernel": pg.UnitNorm(axis=0)}
        model.compile(optimizer=optimizer if own else ProjectedOptimizer(optimizer, rules), loss="mse")
        model.fit(*data(), epochs=50, batch_size=32, shuffle=False, verbose=0)
        trained.append([array(w) for w in model.weights])
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_learning_rate_is_that_of_the_inner_optimizer():
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.1), {"w": pg.NonNeg()})
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == float(optimizer.inner.learning_rate) == 0.25
    w = variable([1.0])
    optimizer.apply([keras.ops.ones((1,))], [w])
    np.testing.assert_allclose(array(w), [0.75])


def test_a_schedule_works():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.5])
    w = variable([10.0])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(schedule), {"w": pg.NonNeg()})
    for _ in range(3):
        optimizer.apply([keras.ops.ones((1,))], [w])
    np.testing.assert_allclose(array(w), [7.5])


def test_callbacks_change_the_learning_rate():
    model = network()
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.1), SPHERE, model=model)
    model.compile(optimizer=optimizer, loss="mse")
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=1e9)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[plateau])
    assert float(optimizer.inner.learning_rate) == pytest.approx(0.025)


def test_the_variables_are_those_of_the_inner_optimizer():
    model = network()
    optimizer = ProjectedOptimizer(keras.optimizers.Adam(), SPHERE)
    optimizer.build(model.trainable_variables)
    assert [id(v) for v in optimizer.variables] == [id(v) for v in optimizer.inner.variables]


@pytest.mark.skipif(TENSORFLOW, reason="Keras has no stateless_apply on TensorFlow")
def test_stateless_apply_projects_and_changes_no_variable():
    w = variable([[0.6], [0.8]])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), {"w": pg.UnitNorm(axis=0)})
    optimizer.build([w])
    gradient = keras.ops.convert_to_tensor([[-1.0], [0.0]])
    state = [v.value for v in optimizer.variables]
    (new,), _ = optimizer.stateless_apply(state, [gradient], [keras.ops.convert_to_tensor([[0.6], [0.8]])])
    np.testing.assert_allclose(array(new), np.array([[1.6], [0.8]]) / np.hypot(1.6, 0.8), atol=1e-6)
    np.testing.assert_allclose(array(w), [[0.6], [0.8]])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="jax.jit")
def test_stateless_apply_compiles_in_jax():
    import jax

    w = variable(np.ones((3, 2)))
    optimizer = ProjectedOptimizer(keras.optimizers.Adam(0.1), {"w": pg.UnitNorm(axis=0)})
    optimizer.build([w])
    values, state = [w.value], [v.value for v in optimizer.variables]
    step = jax.jit(lambda state, values: optimizer.stateless_apply(state, [2 * v for v in values], values))
    for _ in range(3):
        values, state = step(state, values)
    np.testing.assert_allclose(np.linalg.norm(values[0], axis=0), 1, atol=1e-6)
    assert not isinstance(w.value, jax.core.Tracer)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="tf.function has no such scope")
def test_built_in_a_stateless_scope_it_leaves_the_variable_to_the_scope():
    w = variable([[3.0], [4.0]])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(), {"w": pg.UnitNorm(axis=0)})
    with keras.StatelessScope() as scope:
        optimizer.build([w])
    np.testing.assert_allclose(array(w), [[3.0], [4.0]])
    np.testing.assert_allclose(array(scope.get_current_value(w)), [[0.6], [0.8]], atol=1e-6)


@pytest.mark.skipif(not TENSORFLOW, reason="tf.function")
@pytest.mark.parametrize("jit", [False, True])
def test_a_loop_in_tf_function_may_build_the_optimizer_while_traced(jit):
    import tensorflow as tf

    w = variable([[3.0, 0.0], [4.0, 2.0]])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.0), {"w": pg.UnitNorm(axis=0)})
    optimizer.inner.build([w])
    seen = []

    @tf.function(jit_compile=jit)
    def step():
        optimizer.apply([tf.ones((2, 2))], [w])

    def build_only():
        optimizer.build([w])
        seen.append(array_in_eager(w))

    def array_in_eager(v):
        with tf.init_scope():
            return v.numpy()

    tf.function(build_only)()
    np.testing.assert_allclose(seen[0], [[0.6, 0.0], [0.8, 1.0]], atol=1e-6)
    step()
    np.testing.assert_allclose(array(w), [[0.6, 0.0], [0.8, 1.0]], atol=1e-6)


@pytest.mark.skipif(not TENSORFLOW, reason="tf.Variable")
def test_bare_tensorflow_variables_can_be_trained():
    import tensorflow as tf

    w = tf.Variable([[3.0], [4.0]], name="w")
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(1.0), {"w": pg.UnitNorm(axis=0)})
    optimizer.apply_gradients([(tf.zeros((2, 1)), w)])
    np.testing.assert_allclose(w.numpy(), [[0.6], [0.8]], atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch")
def test_torch_records_no_gradient():
    import torch

    recorded = []

    def spy(w):
        recorded.append(torch.is_grad_enabled())
        return w

    w = variable([[3.0], [4.0]])
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(0.1), {"w": spy})
    optimizer.apply([keras.ops.ones((2, 1))], [w])
    optimizer.finalize_variable_values([w])
    optimizer.stateless_apply([v.value for v in optimizer.variables], [keras.ops.ones((2, 1))], [w.value])
    assert len(recorded) >= 4
    assert not any(recorded)
    assert w.value.is_leaf


def test_a_wrapped_optimizer_that_is_built_goes_on_from_its_state():
    w = variable([1.0])
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    inner.apply([keras.ops.ones((1,))], [w])
    optimizer = ProjectedOptimizer(inner, {"w": pg.NonNeg()})
    optimizer.apply([keras.ops.ones((1,))], [w])
    assert int(optimizer.iterations) == 2
    np.testing.assert_allclose(array(w), [1 - 0.1 - 0.19], atol=1e-6)


def test_the_optimizer_does_not_keep_the_model():
    layer = keras.layers.Dense(2)
    optimizer = ProjectedOptimizer(keras.optimizers.SGD(), {"*kernel": pg.UnitNorm()}, model=layer)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match="is gone"):
        optimizer.build([variable([1.0])])


def test_no_step_without_variables():
    with pytest.raises(ValueError, match=r"optimizer\.build"):
        ProjectedOptimizer(keras.optimizers.SGD(), SPHERE).apply([keras.ops.ones((1,))])
