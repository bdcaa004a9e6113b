"""How long compiling a projection takes: once per process, shape and dtype, for a function of that and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch

import projgrad as pg
from benchmarks.harness import Candidate, Comparison, Elapsed

SETS = [
    pg.NonNeg(),
    pg.MaxNorm(1.0, axis=1),
    pg.UnitNorm(axis=1),
    pg.Halfspace([1.0] * 64, 1.0),
    pg.Simplex(1.0),
    pg.L1Ball(1.0),
    pg.CappedSimplex(1.0, 0.0, 0.5),
    pg.Monotone(),
    pg.SpectralNorm(1.0),
    pg.MaxNorm(1.0, axis=1) & pg.NonNeg(),
]
_TIMES = 3  # that each is compiled; after that, these times are given again


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Each set, by every compiler that there is."""
    start = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for constraint in SETS[:1] if quick else SETS:
        calls = {"jax.jit": _jax(constraint, start)}
        if not quick:
            calls |= _tensorflow(constraint, start)
        if not quick and (shutil.which("g++") or shutil.which("clang++")):
            calls["torch.compile"] = _torch(constraint, start)
            calls["torch.compile, from its cache"] = _torch(constraint, start, cached=True)
        candidates = [_few(name, call, 1 if quick else _TIMES) for name, call in calls.items()]
        yield Comparison(f"compiling {constraint}"[:60], candidates, ["jax.jit"], start.nbytes)


def _few(name: str, call: Callable[[], object], most: int) -> Candidate:
    """A candidate that is only called so many times, since that takes long."""
    times: list[float] = []

    def timed() -> Elapsed:
        if len(times) < most:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        else:
            times.append(times[-most])
        return Elapsed(times[-1])

    return Candidate(name, timed)


def _jax(constraint: pg.Constraint, start: np.ndarray) -> Callable[[], object]:
    return lambda: jax.jit(lambda x: constraint.project(x)).lower(start).compile()  # a new function has no cache


def _tensorflow(constraint: pg.Constraint, start: np.ndarray) -> dict[str, Callable[[], object]]:
    try:
        import tensorflow as tf
    except ImportError:
        return {}
    x = tf.constant(start)
    return {
        "tf.function": lambda: tf.function(lambda x: constraint.project(x))(x),
        "tf.function, jit_compile": lambda: tf.function(lambda x: constraint.project(x), jit_compile=True)(x),
    }


def _torch(constraint: pg.Constraint, start: np.ndarray, *, cached: bool = False) -> Callable[[], object]:
    from torch._inductor.utils import fresh_cache

    x = torch.from_numpy(start)

    def compiled() -> object:
        torch._dynamo.reset()
        return torch.compile(lambda x: constraint.project(x), fullgraph=True)(x)

    def fresh() -> object:
        with fresh_cache():
            return compiled()

    return compiled if cached else fresh
