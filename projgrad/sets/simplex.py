"""Sets whose nearest point is one threshold per group away: simplices and l1 balls."""

from __future__ import annotations

from dataclasses import dataclass

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.values import set_number

__all__ = ["Simplex"]

_MOST = 75  # Newton steps; 11 were the most in groups of up to a million entries


@register()
@dataclass(frozen=True, repr=False)
class Simplex(VectorSet):
    """The simplex ``{x : x >= 0, sum(x) = total}``, for every group of entries along `axis`.

    The nearest point is ``max(x - t, 0)`` with the t that makes the sum right.

    Args:
        total: the sum, at least 0.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `total` is negative or not finite, or `rate` is outside (0, 1].

    Source: Held, Wolfe and Crowder, Validation of subgradient optimization, Math. Programming 6 (1974); the root by
    Newton's method as in Michelot, J. Optim. Theory Appl. 50 (1986), started from the other side.
    """

    total: float = 1.0
    axis: Axis = -1
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "total", least=0, what="a sum of numbers of at least 0")

    def holds(self, v: Array, xp: Namespace) -> Array:
        return xp.all(v >= 0, axis=-1)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return above_threshold(v, self.total, xp)


def above_threshold(v: Array, total: float, xp: Namespace) -> Array:
    """``max(v - t, 0)`` along the last axis with the t for which it sums to `total`."""
    fixed = xp.stop_gradient(v)

    def excess(t: Array, v: Array) -> tuple[Array, Array, Array]:
        above = v - t
        on = above > 0
        count = xp.sum(xp.astype(on, v.dtype), axis=-1, keepdims=True)
        return (
            xp.where(on, above, 0.0),
            on,
            (xp.accurate_sum(xp.where(on, above, 0.0), (-1,)) - total) / xp.where(count > 0, count, 1.0),
        )

    def step(moving: Array, t: Array) -> tuple[Array, Array]:
        further = t + excess(t, fixed)[2]
        return further > t, xp.where(further > t, further, t)

    top = xp.max(fixed, axis=-1, keepdims=True)  # from which the threshold is at most `total` away
    v, fixed = v - top, fixed - top
    t = xp.zeros_like(top) - total
    _, t = xp.iterate(step, (xp.isfinite(t), t), _MOST)
    # once more from v - t, where the digits that v has beyond t are not lost, and with the derivative
    y = v - t
    _, on, rest = excess(0.0 * t, y)
    return xp.where(on, xp.maximum(y - rest, xp.zeros_like(y)), 0.0)
