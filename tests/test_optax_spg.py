"""The spectral projected gradient method in optax, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("torch")  # which the benchmark has at hand

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po
from benchmarks import line_search
from tests import minima
from tests.boxes import BOXES, box, factors, l_bfgs_b, stationarity


@pytest.mark.parametrize("name", BOXES)
def test_in_a_box_it_ends_where_scipys_l_bfgs_b_does(name: str) -> None:
    problem, least = box(name)
    end = line_search.by_optax(problem, 1000)
    assert float(problem.value(end.x, np)) == pytest.approx(least, rel=1e-6)
    assert line_search.projected_gradient(problem, end.x) <= line_search.TOLERANCE
    assert problem.constraint.violation(end.x).max() == 0
    assert end.evaluations < 500


@pytest.mark.parametrize("name", ["quadratic, simplex", "quadratic, l1 ball", "quadratic, max-norm per row"])
def test_sets_that_couple_entries(name: str) -> None:
    end = line_search.by_optax(minima.problem(name), 2000)
    assert abs(minima.gap(name, end.x)) < 1e-6
    assert minima.problem(name).constraint.contains(end.x)


def run(loss: Callable[..., Any], params: Any, rules: Any, updates: int, **options: Any) -> tuple[Any, Any, Any]:
    """The end of so many updates in one compiled loop, and all values on the way."""
    tx = po.spg(rules, **options)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        made, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, made), state), value

    params = po.project_params(params, rules)
    (params, state), values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=updates))(
        (params, tx.init(params))
    )
    return params, state, values


def test_a_non_negative_factorization_gets_as_stationary_as_scipys() -> None:
    v, w, h = factors()
    with jax.enable_x64(True):
        start = {"w": jnp.asarray(w), "h": jnp.asarray(h)}
        found, state, _ = run(lambda p: 0.5 * jnp.sum((p["w"] @ p["h"] - v) ** 2), start, {"*": pg.NonNeg()}, 3000)
        found = {name: np.asarray(x) for name, x in found.items()}
    reached = stationarity(v, found["w"], found["h"])
    assert reached <= min(l_bfgs_b(v, w, h), 1e-3)
    assert float(state.projected_gradient) == pytest.approx(reached)
    assert min(x.min() for x in found.values()) >= 0


def test_float32_trees_with_free_leaves() -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 6)).astype("float32")
    params = {"x": jnp.ones(6), "free": jnp.ones(()), "none": None}

    def loss(p: Any) -> Any:
        return p["x"] @ (matrix + matrix.T) @ p["x"] + (p["free"] - 3) ** 2

    found, state, values = run(loss, params, {"x": pg.UnitNorm(axis=0)}, 200, history_size=1)
    assert found["x"].dtype == jnp.float32
    assert pg.UnitNorm(axis=0).contains(found["x"])
    assert float(loss(found)) == pytest.approx(np.linalg.eigvalsh(matrix + matrix.T)[0], rel=1e-5)
    assert float(found["free"]) == pytest.approx(3, rel=1e-4)
    assert found["none"] is None
    rise = np.diff(np.asarray(values, np.float64))
    assert rise.max() <= 1e-6 * np.abs(values).max()
    assert float(state.value) == float(loss(found))


def test_further_arguments_and_another_batch() -> None:
    tx = po.spg({"w": pg.Box(0.0, 1.0)})

    def loss(p: Any, scale: Any, *, goal: Any) -> Any:
        return scale * jnp.sum((p["w"] - goal) ** 2) + scale

    def step(p: Any, state: Any, scale: float, goal: float) -> Any:
        value, grad = jax.value_and_grad(loss)(p, scale, goal=goal)
        made, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=loss, scale=scale, goal=goal)
        return optax.apply_updates(p, made), state

    params = {"w": jnp.full(3, 0.5)}
    state = tx.init(params)
    for _ in range(5):
        params, state = step(params, state, 100.0, 2.0)
        ahead = np.clip(params["w"] - 200.0 * (params["w"] - 2.0), 0.0, 1.0) - params["w"]
        assert float(state.projected_gradient) == pytest.approx(np.abs(ahead).max())
    np.testing.assert_array_equal(params["w"], 1.0)
    for _ in range(5):
        params, state = step(params, state, 1.0, -1.0)
        assert float(state.values.max()) < 100
    np.testing.assert_array_equal(params["w"], 0.0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        tx.update(params, state, params, value=1.0, grad=params, value_fn=loss, scale=1.0, goal=0.0, other=1)


def test_where_nothing_goes_down_nothing_moves() -> None:
    tx = po.spg({"w": pg.NonNeg()}, max_backtracking_steps=5)
    params = {"w": jnp.ones(3)}
    wrong = {"w": -jnp.ones(3)}  # no gradient of this function
    made, state = tx.update(wrong, tx.init(params), params, value=3.0, grad=wrong, value_fn=lambda p: p["w"].sum())
    np.testing.assert_array_equal(made["w"], 0.0)
    assert float(state.length) == 0
    assert int(state.evaluations) == 6
    for value in (jnp.nan, jnp.inf):
        made, state = tx.update(wrong, state, params, value=value, grad=wrong, value_fn=lambda p: p["w"].sum())
        np.testing.assert_array_equal(made["w"], 0.0)
        assert not np.isfinite(state.value)


def test_a_value_that_is_not_finite_shortens_the_step() -> None:
    found, _, _ = run(lambda p: jnp.sum(100 * p["w"] - jnp.log(p["w"])), {"w": jnp.ones(2)}, {"w": pg.NonNeg()}, 60)
    np.testing.assert_allclose(found["w"], 0.01, rtol=1e-3)


def test_complex_parameters() -> None:
    goal = np.array([1 + 1j, 2j], "complex64")
    params = {"z": jnp.asarray([3 + 4j, 0.1j], "complex64")}
    found, _, _ = run(lambda p: jnp.sum(jnp.abs(p["z"] - goal) ** 2), params, {"z": pg.MaxNorm(1.0, axis=0)}, 50)
    np.testing.assert_allclose(found["z"], goal / 6**0.5, rtol=1e-4)


def test_errors() -> None:
    params = {"w": jnp.ones(4)}
    for constraint in (pg.NonNeg().every(2), pg.Slices([pg.NonNeg().relaxed(0.5), None])):
        with pytest.raises(ValueError, match="w: the spectral projected gradient method"):
            po.spg({"w": constraint}).init(params)
    with pytest.raises(ValueError, match="at least 1"):
        po.spg({"w": pg.NonNeg()}, history_size=0)
    tx = po.spg({"w": pg.NonNeg()})
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params), value=1.0, grad=params, value_fn=lambda p: p["w"].sum())
