"""Sets that hold entries at a value, or at one of several values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.moves import Assign
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.values import check_broadcast, native_value, set_array

__all__ = ["Mask", "Quantized", "hold"]


@register()
@dataclass(frozen=True, repr=False)
class Mask(Constraint):
    """The set ``{x : x = value where the mask is true}``, entry by entry.

    Convex. Exact: these entries become `value`. Cost: O(1) per entry.

    All other entries are left as they are, bit for bit. The derivative is 0 at the masked entries and 1 at the others.
    NaN stays NaN in both. In a lower precision, `value` is rounded to it.

    Args:
        mask: an array (nested lists will do) that broadcasts to the parameter; true or not 0 where an entry is held.
        value: a number, or an array that broadcasts to the parameter.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `mask` or `value` is not an array of numbers, is not finite, or does not broadcast to the parameter,
            `mask` is a single number, or `rate` is outside (0, 1].

    Source: a coordinate subspace; Han, Pool, Tran and Dally, Learning both weights and connections, NeurIPS 2015, for
    pruned weights that stay 0.
    """

    mask: Any
    value: Any = 0.0
    rate: float = 1.0
    affine = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask", "value"):
            set_array(self, name)
        if not isinstance(self.mask, FrozenArray):
            raise ValueError(f"Mask: mask={self.mask!r} is a single number: give an array")
        object.__setattr__(self, "mask", FrozenArray(np.asarray(self.mask) != 0))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        for name in ("mask", "value"):
            check_broadcast(self, name, shape)

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Assign:
        return Assign(hold(x, x, xp.constant(self.mask, x) != 0, native_value(self.value, x, xp), xp))

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return isinstance(self.value, float) and self.value == 0


def hold(x: Array, y: Array, these: Array, value: Any, xp: Namespace) -> Array:
    """`y`, but where `these` are true, `value`; there `x` keeps a NaN and the sign of a 0, and has the derivative 0."""
    y = xp.where(these, xp.stop_gradient(x), y)
    return xp.where(these & ((x < value) | (x > value)), value, y)


@register()
@dataclass(frozen=True, repr=False)
class Quantized(Constraint):
    """The grid ``{x : x is a multiple of the step}`` or ``{x : x is one of the levels}``, entry by entry.

    Not convex. Exact: every entry is rounded to the nearest of these numbers. Cost: O(1) per entry for a step, O(log L)
    for L levels.

    A number halfway between two goes to the lower one. A multiple or level that the dtype does not have is rounded to
    it, or limited to its largest number. An entry that is ``2**23`` steps from 0 or more (``2**52`` in float64) stays
    as it is, since it cannot be told from a multiple. An infinity goes to the outermost level, and stays where there is
    a step.
    NaN stays NaN. The derivative is 0 everywhere.

    Args:
        grid: the step, a number of at least 1e-37, or the levels, an increasing array of numbers.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the step is smaller or not finite, there are no levels, or they are not finite, do not increase or
            have more than one dimension, or `rate` is outside (0, 1].

    Source: rounding to the nearest; Li, De, Xu, Studer, Samet and Goldstein, Training quantized nets, NeurIPS 2017, for
    weights that are rounded after every step.
    """

    grid: Any
    rate: float = 1.0
    convex = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_array(self, "grid")
        values = np.asarray(self.grid)
        if values.ndim > 1 or values.size == 0:
            raise ValueError(f"Quantized: grid has the shape {values.shape}: give a step or one row of levels")
        if values.ndim == 1 and not np.all(values[1:] > values[:-1]):
            raise ValueError("Quantized: the levels in grid must increase")
        if values.ndim == 0 and values < 1e-37:
            raise ValueError(f"Quantized: grid={self.grid} is a step, so it must be at least 1e-37")

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Assign:
        to_grid = _to_level if isinstance(self.grid, FrozenArray) else _to_multiple
        z = xp.stop_gradient(x)
        found = xp.astype(to_grid(z, self.grid, xp), x.dtype)
        y = xp.where(xp.isnan(z) | (z == found), z, found)
        return Assign(xp.graft(y, 0.0 * xp.where(xp.isfinite(x), x, xp.zeros_like(x))))


def _to_multiple(x: Array, step: float, xp: Namespace) -> Array:
    v, most = xp.upcast(x), xp.largest(x.dtype)
    step = native_value(step, v, xp)
    # where 1 is the spacing of the counts, or more, the multiples are no further apart than the numbers
    far = ~(xp.abs(v) < step * (0.5 / precision(v.dtype).unit))
    count = xp.round(xp.where(far, 0.0, v) / step)

    def stored(count: Array) -> Array:
        level = count * step
        level = xp.where(level > most, most, xp.where(level < -most, -most, level))
        return xp.upcast(xp.astype(level, x.dtype))

    # the count may be off by one; and what is nearest, and in the set, is told by the numbers that will be stored
    y = stored(count - 1.0)
    for other in (stored(count), stored(count + 1.0)):
        y = xp.where(xp.abs(other - v) < xp.abs(y - v), other, y)
    return xp.where(far, v, y)


def _to_level(x: Array, grid: FrozenArray, xp: Namespace) -> Array:
    v, levels = xp.upcast(x), xp.upcast(xp.constant(grid, x))
    flat = xp.reshape(v, (-1,))
    count = xp.searchsorted(levels, xp.where(xp.isnan(flat), 0.0, flat))  # of the levels below
    lower = xp.take(xp.concat([levels[:1], levels], axis=0), count, axis=0)
    upper = xp.take(xp.concat([levels, levels[-1:]], axis=0), count, axis=0)
    y = xp.where(upper - flat < flat - lower, upper, lower)
    return xp.reshape(y, tuple(v.shape))
