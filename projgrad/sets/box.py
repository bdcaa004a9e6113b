"""Sets that bound every entry by itself: boxes and orthants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.moves import Clip
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.values import native_value, set_array

__all__ = ["Box", "NonNeg", "NonPos"]

Bound = Any  # a number, or an array of numbers of any framework; kept as a float or a FrozenArray


@register()
@dataclass(frozen=True, repr=False)
class Box(Constraint):
    """The box ``{x : lower <= x <= upper}``, entry by entry.

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
        for name in ("lower", "upper"):
            set_array(self, name, finite=False)
        try:
            below, above = np.broadcast_arrays(np.asarray(self.lower), np.asarray(self.upper))
        except ValueError:
            shapes = f"{np.shape(self.lower)} and {np.shape(self.upper)}"
            raise ValueError(
                f"Box: lower and upper have the shapes {shapes}, which do not broadcast together"
            ) from None
        if np.any((below > above) | (below == math.inf) | (above == -math.inf)):
            raise ValueError(f"Box: lower={self.lower} must not exceed upper={self.upper}, nor leave only infinity")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        for name, limit in (("lower", self.lower), ("upper", self.upper)):
            bound = limit.shape if isinstance(limit, FrozenArray) else ()
            sides = zip(bound[::-1], shape[::-1], strict=False)
            if len(bound) > len(shape) or any(n is not None and b not in (1, n) for b, n in sides):
                raise ValueError(f"Box: {name} has the shape {bound}, which does not broadcast to {shape}")

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        bounds = (native_value(bound, x, xp) for bound in (self.lower, self.upper))
        lower, upper = (None if isinstance(b, float) and math.isinf(b) else b for b in bounds)
        return Clip(lower, upper)


@register()
@dataclass(frozen=True, repr=False)
class NonNeg(Constraint):
    """The orthant ``{x : x >= 0}``, entry by entry; the nearest point is ``max(x, 0)``.

    Args:
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].
    """

    rate: float = 1.0

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        return Clip(0.0, None)


@register()
@dataclass(frozen=True, repr=False)
class NonPos(Constraint):
    """The orthant ``{x : x <= 0}``, entry by entry; the nearest point is ``min(x, 0)``.

    Args:
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].
    """

    rate: float = 1.0

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        return Clip(None, 0.0)
