"""Simplices and l1 balls over rows: projgrad against sorting, fastprox, chop, jaxopt and pyproximal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import projgrad as pg
from benchmarks import peers
from benchmarks.harness import Candidate, Comparison, floors

Calls = dict[str, Callable[[], object]]

SHORT = 10
CAP = 0.2


def sort_simplex(v: torch.Tensor) -> torch.Tensor:
    """The textbook method: sort, sum up, and find the last entry above the threshold."""
    largest = torch.sort(v, dim=-1, descending=True).values
    sums = largest.cumsum(-1) - 1
    ranks = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    count = (largest * ranks > sums).sum(-1, keepdim=True)
    return (v - sums.gather(-1, count - 1) / count).clamp_(min=0)


def sort_ball(v: torch.Tensor) -> torch.Tensor:
    """The l1 ball of radius 1 by the same."""
    size = v.abs()
    return torch.where(size.sum(-1, keepdim=True) <= 1, v, v.sign() * sort_simplex(size))


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Long rows and short ones, in torch eager and compiled and in TensorFlow compiled; capped simplices in JAX too."""
    rng = np.random.default_rng(0)
    shapes = ((64, 100),) if quick else ((4096, 1024), (100_000, SHORT))
    for shape in shapes:
        x = rng.standard_normal(shape).astype(np.float32)
        for constraint, by_sort, peer in (
            (pg.Simplex(axis=1), sort_simplex, "fastprox.project_simplex"),
            (pg.L1Ball(axis=1), sort_ball, "fastprox.project_l1_ball"),
        ):
            yield from _in_torch(constraint, by_sort, peer, x, quick)
        yield from _in_tensorflow(x)
    for sizes in ((100,),) if quick else ((1_000_000,), (1000, 1000), (100_000, SHORT)):
        yield from _capped(rng.standard_normal(sizes).astype(np.float32))


def _in_torch(
    constraint: pg.Constraint,
    by_sort: Callable[[torch.Tensor], torch.Tensor],
    peer: str,
    values: np.ndarray,
    quick: bool,
) -> Iterator[Comparison]:
    x = torch.from_numpy(values)
    others = peers.fastprox(values, f"{peer}(x, 1.0, axis=1, threads={{threads}})", torch.get_num_threads())
    chop = peers.chop()
    row = x[0].clone()
    eager: Calls = {"projgrad": lambda: constraint.project(x), "sort": lambda: by_sort(x)}
    long = values.shape[-1] > SHORT and not quick
    yield _comparison(constraint, "torch eager", eager, values, others, {"sort": 0.5} if long else {})
    if chop is not None and long:
        alone = chop.Simplex(1.0) if isinstance(constraint, pg.Simplex) else chop.L1Ball(1.0)
        of_one = type(constraint)()
        yield _comparison(
            constraint,
            "torch eager, one row",
            {"projgrad": lambda: of_one.project(row), "chop": lambda: alone.prox(row[None])},
            values[0],
        )
    if not quick:
        torch._dynamo.reset()
        compiled = torch.compile(constraint.project, fullgraph=True, dynamic=False)
        calls: Calls = {"projgrad": lambda: compiled(x), "sort": lambda: by_sort(x)}
        goals = {"sort": 1 / 15} | {other.name: 1 / 1.5 for other in others}
        yield _comparison(constraint, "torch.compile", calls, values, others, goals if long else {})


def _in_tensorflow(values: np.ndarray) -> Iterator[Comparison]:
    try:
        import tensorflow as tf
    except ImportError:
        return
    x = tf.constant(values)
    constraint = pg.Simplex(axis=1)

    def by_sort(v: Any) -> Any:
        largest = tf.sort(v, axis=-1, direction="DESCENDING")
        sums = tf.cumsum(largest, axis=-1) - 1.0
        ranks = tf.range(1, v.shape[-1] + 1, dtype=v.dtype)
        count = tf.reduce_sum(tf.cast(largest * ranks > sums, tf.int32), axis=-1, keepdims=True)
        t = tf.gather(sums, count - 1, batch_dims=1) / tf.cast(count, v.dtype)
        return tf.maximum(v - t, 0.0)

    functions = {"projgrad": constraint.project, "sort": by_sort}
    compiled = {name: tf.function(f, jit_compile=True) for name, f in functions.items()}
    calls: Calls = {name: lambda f=f: f(x).numpy() for name, f in compiled.items()}  # type: ignore[misc]
    goals = {"sort": 1 / 5} if values.shape[-1] == 1024 else {}
    yield _comparison(constraint, "tf.function(jit_compile=True)", calls, values, goals=goals)


def _capped(values: np.ndarray) -> Iterator[Comparison]:
    n = values.shape[-1]
    constraint = pg.CappedSimplex(1.0, 0.0, CAP)
    x = torch.from_numpy(values)
    eager: Calls = {"projgrad": lambda: constraint.project(x)}
    if values.ndim == 1:
        try:
            import pyproximal
        except ImportError:
            pass
        else:
            peer = pyproximal.projection.HyperPlaneBoxProj(np.ones(n, values.dtype), 1.0, 0.0, CAP)
            eager["pyproximal"] = lambda: peer(values)
    yield _comparison(constraint, "torch eager", eager, values, goals=dict.fromkeys(list(eager)[1:], 1.0))
    try:
        import jax
        import jax.numpy as jnp
        from jaxopt.projection import projection_box_section
    except ImportError:
        return

    def box_section(v: Any) -> Any:
        return projection_box_section(v, (jnp.zeros(n), jnp.full(n, CAP), jnp.ones(n), 1.0))

    given = jnp.asarray(values)

    def both_sums(v: Any) -> Any:
        y = v - (jnp.max(v, axis=-1, keepdims=True) - CAP)
        free = (y > 0) & (y < CAP)
        return jnp.clip(y, 0, CAP).sum(-1) - free.astype(y.dtype).sum(-1)

    functions = {
        "projgrad": jax.jit(constraint.project),
        "jaxopt": jax.jit(box_section if values.ndim == 1 else jax.vmap(box_section)),
        "floor: one round": jax.jit(both_sums),
    }
    calls: Calls = {n: lambda f=f: jax.block_until_ready(f(given)) for n, f in functions.items()}  # type: ignore[misc]
    yield _comparison(constraint, "JAX jit", calls, values, goals={"jaxopt": 1.0})


def _comparison(
    constraint: pg.Constraint,
    where: str,
    calls: Calls,
    values: np.ndarray,
    others: list[Candidate] | None = None,
    goals: dict[str, float] | None = None,
) -> Comparison:
    candidates = [Candidate(name, torch.no_grad()(call)) for name, call in calls.items()] + (others or [])
    own = torch.from_numpy(values.copy())
    shape = " x ".join(map(str, values.shape))
    title = f"{type(constraint).__name__}, {shape} float32, {where}"
    return Comparison(title, [*candidates, *floors(own)], ["projgrad"], values.nbytes, goals or {})
