"""A small tree of parameters to constrain with optax, and what is asked of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po

BALL = pg.MaxNorm(1.0, axis=0)
RULES = {"*/kernel": BALL, "*/bias": pg.NonNeg()}


def params(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    a, b, c, d = (jnp.asarray(rng.normal(size=s), dtype) for s in ((4, 3), (3,), (3, 2), (2,)))
    return {"one": {"kernel": a, "bias": b}, "two": {"kernel": c, "bias": d}}


def feasible(rules=RULES, **options):
    return po.project_params(params(**options), rules)


@jax.jit
def grads(p, seed=1):
    leaves, treedef = jax.tree.flatten(p)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def within(p, rules=RULES, slack=1.0):
    """All constrained parameters are in their sets, found without the code under test."""
    for layer in p.values():
        tol = slack * float(pg.tolerance(layer["kernel"].dtype, layer["kernel"].shape[-2], 1.0))
        norms = np.linalg.norm(np.asarray(layer["kernel"], np.float64), axis=-2)
        assert (norms <= 1 + tol).all()
        assert (np.asarray(layer["bias"], np.float64) >= 0).all()
    return True


def chain(inner=None):
    return optax.chain(inner or optax.adam(0.3), po.project(RULES))


@partial(jax.jit, static_argnums=0)
def step(tx, p, state, seed):
    updates, state = tx.update(grads(p, seed), state, p)
    return optax.apply_updates(p, updates), state
