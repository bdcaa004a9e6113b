"""`metric="optimizer"` in `projgrad.optax`: which parameters it holds for, when, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po
from tests.optax_tree import same

SIMPLEX = pg.Simplex(1.0, axis=0)


pytestmark = pytest.mark.usefixtures("double")

# -- which parameters, and when -----------------------------------------------------------------------------------

SPREAD = np.asarray([1e-3, 1.0, 10.0])  # gradients that Adam scales very differently


def one_step(tx, p):
    """The parameters after two steps with gradients of different sizes."""
    state = tx.init(p)
    for _ in range(2):
        g = jax.tree.map(lambda x: jnp.asarray(SPREAD), p)
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
    return p


def three(*names):
    return {name: jnp.asarray([0.2, 0.3, 0.5]) for name in names}


def test_a_tag_says_another_metric_than_the_wrapper():
    tx = optax.adam(0.1, b1=0.0)
    tags = {"a": SIMPLEX, "b": pg.Tag(SIMPLEX, metric="optimizer"), "c": pg.Tag(SIMPLEX, metric="euclidean")}
    by_default, by_metric = (
        one_step(po.projected(tx, tags, metric=metric), three("a", "b", "c")) for metric in ("euclidean", "optimizer")
    )
    plain = one_step(po.projected(tx, {"*": SIMPLEX}), three("a"))["a"]
    scaled = one_step(po.projected(tx, {"*": SIMPLEX}, metric="optimizer"), three("a"))["a"]
    assert not np.allclose(plain, scaled, atol=1e-3)
    for found, expected in ((by_default, (plain, scaled, plain)), (by_metric, (scaled, scaled, plain))):
        for name, value in zip("abc", expected, strict=True):
            np.testing.assert_allclose(found[name], value, atol=1e-12)


def test_what_is_masked_or_not_scaled_is_projected_in_the_euclidean_metric():
    adam, sgd = optax.adam(0.1, b1=0.0), optax.sgd(0.01)
    p, rules = three("a", "b", "c"), {"*": SIMPLEX}
    tx = optax.partition({"adam": adam, "sgd": sgd}, {"a": "adam", "b": "sgd", "c": "adam"})
    found = one_step(po.projected(tx, rules, metric="optimizer"), p)
    scaled = one_step(po.projected(adam, rules, metric="optimizer"), three("a"))["a"]
    np.testing.assert_allclose(found["a"], scaled, atol=1e-12)
    np.testing.assert_allclose(found["c"], scaled, atol=1e-12)
    np.testing.assert_allclose(found["b"], one_step(po.projected(sgd, rules), three("a"))["a"], atol=1e-12)
    # a constraint without a form in a metric is refused where it would be asked for one, whatever the optimizer does
    with pytest.raises(ValueError, match="its nearest point in a diagonal metric is not implemented"):
        po.projected(adam, {"a": pg.as_constraint(jnp.abs)}, metric="optimizer").init(p)


def test_transformations_with_names_in_any_order():
    first, last = optax.scale_by_adam(b1=0.0, eps=1e-3), optax.chain(optax.scale_by_rms(), optax.scale(-0.1))
    named = optax.named_chain(("b", first), ("a", last))
    p, rules = three("w"), {"w": SIMPLEX}
    found = one_step(po.projected(named, rules, metric="optimizer"), p)
    assert same(found, one_step(po.projected(optax.chain(first, last), rules, metric="optimizer"), p))


def test_one_set_over_several_parameters():
    p = {"a": jnp.asarray([0.2, 0.3]), "b": jnp.asarray([0.5])}
    g = [{"a": np.asarray([1e-3, 1.0]), "b": np.asarray([10.0])}] * 2
    tx = po.projected(optax.adagrad(0.1), {"*": pg.Joint(pg.Simplex(axis=None))}, metric="optimizer")
    state = tx.init(p)
    for one in g:
        updates, state = tx.update(one, state, p)
        p = optax.apply_updates(p, updates)
    alone = one_step(po.projected(optax.adagrad(0.1), {"w": SIMPLEX}, metric="optimizer"), three("w"))["w"]
    np.testing.assert_allclose(np.concatenate([p["a"], p["b"]]), alone, atol=1e-12)


def test_accumulated_gradients_move_nothing_until_a_step_is_made():
    inner = optax.MultiSteps(optax.adam(0.1, b1=0.0), 3).gradient_transformation()
    tx, p = po.projected(inner, {"w": SIMPLEX}, metric="optimizer"), three("w")
    state, moved = tx.init(p), []
    for _ in range(6):
        updates, state = jax.jit(tx.update)({"w": jnp.asarray(SPREAD)}, state, p)
        new = optax.apply_updates(p, updates)
        moved.append(not np.array_equal(new["w"], p["w"]))
        p = new
    assert moved == [False, False, True] * 2
    expected = one_step(po.projected(optax.adam(0.1, b1=0.0), {"w": SIMPLEX}, metric="optimizer"), three("w"))
    np.testing.assert_allclose(p["w"], expected["w"], atol=1e-12)


def test_before_the_first_step_the_metric_is_euclidean():
    inner = optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation()
    tx, p = po.projected(inner, {"w": SIMPLEX}, metric="optimizer"), {"w": jnp.asarray([1.0, 2.0, 0.5])}
    updates, _ = tx.update({"w": jnp.asarray(SPREAD)}, tx.init(p), p)
    np.testing.assert_allclose(optax.apply_updates(p, updates)["w"], SIMPLEX.project(p["w"]), atol=1e-12)


def test_not_a_finite_gradient_leaves_the_parameters():
    tx, p = po.projected(optax.apply_if_finite(optax.adam(0.1), 3), {"w": SIMPLEX}, metric="optimizer"), three("w")
    updates, _ = tx.update({"w": jnp.full(3, jnp.nan)}, tx.init(p), p)
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_every_few_steps_and_a_schedule():
    rules = {"w": pg.Tag(pg.Simplex(pg.Schedule({0: 2.0, 4: 1.0}), axis=0), every=2)}
    tx, p = po.projected(optax.adam(0.1), rules, metric="optimizer"), three("w")
    state, sums = tx.init(p), []
    for _ in range(4):
        updates, state = jax.jit(tx.update)({"w": jnp.asarray(SPREAD)}, state, p)
        p = optax.apply_updates(p, updates)
        sums.append(float(p["w"].sum()))
    np.testing.assert_allclose([sums[1], sums[3]], [1.5, 1.0], atol=1e-9)
    assert abs(sums[2] - 1.25) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_lower_precision(dtype):
    rules = {"w": pg.MaxNorm(1.0, axis=0)}
    tx = po.projected(optax.adam(0.1, eps=1e-3), rules, metric="optimizer")
    p = {"w": jnp.asarray(np.full((20, 3), 0.1), dtype)}
    state, rng = tx.init(p), np.random.default_rng(0)
    for _ in range(20):
        g = {"w": jnp.asarray(10.0 ** rng.uniform(-4, 0, (20, 1)) * rng.standard_normal((20, 3)), dtype)}
        updates, state = jax.jit(tx.update)(g, state, p)
        p = optax.apply_updates(p, updates)
        assert p["w"].dtype.name == dtype
        assert float(max(po.violations(p, rules).values())) <= 1.5 * float(pg.tolerance(p["w"].dtype, 20, 1.0))


def test_checkpoints_are_those_of_the_euclidean_metric():
    p = three("w")
    made = [po.projected(optax.adam(0.1), {"w": SIMPLEX}, metric=m) for m in ("euclidean", "optimizer")]
    made.append(optax.chain(optax.adam(0.1), po.project({"w": SIMPLEX})))
    structures: list[Any] = [jax.tree.structure(tx.init(p)) for tx in made]
    assert structures[0] == structures[1] == structures[2]


def test_in_the_euclidean_metric_nothing_is_looked_for():
    p = three("w")
    for tx in (optax.lion(0.1), optax.lbfgs(), optax.flatten(optax.adam(0.1))):
        po.projected(tx, {"w": SIMPLEX}).init(p)


def test_modules_of_equinox_and_flax():
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    rules = {"weight": pg.MaxNorm(0.5)}
    layer = po.project_params(eqx.nn.Linear(3, 2, key=jax.random.key(0)), rules)
    tx = po.projected(optax.adam(0.1), rules, metric="optimizer")
    state = tx.init(eqx.filter(layer, eqx.is_array))
    updates, _ = tx.update(jax.tree.map(lambda x: -x, eqx.filter(layer, eqx.is_array)), state, layer)
    assert max(po.violations(eqx.apply_updates(layer, updates), rules).values()) < 1e-6
    with pytest.raises(ValueError, match="ScaleByLionState"):
        po.projected(optax.lion(0.1), rules, metric="optimizer").init(eqx.filter(layer, eqx.is_array))
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    rules = {"kernel": pg.MaxNorm(0.5)}
    po.project_params(model, rules)
    optimizer = nnx.Optimizer(
        model, po.projected(optax.adam(0.1), rules, model=model, metric="optimizer"), wrt=nnx.Param
    )
    optimizer.update(model, jax.tree.map(lambda x: -x, nnx.state(model, nnx.Param)))
    assert max(po.violations(model, rules).values()) < 1e-6
    with pytest.raises(ValueError, match="ScaleByLionState"):
        nnx.Optimizer(model, po.projected(optax.lion(0.1), rules, model=model, metric="optimizer"), wrt=nnx.Param)


# -- what is not known --------------------------------------------------------------------------------------------


class MineState(NamedTuple):
    seen: dict


def mine(factor=2.0):
    """A transformation of one's own, which divides by what it has seen."""

    def update(updates, state, params=None):
        seen = jax.tree.map(lambda g, s: jnp.maximum(s, jnp.abs(g)), updates, state.seen)
        return jax.tree.map(lambda g, s: -0.1 * g / s, updates, seen), MineState(seen)

    return optax.GradientTransformation(lambda p: MineState(jax.tree.map(jnp.zeros_like, p)), update)


def test_a_transformation_of_ones_own_can_be_registered(monkeypatch):
    from projgrad_backends.jax import metric

    monkeypatch.setattr(metric, "_registered", {})
    p, rules = three("w"), {"w": SIMPLEX}
    for tx in (mine(), optax.chain(optax.trace(0.9), mine()), optax.MultiSteps(mine(), 2).gradient_transformation()):
        with pytest.raises(ValueError, match=r"w: metric=.*register_metric\(MineState\)"):
            po.projected(tx, rules, metric="optimizer").init(p)

    @po.register_metric(MineState)
    def scaling(state, params):
        assert params["w"].shape == (3,)
        return state.seen

    assert scaling.__name__ == "scaling"
    found = one_step(po.projected(mine(), rules, metric="optimizer"), p)["w"]
    last = SIMPLEX.project(np.asarray(p["w"]) - 0.1, metric=SPREAD)
    np.testing.assert_allclose(found, SIMPLEX.project(last - 0.1, metric=SPREAD), atol=1e-12)

    po.register_metric(MineState)(lambda state, params: None)
    found = one_step(po.projected(mine(), rules, metric="optimizer"), p)["w"]
    np.testing.assert_allclose(found, p["w"], atol=1e-12)
    with pytest.raises(TypeError, match="class of a state"):
        po.register_metric(mine())


def test_a_function_of_ones_own_holds_before_that_of_projgrad(monkeypatch):
    from projgrad_backends.jax import metric

    monkeypatch.setattr(metric, "_registered", {})
    p, rules = three("w"), {"w": SIMPLEX}
    po.register_metric(optax.ScaleByAdamState)(lambda state, params: None)
    found = one_step(po.projected(optax.adam(0.1), rules, metric="optimizer"), p)
    assert same(found, one_step(po.projected(optax.adam(0.1), rules), p))


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.lion(0.1), r"w: metric=.*how ScaleByLionState scales.*register_metric"),
        (optax.sign_sgd(0.1), "w: metric=.*scale_by_sign has no metric"),
        (optax.chain(optax.scale_by_adam(), optax.scale_by_sign()), "w: metric=.*scale_by_sign has no metric"),
        (
            optax.inject_hyperparams(lambda lr: optax.chain(optax.adam(1.0), optax.sign_sgd(lr)))(0.1),
            "w: metric=.*scale_by_sign has no metric",
        ),
        (optax.flatten(optax.sign_sgd(0.1)), "w: metric=.*scale_by_sign has no metric"),
        (optax.rprop(0.1), "how ScaleByRpropState scales"),
        (optax.sm3(0.1), "how ScaleBySM3State scales"),
        (optax.chain(optax.trace(0.9), optax.lbfgs()), "how ScaleByLBFGSState scales"),
        (optax.flatten(optax.adam(0.1)), "ScaleByAdamState holds no tree like the parameters"),
        (
            optax.GradientTransformation(optax.adam(0.1).init, lambda u, s, p=None: (u, s)),
            r"ScaleByAdamState is not found.*eps.*register_metric",
        ),
    ],
    ids=["lion", "sign", "adam-sign", "inject-sign", "flat-sign", "rprop", "sm3", "lbfgs", "flat", "hidden"],
)  # fmt: skip
def test_what_is_not_known_is_refused_at_the_start(tx, message):
    with pytest.raises(ValueError, match=message):
        po.projected(tx, {"w": SIMPLEX}, metric="optimizer").init(three("w"))


def is_b(tree):
    return {name: name == "b" for name in tree}


@pytest.mark.parametrize("other", [optax.lion(0.1), optax.sign_sgd(0.1)], ids=["lion", "sign"])
def test_what_is_not_known_may_scale_other_parameters(other):
    labels = {"a": "adam", "b": "other"}
    made = [
        optax.partition({"adam": optax.adam(0.1), "other": other}, labels),
        optax.partition({"adam": optax.adam(0.1), "other": other}, lambda p: {name: labels[name] for name in p}),
        optax.chain(optax.masked(optax.adam(0.1), {"a": True, "b": False}), optax.masked(other, is_b)),
        optax.MultiSteps(optax.masked(other, is_b), 2).gradient_transformation(),
    ]
    for tx in made:
        po.projected(tx, {"a": SIMPLEX}, metric="optimizer").init(three("a", "b"))
        with pytest.raises(ValueError, match=r"b: .*(ScaleByLionState|scale_by_sign)"):
            po.projected(tx, {"*": SIMPLEX}, metric="optimizer").init(three("a", "b"))


def test_labels_of_whole_parts_of_the_tree():
    adam, rules = optax.adam(0.1, b1=0.0), {"*": SIMPLEX}
    whole = three("x", "y") | {"part": three("z")}
    for labels in ({"a": "adam", "b": "sign"}, {"b": "sign", "a": {"x": "adam", "y": "adam", "part": "adam"}}):
        tx = optax.partition({"adam": adam, "sign": optax.sign_sgd(0.1)}, labels)
        p = {"a": whole, "b": whole}
        projected = po.projected(tx, {"a/*": SIMPLEX}, metric="optimizer")
        found = one_step(projected, p)["a"]
        assert same(found, one_step(po.projected(adam, rules, metric="optimizer"), whole))
        with pytest.raises(ValueError, match="b/part/z: .*scale_by_sign"):
            po.projected(tx, {"b/part/z": SIMPLEX}, metric="optimizer").init(p)


def test_in_a_chain_there_is_no_metric():
    with pytest.raises(ValueError, match=r"w: project\(\) in a chain does not see .* use projgrad.optax.projected"):
        po.project({"w": pg.Tag(SIMPLEX, metric="optimizer")}).init(three("w"))
    with pytest.raises(ValueError, match="metric='adam' is not known"):
        po.projected(optax.adam(0.1), {"w": SIMPLEX}, metric="adam")
    tx = po.projected(optax.adam(0.1), {"w": SIMPLEX}, metric="optimizer")
    state = tx.init(three("w"))
    with pytest.raises(ValueError, match="projected needs the parameters"):
        tx.update(three("w"), state)


def test_a_traced_metric_of_an_array_that_is_not():
    x, h = jnp.asarray([3.0, 1.0, -1.0]), jnp.asarray([1.0, 0.1, 10.0])
    found = jax.jit(lambda h: SIMPLEX.project(x, metric=h))(h)
    np.testing.assert_allclose(found, SIMPLEX.project(np.asarray(x), metric=np.asarray(h)), atol=1e-12)
