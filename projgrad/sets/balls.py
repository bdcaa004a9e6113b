"""Balls with a centre, in the l2 and the l-infinity norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from projgrad.axes import Axis, arrange, restore
from projgrad.coupled import VectorSet
from projgrad.frozen import FrozenArray
from projgrad.moves import Clip, Move
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.box import Bounded
from projgrad.sets.norms import to_shell
from projgrad.sets.secular import onto_shell
from projgrad.tangents import along_shell
from projgrad.values import check_broadcast, native_group, native_value, set_array, set_number

__all__ = ["L2Ball", "LInfBall"]


@register()
@dataclass(frozen=True, repr=False)
class L2Ball(VectorSet):
    """The ball ``{x : ||x - center||_2 <= radius}``, for every group of entries along `axis`.

    Convex. Exact: a group outside becomes ``center + (x - center) * radius / ||x - center||``. Cost: O(n). In a
    metric: as for `MaxNorm`.

    With the center 0 it is `MaxNorm`.

    Args:
        radius: at least 0.
        center: a number, or a list of numbers, one per entry of a group (in row-major order, where `axis` has several
            axes).
        axis: the axes over which the norm is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, `center` is not finite, has several dimensions or does not fit
            the size of a group, or `rate` is outside (0, 1].

    Source: Bauschke and Combettes, Convex Analysis and Monotone Operator Theory (2017), chapter 29.
    """

    radius: float = 1.0
    center: Any = 0.0
    axis: Axis = -1
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")
        set_array(self, "center")
        if isinstance(self.center, FrozenArray) and len(self.center.shape) > 1:
            raise ValueError("L2Ball: center must be a number or have one dimension, one entry per entry of a group")

    def check_sizes(self, *sizes: int) -> None:
        check_broadcast(self, "center", sizes)

    def pieces(self, x: Array, xp: Namespace, metric: Array | None) -> tuple[int, int] | None:
        return None if self.solid and metric is None else super().pieces(x, xp, metric)

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        if self.solid:
            return to_shell(x, xp, metric, self.axis, 0.0, self.radius)  # needs no copy
        return super().solve(x, xp, metric)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        center = native_group(self.center, v, xp)
        away = v - center
        m, u = xp.norm(away, (-1,))
        inside = xp.times(m, u) <= self.radius
        return xp.where(inside, v, center + away / m * (self.radius / xp.where(u > 0, u, 1.0)))

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        center = native_group(self.center, v, xp)
        away = v - center
        y = onto_shell(away, h, 0.0, self.radius, xp)
        return xp.where(xp.stop_gradient(y) == xp.stop_gradient(away), v, center + y)

    has_tangent = True

    def tangent_at(self, x: Array, d: Array, xp: Namespace) -> Array:
        parts, v = self.parts(len(x.shape)), xp.upcast(x)
        away = arrange(v, parts, xp) - native_group(self.center, arrange(v, parts, xp), xp)
        found = along_shell(away, arrange(d, parts, xp), 0.0, self.radius, (-1,), away.shape[-1], xp, x.dtype)
        return restore(found, parts, tuple(x.shape), xp)

    def off(self, v: Array, xp: Namespace) -> Array:
        away = xp.times(*xp.norm(v - native_group(self.center, v, xp), (-1,))) - self.radius
        return xp.where(away > 0, away, 0.0)

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return isinstance(self.center, float) and self.center == 0


@register()
@dataclass(frozen=True, repr=False)
class LInfBall(Bounded):
    """The l-infinity ball ``{x : |x - center| <= radius}``, entry by entry.

    Convex. Exact: ``clip(x, center - radius, center + radius)``. Cost: O(1) per entry.

    The largest distance of all entries is at most `radius` when each is, so that there is no axis to give. The
    violation is that of every entry, as for `Box`.

    Args:
        radius: at least 0.
        center: a number, or an array (nested lists will do) that broadcasts to the parameter.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, `center` is not finite or does not broadcast to the parameter,
            or `rate` is outside (0, 1].

    Source: Parikh and Boyd, Proximal algorithms, Foundations and Trends in Optimization 1 (2014), section 6.2.
    """

    radius: float = 1.0
    center: Any = 0.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")
        set_array(self, "center")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        check_broadcast(self, "center", shape)

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Clip:
        center = xp.constant(self.center, xp.upcast(x)) if isinstance(self.center, FrozenArray) else self.center
        lower, upper = (native_value(bound, x, xp) for bound in (center - self.radius, center + self.radius))
        return Clip(lower, upper)

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return isinstance(self.center, float) and self.center == 0
