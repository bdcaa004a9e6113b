"""Problems with a known constrained minimum, and which of them an optimizer is tried on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.problems import Problem, digits, least_squares, quadratics

__all__ = ["check", "gap", "least", "pairs", "problem", "steps"]

QUADRATICS = {made.name: made for made in quadratics()}
DIGITS = ["digits, l1 ball", "digits, max-norm per class", "digits, simplex per class"]
PRACTICE = ["mixture of spectra, simplex", *DIGITS]
DEEP = {"quadratic, simplex", "quadratic, max-norm per row"}  # where optimizers get very close
#: more steps where the entries that are not 0 are found late
LONG = {f"quadratic, {name}": 2000 for name in ("l1 ball", "group l1 ball", "symmetric")}
LONG |= {"quadratic, l1,inf ball": 3000} | dict.fromkeys(PRACTICE, 2000)


@cache
def problem(name: str) -> Problem:
    """The problem of this name."""
    if name in DIGITS:
        pytest.importorskip("sklearn")
        return next(made for made in digits() if made.name == name)
    return least_squares() if name == PRACTICE[0] else QUADRATICS[name]


def steps(name: str) -> int:
    """How many of them the optimizers get."""
    return LONG.get(name, 1000)


@cache
def least(name: str) -> float:
    return problem(name).minimum()


def gap(name: str, x: Any) -> float:
    """How much the value at x is above the least one, relative to that."""
    made = problem(name)
    return (float(made.value(np.asarray(x), np)) - least(name)) / abs(least(name))


def check(gap_in: Callable[[str], float], name: str, quick: bool) -> None:
    """That an optimizer ends at the minimum in its metric, and, where that is quick to tell, not in the Euclidean one.

    Args:
        gap_in: the gap that is left in a metric.
        name: of the problem.
        quick: try both.
    """
    assert abs(gap_in("optimizer")) < (1e-8 if name in DEEP else 1e-6), name
    assert not quick or gap_in("euclidean") > 1e-2, name


def pairs(optimizers: Iterable[str], quick: Collection[tuple[str, str]]) -> list[Any]:
    """All optimizers on all quadratics and the first one on problems from practice; slow but for a few."""
    names = list(optimizers)
    tried = [(name, optimizer) for name in QUADRATICS for optimizer in names]
    tried += [(name, names[0]) for name in PRACTICE]
    assert set(quick) <= set(tried)
    return [pytest.param(*pair, id="-".join(pair), marks=() if pair in quick else pytest.mark.slow) for pair in tried]
