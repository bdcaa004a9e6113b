"""Projections compiled by JAX: projgrad against optax and jaxopt, and a whole step of optax with and without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import projgrad as pg
import projgrad.optax
from benchmarks.harness import Candidate, Comparison
from projgrad_backends.jax.namespace import xp

try:
    import jaxopt.projection as jaxopt
except ImportError:  # no longer maintained
    jaxopt = None

Function = Callable[[jax.Array], jax.Array]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Every set that two of them have: one vector, and rows of a matrix, by `jax.vmap` where a peer has no axes."""
    for shape in ((20, 50),) if quick else ((1_000_000,), (1000, 1000), (100_000, 10)):
        start = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        for constraint, peers in _sets(shape[-1]):
            yield _comparison(constraint, peers, start)


def steps(quick: bool = False) -> Iterator[Comparison]:
    """A compiled step of optax: with the wrapper, with the same written by hand, and with neither."""
    shape = (64, 32) if quick else (1000, 1000)
    start = jnp.asarray(np.random.default_rng(0).normal(size=shape) / 30, jnp.float32)
    for constraint, by_hand in (
        (pg.NonNeg(), lambda w: jnp.maximum(w, 0)),
        (pg.Box(-0.1, 0.1), lambda w: jnp.clip(w, -0.1, 0.1)),
        (pg.MaxNorm(1.0, axis=0), lambda w: w * jnp.minimum(1, 1 / jnp.linalg.norm(w, axis=0))),
        (pg.MaxNorm(1.0, axis=1), lambda w: w * jnp.minimum(1, 1 / jnp.linalg.norm(w, axis=1, keepdims=True))),
        (pg.UnitNorm(axis=1), lambda w: w / jnp.linalg.norm(w, axis=1, keepdims=True)),
    ):
        for name, optimizer in (("sgd", optax.sgd(1e-2)), ("adam", optax.adam(1e-3)))[: 1 if quick else 2]:
            yield _steps(constraint, by_hand, name, optimizer, start)


def _sets(n: int) -> Iterator[tuple[pg.Constraint, dict[str, Function]]]:
    """The sets of vectors of n entries, with what the peers have for them."""
    p = optax.projections
    normal = np.random.default_rng(1).normal(size=n).astype(np.float32)
    a = jnp.asarray(normal)
    r = n**0.5 / 2  # half the norm of the vectors

    def old(name: str, *arguments: Any) -> dict[str, Function]:
        return {} if jaxopt is None else {"jaxopt": lambda x: getattr(jaxopt, name)(x, *arguments)}

    yield pg.NonNeg(), {"optax": p.projection_non_negative} | old("projection_non_negative")
    yield pg.Box(-0.5, 1.0), {"optax": lambda x: p.projection_box(x, -0.5, 1.0)} | old("projection_box", (-0.5, 1.0))
    yield pg.MaxNorm(r, axis=-1), {"optax": lambda x: p.projection_l2_ball(x, r)} | old("projection_l2_ball", r)
    yield pg.UnitNorm(axis=-1), {"optax": lambda x: p.projection_l2_sphere(x, 1.0)} | old("projection_l2_sphere", 1.0)
    yield (
        pg.Hyperplane(normal, 1.0),
        {"optax": lambda x: p.projection_hyperplane(x, a, 1.0)} | old("projection_hyperplane", (a, 1.0)),
    )
    yield (
        pg.Halfspace(normal, 1.0),
        {"optax": lambda x: p.projection_halfspace(x, a, 1.0)} | old("projection_halfspace", (a, 1.0)),
    )
    yield pg.Simplex(1.0), {"optax": lambda x: p.projection_simplex(x, 1.0)} | old("projection_simplex", 1.0)
    yield pg.L1Ball(1.0), {"optax": lambda x: p.projection_l1_ball(x, 1.0)} | old("projection_l1_ball", 1.0)
    yield pg.L1Sphere(1.0), {"optax": lambda x: p.projection_l1_sphere(x, 1.0)} | old("projection_l1_sphere", 1.0)


def _comparison(constraint: pg.Constraint, peers: dict[str, Function], start: jax.Array) -> Comparison:
    batched = {name: peer if start.ndim == 1 else jax.vmap(peer) for name, peer in peers.items()}
    calls = {
        "projgrad": constraint.project,
        **batched,
        **_least(constraint),
        "floor: read (sum)": jnp.sum,
        "floor: read, write": lambda x: x + 1.0,
    }
    candidates = [_in_place(name, function, start) for name, function in calls.items()]
    limits = {"Simplex": {10**6: 1 / 20, 1000: 1 / 10}, "L1Ball": {10**6: 1 / 20, 1000: 1 / 10}}
    limit = limits.get(type(constraint).__name__, {}).get(start.shape[-1], 1.0)
    title = f"{type(constraint).__name__}, {' x '.join(map(str, start.shape))} float32"
    return Comparison(title, candidates, ["projgrad"], start.nbytes, dict.fromkeys(peers, limit))


def _in_place(name: str, function: Function, start: jax.Array) -> Candidate:
    """With an array that is given away (donated), as weights are in a step of training, and may be written over."""
    compiled, given = jax.jit(function, donate_argnums=() if function is jnp.sum else 0), [start]

    def restore() -> None:
        given[0] = jax.block_until_ready(start + 0)

    return Candidate(name, lambda: jax.block_until_ready(compiled(given[0])), restore)


def _least(constraint: pg.Constraint) -> dict[str, Function]:
    """What a plane takes that gives back bit for bit what is on it: two sums and a pass that writes."""
    if not isinstance(constraint, pg.Hyperplane | pg.Halfspace):
        return {}
    normal = np.asarray(constraint.normal)
    length = float(np.linalg.norm(normal))

    def project(x: jax.Array) -> jax.Array:
        unit = jnp.asarray(normal / length, x.dtype)
        first = xp.accurate_sum(x * unit, (-1,)) - constraint.offset / length
        squares = xp.accurate_sum(x * x, (-1,))
        if isinstance(constraint, pg.Halfspace):
            first = jnp.maximum(first, 0.0)
        return jnp.where(first**2 <= 1e-12 * squares, x, x - first * unit)

    return {"by hand, exact: both sums": project}


def _candidate(name: str, function: Callable[..., Any], *arguments: Any) -> Candidate:
    return Candidate(name, lambda: jax.block_until_ready(function(*arguments)))


def _steps(constraint: pg.Constraint, by_hand: Function, name: str, optimizer: Any, start: jax.Array) -> Comparison:
    rules = {"w": constraint}
    params = projgrad.optax.project_params({"w": start}, rules)
    gradient = {"w": start[::-1]}

    def step(tx: Any, after: Function | None = None) -> tuple[Any, ...]:
        def update(params: Any, gradient: Any, state: Any) -> Any:
            updates, state = tx.update(gradient, state, params)
            new = optax.apply_updates(params, updates)
            return new if after is None else {"w": after(new["w"])}, state

        return jax.jit(update), params, gradient, tx.init(params)

    candidates = [
        _candidate("projgrad", *step(projgrad.optax.projected(optimizer, rules))),
        _candidate("by hand", *step(optimizer, by_hand)),
        _candidate("bare", *step(optimizer)),
    ]
    title = f"{constraint}, a step of {name}, {' x '.join(map(str, start.shape))} float32"
    return Comparison(title, candidates, ["projgrad", "bare"], start.nbytes)
