"""Gradients, updates and momentum without what points out of the set, in optax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests.orthants import MOMENTUM, RATE, orthant_problems

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp

from projgrad.optax import apply_updates, project, project_params, projected

SPHERE = pg.UnitNorm(axis=1)


def random(seed: int) -> Any:
    return {"w": jnp.asarray(np.random.default_rng(seed).standard_normal((16, 32)), jnp.float32)}


def cosine(a: Any, b: Any) -> float:
    return float(jnp.abs((a * b).sum(1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))).max())


def seen() -> tuple[Any, list[Any]]:
    """A transformation that keeps what it is given, and where."""
    given: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        given.append(updates)
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update), given


def test_the_gradient_is_tangent() -> None:
    record, given = seen()
    tx = projected(optax.chain(record, optax.sgd(0.1)), {"w": pg.Tag(SPHERE, tangent="gradient")})
    params = project_params(random(0), {"w": SPHERE})
    tx.update(random(1), tx.init(params), params)
    assert cosine(given[0]["w"], params["w"]) < 1e-6
    assert cosine(random(1)["w"], params["w"]) > 0.1


INNER = {
    "adam": optax.adam(1e-2),
    "adan": optax.adan(1e-2),
    "sgd": optax.sgd(1e-2, momentum=0.9),
    "rmsprop": optax.rmsprop(1e-2, centered=True),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("option", ["gradient", "update"])
def test_the_update_and_the_momentum_are_tangent(option: str, inner: Any) -> None:
    tx = projected(inner, {"w": pg.Tag(SPHERE, tangent=option)})
    params = project_params(random(0), {"w": SPHERE})
    state, step = tx.init(params), jax.jit(tx.update)
    for i in range(5):
        updates, state = step(random(i + 1), state, params)
        if option == "update":  # what is left along the weight is what leads back to the sphere
            moved = SPHERE.tangent(params["w"], updates["w"])
            along = (updates["w"] * params["w"]).sum(1)
            np.testing.assert_allclose(along, -(1 - np.sqrt(1 - (moved**2).sum(1))), atol=1e-6)
        params = optax.apply_updates(params, updates)
        assert jnp.isfinite(params["w"]).all()
        for name in ("mu", "trace", "m"):
            for path, momentum in optax.tree_utils.tree_get_all_with_path(state, name):
                assert "StdDev" in str(path) or cosine(momentum["w"], params["w"]) < 1e-6


@pytest.mark.parametrize("option", ["gradient", "update"])
def test_fewer_steps_on_an_orthant(option: str) -> None:
    def steps(tangent: str | None, matrix: Any, vector: Any, start: Any, goal: float) -> int:
        tx = projected(optax.sgd(RATE, momentum=MOMENTUM), {"w": pg.Tag(pg.NonNeg(), tangent=tangent)})

        def value(params: Any) -> Any:
            return 0.5 * params["w"] @ matrix @ params["w"] - vector @ params["w"]

        def go(carry: Any) -> Any:
            i, params, _ = carry
            return (value(params) > goal) & (i < 5000)

        def one(carry: Any) -> Any:
            i, params, state = carry
            updates, state = tx.update(jax.grad(value)(params), state, params)
            return i + 1, optax.apply_updates(params, updates), state

        params = {"w": jnp.asarray(start)}
        return int(jax.jit(lambda c: jax.lax.while_loop(go, one, c))((0, params, tx.init(params)))[0])

    with jax.enable_x64(True):
        made = [[steps(tangent, *problem) for problem in orthant_problems()] for tangent in (None, option)]
    assert max(made[0] + made[1]) < 5000
    assert sum(made[1]) < 0.97 * sum(made[0])


def test_masked_leaves_and_free_ones_are_left_alone() -> None:
    params = {"w": jnp.asarray([0.0, 1.0]), "b": jnp.asarray([0.0, 1.0])}
    tx = projected(
        optax.masked(optax.trace(0.9), {"w": False, "b": True}), {"w": pg.Tag(pg.NonNeg(), tangent="update")}
    )
    updates, _ = tx.update({"w": -jnp.ones(2), "b": -jnp.ones(2)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], [0, -1])
    np.testing.assert_array_equal(updates["b"], [-1, -1])


def test_errors() -> None:
    params = {"w": jnp.ones((3, 3))}
    with pytest.raises(ValueError, match=r"w: project\(\) in a chain does not see .* tangent= needs"):
        optax.chain(optax.sgd(0.1), project({"w": pg.Tag(SPHERE, tangent="update")})).init(params)
    with pytest.raises(ValueError, match=r"apply_updates\(\) does not see"):
        apply_updates(params, params, {"w": pg.Tag(SPHERE, tangent="update")})
    with pytest.raises(ValueError, match="w cannot have tangent='update': .*not implemented"):
        projected(optax.sgd(0.1), {"w": pg.Tag(pg.SpectralNorm(), tangent="update")}).init(params)
    with pytest.raises(ValueError, match="tangent='both' is not known"):
        pg.Tag(SPHERE, tangent="both")
