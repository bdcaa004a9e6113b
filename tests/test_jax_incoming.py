"""axis="incoming" for the layers of equinox and flax, found by asking which weights an output depends on."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("equinox")
pytest.importorskip("flax.nnx")

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

import projgrad as pg
import projgrad.optax as po
from projgrad_backends.jax.tags import Tags

KEY = jax.random.key(0)
from projgrad_backends.jax.incoming import by_name


def fill(abstract):
    """Numbers for the arrays of a layer that was made without any, which compiles nothing."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), "float32") if isinstance(x, jax.ShapeDtypeStruct) else x,
        abstract,
    )


def equinox(make, *args, **kwargs):
    return eqx.filter_eval_shape(lambda: make(*args, key=KEY, **kwargs))


def flax(make, *args, **kwargs):
    return nnx.eval_shape(lambda: make(*args, rngs=nnx.Rngs(0), **kwargs))


RULE = {"*": pg.MaxNorm(1e-3)}


def axes_of(params, name, model=None):
    """The axes that "incoming" stands for in one parameter."""
    (entry,) = Tags({name: pg.MaxNorm(1.0)}, None, model).of(params)[1].plan
    axes = entry.constraint.axis
    return axes if isinstance(axes, tuple) else (axes,)


def are_groups_of_units(axes, outputs, weight):
    """Whether each row of `outputs(weight)`, one unit, depends on the weights of one whole group along `axes`."""
    jacobian = np.asarray(jax.jacobian(outputs)(weight))
    for unit in jacobian:
        feeds = (unit.reshape(-1, *weight.shape) != 0).any(0)
        assert (feeds.any(axes) == feeds.all(axes)).all()
        assert feeds.any(axes).sum() == 1
    return True


# (module, shape of an input); the first axis of the output counts the units
EQUINOX = [
    (equinox(eqx.nn.Linear, 3, 5), (3,)),
    (equinox(eqx.nn.Conv1d, 4, 6, 3, groups=2), (4, 5)),
    (equinox(eqx.nn.Conv2d, 2, 3, (2, 3)), (2, 4, 4)),
    (equinox(eqx.nn.Conv3d, 2, 3, 2), (2, 3, 3, 3)),
    (equinox(eqx.nn.ConvTranspose1d, 4, 6, 3), (4, 5)),
    (equinox(eqx.nn.ConvTranspose2d, 2, 3, (2, 3)), (2, 3, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), EQUINOX, ids=lambda v: type(v).__name__)
def test_the_incoming_weights_of_equinox_layers_are_those_a_unit_depends_on(layer, shape):
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), "float32")
    axes, layer = axes_of(layer, "weight"), fill(layer)
    assert are_groups_of_units(axes, lambda w: eqx.tree_at(lambda m: m.weight, layer, w)(x), layer.weight)


FLAX = [
    (flax(nnx.Linear, 3, 5), (1, 3), -1),
    (flax(nnx.LinearGeneral, (2, 3), (4, 5), axis=(-2, -1)), (2, 3), (-2, -1)),
    (flax(nnx.Einsum, "ta,hab->thb", (4, 2, 3)), (5, 2), (-2, -1)),
    (flax(nnx.Einsum, "ab,cb->ac", (4, 3)), (2, 3), -1),
    (flax(nnx.Conv, 4, 6, 3, feature_group_count=2), (1, 5, 4), -1),
    (flax(nnx.Conv, 2, 3, (2, 3)), (1, 4, 4, 2), -1),
    (flax(nnx.ConvTranspose, 3, 4, (2,)), (1, 4, 3), -1),
    (flax(nnx.ConvTranspose, 3, 4, (2, 2), transpose_kernel=True), (1, 3, 3, 3), -1),
]


@pytest.mark.parametrize(("layer", "shape", "axis"), FLAX, ids=lambda v: type(v).__name__)
def test_the_incoming_weights_of_flax_layers_are_those_a_unit_depends_on(layer, shape, axis):
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), "float32")
    graph, state = nnx.split(layer)
    state = fill(state)
    count = len(axis) if isinstance(axis, tuple) else 1

    def outputs(w):
        changed = jax.tree.map_with_path(lambda path, leaf: w if "kernel" in str(path[0]) else leaf, state)
        y = jnp.moveaxis(nnx.merge(graph, changed)(x), axis, tuple(range(count)) if count > 1 else 0)
        return y.reshape(np.prod(y.shape[:count]), -1)

    axes = axes_of(nnx.state(layer, nnx.Param), "kernel", model=layer)
    assert are_groups_of_units(axes, outputs, state["kernel"][...])


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (equinox(eqx.nn.Embedding, 7, 3), "weight"),
        (equinox(eqx.nn.GRUCell, 3, 5), "weight_ih"),
        (equinox(eqx.nn.GRUCell, 3, 5), "weight_hh"),
        (equinox(eqx.nn.LSTMCell, 3, 5), "weight_ih"),
        (equinox(eqx.nn.LSTMCell, 3, 5), "weight_hh"),
        (equinox(eqx.nn.MultiheadAttention, 2, 6), "query_proj/weight"),
    ],
)
def test_rows_of_embeddings_gates_and_attention_are_incoming_in_equinox(layer, name):
    assert axes_of(layer, name) == (1,)


@pytest.mark.parametrize(
    ("layer", "name", "axes"),
    [
        (flax(nnx.Embed, 7, 3), "embedding", (1,)),
        (flax(nnx.LSTMCell, 3, 5), "hf/kernel", (0,)),
        (flax(nnx.GRUCell, 3, 5), "dense_i/kernel", (0,)),
        (flax(nnx.MultiHeadAttention, 2, 6, decode=False), "query/kernel", (0,)),
        (flax(nnx.MultiHeadAttention, 2, 6, decode=False), "out/kernel", (0, 1)),
    ],
)
def test_embeddings_cells_and_attention_of_flax_are_known_by_their_layers(layer, name, axes):
    assert axes_of(nnx.state(layer, nnx.Param), name, model=layer) == axes


def test_a_stack_of_layers_has_the_axes_of_one():
    stack = eqx.filter_vmap(lambda k: eqx.nn.Conv1d(2, 3, 2, key=k))(jax.random.split(KEY, 4))
    assert axes_of(eqx.filter(stack, eqx.is_array), "weight") == (2, 3)


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("Dense_0/kernel", (4, 3), (0,)),
        ("Conv_0/kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("Conv_0/kernel", (2, 2, 2, 3, 4), (0, 1, 2, 3)),
        ("Embed_0/embedding", (7, 3), (1,)),
    ],
)
def test_flax_leaves_are_known_by_name_where_name_and_rank_leave_no_doubt(path, shape, axes):
    layer, leaf = path.split("/")
    tree = {"params": {layer: {leaf: np.ones(shape, "float32")}}}
    assert axes_of(tree, f"params/{path}") == axes


@pytest.mark.parametrize(
    ("path", "shape", "words"),
    [
        ("Conv_0/kernel", (3, 4, 5), "ambiguous for a kernel of 3 dimensions.*axes as numbers, or pass model="),
        ("ConvTranspose_0/kernel", (3, 3, 4, 5), "ambiguous"),
        ("DenseGeneral_0/kernel", (2, 3, 4, 5), "ambiguous"),
        ("Einsum_0/kernel", (2, 3), "ambiguous"),
        ("Dense_0/kernel", (3,), "ambiguous"),
        ("Dense_0/bias", (3,), "'bias'.*axes as numbers.*None"),
        ("LayerNorm_0/scale", (3,), "'scale'.*axes as numbers.*None"),
        ("mine/weight", (3, 4), "'weight'.*axes as numbers"),
    ],
)
def test_what_name_and_rank_leave_open_is_an_error(path, shape, words):
    layer, leaf = path.split("/")
    with pytest.raises(ValueError, match=f"(?s){path}.*{words}"):
        po.project(RULE).init({layer: {leaf: np.ones(shape)}})


class Custom(eqx.Module):
    kernel: jax.Array
    inner: dict


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        (equinox(eqx.nn.Linear, 3, 5), "bias", "'bias' of Linear"),
        (eqx.nn.LayerNorm(3), "weight", "'weight' of LayerNorm"),
        (equinox(eqx.nn.ConvTranspose2d, 4, 6, 3, groups=2), "weight", "transposed convolution with groups"),
        (Custom(jnp.ones((3, 4)), {}), "kernel", "'kernel' of Custom"),
        (eqx.nn.WeightNorm(eqx.nn.Linear(3, 5, key=KEY), "weight"), "layer/weight", "WeightNorm rescales this weight"),
    ],
)
def test_an_equinox_parameter_without_known_inputs_is_an_error(module, name, words):
    with pytest.raises(ValueError, match=words):
        po.project({name: pg.MaxNorm(1.0)}).init(module)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        (flax(nnx.Linear, 3, 5), "bias", "'bias' of Linear"),
        (flax(nnx.LayerNorm, 3), "scale", "'scale' of LayerNorm"),
        (flax(nnx.Einsum, "...a,a...->...", (4, 3)), "kernel", "cannot be read from the equation"),
        (
            nnx.eval_shape(lambda: nnx.WeightNorm(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))),
            "layer_instance/kernel",
            "WeightNorm rescales this weight",
        ),
    ],
)
def test_a_flax_parameter_without_known_inputs_is_an_error(module, name, words):
    with pytest.raises(ValueError, match=words):
        po.project({name: pg.MaxNorm(1.0)}, model=module).init(nnx.state(module, nnx.Param))


def test_a_model_that_lacks_the_parameter_is_an_error():
    with pytest.raises(ValueError, match="model= has no 'other/kernel'"):
        po.project(RULE, model=flax(nnx.Linear, 2, 3)).init({"other": {"kernel": jnp.ones((2, 3))}})


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("params/Dense_0/kernel", (3, 4), (0,)),
        ("params/Conv_0/kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("conv/kernel", (3, 3, 3, 4, 5), (0, 1, 2, 3)),
        ("Embed_0/embedding", (7, 4), (1,)),
        ("proj/kernel", (4, 5, 2, 3), None),  # may be a DenseGeneral
        ("up/kernel", (3, 3, 7, 5), None),  # or a transposed convolution
        ("attn/query/kernel", (3, 8, 2, 4), None),  # or a stack of projections
        ("Conv_0/kernel", (3, 4, 5), None),
    ],
)
def test_a_name_is_believed_only_where_it_leaves_no_doubt(name, shape, axes):
    found = by_name(name, len(shape))
    assert found == axes if axes else "ambiguous" in found
