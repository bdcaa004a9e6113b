"""Which leaves `projgrad.optax` constrains, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po
from projgrad.frozen import FrozenArray
from tests.optax_tree import BALL, RULES, chain, feasible, grads, params, same, step

# -- selecting ----------------------------------------------------------------------------------------------------


def test_the_last_rule_wins_and_none_leaves_free():
    found = po.violations(params(), {"*": pg.NonNeg(), "two/*": None, "two/bias": pg.NonPos()})
    assert set(found) == {"one/kernel", "one/bias", "two/bias"}


def test_a_tree_prefix_says_the_same_as_rules():
    tree = {"one": {"kernel": BALL, "bias": None}, "two": pg.NonNeg()}
    rules = {"one/kernel": BALL, "two/*": pg.NonNeg()}
    assert same(po.project_params(params(), tree=tree), po.project_params(params(), rules))
    u = grads(p := feasible(rules))
    ours, _ = po.project(tree=tree).update(u, optax.EmptyState(), p)
    assert same(ours, po.project(rules).update(u, optax.EmptyState(), p)[0])


def test_a_tree_prefix_has_incoming_axes_and_bare_functions_too():
    tree = {"one": {"kernel": pg.MaxNorm(1.0), "bias": jnp.abs}, "two": None}
    got = po.project_params(params(), tree=tree)
    expected = po.project_params(params(), {"one/kernel": BALL, "one/bias": jnp.abs})
    assert same(got, expected)


def test_the_plan_is_resolved_once_per_structure(monkeypatch):
    from projgrad_backends.jax import tags

    calls: list[object] = []
    found = tags.Tags._resolve

    def resolve(*args):
        calls.append(args)
        return found(*args)

    monkeypatch.setattr(tags.Tags, "_resolve", resolve)
    p = feasible()
    tx = optax.chain(optax.sgd(0.1), po.project(RULES))
    calls.clear()
    state = tx.init(p)
    for i in range(2):
        updates, state = tx.update(grads(p, i), state, p)
        p = optax.apply_updates(p, updates)
    step(tx, p, state, 0)
    assert len(calls) == 1
    tx.init(jax.tree.map(lambda x: x.astype("bfloat16"), p))
    assert len(calls) == 2


# -- errors, early and clear --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ({"one/kernl": BALL}, ValueError, "'one/kernl' selects no parameter; the nearest: one/kernel"),
        ({"one/bias": pg.MaxNorm(1.0, axis=1)}, ValueError, "one/bias.*axis 1 does not exist"),
        ({"one/bias": pg.MaxNorm(1.0)}, ValueError, "'bias'.*axes as numbers.*None"),
        ({"one/kernel": pg.Box(FrozenArray(np.zeros(5)), 1.0)}, ValueError, "one/kernel.*does not broadcast"),
        ({"steps": pg.NonNeg()}, TypeError, "steps.*floating-point"),
        ({"wave": pg.NonNeg()}, TypeError, "wave.*real numbers"),
        ({"one/kernel": lambda x: x.sum()}, ValueError, "returned the shape"),
        ({"*/kernel": 3.0}, TypeError, "neither a constraint nor a function"),
        ({"*/kernel": pg.MaxNorm}, TypeError, r"MaxNorm is a class: write MaxNorm\(...\)"),
        ([BALL], TypeError, "rules are a mapping"),
    ],
)
def test_wrong_rules_are_errors_at_init(rules, error, words):
    p = {**params(), "steps": jnp.array([1]), "wave": jnp.ones(2, "complex64")}
    for use in (po.project(rules).init, lambda p: po.project_params(p, rules), lambda p: po.violations(p, rules)):
        with pytest.raises(error, match=words):
            use(p)


def test_a_function_that_returns_another_shape_is_named_at_init():
    with pytest.raises(ValueError, match=r"one/kernel.*returned the shape"):
        po.project({"one/kernel": lambda x: x.sum()}).init(params())


def test_integers_that_no_rule_selects_are_fine():
    p = {**params(), "steps": jnp.array([1]), "key": jax.random.key(0)}
    assert po.project_params(p, RULES)["steps"] is p["steps"]


def test_exactly_one_of_rules_and_tree_is_given():
    neither: dict[str, Any] = {}
    for options in (neither, {"rules": RULES, "tree": BALL}):
        for use in (po.project, lambda **o: po.projected(optax.sgd(1.0), **o), lambda **o: po.violations({}, **o)):
            with pytest.raises(ValueError, match="either rules or tree="):
                use(**options)


def test_a_tree_that_is_no_prefix_is_an_error():
    with pytest.raises(ValueError, match="tree= is not a prefix of the parameters"):
        po.project(tree={"three": BALL}).init(params())
    with pytest.raises(ValueError, match="one/bias.*axis 3"):
        po.project(tree={"one": pg.MaxNorm(1.0, axis=3), "two": None}).init({**params(), "one": {"bias": jnp.ones(2)}})


def test_a_model_that_is_no_module_is_an_error():
    with pytest.raises(TypeError, match="model= is an nnx.Module or an equinox Module, not dict"):
        po.project(RULES, model={})


def test_an_update_without_parameters_is_an_error():
    tx = chain()
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, params\)"):
        po.project(RULES).update(grads(params()), optax.EmptyState())
    assert isinstance(tx.init(feasible())[-1], optax.EmptyState)
