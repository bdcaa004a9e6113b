"""What is true of each set, for the tests that run over all of them: one module per family."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import projgrad as pg

Group = np.ndarray


@dataclass(frozen=True)
class Case:
    """A constraint with what is known of it, written without the code under test.

    Args:
        constraint: for groups along the last axis (the last two where the set is one of matrices).
        shapes: of one group, several.
        distance: how far one group, in float64, is from having what the set asks for, as an l2 distance or more.
        oracle: the nearest point of one group, in float64, by a naive method or a reference solver.
        convex: the nearest point is unique.
        scales: the sizes of the random entries that the set is tried on.
        accuracy: how many times `projgrad.tolerance` the result may be off.
        smooth: there are points around which the projection has a derivative.
        low: try float16 and bfloat16 too.
        span: the orders of magnitude that the weights of a metric may span.
    """

    constraint: Any
    shapes: Sequence[tuple[int, ...]]
    distance: Callable[[Group], float]
    oracle: Callable[[Group], Group]
    convex: bool = True
    scales: Sequence[float] = (1e-3, 1.0, 1e3)
    accuracy: float = 1.0
    smooth: bool = True
    low: bool = True
    span: float = 24.0

    @property
    def rank(self) -> int:
        """The number of dimensions of a group."""
        return len(self.shapes[0])

    def along(self, axes: tuple[int, ...]) -> Any:
        """The constraint for groups along these axes rather than the last ones."""
        return _along(self.constraint, axes)

    def groups(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """Random, tied, sorted, sparse and zero groups, and some of the set and on its boundary; a batch of them."""
        rng = np.random.default_rng(seed)
        made = [rng.standard_normal(shape) * scale for scale in self.scales]
        made += [np.abs(made[0]), np.round(rng.standard_normal(shape)), np.zeros(shape)]
        made.append(np.sort(rng.standard_normal(shape), axis=-1))
        made.append(np.where(rng.random(shape) < 0.5, 0.0, rng.standard_normal(shape)))
        made.append(np.full(shape, rng.standard_normal()))
        on = self.oracle(rng.standard_normal(shape))
        made += [on, 0.5 * (on + self.oracle(rng.standard_normal(shape))), on + 1e-3 * rng.standard_normal(shape)]
        return np.stack(made)

    def __repr__(self) -> str:
        return repr(self.constraint)


def _along(constraint: Any, axes: tuple[int, ...]) -> Any:
    if isinstance(constraint, pg.Intersection):
        return pg.Intersection(*(_along(part, axes) for part in constraint.sets), method=constraint.method)
    if "axis" not in constraint.to_dict():
        return constraint
    axis = constraint.axis
    moved = axes[axis] if isinstance(axis, int) else tuple(axes[a] for a in axis)
    return pg.from_dict(constraint.to_dict() | {"axis": moved})


def all_cases() -> list[Case]:
    """The cases of all modules of this package."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [case for module in modules for case in module.CASES]


def compiled(cases: Sequence[Case]) -> Any:
    """The cases, as a parameter of tests that compile for seconds: with "-m slow" all of them, else one of every kind.

    A kind is a set, and for an intersection how it is projected onto; those ways that take a minute are slow, too.
    """
    chosen, known = [], set()
    for case in cases:
        method = getattr(case.constraint, "chosen", None)
        kind = type(case.constraint), method
        slow = kind in known or method in ("admm", "dual root")
        known.add(kind)
        chosen.append(pytest.param(case, id=repr(case.constraint), marks=pytest.mark.slow if slow else ()))
    return pytest.mark.parametrize("case", chosen)
