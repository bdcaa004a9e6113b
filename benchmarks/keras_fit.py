"""What a constraint adds to a training step of Keras: projgrad against keras.constraints, on each backend of Keras.

A backend has a process of its own, and a network there is four models that differ in the constraint only. They take
single steps in turn, through the function that `fit` runs, each from the same weights, which are restored outside the
clock. What a constraint adds is the median, over such turns, of a step with it less the one without in the same turn;
every turn has another order.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import IO, Any, cast

from benchmarks.harness import Candidate, Comparison, Elapsed
from benchmarks.peers import ask

BARE, KERAS, LAYERS, WRAPPER = "step without", "keras.constraints", "projgrad, on the layers", "ProjectedOptimizer"
GOAL = 0.9  # of what Keras's own adds
RADIUS = 1.0
RATE = 1e-9  # of learning: so that no step changes which groups exceed
# by the backend, whether a step is compiled
BACKENDS = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
# on a single core, the time that this process has it: what else runs there does not count
CLOCK = time.process_time if len(CORES) == 1 else time.perf_counter
Round = dict[str, float]


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """Few large layers and many small ones; every other group exceeds, or none does."""
    for backend, compiled in BACKENDS.items():
        missing = importlib.util.find_spec(backend) is None or importlib.util.find_spec("keras") is None
        if missing or (quick and backend != "jax"):  # whose process starts soonest
            continue
        worker = _Worker(backend)
        for jit in compiled:
            for width, depth in ((32, 2),) if quick else ((2048, 2), (512, 3), (64, 20)):
                for exceeding in (True, False):
                    how = "" if len(compiled) == 1 else ", compiled" if jit else ", not compiled"
                    what = f"{'half of the' if exceeding else 'no'} groups exceed"
                    measured = partial(worker.ask, [jit, width, depth], exceeding, 0.05 if quick else 0.4)
                    yield from _compared(f"{backend}{how}, {depth} x Dense({width}), {what}", measured, width, depth)
        worker.close()


def _compared(title: str, measured: Callable[[], Round], width: int, depth: int) -> Iterator[Comparison]:
    """Both of ours against Keras's own, in the same rounds."""
    rounds: list[Round] = []

    def column(name: str) -> Iterator[Elapsed]:
        for n in count():
            if n == len(rounds):
                rounds.append(measured())
            yield Elapsed(rounds[n][name])

    for first in (LAYERS, WRAPPER):
        candidates = [Candidate(name, partial(next, column(name))) for name in (first, KERAS, BARE)]
        named = "" if first == LAYERS else f", {WRAPPER}"
        yield Comparison(title + named, candidates, [KERAS, BARE], 4 * width * width * depth, {KERAS: GOAL})


class _Worker:
    """A process with one backend of Keras; it is asked for one round at a time."""

    def __init__(self, backend: str) -> None:
        settings = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command, env = [sys.executable, "-m", "benchmarks.keras_fit"], {**os.environ, **settings}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, *task: Any) -> Round:
        """What `_Network.measured` gives for a network, given by its arguments, and these."""
        found: Round = json.loads(ask(self._process, json.dumps(task), f"the process of Keras could not do {task}"))
        return found

    def close(self) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait()


class _Network:
    """The same model without a constraint, with Keras's own, and with ours in both ways."""

    def __init__(self, jit: bool, width: int, depth: int) -> None:
        import keras
        import numpy as np

        import projgrad as pg
        import projgrad.keras

        keras.backend.clear_session()
        random = np.random.default_rng(0)
        tensor = keras.ops.convert_to_tensor
        self._x = tensor(random.normal(size=(16, width)).astype("float32"))
        weights = random.normal(size=(depth, width, width)).astype("float32")
        self._unit = [tensor(w / np.linalg.norm(w, axis=0)) for w in weights]
        self._norms = {
            it: tensor(np.resize([1.1 if it else 0.9, 0.9], width).astype("float32")) for it in (True, False)
        }
        self._models: dict[str, Any] = {}
        on_layers = {KERAS: keras.constraints.MaxNorm(RADIUS, axis=0), LAYERS: pg.MaxNorm(RADIUS, axis=0)}
        for name in (BARE, KERAS, LAYERS, WRAPPER):
            layers = [keras.layers.Dense(width, "relu", kernel_constraint=on_layers.get(name)) for _ in range(depth)]
            model = self._models[name] = keras.Sequential([keras.Input((width,)), *layers])
            optimizer: Any = keras.optimizers.SGD(RATE)
            if name == WRAPPER:
                rules = {"*/kernel": pg.MaxNorm(RADIUS, axis=0)}
                optimizer = projgrad.keras.ProjectedOptimizer(optimizer, rules, model=model)
            model.compile(optimizer, loss="mse", jit_compile=jit)
            for exceeding in (True, False):
                self._step(name, exceeding)
                longest = float(keras.ops.max(keras.ops.norm(model.layers[0].kernel, axis=0)))
                assert (longest > 1.05) == (exceeding and name == BARE), f"{name} leaves a norm of {longest}"

    def measured(self, exceeding: bool, seconds: float) -> Round:
        """The time of a step without a constraint, and what each constraint adds to it."""
        names, turns, end = list(self._models), list[Round](), time.perf_counter() + seconds
        while len(turns) < 4 or time.perf_counter() < end:
            n = len(turns)
            order = (names[n % 4 :] + names[: n % 4])[:: -1 if n // 4 % 2 else 1]
            turns.append({name: self._step(name, exceeding) for name in order})
        found = {name: statistics.median(turn[name] - turn[BARE] for turn in turns) for name in names}
        without = statistics.median(turn[BARE] for turn in turns)
        # less than a hundredth of a step cannot be told from nothing
        return {name: max(extra, without / 100) for name, extra in found.items()} | {BARE: without}

    def _step(self, name: str, exceeding: bool) -> float:
        """The seconds of a step from weights of which half or no groups exceed."""
        model = self._models[name]
        for layer, unit in zip(model.layers, self._unit, strict=True):
            layer.kernel.assign(unit * self._norms[exceeding])  # a new array, which JAX may write into
            getattr(layer.kernel.value, "block_until_ready", int)()
        start = CLOCK()
        model.train_on_batch(self._x, self._x)
        return CLOCK() - start


def _work() -> None:
    """Answer each line, a task, with a round; the network is kept until another one is asked for."""
    last, network = None, None
    for line in sys.stdin:
        wanted, *task = json.loads(line)
        if network is None or wanted != last:
            network = None  # the memory first
            last, network = wanted, _Network(*wanted)
        print(json.dumps(network.measured(*task)), flush=True)


if __name__ == "__main__":
    _work()
