"""`projgrad.optax` on plain pytrees: what an update does, and where it works."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po
from tests.optax_tree import BALL, RULES, chain, feasible, grads, params, same, step, within

# -- what an update does ------------------------------------------------------------------------------------------


def test_a_step_ends_at_the_projection_of_the_plain_step():
    p = feasible()
    ours, _ = step(optax.chain(optax.sgd(1.0), po.project(RULES)), p, (optax.sgd(1.0).init(p), optax.EmptyState()), 1)
    plain = jax.tree.map(lambda x, g: x - g, p, grads(p, 1))
    for layer in p:
        norms = np.linalg.norm(plain[layer]["kernel"], axis=0)
        np.testing.assert_allclose(ours[layer]["kernel"], plain[layer]["kernel"] / np.maximum(norms, 1), atol=1e-6)
        np.testing.assert_array_equal(ours[layer]["bias"], np.maximum(plain[layer]["bias"], 0))


def test_groups_that_stay_in_their_set_get_their_update_bit_for_bit():
    p = {"w": jnp.array([[0.1, 0.9], [0.1, 0.1]])}
    u = {"w": jnp.array([[0.01, 0.9], [0.01, 0.1]])}
    new, _ = po.project({"w": BALL}).update(u, optax.EmptyState(), p)
    np.testing.assert_array_equal(new["w"][:, 0], u["w"][:, 0])
    assert not np.array_equal(new["w"][:, 1], u["w"][:, 1])


def test_updates_of_free_parameters_come_back_as_the_same_object():
    p = feasible()
    u = grads(p)
    new, _ = po.project({"one/kernel": BALL}).update(u, optax.EmptyState(), p)
    assert new["two"]["kernel"] is u["two"]["kernel"]
    assert new["one"]["bias"] is u["one"]["bias"]
    assert new["one"]["kernel"] is not u["one"]["kernel"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_updates_of_constrained_parameters_have_the_dtype_of_the_parameter(dtype):
    p = feasible(dtype=dtype)
    u = jax.tree.map(lambda x: jnp.ones(x.shape, "float32"), p)
    new, _ = po.project(RULES).update(u, optax.EmptyState(), p)
    assert {x.dtype.name for x in jax.tree.leaves(new)} == {dtype}


def test_a_rate_below_one_goes_that_part_of_the_way():
    p = {"w": jnp.array([0.0, 0.5, 1.0])}
    u = {"w": jnp.array([2.0, 0.1, -3.0])}
    new, _ = po.project({"w": pg.Box(0.0, 1.0, rate=0.25)}).update(u, optax.EmptyState(), p)
    np.testing.assert_allclose(optax.apply_updates(p, new)["w"], [1.75, 0.6, -1.5], rtol=1e-6)
    p, u = {"w": jnp.array([[0.6], [0.8]])}, {"w": jnp.array([[0.6], [0.8]])}
    new, _ = po.project({"w": pg.MaxNorm(1.0, axis=0, rate=0.5)}).update(u, optax.EmptyState(), p)
    np.testing.assert_allclose(optax.apply_updates(p, new)["w"], [[0.9], [1.2]], rtol=1e-6)


def test_a_nan_stays_a_nan_in_its_own_group():
    p = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    u = {"w": jnp.array([[jnp.nan, 3.0], [0.0, 4.0]]), "b": jnp.array([jnp.nan, -1.0])}
    new, _ = po.project({"w": BALL, "b": pg.NonNeg()}).update(u, optax.EmptyState(), p)
    assert np.isnan(new["w"][:, 0]).all()
    np.testing.assert_allclose(new["w"][:, 1], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(new["b"], np.array([np.nan, 0.0]))


def test_empty_and_scalar_parameters_pass():
    p = {"e": jnp.zeros((0, 3)), "s": jnp.float32(0.5)}
    rules = {"e": BALL, "s": pg.Box(0.0, 1.0)}
    new, _ = po.project(rules).update({"e": jnp.zeros((0, 3)), "s": jnp.float32(2.0)}, optax.EmptyState(), p)
    assert new["e"].shape == (0, 3)
    assert float(new["s"]) == 0.5
    assert po.violations(p, rules) == {"e": 0.0, "s": 0.0}


def test_complex_parameters_have_norms():
    p, u = {"w": jnp.zeros((2, 1), "complex64")}, {"w": jnp.array([[3.0], [4.0j]], "complex64")}
    new, _ = po.project({"w": BALL}).update(u, optax.EmptyState(), p)
    np.testing.assert_allclose(new["w"], np.array([[0.6], [0.8j]]), rtol=1e-6)


def test_a_bare_function_is_a_constraint():
    rules = {"*/kernel": optax.projections.projection_non_negative}
    p, _ = step(tx := optax.chain(optax.sgd(1.0), po.project(rules)), q := feasible(rules), tx.init(q), 1)
    assert min(float(p[layer]["kernel"].min()) for layer in p) == 0.0


def test_a_single_array_is_a_tree():
    p = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(po.project_params(p, tree=pg.MaxNorm(1.0, axis=0)), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(po.project_params(p, {"*": pg.MaxNorm(1.0, axis=0)}), [0.6, 0.8], rtol=1e-6)


# -- the other functions ------------------------------------------------------------------------------------------


def test_apply_updates_is_the_projection_of_the_sum():
    p, u = params(), grads(params())
    total = optax.apply_updates(p, u)
    got = po.apply_updates(p, u, RULES)
    assert same(got, {k: {"kernel": BALL(v["kernel"]), "bias": pg.NonNeg()(v["bias"])} for k, v in total.items()})


def test_apply_updates_is_exact_from_a_start_where_adding_an_update_is_not():
    p, u = {"w": jnp.array([[1e6], [123456.0], [-765432.1]])}, {"w": jnp.ones((3, 1))}
    added = optax.apply_updates(p, po.project({"w": BALL}).update(u, optax.EmptyState(), p)[0])
    assert 1e-3 < float(BALL.violation(added["w"]).max()) < 1.0  # the documented limit
    assert BALL.contains(po.apply_updates(p, u, {"w": BALL})["w"])


def test_apply_updates_leaves_alone_what_has_no_update():
    p = {"w": jnp.array([-1.0]), "frozen": jnp.array([-1.0]), "none": None, "f": jnp.tanh}
    u = {"w": jnp.array([-1.0]), "frozen": None, "none": None, "f": None}
    new = po.apply_updates(p, u, {"w": pg.NonNeg()})
    assert new["frozen"] is p["frozen"]
    assert new["f"] is p["f"]
    assert float(new["w"][0]) == 0.0


def test_projecting_parameters_changes_only_the_constrained_ones_and_twice_nothing():
    p = params()
    once = po.project_params(p, {"one/*": pg.NonNeg()})
    assert once["two"]["kernel"] is p["two"]["kernel"]
    assert same(po.project_params(once, {"one/*": pg.NonNeg()}), once)
    assert same(p, params())


def test_projecting_numpy_parameters_gives_numpy():
    got = po.project_params({"w": np.array([-1.0, 2.0])}, {"w": pg.NonNeg()})["w"]
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, [0.0, 2.0])


@pytest.mark.parametrize(("value", "unit"), [(0.0, 1.0), (1e-25, 1.0), (-1e25, -1.0)])
def test_parameters_that_are_constants_are_projected_in_compiled_code_too(value, unit):
    rules = {"ball": pg.MaxNorm(1.0, axis=0), "unit": pg.UnitNorm(axis=0)}

    @jax.jit
    def start():  # such as the bias of one output, which XLA knows before it runs
        return po.project_params({name: jnp.full(1, value) for name in rules}, rules)

    found = start()
    np.testing.assert_allclose(found["ball"], np.clip([value], -1, 1), rtol=1e-6)
    np.testing.assert_allclose(found["unit"], [unit], rtol=1e-6)


def test_violations_are_the_largest_distance_by_name():
    p = {"a": {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.5]])}, "b": jnp.array([-0.5, -2.0]), "c": jnp.ones(2)}
    found = po.violations(p, {"a/kernel": BALL, "b": pg.NonNeg()})
    assert found == {"a/kernel": pytest.approx(4.0), "b": 2.0}
    assert all(type(v) is float for v in found.values())


def test_violations_compile():
    found = jax.jit(lambda p: po.violations(p, RULES))(params())
    assert all(v.shape == () for v in found.values())
    assert {k: float(v) for k, v in found.items()} == pytest.approx(po.violations(params(), RULES))


def test_projected_is_the_chain_and_passes_extra_arguments_on():
    p = feasible()
    seen = []

    def update(u, state, params=None, *, value=None):
        seen.append(value)
        return u, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = po.projected(optax.chain(inner, optax.sgd(1.0)), RULES)
    updates, _ = tx.update(grads(p), tx.init(p), p, value=3)
    assert seen == [3]
    chain = optax.chain(optax.sgd(1.0), po.project(RULES))
    assert same(updates, chain.update(grads(p), chain.init(p), p)[0])


# -- under transformations of JAX and optax -----------------------------------------------------------------------


def test_compiled_and_eager_updates_agree_and_end_in_the_sets():
    tx, p = po.project(RULES), feasible()
    u = grads(p)
    eager, _ = tx.update(u, optax.EmptyState(), p)
    compiled, _ = jax.jit(tx.update)(u, optax.EmptyState(), p)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert within(optax.apply_updates(p, eager))
    assert within(optax.apply_updates(p, compiled))


def test_scan_and_donation_keep_the_parameters_in_their_sets():
    tx = chain()

    def train(p, s):
        return jax.lax.scan(lambda carry, i: (step(tx, carry[0], carry[1], i), None), (p, s), jnp.arange(50))[0]

    p = feasible()
    end, _ = jax.jit(train, donate_argnums=(0, 1))(p, tx.init(p))
    assert within(end)


def test_vmap_over_models_equals_each_model_by_itself():
    tx = chain()
    models = [feasible(seed=n) for n in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *models)
    together, _ = jax.jit(jax.vmap(lambda p: step(tx, p, tx.init(p), 1)))(stacked)
    for n, p in enumerate(models):
        alone, _ = step(tx, p, tx.init(p), 1)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[n], b, atol=1e-6)


def test_gradients_flow_through_a_step():
    p, u = {"w": jnp.array([0.5, 0.9])}, jnp.array([0.2, 0.4])
    tx = po.project({"w": pg.Box(0.0, 1.0)})

    def after(lr):
        return (p["w"] + tx.update({"w": lr * u}, optax.EmptyState(), p)[0]["w"]).sum()

    assert float(jax.grad(after)(1.0)) == pytest.approx(0.2)  # the second entry is at its bound


def test_masked_leaves_are_skipped():
    mask = {"one": {"kernel": True, "bias": True}, "two": {"kernel": False, "bias": False}}
    tx = optax.chain(optax.sgd(1.0), optax.masked(po.project(RULES), mask))
    p, u = feasible(), grads(feasible())
    new, _ = tx.update(u, tx.init(p), p)
    np.testing.assert_array_equal(new["two"]["kernel"], -u["two"]["kernel"])
    assert within({"one": optax.apply_updates(p, new)["one"]})


def test_a_rule_that_only_selects_masked_leaves_is_an_error():
    mask = {"one": {"kernel": True, "bias": True}, "two": {"kernel": False, "bias": False}}
    with pytest.raises(ValueError, match="'two/bias' selects no parameter"):
        optax.masked(po.project({"two/bias": pg.NonNeg()}), mask).init(feasible())


def test_none_leaves_functions_and_strings_are_skipped():
    p = {"w": jnp.array([1.0]), "frozen": None, "f": jnp.tanh, "s": "name", "no_gradient": jnp.array([1.0])}
    u = {"w": jnp.array([-3.0]), "frozen": None, "f": None, "s": None, "no_gradient": None}
    tx = po.project({"*": pg.NonNeg()})
    new, _ = tx.update(u, tx.init(p), p)
    assert float(new["w"][0]) == -1.0
    assert all(new[k] is None for k in p if k != "w")


def test_partition_projects_only_its_own_part():
    labels = {"one": "ours", "two": "free"}
    tx = optax.partition({"ours": chain(optax.sgd(1.0)), "free": optax.sgd(1.0)}, labels)
    p, _ = step(tx, q := feasible(), tx.init(q), 1)
    assert within({"one": p["one"]})
    np.testing.assert_allclose(p["two"]["kernel"], q["two"]["kernel"] - grads(q, 1)["two"]["kernel"], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_multi_steps_stays_in_the_set_between_real_steps(dtype):
    tx = optax.MultiSteps(chain(), every_k_schedule=2)
    p = start = feasible(dtype=dtype)
    state = tx.init(p)
    for i in range(6):
        p, state = step(tx, p, state, i)
        assert within(p)
        assert same(p, start) == (i == 0)


def test_apply_if_finite_takes_the_updates_of_low_precision_weights():
    tx = optax.apply_if_finite(chain(), max_consecutive_errors=3)
    p = feasible(dtype="bfloat16")
    p, _ = step(tx, p, tx.init(p), 1)
    assert within(p)


def test_injected_hyperparameters_can_change_in_a_chain():
    tx = chain(optax.inject_hyperparams(optax.sgd)(learning_rate=lambda count: 1.0 / (1 + count)))
    p = feasible()
    state = tx.init(p)
    for i in range(3):
        p, state = step(tx, p, state, i)
        assert within(p)
