"""Sets given by the l2 norm of a group: the ball, the sphere and the shell between two spheres."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from projgrad.axes import INCOMING, Axis, arrange, group_size, numeric_axes, restore
from projgrad.constraint import Constraint
from projgrad.coupled import normalised
from projgrad.moves import Move, Replace, Scale
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.secular import onto_shell
from projgrad.values import set_number

__all__ = ["MaxNorm", "MinMaxNorm", "UnitNorm"]


class _Norm(Constraint):
    """A set of groups with a norm between two bounds."""

    axis: Axis = INCOMING
    complex_valued = True

    @property
    @abstractmethod
    def bounds(self) -> tuple[Any, Any]:
        """The least and the largest norm."""

    @property
    def in_metric(self) -> bool:
        return True

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        return to_shell(x, xp, metric, self.axis, *self.bounds)


@register()
@dataclass(frozen=True, repr=False)
class MaxNorm(_Norm):
    """The ball ``{x : ||x||_2 <= max_value}``, for every group of entries along `axis`.

    Convex. Exact: a group outside becomes ``x * max_value / ||x||``. Cost: O(n). In a metric: ``h x / (h + l)``
    with the l that meets the norm, by Newton's method in up to 25 steps.

    Args:
        max_value: radius r >= 0.
        axis: the axes over which the norm is taken: an int, a tuple, None for all, or "incoming" for the weights that
            feed one unit, as the layer says.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: r is negative or not finite, or `rate` is outside (0, 1].

    Source: Srivastava et al., Dropout, JMLR 15 (2014), section 5.1.
    """

    max_value: float = 2.0
    axis: Axis = INCOMING
    rate: float = 1.0
    solid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "max_value", least=0, what="a norm")

    @property
    def bounds(self) -> tuple[Any, Any]:
        return 0.0, self.max_value


@register()
@dataclass(frozen=True, repr=False)
class UnitNorm(_Norm):
    """The sphere ``{x : ||x||_2 = 1}``, for every group of entries along `axis`.

    Not convex. Exact: the nearest point is ``x / ||x||``. Cost: O(n). In a metric: as for
    `MaxNorm`, where l may be negative.

    All points are nearest to a group of n zeros; ``1 / sqrt(n)`` in every entry is
    chosen. On the sphere, the derivative is that of ``x / ||x||``.

    Args:
        axis: the axes over which the norm is taken: an int, a tuple, None for all, or "incoming" for the weights that
            feed one unit, as the layer says.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].

    Source: Salimans and Kingma, Weight normalization, NeurIPS 2016, for unit incoming weights.
    """

    axis: Axis = INCOMING
    rate: float = 1.0
    convex = False

    @property
    def bounds(self) -> tuple[Any, Any]:
        return 1.0, 1.0


@register()
@dataclass(frozen=True, repr=False)
class MinMaxNorm(_Norm):
    """The shell ``{x : min_value <= ||x||_2 <= max_value}``, for every group of entries along `axis`.

    Not convex unless `min_value` is 0. Exact: a group outside is scaled to the nearer bound. Cost: O(n). In a
    metric: as for `MaxNorm`, where l may be negative.

    All points of norm `min_value` are nearest to a group of n zeros; ``min_value / sqrt(n)`` in every entry is chosen.

    Args:
        min_value: inner radius >= 0.
        max_value: outer radius >= `min_value`; infinity for none.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.
        axis: the axes over which the norm is taken: an int, a tuple, None for all, or "incoming" for the weights that
            feed one unit, as the layer says.

    Raises:
        ValueError: a radius is negative, the inner one infinite or above the outer one, or `rate` outside (0, 1].

    Source: Keras's constraint of this name.
    """

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Axis = INCOMING

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "min_value", least=0, what="a norm")
        set_number(self, "max_value", least=0, most=math.inf, what="a norm")
        if self.min_value > self.max_value:
            raise ValueError(f"MinMaxNorm: min_value={self.min_value} is above max_value={self.max_value}")

    @property
    def bounds(self) -> tuple[Any, Any]:
        return self.min_value, self.max_value

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return isinstance(self.min_value, float) and self.min_value == 0

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return isinstance(self.min_value, float) and self.min_value == 0


def to_shell(x: Array, xp: Namespace, metric: Array | None, axis: Axis, low: Any, high: Any) -> Move:
    """The move to ``low <= ||x|| <= high`` in every group along `axis`; the bounds are numbers or 0-d arrays."""
    axes = numeric_axes(axis, len(x.shape))
    size = group_size(x.shape, axes)
    m, u = xp.norm(x, axes)
    if isinstance(low, int | float) and low == 0:
        scale = Scale(m, u, None, high, axes, size)
    else:
        sphere = isinstance(low, int | float) and isinstance(high, int | float) and low == high
        scale = Scale(m, u, low, high, axes, size, sphere=sphere)
    if metric is None:
        return scale
    move = Replace(xp.upcast(x), axes, off=scale.away(xp))
    if xp.can_look(u) and not xp.may_differentiate(x) and bool(xp.all(move.keep(x, xp))):
        return move
    v, h = arrange(xp.upcast(x), (axes,), xp), normalised(arrange(metric, (axes,), xp), (-1,), xp)
    finite = arrange(xp.isfinite(u), (axes,), xp)  # NaN where the group is not
    y = xp.where(finite, onto_shell(xp.where(finite, v, xp.zeros_like(v)), h, low, high, xp), math.nan)
    return replace(move, y=restore(y, (axes,), tuple(x.shape), xp))
