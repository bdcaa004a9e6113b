"""Sets given by the l2 norm of a group: the ball, the sphere and the shell between two spheres."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from projgrad.axes import INCOMING, Axis, arrange, group_size, numeric_axes, restore
from projgrad.constraint import Constraint
from projgrad.coupled import normalised
from projgrad.moves import Move, Replace, Scale
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.secular import onto_shell
from projgrad.tangents import along_shell
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

    in_metric = has_tangent = True

    def tangent_at(self, x: Array, d: Array, xp: Namespace) -> Array:
        axes = self.group_axes(len(x.shape))
        return along_shell(x, d, *self.bounds, axes, group_size(x.shape, axes), xp)

    def pieces(self, x: Array, xp: Namespace, metric: Array | None) -> tuple[int, int] | None:
        return None if metric is None else xp.pieces(x, self.group_axes(len(x.shape)))

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        return to_shell(x, xp, metric, self.axis, *self.bounds)


@register()
@dataclass(frozen=True, repr=False)
class MaxNorm(_Norm):
    """The ball ``{x : ||x||_2 <= max_value}``, for every group of entries along `axis`.

    Convex. Exact: a group outside becomes ``x * max_value / ||x||``. Cost: O(n). In a metric: ``h x / (h + l)``
    with the l that meets the norm, by mostly 2 to 5 steps of third order, up to 24 of them for extreme weights.

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
    later = metric is None and (xp.in_place or xp.branches(x))  # when the move is carried out
    m, u = (None, None) if later else xp.norm(x, axes)
    if isinstance(low, int | float) and low == 0:
        scale = Scale(m, u, None, high, axes, size)
    else:
        sphere = isinstance(low, int | float) and isinstance(high, int | float) and low == high
        scale = Scale(m, u, low, high, axes, size, sphere=sphere)
    kept = None if metric is None else scale.keep(x, xp)
    if kept is None or (xp.can_look(kept) and not xp.may_differentiate(x) and bool(xp.all(kept))):
        return scale
    finite = xp.isfinite(u)  # NaN where the group is not
    norm = (m * xp.ones_like(u), u)
    norm = (arrange(xp.where(finite, norm[0], 0.0), (axes,), xp), arrange(xp.where(finite, u, 0.0), (axes,), xp))
    finite = arrange(finite, (axes,), xp)

    def nearest(v: Array, h: Array) -> Array:
        return onto_shell(v, normalised(h, (-1,), xp), low, high, xp, norm)

    v = xp.where(finite, arrange(xp.upcast(x), (axes,), xp), 0.0)
    y = xp.where(finite, xp.unless(kept, nearest, v, arrange(metric, (axes,), xp)), math.nan)
    return Replace(restore(y, (axes,), tuple(x.shape), xp), axes, kept=kept)
