"""Sets that bound every entry by itself: boxes and orthants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.constraint import Constraint
from projgrad.moves import Clip
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.tangents import within
from projgrad.values import check_bounds, check_broadcast, is_infinite, known, native_value

__all__ = ["Bounded", "Box", "NonNeg", "NonPos"]

Bound = Any  # a number, or an array of numbers of any framework; kept as a float or a FrozenArray


class Bounded(Constraint):
    """A set with bounds for every entry, which `solve` gives as a `Clip`."""

    has_tangent = True

    def tangent_at(self, x: Array, d: Array, xp: Namespace) -> Array:
        move = self.solve(x, xp)
        assert isinstance(move, Clip)
        return within(x, d, move.lower, move.upper, xp)


@register()
@dataclass(frozen=True, repr=False)
class Box(Bounded):
    """The box ``{x : lower <= x <= upper}``, entry by entry.

    Convex. Exact: a comparison per bound. Cost: O(1) per entry.

    The nearest point is ``min(max(x, lower), upper)``. In a lower precision the bounds are rounded to that precision.

    Args:
        lower: a number, or an array (nested lists will do) that broadcasts to the parameter; -inf for no bound.
        upper: the same; inf for no bound.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: a bound is NaN, `lower` exceeds `upper` somewhere, no finite number lies between them, they do not
            broadcast to the parameter, or `rate` is outside (0, 1].
    """

    lower: Bound
    upper: Bound
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        for name in ("lower", "upper"):
            check_broadcast(self, name, shape)

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        bounds = (native_value(bound, x, xp) for bound in (self.lower, self.upper))
        lower, upper = (None if is_infinite(b) else b for b in bounds)
        return Clip(lower, upper)

    @property
    def cone(self) -> bool:  # type: ignore[override]
        bounds = (self.lower, self.upper)
        return known(*bounds) and all(np.all((np.asarray(b) == 0) | np.isinf(np.asarray(b))) for b in bounds)

    @property
    def affine(self) -> bool:  # type: ignore[override]
        if not known(self.lower, self.upper):
            return False
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        return bool(np.all((lower == upper) | ((lower == -math.inf) & (upper == math.inf))))


@register()
@dataclass(frozen=True, repr=False)
class NonNeg(Bounded):
    """The orthant ``{x : x >= 0}``, entry by entry.

    Convex. Exact: the nearest point is ``max(x, 0)``. Cost: O(1) per entry.

    Args:
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].
    """

    rate: float = 1.0
    cone = True

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        return Clip(0.0, None)


@register()
@dataclass(frozen=True, repr=False)
class NonPos(Bounded):
    """The orthant ``{x : x <= 0}``, entry by entry.

    Convex. Exact: the nearest point is ``min(x, 0)``. Cost: O(1) per entry.

    Args:
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].
    """

    rate: float = 1.0
    cone = True

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        return Clip(None, 0.0)
