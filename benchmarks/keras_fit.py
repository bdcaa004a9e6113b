"""What a constraint adds to a step of Keras's `fit`: projgrad against keras.constraints, on each backend of Keras.

A backend has a process of its own, which times short runs of `fit` with and without the constraint in turn. The time of
a candidate is what a step takes longer with it: the smallest with it less the smallest without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from benchmarks.harness import Candidate, Comparison, Elapsed
from benchmarks.peers import ask

BARE, KERAS, LAYERS, WRAPPER = "bare", "keras.constraints", "projgrad, on the layers", "projgrad, ProjectedOptimizer"
GOAL = 0.9  # of what Keras's own adds
# by the backend, whether a step is compiled (None where it is always)
BACKENDS = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Few large layers and many small ones; groups of which about half exceed, and of which none does."""
    models = [(64, 2)] if quick else [(512, 3), (64, 20)]
    for backend, compiled in BACKENDS.items():
        missing = importlib.util.find_spec(backend) is None or importlib.util.find_spec("keras") is None
        if missing or (quick and backend != "jax"):  # whose process starts soonest
            continue
        worker = _Worker(backend)
        for jit in compiled[:1] if quick else compiled:
            for width, depth in models:
                for radius in (1.0,) if quick else (1.0, 2.0):
                    yield from _compared(worker, backend, jit, width, depth, radius, steps=2 if quick else 100)
        worker.close()


def _compared(
    worker: _Worker, backend: str, jit: bool, width: int, depth: int, radius: float, steps: int
) -> Iterator[Comparison]:
    task = {"jit": jit, "width": width, "depth": depth, "radius": radius, "steps": steps}

    def candidate(name: str) -> Candidate:
        return Candidate(name, lambda: worker.ask(task | {"name": name}))

    how = "" if len(BACKENDS[backend]) == 1 else ", compiled" if jit else ", not compiled"
    title = f"{backend}{how}, {depth} x Dense({width}), MaxNorm({radius:g})"
    for first in (LAYERS, WRAPPER):
        named = "" if first == LAYERS else ", ProjectedOptimizer"
        candidates = [candidate(name) for name in (first, KERAS, BARE)]
        yield Comparison(title + named, candidates, [KERAS, BARE], 4 * width * width * depth, {KERAS: GOAL})


class _Worker:
    """A process with one backend of Keras; it is asked for one run at a time."""

    def __init__(self, backend: str) -> None:
        settings = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.keras_fit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )

    def ask(self, task: dict[str, Any]) -> Elapsed:
        return ask(self._process, json.dumps(task), f"the process of Keras could not do {task}")

    def close(self) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait()


def _fit(name: str, jit: bool, width: int, depth: int, radius: float, steps: int) -> Callable[[], float]:
    """A function that trains for so many steps and returns the seconds of one."""
    import keras
    import numpy as np

    import projgrad as pg
    import projgrad.keras

    constraints = {KERAS: keras.constraints.MaxNorm(radius, axis=0), LAYERS: pg.MaxNorm(radius, axis=0)}
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, "relu", kernel_constraint=constraints.get(name)) for _ in range(depth)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    optimizer: Any = keras.optimizers.SGD(1e-4)
    if name == WRAPPER:
        rules = {"*/kernel": pg.MaxNorm(radius, axis=0)}
        optimizer = projgrad.keras.ProjectedOptimizer(optimizer, rules, model=model)
    model.compile(optimizer, loss="mse", jit_compile=jit)
    x = np.random.default_rng(0).normal(size=(16 * steps, width)).astype(np.float32)
    run = lambda: model.fit(x, x, batch_size=16, verbose=0, shuffle=False)  # noqa: E731
    run()

    def timed() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / steps

    return timed


def _work() -> None:
    """Answer each line, a task, with the seconds that a step takes longer than without a constraint."""
    made: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        task = json.loads(line)
        name = task.pop("name")
        runs = []
        for each in dict.fromkeys((name, BARE)):
            key = json.dumps([each, task])
            if key not in made:
                made[key] = _fit(each, **task)
            runs.append(made[key])
        found = [min(times) for times in zip(*([run() for run in runs] for _ in range(2)), strict=True)]
        print(found[0] if name == BARE else max(found[0] - found[1], 1e-7), flush=True)


if __name__ == "__main__":
    _work()
