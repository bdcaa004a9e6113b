"""`projgrad.optax` on models of flax linen, flax nnx and equinox."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("equinox")
pytest.importorskip("flax.linen")
pytest.importorskip("flax.nnx")

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from flax.training.train_state import TrainState

import projgrad as pg
import projgrad.optax as po
from projgrad.rules import Rules

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 3))
Y = 5 * jax.random.normal(jax.random.key(1), (8, 2))
BALL = pg.MaxNorm(0.5)


def loss(y):
    return ((y - Y) ** 2).mean()


def norms(weight, axis):
    return np.linalg.norm(np.asarray(weight), axis=axis)


# -- flax linen ---------------------------------------------------------------------------------------------------


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.relu(linen.Dense(4)(x)))


def test_a_linen_train_state_stays_in_its_sets():
    rules = {"*/kernel": BALL}
    model = Linen()
    params = po.project_params(model.init(KEY, X), rules)
    tx = optax.chain(optax.adam(0.1), po.project(rules))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    train = jax.jit(lambda s: s.apply_gradients(grads=jax.grad(lambda p: loss(s.apply_fn(p, X)))(s.params)))
    for _ in range(20):
        state = train(state)
    found = po.violations(state.params, rules)
    assert set(found) == {"params/Dense_0/kernel", "params/Dense_1/kernel"}
    assert max(found.values()) < 1e-6
    for layer in ("Dense_0", "Dense_1"):
        np.testing.assert_allclose(norms(state.params["params"][layer]["kernel"], 0), 0.5, rtol=1e-5)


def test_partitioned_linen_parameters_go_by_the_name_without_their_box():
    box = linen.Partitioned(jnp.full((4, 3), 2.0), names=("a", None))
    got = po.project_params({"Dense_0": {"kernel": box}}, {"*/kernel": BALL})
    assert isinstance(got["Dense_0"]["kernel"], linen.Partitioned)
    np.testing.assert_allclose(norms(got["Dense_0"]["kernel"].value, 0), 0.5, rtol=1e-5)


# -- flax nnx -----------------------------------------------------------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (2,), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(12, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x[..., None]).reshape(len(x), -1)
        return self.layers[1](self.norm(nnx.relu(self.layers[0](x))))


NNX_RULES: Rules = {"*/kernel": BALL, nnx.Conv: {"kernel": pg.MaxNorm(0.25)}, "layers/0/bias": pg.NonNeg()}


def in_nnx_sets(model):
    return (
        norms(model.conv.kernel[...], (0, 1)).max() <= 0.25 + 1e-6
        and all(norms(layer.kernel[...], 0).max() <= 0.5 + 1e-6 for layer in model.layers)
        and float(model.layers[0].bias[...].min()) >= 0
    )


def test_an_nnx_optimizer_keeps_its_module_in_its_sets():
    model = Nnx(nnx.Rngs(0))
    assert po.project_params(model, NNX_RULES) is model
    assert in_nnx_sets(model)
    tx = optax.chain(optax.adam(0.1), po.project(NNX_RULES, model=model))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: loss(m(X)))(model))

    train = nnx.jit(train)
    for _ in range(5):
        train(model, optimizer)
        assert in_nnx_sets(model)
    found = po.violations(model, NNX_RULES)
    assert set(found) == {"conv/kernel", "layers/0/kernel", "layers/1/kernel", "layers/0/bias"}
    assert max(found.values()) < 1e-6


def test_nnx_names_have_no_value_at_the_end_but_patterns_may():
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    assert list(po.violations(state, {"kernel": BALL})) == ["kernel"]
    assert list(po.violations(state, {"kernel/value": BALL})) == ["kernel"]
    assert list(po.violations(nnx.as_pure(state), {"kernel": BALL})) == ["kernel"]


def test_an_nnx_module_that_does_not_fit_its_rules_is_not_changed():
    model = Nnx(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))
    with pytest.raises(ValueError, match="conv/bias"):
        po.project_params(model, {"*/kernel": BALL, "conv/bias": BALL})
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_shared_nnx_variables_are_one_parameter():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.b = nnx.Linear(3, 3, rngs=nnx.Rngs(1))
            self.b.kernel = self.a.kernel

    model = Tied()
    assert len(po.violations(model, {"*kernel": BALL})) == 1
    po.project_params(model, {"*kernel": BALL})
    assert model.a.kernel is model.b.kernel
    assert norms(model.b.kernel[...], 0).max() <= 0.5 + 1e-6
    # it goes by all its names, and what is said of them must agree
    assert list(po.violations(model, {"b/kernel": BALL})) == ["a/kernel"]
    with pytest.raises(ValueError, match=r"tied: a/kernel, b/kernel.*'b/kernel' for NonPos"):
        po.violations(model, {"a/kernel": BALL, "b/kernel": pg.NonPos()})


def test_shared_nnx_layers_have_all_their_names():
    class Shared(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.blocks = nnx.List([self.first])
            self.blocks.append(nnx.Linear(3, 3, rngs=nnx.Rngs(1)))
            self.whole = self  # which has no last name

    with pytest.raises(ValueError, match="tied: blocks/0/kernel, first/kernel"):
        po.violations(Shared(), {"blocks/0/kernel": BALL, "first/kernel": pg.NonPos()})


# -- equinox ------------------------------------------------------------------------------------------------------


EQX_RULES = {"layers/*/weight": BALL, "layers/2/bias": pg.NonPos()}


def in_eqx_sets(model):
    rows = all(norms(layer.weight, 1).max() <= 0.5 + 1e-6 for layer in model.layers)
    return rows and float(model.layers[2].bias.max()) <= 0


def eqx_model():
    return eqx.nn.MLP(3, 2, 4, 2, key=KEY)


def test_an_equinox_model_stays_in_its_sets():
    model = eqx.filter_jit(po.project_params)(eqx_model(), EQX_RULES)
    assert in_eqx_sets(model)
    assert callable(model.activation)
    tx = optax.chain(optax.adam(0.1), po.project(EQX_RULES))

    def train(model, state):
        grads = eqx.filter_grad(lambda m: loss(jax.vmap(m)(X)))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    train = eqx.filter_jit(train)
    state = eqx.filter_jit(tx.init)(eqx.filter(model, eqx.is_array))
    for _ in range(5):
        model, state = train(model, state)
        assert in_eqx_sets(model)


def test_an_equinox_model_in_low_precision_keeps_its_dtype():
    model = jax.tree.map(lambda x: x.astype("bfloat16") if eqx.is_array(x) else x, eqx_model())
    model = po.project_params(model, EQX_RULES)
    params = eqx.filter(model, eqx.is_array)
    tx = po.project(EQX_RULES)
    updates, _ = tx.update(jax.tree.map(lambda x: jnp.ones(x.shape), params), tx.init(params), params)
    assert eqx.apply_updates(model, updates).layers[0].weight.dtype == "bfloat16"


def test_the_whole_equinox_model_may_stand_for_its_parameters():
    model = eqx_model()
    updates = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_array))
    tx = po.project(EQX_RULES)
    whole, _ = tx.update(updates, tx.init(model), model)
    arrays, _ = tx.update(updates, optax.EmptyState(), eqx.filter(model, eqx.is_array))
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(arrays), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert in_eqx_sets(po.apply_updates(model, updates, EQX_RULES))


def test_layer_classes_select_equinox_parameters():
    found = po.violations(eqx_model(), {eqx.nn.Linear: {"weight": BALL, "bias": pg.NonNeg()}, "layers/0/*": None})
    assert set(found) == {f"layers/{n}/{leaf}" for n in (1, 2) for leaf in ("weight", "bias")}


def test_a_layer_class_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="Conv2d.*selects no parameter; the nearest: .*Linear"):
        po.violations(eqx_model(), {eqx.nn.Conv2d: {"weight": BALL}})


def test_frozen_parts_of_an_equinox_model_are_free():
    model = eqx_model()
    spec = eqx.tree_at(lambda m: m.layers[0], jax.tree.map(eqx.is_array, model), replace=False)
    params, _ = eqx.partition(model, spec)
    assert set(po.violations(params, {"layers/*/weight": BALL})) == {"layers/1/weight", "layers/2/weight"}


def test_a_module_whose_static_fields_cannot_be_hashed_passes():
    class Odd(eqx.Module):
        weight: jax.Array
        sizes: list = eqx.field(static=True)

    p = Odd(-jnp.ones(2), [1, 2])
    tx = po.project({"weight": pg.NonNeg()})
    updates, _ = tx.update(Odd(jnp.zeros(2), p.sizes), tx.init(p), p)
    np.testing.assert_array_equal(updates.weight, [1.0, 1.0])


# -- the door -----------------------------------------------------------------------------------------------------


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_the_door_without_its_frameworks_says_what_to_install(missing):
    done = run(f"import sys; sys.modules[{missing!r}] = None; import projgrad.optax")
    assert 'pip install "projgrad[jax]"' in done.stderr.splitlines()[-1]


def test_the_door_loads_neither_flax_nor_equinox():
    code = (
        "import sys, jax.numpy as jnp, projgrad as pg, projgrad.optax as po;"
        "po.project_params({'kernel': jnp.ones((2, 2))}, {'kernel': pg.MaxNorm(1.0)});"
        "assert not {'flax', 'equinox', 'torch', 'tensorflow', 'keras'} & set(sys.modules)"
    )
    assert run(code).returncode == 0
