"""What rounding does to `params + updates`: in every precision, a feasible start stays feasible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import projgrad as pg
import projgrad.optax as po

DTYPES = ("float32", "bfloat16", "float16")
BOXES = (pg.Box(-0.3, 0.7), pg.NonNeg(), pg.NonPos())
NORMS = (pg.MaxNorm(1.0, axis=0), pg.UnitNorm(axis=0), pg.MinMaxNorm(0.7, 1.3, axis=0))


def entries(x):
    return np.asarray(x, np.float64)


def in_box(x, c):
    """In the set to the last bit, the bounds being rounded to the precision of `x`."""
    lower = -np.inf if isinstance(c, pg.NonPos) else entries(jnp.asarray(getattr(c, "lower", 0.0), x.dtype))
    upper = np.inf if isinstance(c, pg.NonNeg) else entries(jnp.asarray(getattr(c, "upper", 0.0), x.dtype))
    return bool(((entries(x) >= lower) & (entries(x) <= upper)).all())


def in_norms(x, c, times=1.0):
    """Within the tolerance of the norms that the set allows, computed in double precision."""
    norms = np.linalg.norm(entries(x), axis=-2)
    low = getattr(c, "min_value", 1.0 if isinstance(c, pg.UnitNorm) else 0.0)
    high = getattr(c, "max_value", 1.0)
    below, above = (times * float(pg.tolerance(x.dtype, x.shape[-2], r)) for r in (low, high))
    return bool(((norms >= low - below) & (norms <= high + above)).all())


def normal(seed, shape, dtype, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), "float32").astype(dtype)


def after(c, p, u):
    tx = po.project({"w": c})
    return optax.apply_updates({"w": p}, tx.update({"w": u}, optax.EmptyState(), {"w": p})[0])["w"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_steps_of_adam_from_a_feasible_start_stay_in_every_set(dtype):
    rules = {str(i): c for i, c in enumerate((*BOXES, *NORMS))}
    # the epsilon of Adam must be a number that float16 can hold
    tx = po.projected(optax.adam(0.03, eps=1e-3), rules)
    noise = normal(7, (200, 20, 30), dtype)

    @jax.jit
    def train(p):
        def one(carry, g):
            p, state = carry
            updates, state = tx.update({k: g + 2 * w - 0.5 for k, w in p.items()}, state, p)
            p = optax.apply_updates(p, updates)
            return (p, state), p

        return jax.lax.scan(one, (p, tx.init(p)), noise)[1]

    path = train({k: c.project(normal(0, (20, 30), dtype)) for k, c in rules.items()})
    for k, c in rules.items():
        assert np.isfinite(entries(path[k])).all()
        assert (in_box if c in BOXES else in_norms)(path[k], c), c
        assert not np.array_equal(path[k][0], path[k][-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_boxes_are_exact_after_steps_of_any_length(dtype, compiled):
    for c in BOXES:
        for scale in (0.1, 30.0):
            p = c.project(normal(1, (20000,), dtype))
            run = jax.jit(after, static_argnums=0) if compiled else after
            assert in_box(run(c, p, normal(2, p.shape, dtype, scale)), c)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_balls_hold_after_steps_of_any_length(dtype, compiled):
    c = pg.MaxNorm(1.0, axis=0)
    for n, scale in ((2, 0.1), (2, 30.0), (50, 1.0)):
        p = c.project(normal(n, (n, 5000), dtype))
        run = jax.jit(after, static_argnums=0) if compiled else after
        assert in_norms(run(c, p, normal(3, p.shape, dtype, scale)), c)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_spheres_hold_in_low_precision_after_ordinary_steps_and_nearly_after_long_ones(dtype):
    c = pg.UnitNorm(axis=0)
    for n in (2, 10):
        p = c.project(normal(n, (n, 5000), dtype))
        assert in_norms(after(c, p, normal(3, p.shape, dtype, 0.2 / n**0.5)), c)
        assert in_norms(after(c, p, normal(3, p.shape, dtype, 10 / n**0.5)), c, times=2.5)  # as documented


bounds = st.tuples(*[st.floats(-100, 100, width=16)] * 2).map(sorted)


@pytest.mark.parametrize("dtype", DTYPES)
@given(bounds=bounds, start=st.floats(-100, 100, width=16), step=st.floats(-1e4, 1e4, width=16))
def test_one_entry_of_a_box_ends_in_it(dtype, bounds, start, step):
    c = pg.Box(*bounds)
    p = c.project(jnp.asarray([start], dtype))
    new = after(c, p, jnp.asarray([step], dtype))
    assert in_box(new, c)
    expected = np.clip(float(p[0]) + float(jnp.asarray(step, dtype)), *bounds)
    assert abs(float(new[0]) - expected) <= 3 * float(jnp.finfo(dtype).eps) * (abs(float(p[0])) + abs(expected) + 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**30), n=st.sampled_from([1, 17]), log=st.integers(-6, 2))
def test_a_ball_of_any_radius_is_not_left(dtype, seed, n, log):
    c = pg.MaxNorm(10.0**log, axis=0)
    p = c.project(normal(seed, (n, 4), dtype, 10.0**log))
    assert in_norms(after(c, p, normal(seed + 1, p.shape, dtype, 10.0**log)), c)


def test_a_box_is_exact_from_an_infeasible_start_too():
    c, p = pg.Box(0.0, 1.0), normal(0, (5000,), "float32", 1e5)
    assert in_box(after(c, p, normal(1, p.shape, "float32")), c)


def test_the_first_step_from_an_infeasible_start_misses_a_ball_by_the_rounding_of_the_start():
    c, p = pg.MaxNorm(1.0, axis=0), normal(0, (16, 200), "float32", 1e3)
    first = after(c, p, jnp.zeros_like(p))
    assert 0 < float(c.violation(first).max()) < 1e-3  # documented: project the initial parameters
    assert in_norms(after(c, first, jnp.zeros_like(p)), c)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_step_with_apply_updates_is_within_the_tolerance(dtype):
    c = pg.MaxNorm(1.0, axis=0)
    p = c.project(normal(0, (2, 20000), dtype))
    u = normal(1, p.shape, dtype, 0.1)
    step = jax.jit(lambda p, u: (new := po.apply_updates(p, 0.3 * u, {"*": c}), po.violations(new, {"*": c})))
    new, found = step(p, u)
    assert in_norms(new, c)
    assert float(found[""]) == pytest.approx(po.violations(new, {"*": c})[""], abs=1e-6)


# -- where optax's own projections are wrong ----------------------------------------------------------------------


def test_a_ball_is_right_where_the_squares_overflow():
    x = jnp.array([3e20, 4e20], "float32")
    np.testing.assert_array_equal(optax.projections.projection_l2_ball(x, 1.0), 0.0)  # optax
    np.testing.assert_allclose(pg.MaxNorm(1.0, axis=None)(x), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(after(pg.MaxNorm(1.0, axis=None), jnp.zeros(2), x), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_ball_is_right_near_the_largest_number_eager_and_compiled(size):
    c, x = pg.MaxNorm(1.0, axis=0), jnp.full((400, 2), size, "float32")
    for project in (c.project, jax.jit(c.project)):
        np.testing.assert_allclose(project(x), 0.05, rtol=1e-6)


def test_a_ball_is_right_in_half_precision_where_the_squares_overflow():
    x = jnp.full((4, 1), 256.0, "float16")
    np.testing.assert_allclose(entries(after(pg.MaxNorm(2.0, axis=0), jnp.zeros_like(x), x)), 1.0, rtol=1e-3)


def test_a_sphere_of_a_zero_vector_is_not_nan():
    x = jnp.zeros(4)
    assert np.isnan(optax.projections.projection_l2_sphere(x, 1.0)).all()  # optax
    np.testing.assert_array_equal(after(pg.UnitNorm(axis=0), x, x), np.full(4, 0.5, "float32"))


def test_a_feasible_group_is_not_shrunk_by_many_steps():
    c, p = pg.MaxNorm(1.0, axis=0), jnp.full((4, 2), 5e-4)
    end = jax.lax.fori_loop(0, 10000, lambda _, w: after(c, w, jnp.zeros_like(w)), p)
    np.testing.assert_array_equal(end, p)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 0.3, 1.0, 3.0, 1e3]))
def test_what_is_in_a_ball_is_stepped_to_as_without_it(seed, size):
    """To the last bit, but where a step is larger than the weight and leads to a power of two."""
    p, u = normal(seed, (50, 4), "float32"), normal(seed + 1, (50, 4), "float32", size)
    tx = po.project({"w": pg.MaxNorm(1e6, axis=0)})
    updates, _ = jax.jit(tx.update)({"w": u}, tx.init({"w": p}), {"w": p})
    found, expected = entries(optax.apply_updates({"w": p}, updates)["w"]), entries(p + u)
    mantissa = np.abs(np.frexp(expected)[0])
    assert ((found == expected) | ((mantissa == 0.5) & (np.abs(u) > np.abs(p)))).all()
    np.testing.assert_array_max_ulp(found.astype("float32"), expected.astype("float32"), 2)


def test_steps_may_be_differentiated():
    """Through the projection, with respect to parameters and updates: inside, outside, and beside what overflows."""
    p = jnp.asarray([[0.3, 3.0, 1e25], [0.4, 4.0, 1e25]])
    u = jnp.asarray([[0.1, 1.0, 1e24], [0.1, -1.0, 1e24]])
    tx = po.project({"w": pg.MaxNorm(1.0, axis=0)})

    def stepped(p, u):
        updates, _ = tx.update({"w": u}, tx.init({"w": p}), {"w": p})
        return optax.apply_updates({"w": p}, updates)["w"]

    for columns in ([0], [1], [0, 1], [0, 2], [0, 1, 2]):
        z = (p + u)[:, columns]
        found = jax.jit(jax.jacrev(stepped, (0, 1)))(p[:, columns], u[:, columns])
        for by_column in found:
            for j in range(len(columns)):
                norm = float(np.linalg.norm(entries(z[:, j])))
                unit = entries(z[:, j]) / norm
                expected = np.eye(2) if norm <= 1 else (np.eye(2) - np.outer(unit, unit)) / norm
                np.testing.assert_allclose(by_column[:, j, :, j], expected, rtol=1e-5, atol=1e-6 / max(norm, 1))
