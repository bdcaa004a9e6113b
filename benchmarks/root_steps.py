"""How many steps the root behind an l2 ball in a metric takes, from a start of its own and from the last root.

A layer learns scikit-learn's digits with Adam, and each of its rows is kept in a ball in the metric of Adam. For rows
that are outside after a step and were after the one before, this counts the steps of projgrad, and those of Newton on
the logarithms of norm and multiplier, kept between bounds. A step of either reads the rows once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Any

import array_api_compat.numpy
import jax
import numpy as np
import torch

from benchmarks.harness import Candidate, Comparison, Elapsed
from projgrad.namespace import HostNamespace
from projgrad.sets.secular import onto_shell
from projgrad_backends.jax.namespace import JaxNamespace

RADIUS, RATE = 0.5, 1e-3
NEAR = 4 * float(np.finfo(np.float32).eps)  # of the norm, relative, where a root counts as found
MOST = 50  # steps

Array = np.ndarray


class Steps(JaxNamespace):
    """JAX with a given number of rounds in every loop."""

    def __init__(self, steps: int) -> None:
        super().__init__(jax.numpy)
        self.steps = steps

    def iterate(self, step: Callable[..., Any], state: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        # a loop, as in use, since several steps in a row may become one
        return jax.lax.fori_loop(0, self.steps, lambda i, state: step(*state), state)


class Seen(HostNamespace):
    """NumPy that keeps what the loop in `onto_shell` starts from, and its step."""

    def iterate(self, step: Callable[..., tuple[Array, ...]], state: tuple[Array, ...], most: int) -> tuple[Array, ...]:
        self.step, self.state = step, state
        return super().iterate(step, state, most)


@dataclass
class Problem:
    """The rows `v` after a step of Adam, their weights `h`, at most 1, and the last roots, NaN where there is none.

    Roots are multipliers plus the least weight of a row.
    """

    v: Array
    h: Array
    last: Array
    seen: Seen = field(default_factory=lambda: Seen(array_api_compat.numpy))

    def __post_init__(self) -> None:
        self.nearest = onto_shell(self.v, self.h, 0.0, RADIUS, self.seen)
        self.outside, self.own, _ = self.seen.state
        self.least, self.size = self.h.min(axis=1, keepdims=True), np.abs(self.v) * self.h / np.float32(RADIUS)

    def projgrad(self, start: Array) -> Iterator[Array]:
        """The roots that projgrad's steps lead to."""
        root, low = start, self.seen.state[2]
        while True:
            _, root, low = self.seen.step(self.outside, root, low)
            yield root

    def newton(self, start: Array) -> Iterator[Array]:
        """The roots that Newton's steps lead to, or the geometric mean of the bounds, where they lead out of these."""
        low = np.maximum((self.size - self.h).max(axis=1, keepdims=True), np.float32(1e-30))
        high = np.maximum(np.sqrt((self.size**2).sum(axis=1, keepdims=True)) - self.least, low)
        at = np.clip(start - self.least, low, high)
        while True:
            squares = (self.size / (self.h + at)) ** 2
            norm, slope = squares.sum(axis=1, keepdims=True), (squares / (self.h + at)).sum(axis=1, keepdims=True)
            low, high = np.where(norm > 1, at, low), np.where(norm < 1, at, high)
            with np.errstate(all="ignore"):
                made = at * norm ** (0.5 * norm / (at * slope))
            at = np.where((made >= low) & (made <= high), made, np.sqrt(low * high))
            yield self.least + at.astype(np.float64)

    def steps(self, roots: Iterator[Array]) -> Array:
        """How many are needed for each row that is outside; 0 for the others."""
        going, above = self.outside, self.h - self.least
        steps = np.zeros(going.shape, int)
        for root in islice(roots, MOST):
            steps += going
            norm = np.sqrt(((self.size / (above + root.astype(np.float64))) ** 2).sum(axis=1, keepdims=True))
            going = going & (np.abs(norm - 1) >= NEAR)
        return steps

    def again(self) -> Array:
        """The last roots, and starts as without where there is none."""
        return np.where(np.isnan(self.last), self.own, self.last)


METHODS: dict[str, Callable[[Problem], Iterator[Array]]] = {
    "projgrad, own start": lambda p: p.projgrad(p.own),
    "projgrad, last root": lambda p: p.projgrad(p.again()),
    "Newton, own start": lambda p: p.newton(p.own),
    "Newton, last root": lambda p: p.newton(p.again()),
}


def problems(steps: int, units: int) -> Iterator[Problem]:
    """What is to be solved after each step of the training."""
    from sklearn.datasets import load_digits

    data = load_digits()
    torch.manual_seed(0)
    x, y = torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)
    first, second = torch.nn.Linear(64, units), torch.nn.Linear(units, 10)
    w, adam = first.weight, torch.optim.Adam([*first.parameters(), *second.parameters()], lr=RATE)
    last = np.full((units, 1), np.nan, np.float32)
    for n in range(1, steps + 1):
        chosen = torch.randint(len(x), (128,))
        adam.zero_grad()
        torch.nn.functional.cross_entropy(second(first(x[chosen]).relu()), y[chosen]).backward()
        adam.step()
        h = (adam.state[w]["exp_avg_sq"] / (1 - 0.999**n)).sqrt() + 1e-8
        problem = Problem(w.detach().numpy().copy(), (h / h.amax(1, keepdim=True)).numpy(), last)
        yield problem
        with torch.no_grad():
            w.copy_(torch.from_numpy(problem.nearest))
        last = np.where(problem.outside, next(islice(problem.projgrad(problem.own), MOST, None)), np.float32(np.nan))


@cache
def training(quick: bool) -> tuple[Problem, dict[str, list[Array]]]:
    """The last problem of a training, and what each method took after every step of it."""
    found: dict[str, list[Array]] = {name: [] for name in METHODS}
    for problem in problems(20 if quick else 300, 64 if quick else 256):
        for name, roots in METHODS.items():
            found[name].append(problem.steps(roots(problem))[problem.outside & ~np.isnan(problem.last)])
    return problem, found


def comparisons(quick: bool = False) -> Iterator[Comparison]:
    """How long the steps for all rows of the last problem take; in the names, what a row took in all problems."""
    problem, found = training(quick)
    candidates = []
    for name, steps in found.items():
        every, last = np.concatenate(steps), int(steps[-1].max())
        title = f"{name}: {every.mean():.2f} steps, at most {every.max()}"
        candidates.append(Candidate(title, partial(_nth, METHODS[name], problem, last)))
    rows, columns = problem.v.shape
    title = f"The last roots of a training, NumPy, {rows} x {columns} float32"
    yield Comparison(title, candidates, [candidates[0].name], problem.v.nbytes)
    yield _one_step(64 if quick else 1000)


def _one_step(n: int) -> Comparison:
    """What one step takes, as a tenth of what eleven take more than one."""
    v = jax.random.normal(jax.random.key(0), (n, n))
    h = jax.random.uniform(jax.random.key(1), (n, n), minval=1e-3)
    few, many = (jax.jit(partial(_rows_after, steps)) for steps in (1, 11))
    half = jax.jit(lambda v: 0.5 * v)

    def one() -> Elapsed:
        seconds = []
        for function in (few, many):
            start = time.perf_counter()
            function(v, h).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return Elapsed((seconds[1] - seconds[0]) / 10)

    floor = "floor: read and write"
    candidates = [Candidate("projgrad", one), Candidate(floor, lambda: half(v).block_until_ready())]
    return Comparison(
        f"One step of the root, JAX compiled, {n} x {n} float32", candidates, ["projgrad"], v.nbytes, {floor: 4.0}
    )


def _rows_after(steps: int, v: jax.Array, h: jax.Array) -> jax.Array:
    return onto_shell(v, h, 0.0, RADIUS, Steps(steps))


def _nth(roots: Callable[[Problem], Iterator[Array]], problem: Problem, steps: int) -> Array:
    return next(islice(roots(problem), steps - 1, None))
