"""Parameters stay in their sets through the wrappers and solvers of optax, or what must be written is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
optimize = pytest.importorskip("scipy.optimize")

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import projgrad as pg
import projgrad.optax as po
from tests.optax_tree import BALL, RULES, feasible, grads, params, same, within

SPHERE = {"*/kernel": pg.UnitNorm(axis=0), "*/bias": pg.NonNeg()}


@jax.jit
def by_hand(tree: Any) -> Any:
    """The nearest point of `RULES`, without projgrad."""
    return {
        name: {
            "kernel": layer["kernel"] / jnp.maximum(1, jnp.linalg.norm(layer["kernel"], axis=0)),
            "bias": jnp.maximum(layer["bias"], 0),
        }
        for name, layer in tree.items()
    }


def close(a: Any, b: Any, atol: float = 3e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def stepper(tx: Any, **extra: Any) -> Any:
    @jax.jit
    def step(p: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, p, **extra)
        return optax.apply_updates(p, updates), state

    return step


def run(tx: Any, start: Any, steps: int = 8, *, each: Any = None, **extra: Any) -> Any:
    """Steps with gradients that push out of the sets."""
    step = stepper(tx, **extra)
    p, state = start, tx.init(start)
    for i in range(steps):
        p, state = step(p, state, grads(getattr(p, "fast", p), i))
        if each:
            each(p, state)
    return p, state


# -- gradients and updates that are changed on the way --------------------------------------------------------------

AROUND: dict[str, Any] = {
    "clipping": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.3)),
    "adaptive clipping": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(1.0)),
    "weight decay": lambda: optax.adamw(0.3, weight_decay=0.1),
    "averaged updates": lambda: optax.chain(optax.sgd(0.5), optax.ema(0.9)),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.3, 10)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(optax.exponential_decay(0.3, 2, 0.9)),
    "masked": lambda: optax.masked(optax.adam(0.3), {"one": True, "two": {"kernel": True, "bias": False}}),
    "partitioned": lambda: optax.partition({"a": optax.adam(0.3), "b": optax.sgd(0.5)}, {"one": "a", "two": "b"}),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.5)),
    "muon": lambda: contrib.muon(0.3),
}

QUICK = ("clipping", "weight decay", "masked", "partitioned", "muon")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in AROUND if name not in QUICK)]
)
def test_wrapped_is_the_bare_one_with_a_projection_by_hand_after_every_step(name):
    p = q = feasible()
    bare, wrapped = AROUND[name](), po.projected(AROUND[name](), RULES)
    bare_state, state = bare.init(p), wrapped.init(p)
    bare_step, step = stepper(bare), stepper(wrapped)
    for i in range(6):
        p, bare_state = bare_step(p, bare_state, grads(p, i))
        p = by_hand(p)
        q, state = step(q, state, grads(q, i))
        assert within(q)
        close(p, q)


CONTRIB: dict[str, Any] = {
    "acprop": (lambda: contrib.acprop(0.3), {}),
    "ademamix": (lambda: contrib.ademamix(0.3), {}),
    "adopt": (lambda: contrib.adopt(0.3), {}),
    "cocob": (lambda: contrib.cocob(), {}),
    "dadapt_adamw": (lambda: contrib.dadapt_adamw(), {}),
    "dog": (lambda: contrib.dog(1.0), {}),
    "mechanize": (lambda: contrib.mechanize(optax.sgd(0.3)), {}),
    "momo": (lambda: contrib.momo(0.3), {"value": 1.0}),
    "prodigy": (lambda: contrib.prodigy(), {}),
    "sam": (lambda: contrib.sam(optax.sgd(0.3), optax.sgd(0.1), sync_period=2), {}),
    "sophia": (lambda: contrib.sophia(0.3), {"obj_fn": lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRIB)
def test_contributed_optimizers_stay_in_the_sets(name):
    make, extra = CONTRIB[name]
    # some steps are so small that points stay outside by the tolerance: those of `contains`, which is half as much more
    run(po.projected(make(), RULES), feasible(), each=lambda p, state: within(p, slack=1.5), **extra)


def test_a_metric_that_is_not_known_is_an_error_that_says_what_to_do():
    for inner in (contrib.muon(0.1), contrib.sophia(0.1), contrib.ademamix(0.1)):
        with pytest.raises(ValueError, match=r'one/.*: metric="optimizer".*register_metric.*metric="euclidean"'):
            po.projected(inner, RULES, metric="optimizer").init(feasible())


# -- accumulation ---------------------------------------------------------------------------------------------------


def test_accumulated_steps_are_those_of_the_mean_gradient_projected_by_hand():
    tx, bare = optax.MultiSteps(po.projected(optax.adam(0.3), RULES), 3), optax.adam(0.3)
    p = q = feasible()
    state, bare_state = tx.init(p), bare.init(q)
    step, bare_step = stepper(tx), stepper(bare)
    for n in range(3):
        for i in range(3 * n, 3 * n + 3):
            p, state = step(p, state, grads(p, i))
            assert within(p)
        mean = jax.tree.map(lambda *g: sum(g) / 3, *(grads(q, i) for i in range(3 * n, 3 * n + 3)))
        q, bare_state = bare_step(q, bare_state, mean)
        q = by_hand(q)
        close(p, q, 1e-5)


def test_accumulation_counts_real_steps_and_waits_with_an_infeasible_start_for_the_first():
    rules = {"*/kernel": pg.MaxNorm(pg.Schedule({0: 1.0, 2: 0.5}), axis=0).every(2)}
    tx = optax.MultiSteps(po.projected(optax.sgd(0.01), rules), 2)
    norms: list[Any] = []
    run(tx, params(), 4, each=lambda p, state: norms.append(jnp.linalg.norm(p["one"]["kernel"], axis=0).max()))
    assert min(norms[:3]) > 1.5  # no real step was made, or only one
    assert norms[3] == pytest.approx(0.5, rel=1e-5)


# -- parts of the tree ----------------------------------------------------------------------------------------------


def test_each_part_of_a_partition_may_have_its_own_projection():
    inner = {"wide": {"*kernel": pg.MaxNorm(1.0, axis=0)}, "narrow": {"*kernel": pg.MaxNorm(0.5, axis=0)}}
    transforms = {name: po.projected(optax.adam(0.3), rules) for name, rules in inner.items()}
    tx = optax.partition(transforms, {"one": "wide", "two": "narrow"})
    p, _ = run(tx, params())
    np.testing.assert_allclose(jnp.linalg.norm(p["one"]["kernel"], axis=0).max(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(p["two"]["kernel"], axis=0).max(), 0.5, rtol=1e-5)


# -- a radius that changes ------------------------------------------------------------------------------------------


def test_a_schedule_counts_in_the_state_and_an_injected_radius_is_the_same():
    schedule = pg.Schedule({1: 1.0, 5: 0.2})
    by_count = po.projected(optax.adam(0.3), {"*/kernel": pg.MaxNorm(schedule, axis=0)})

    def make(radius: Any) -> Any:
        return po.projected(optax.adam(0.3), {"*/kernel": pg.MaxNorm(radius, axis=0)})

    injected = optax.inject_hyperparams(make)(optax.linear_schedule(1.0, 0.2, 4))
    radii: list[Any] = []

    def each(p: Any, state: Any) -> None:
        radii.append(jnp.linalg.norm(p["one"]["kernel"], axis=0).max())

    p, _ = run(by_count, feasible(), each=each)
    np.testing.assert_allclose(radii, [1.0, 0.8, 0.6, 0.4, *[0.2] * 4], rtol=1e-5)
    q, state = run(injected, feasible(), each=each)
    np.testing.assert_allclose(state.hyperparams["radius"], 0.2)
    np.testing.assert_allclose(radii[8:], radii[:8], rtol=1e-6)
    close(p, q)


SETS: dict[str, Any] = {
    "simplex": lambda r: pg.Simplex(r, axis=0),
    "box": lambda r: pg.Box(-r, r),
    "half": lambda r: pg.Box(-0.25, r),
    "shell": lambda r: pg.MinMaxNorm(0.1, r, axis=0),
    "spectral": lambda r: pg.SpectralNorm(r),
    "intersection": lambda r: pg.MaxNorm(r, axis=0) & pg.NonNeg(),
    "capped": lambda r: pg.Simplex(r, axis=0) & pg.Box(0.0, 0.4),
    "slices": lambda r: pg.Slices([pg.MaxNorm(r, axis=0), None, None], along=1),
    "joint": lambda r: pg.Joint(pg.MaxNorm(r, axis=None)),
    "every": lambda r: pg.MaxNorm(r, axis=0).every(2),
    "metric": lambda r: pg.Tag(pg.L1Ball(r, axis=0), metric="optimizer"),
}


@pytest.mark.parametrize(
    "name",
    [
        "simplex",
        "intersection",
        *(pytest.param(n, marks=pytest.mark.slow) for n in SETS if n not in ("simplex", "intersection")),
    ],
)
def test_the_number_of_any_set_can_be_injected_and_set_between_compiled_steps(name):
    make = SETS[name]
    tx = optax.inject_hyperparams(lambda rate, size: po.projected(optax.adam(rate), {"one/kernel": make(size)}))(
        0.3, 1.0
    )
    p = po.project_params(params(), {"one/kernel": make(1.0)})
    state, step = tx.init(p), stepper(tx)
    for i, size in enumerate((1.0, 0.5)):
        state.hyperparams["size"] = jnp.asarray(size)
        p, state = step(p, state, grads(p, i))
    rules = {"one/kernel": make(0.5)}
    assert po.violations(p, rules)["one/kernel"] < 1e-6
    assert po.violations(p, {"one/kernel": make(0.45)})["one/kernel"] > 0.01
    assert step._cache_size() == 1


def test_a_number_that_does_not_fit_is_an_error_even_where_another_is_traced():
    def make(size: Any) -> Any:
        return po.project({"one/kernel": pg.MinMaxNorm(size, -1.0, axis=0)})

    with pytest.raises(ValueError, match=r"max_value=-1.0.*for min_value, which is traced"):
        jax.jit(lambda size: make(size).init(params()))(0.5)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda size: pg.MinMaxNorm(2.0, size, axis=0), 3.0),
        (lambda size: pg.Box(size, 0.5), 0.25),
        (lambda size: pg.Box(2, size), 3.0),
        (lambda size: pg.Box(size, -1.0, rate=0.5 + size / 10), -2.0),
        (lambda size: pg.Box([2.0, 3.0], size), 3.5),
        (lambda size: pg.Box(pg.Schedule({0: 2.0, 5: 3.0}), size), 3.5),
    ],
)
def test_a_traced_number_may_be_any_that_fits_the_numbers_beside_it(make, size):
    w = jnp.linspace(-5, 5, 6).reshape(3, 2)
    found = jax.jit(lambda size: po.project_params({"w": w}, {"w": make(size)}, step=3))(size)
    np.testing.assert_allclose(found["w"], po.project_params({"w": w}, {"w": make(size)}, step=3)["w"], rtol=1e-6)


# -- steps that are skipped -----------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_skipped_with_its_count():
    rules = {"*/kernel": pg.MaxNorm(pg.Schedule({0: 1.0, 4: 0.2}), axis=0).every(2), "*/bias": pg.NonNeg()}
    wrapped = optax.apply_if_finite(po.projected(optax.adam(0.3), rules), max_consecutive_errors=2)
    alone = po.projected(optax.adam(0.3), rules)
    p, q = feasible(), feasible()
    state, other = wrapped.init(p), alone.init(q)
    step, alone_step = stepper(wrapped), stepper(alone)
    for i in range(6):
        nan = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads(p, i))
        before = (p, state.inner_state)
        p, state = step(p, state, nan)
        assert same((p, state.inner_state), before)
        p, state = step(p, state, grads(p, i))
        q, other = alone_step(q, other, grads(q, i))
        close(p, q, 1e-7)
    assert int(state.total_notfinite) == 6


# -- more than one copy of the weights ------------------------------------------------------------------------------


def test_lookahead_leaves_its_slow_weights_outside_unless_the_projection_comes_after_it():
    pair = optax.LookaheadParams.init_synced(feasible(SPHERE))
    inside = optax.lookahead(po.projected(optax.sgd(0.5), SPHERE), sync_period=3, slow_step_size=0.5)
    p, _ = run(inside, pair, 6)
    assert max(po.violations(p.slow, SPHERE).values()) > 0.05
    assert max(po.violations(po.project_params(p.slow, SPHERE), SPHERE).values()) < 1e-6

    rules = {f"{copy}/{name}": c for copy in ("fast", "slow") for name, c in SPHERE.items()}
    after = po.projected(optax.lookahead(optax.sgd(0.5), sync_period=3, slow_step_size=0.5), rules)

    def each(p: Any, state: Any) -> None:
        for copy in (p.fast, p.slow):
            assert max(po.violations(copy, SPHERE).values()) < 1e-6

    p, _ = run(after, pair, 6, each=each)
    close(p.fast, p.slow, 1e-6)


def with_own_copy(inner: Any) -> Any:
    """`inner` for the point that its own updates lead to, which is not where the gradient is taken."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, new = inner.update(updates, state[0], state[1])
        return updates, (new, optax.apply_updates(state[1], updates))

    return optax.GradientTransformation(lambda params: (inner.init(params), params), update)


def test_schedule_free_weights_for_evaluation_lie_in_the_sets():
    target = jnp.array([[3.0, 0.2], [1.0, -0.1], [-2.0, 0.3]])
    scale = jnp.array([[1.0], [4.0], [9.0]])
    rules = {"w": BALL}

    def loss(p: Any) -> Any:
        return jnp.sum(scale * (p["w"] - target) ** 2)

    def solve(inner: Any, steps: int = 300) -> tuple[Any, Any]:
        tx = contrib.schedule_free(inner, learning_rate=0.05)
        p = po.project_params({"w": target}, rules)

        def step(carry: Any, _: Any) -> Any:
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            p = optax.apply_updates(p, updates)
            evaluated = contrib.schedule_free_eval_params(state, p)
            away = [po.violations(x, rules)["w"] for x in (p, evaluated, po.project_params(evaluated, rules))]
            return (p, state), (evaluated, away)

        _, (evaluated, away) = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps))(p)
        return jax.tree.map(lambda x: x[-1], evaluated), [float(x.max()) for x in away]

    # the optimizer inside is given the point where the gradient is taken, but moves another
    inner = po.projected(optax.sgd(0.05), rules)
    _, away = solve(inner)
    assert min(away[:2]) > 1e-3
    assert away[2] < 1e-6

    least = optimize.minimize(
        lambda x: float((np.asarray(scale) * (x.reshape(3, 1) - np.asarray(target[:, :1])) ** 2).sum()),
        np.zeros(3),
        constraints={"type": "ineq", "fun": lambda x: 1 - x @ x},
    )
    evaluated, away = solve(with_own_copy(inner))
    assert max(away) < 1e-6
    np.testing.assert_allclose(evaluated["w"][:, 0], least.x, atol=2e-3)
    np.testing.assert_allclose(evaluated["w"][:, 1], target[:, 1], atol=2e-3)


# -- line searches --------------------------------------------------------------------------------------------------


def test_lbfgs_stays_in_the_set_but_only_spg_ends_at_the_minimum():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 12)) * np.logspace(0, 1, 12), rng.normal(size=30)
    rules = {"x": pg.NonNeg()}
    least = optimize.nnls(a, b)[1] ** 2

    def loss(p: Any) -> Any:
        return jnp.sum((jnp.asarray(a, "float32") @ p["x"] - jnp.asarray(b, "float32")) ** 2)

    def solve(tx: Any) -> float:
        def step(carry: Any, _: Any) -> Any:
            p, state = carry
            value, grad = optax.value_and_grad_from_state(loss)(p, state=state)
            updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(p, updates), state), None

        p = {"x": jnp.full(12, 0.1)}
        p, _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=200)[0])(p)
        assert float(p["x"].min()) >= 0
        return float(loss(p)) / least - 1

    assert solve(po.projected(optax.lbfgs(), rules)) > 1e-3
    assert abs(solve(po.spg(rules))) < 1e-5
