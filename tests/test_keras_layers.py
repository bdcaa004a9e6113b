"""projgrad constraints on Keras layers: "incoming" axes, `constrain`, and what Keras's own constraints get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg

keras = pytest.importorskip("keras")

from keras import layers

from projgrad.keras import ProjectedOptimizer, constrain, violations

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")), dtype=np.float64)


def plan_of(model, rules):
    return {e.name.rpartition("/")[2]: e.constraint.axis for e in ProjectedOptimizer(_sgd(), rules, model=model).plan}


def _sgd():
    return keras.optimizers.SGD(0.1)


# layer, input shape, the axes of its kernel
CONVOLUTIONS: dict[str, Any] = {
    "dense": (lambda: layers.Dense(4), (1, 3), 0),
    "einsum": (lambda: layers.EinsumDense("ab,bc->ac", output_shape=4), (1, 3), 0),
    "einsum, two units axes": (lambda: layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3)), (1, 2, 5), 0),
    "einsum, two inputs axes": (
        lambda: layers.EinsumDense("abcd,cde->abe", output_shape=(None, 3)),
        (1, 2, 5, 4),
        (0, 1),
    ),
    "einsum, ellipsis": (lambda: layers.EinsumDense("...x,yx->...y", output_shape=4), (1, 2, 3), 1),
    "conv1d": (lambda: layers.Conv1D(4, 2), (1, 6, 3), (0, 1)),
    "conv2d": (lambda: layers.Conv2D(4, 2), (1, 5, 5, 3), (0, 1, 2)),
    "conv2d in groups": (lambda: layers.Conv2D(4, 2, groups=2), (1, 5, 5, 6), (0, 1, 2)),
    "conv3d": (lambda: layers.Conv3D(3, 2), (1, 4, 4, 4, 2), (0, 1, 2, 3)),
    "conv1d transpose": (lambda: layers.Conv1DTranspose(4, 2), (1, 6, 3), (0, 2)),
    "conv2d transpose": (lambda: layers.Conv2DTranspose(4, 2), (1, 5, 5, 3), (0, 1, 3)),
    "conv3d transpose": (lambda: layers.Conv3DTranspose(3, 2), (1, 4, 4, 4, 2), (0, 1, 2, 4)),
    "depthwise 1d": (lambda: layers.DepthwiseConv1D(2, depth_multiplier=2), (1, 6, 3), 0),
    "depthwise 2d": (lambda: layers.DepthwiseConv2D(2, depth_multiplier=2), (1, 5, 5, 3), (0, 1)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_group_is_all_the_weights_that_feed_one_unit(case):
    make, shape, axes = CONVOLUTIONS[case]
    rng = np.random.default_rng(0)
    layer = make()
    x = keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
    layer(x)
    constrain(layer, kernel=pg.UnitNorm())
    assert layer.kernel.constraint.axis == axes
    kernel = rng.normal(size=layer.kernel.shape)
    kept = [i for i in range(kernel.ndim) if i not in np.atleast_1d(axes)]
    unit_axes = tuple(range(-2, 0)) if case == "einsum, two units axes" else (-1,)
    fed = []
    for group in np.ndindex(*(kernel.shape[i] for i in kept)):
        mask = np.zeros(kernel.shape)
        mask[tuple(group[kept.index(i)] if i in kept else slice(None) for i in range(kernel.ndim))] = 1
        layer.kernel.assign(kernel * mask)
        out = array(layer(x))
        others = tuple(i for i in range(out.ndim) if i - out.ndim not in unit_axes)
        fed.append(tuple(np.argwhere(np.any(out != 0, axis=others)).ravel()))
    units = int(np.prod([out.shape[i] for i in unit_axes]))
    assert len(set(fed)) == len(fed) == units
    assert all(len(unit) == len(unit_axes) for unit in fed)


def built(layer, *shape):
    layer.build(shape)
    return layer


RECURRENT = [layers.SimpleRNN, layers.LSTM, layers.GRU]


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("wrapped", [False, True])
def test_incoming_of_recurrent_layers(kind, wrapped):
    layer = layers.Bidirectional(kind(2)) if wrapped else kind(2)
    found = plan_of(built(layer, None, 5, 3), {"*kernel": pg.UnitNorm()})
    assert found == {"kernel": 0, "recurrent_kernel": 0}


@pytest.mark.parametrize("kind", [layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell])
def test_incoming_of_cells(kind):
    layer = layers.RNN(kind(2))
    assert plan_of(built(layer, None, 5, 3), {kind: {"*kernel": pg.UnitNorm()}}) == {"kernel": 0, "recurrent_kernel": 0}


def test_incoming_of_convolutional_lstm():
    found = plan_of(built(layers.ConvLSTM1D(2, 3), None, 5, 6, 4), {"*kernel": pg.UnitNorm()})
    assert found == {"kernel": (0, 1), "recurrent_kernel": (0, 1)}


@pytest.mark.parametrize(
    ("kind", "shape", "spatial"),
    [(layers.SeparableConv1D, (None, 6, 3), 1), (layers.SeparableConv2D, (None, 6, 6, 3), 2)],
)
def test_incoming_of_separable_convolutions(kind, shape, spatial):
    found = plan_of(built(kind(4, 2), *shape), {"*wise_kernel": pg.UnitNorm()})
    depthwise = 0 if spatial == 1 else (0, 1)
    assert found == {"depthwise_kernel": depthwise, "pointwise_kernel": tuple(range(spatial + 1))}


def test_incoming_of_an_embedding_is_its_rows():
    assert plan_of(built(layers.Embedding(5, 3), None), {"*": pg.UnitNorm()}) == {"embeddings": 1}


@pytest.mark.parametrize("kind", [layers.MultiHeadAttention, layers.GroupQueryAttention])
def test_incoming_of_attention(kind):
    options = {"num_heads": 2, "key_dim": 3} if kind is layers.MultiHeadAttention else {}
    layer = kind(**options) if options else kind(head_dim=3, num_query_heads=2, num_key_value_heads=1)
    layer.build((None, 4, 6), (None, 4, 6))
    plan = ProjectedOptimizer(_sgd(), {"*kernel": pg.UnitNorm()}, model=layer).plan
    for entry in plan:
        output = "output" in entry.name
        assert entry.constraint.axis == ((0, 1) if output else 0)
        assert np.prod([entry.shape[i] for i in np.atleast_1d(entry.constraint.axis)]) == 6
    assert len(plan) == 4


@pytest.mark.parametrize(
    ("layer", "shape"), [(layers.LayerNormalization(), (2, 3)), (layers.BatchNormalization(), (2, 3))]
)
def test_norms_have_no_incoming_weights(layer, shape):
    with pytest.raises(ValueError, match="give the axes as numbers"):
        ProjectedOptimizer(_sgd(), {"*gamma": pg.UnitNorm()}, model=built(layer, *shape))


def test_an_einsum_that_contracts_nothing_has_no_incoming_weights():
    layer = built(layers.EinsumDense("ab,b->ab", output_shape=3), 1, 3)
    with pytest.raises(ValueError, match="contracts no axis"):
        constrain(layer, kernel=pg.UnitNorm())


# -- constrain -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "given", "slots"),
    [
        (layers.Dense(3), {"kernel": pg.UnitNorm(), "bias": pg.NonNeg()}, {"kernel_constraint": 0}),
        (layers.Conv2D(3, 2), {"kernel": pg.UnitNorm()}, {"kernel_constraint": (0, 1, 2)}),
        (layers.Conv2DTranspose(3, 2), {"kernel": pg.UnitNorm()}, {"kernel_constraint": (0, 1, 3)}),
        (layers.DepthwiseConv2D(2), {"kernel": pg.UnitNorm()}, {"depthwise_constraint": (0, 1)}),
        (layers.DepthwiseConv2D(2), {"depthwise_kernel": pg.UnitNorm()}, {"depthwise_constraint": (0, 1)}),
        (
            layers.SeparableConv2D(3, 2),
            {"depthwise_kernel": pg.UnitNorm(), "pointwise_kernel": pg.UnitNorm()},
            {"depthwise_constraint": (0, 1), "pointwise_constraint": (0, 1, 2)},
        ),
        (layers.Embedding(5, 3), {"embeddings": pg.UnitNorm()}, {"embeddings_constraint": 1}),
        (
            layers.LSTM(3),
            {"kernel": pg.UnitNorm(), "recurrent_kernel": pg.MaxNorm()},
            {"kernel_constraint": 0, "recurrent_constraint": 0},
        ),
        (layers.GRU(3), {"bias": pg.MaxNorm(axis=-1)}, {"bias_constraint": 1}),
        (
            layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
            {"bias": pg.MaxNorm(axis=-1)},
            {"bias_constraint": 1},
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, layers.Layer) else None,
)
def test_constrain_before_the_layer_is_built(layer, given, slots):
    assert constrain(layer, **given) is layer
    assert {slot: getattr(layer, slot).axis for slot in slots} == slots


def test_a_constraint_put_before_building_is_the_one_put_after():
    shapes = {layers.Dense(3): (2, 4), layers.Conv1D(3, 2): (1, 5, 4), layers.GRU(3): (1, 5, 4)}
    for layer, shape in shapes.items():
        constrain(layer, kernel=pg.UnitNorm(), bias=pg.MaxNorm(axis=-1))
        layer.build(shape)
        for v in layer.trainable_variables:
            if v.constraint is not None:
                assert v.constraint == v.constraint.bind(tuple(v.shape), "")
        before = layer.kernel_constraint, layer.bias_constraint
        constrain(layer, kernel=pg.UnitNorm(), bias=pg.MaxNorm(axis=-1))
        assert before == (layer.kernel_constraint, layer.bias_constraint)


def test_constrain_tags_the_variable_of_a_built_layer():
    layer = constrain(built(layers.Dense(3), 2, 4), kernel=pg.UnitNorm())
    assert layer.kernel.constraint == layer.kernel_constraint == pg.UnitNorm(axis=0)
    constrain(layer, kernel=None)
    assert layer.kernel.constraint is None
    assert layer.kernel_constraint is None


def test_constrain_both_layers_of_a_bidirectional():
    layer = constrain(layers.Bidirectional(layers.LSTM(2, name="lstm")), recurrent_kernel=pg.UnitNorm())
    assert layer.forward_layer.recurrent_constraint == layer.backward_layer.recurrent_constraint == pg.UnitNorm(axis=0)
    layer.build((None, 4, 3))
    assert set(violations(layer)) == {f"{d}_lstm/lstm_cell/recurrent_kernel" for d in ("forward", "backward")}


def test_constrain_the_layer_in_a_wrapper():
    layer = constrain(layers.TimeDistributed(layers.Dense(3)), kernel=pg.UnitNorm())
    assert layer.layer.kernel_constraint == pg.UnitNorm(axis=0)


class Scaled(layers.Layer):
    scale_constraint = None

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.built = True


@pytest.mark.parametrize(
    ("layer", "given", "error", "words"),
    [
        (layers.Dense(3), {"kernal": pg.NonNeg()}, ValueError, "has no kernal"),
        (layers.Dense(3, use_bias=False), {"bias": pg.NonNeg()}, ValueError, "has no bias"),
        (built(layers.Dense(3, use_bias=False), 2, 4), {"bias": pg.NonNeg()}, ValueError, "has no bias"),
        (layers.Dense(3), {"bias": pg.UnitNorm()}, ValueError, "a bias has no incoming"),
        (layers.Dense(3), {"kernel": pg.UnitNorm(axis=2)}, ValueError, "axis 2 does not exist"),
        (layers.Dense(3), {"kernel": pg.UnitNorm}, TypeError, "neither a constraint"),
        (layers.Dense(3), {"kernel": 2.0}, TypeError, "neither a constraint"),
        (Scaled(), {"scale": pg.UnitNorm(axis=0)}, ValueError, "build the layer first"),
        (layers.LSTM(3), {"recurrent": pg.MaxNorm()}, ValueError, "its name is recurrent_kernel"),
        (layers.DepthwiseConv2D(3), {"depthwise": pg.MaxNorm()}, ValueError, "its name is depthwise_kernel"),
        (layers.SeparableConv2D(3, 3), {"pointwise": pg.MaxNorm()}, ValueError, "its name is pointwise_kernel"),
        (layers.MultiHeadAttention(2, 3), {"kernel": pg.UnitNorm()}, ValueError, "ProjectedOptimizer a rule"),
        ("dense", {"kernel": pg.UnitNorm()}, TypeError, "Keras layer"),
    ],
)
def test_constrain_refuses(layer, given, error, words):
    with pytest.raises(error, match=words):
        constrain(layer, **given)


def test_constrain_changes_nothing_where_one_of_several_is_wrong():
    layer = layers.Dense(3)
    with pytest.raises(ValueError, match="a bias has no incoming"):
        constrain(layer, kernel=pg.UnitNorm(), bias=pg.UnitNorm())
    assert layer.kernel_constraint is None


# -- on a layer, applied by plain Keras ------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_plain_keras_applies_them(jit):
    if jit and keras.backend.backend() == "torch":
        pytest.skip("torch takes minutes to compile a recurrent layer")
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(7, 5, embeddings_constraint=pg.UnitNorm(axis=1)),
            layers.SimpleRNN(3, kernel_constraint=pg.NonNeg(), recurrent_constraint=pg.MaxNorm(0.5, axis=0)),
            layers.Dense(2, kernel_constraint=pg.UnitNorm(axis=0), bias_constraint=pg.Box(0.1, float("inf"))),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.1), loss="mse", jit_compile=jit)
    model.fit(np.arange(28).reshape(7, 4) % 7, np.ones((7, 2)), epochs=2, verbose=0)
    found = violations(model)
    assert len(found) == 5
    assert max(found.values()) < 1e-6


PAIRS = {
    "MaxNorm": (pg.MaxNorm(1.5, axis=0), lambda: keras.constraints.MaxNorm(1.5, axis=0)),
    "MaxNorm, two axes": (pg.MaxNorm(1.5, axis=(0, 1)), lambda: keras.constraints.MaxNorm(1.5, axis=[0, 1])),
    "UnitNorm": (pg.UnitNorm(axis=1), lambda: keras.constraints.UnitNorm(axis=1)),
    "MinMaxNorm": (pg.MinMaxNorm(1.0, 2.0, axis=0), lambda: keras.constraints.MinMaxNorm(1.0, 2.0, axis=0)),
    "MinMaxNorm, rate": (
        pg.MinMaxNorm(1.0, 2.0, rate=0.3, axis=0),
        lambda: keras.constraints.MinMaxNorm(1.0, 2.0, rate=0.3, axis=0),
    ),
    "NonNeg": (pg.NonNeg(), lambda: keras.constraints.NonNeg()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_they_agree_with_keras_where_keras_is_right(name):
    ours, theirs = PAIRS[name]
    w = keras.Variable(np.random.default_rng(0).normal(size=(5, 4)) * np.array([0.2, 0.6, 1.0, 2.0]))
    np.testing.assert_allclose(array(ours(w)), array(theirs()(w)), atol=1e-6)


def stepped(values, constraint, dtype="float32"):
    w = keras.Variable(np.asarray(values), dtype=dtype)
    w.constraint = constraint
    _sgd().apply([keras.ops.zeros(w.shape, dtype=dtype)], [w])
    return array(w)


def test_a_feasible_column_does_not_shrink():
    column = np.full((4, 1), 5e-4, dtype="float32")  # Keras: 0.37 of it is left after 10,000 steps
    once = stepped(column, pg.MaxNorm(2.0, axis=0))
    np.testing.assert_array_equal(once, column)  # so ten thousand times, too:
    for _ in range(10_000):
        column = pg.MaxNorm(2.0, axis=0)(column)
    np.testing.assert_array_equal(once, column)


def test_a_tiny_column_gets_unit_norm():
    out = stepped([[1e-8], [-1.37e-8]], pg.UnitNorm(axis=0))  # Keras: 0.148
    assert np.linalg.norm(out) == pytest.approx(1, abs=1e-6)


def test_a_column_of_zeros_gets_the_least_norm():
    out = stepped(np.zeros((4, 2)), pg.MinMaxNorm(1.0, 2.0, axis=0))  # Keras: stays 0
    np.testing.assert_allclose(np.linalg.norm(out, axis=0), 1, atol=1e-6)


def test_float16_squares_do_not_overflow():
    out = stepped(np.full((4, 1), 256.0), pg.MaxNorm(2.0, axis=0), "float16")  # Keras: all zeros
    np.testing.assert_allclose(out, 1.0, atol=2e-3)


def test_float32_squares_do_not_overflow():
    out = stepped([[3e20], [4e20]], pg.MaxNorm(1.0, axis=0))  # Keras: all zeros
    np.testing.assert_allclose(out, [[0.6], [0.8]], atol=1e-6)


def test_incoming_on_a_bare_variable_asks_for_axes():
    with pytest.raises(ValueError, match="only a layer can tell"):
        stepped(np.ones((3, 2)), pg.UnitNorm())


@pytest.mark.parametrize("constraint", [pg.MaxNorm(1.0, axis=3), pg.Box([0.0, 0.0], 1.0), pg.MaxNorm(1.0)], ids=repr)
def test_an_error_names_the_variable_of_the_layer(constraint):
    model = keras.Sequential([keras.layers.Dense(3, kernel_constraint=constraint, name="first")])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"first/kernel, of shape \(5, 3\), cannot have"):
        model.fit(np.ones((4, 5)), np.ones((4, 3)), verbose=0)
