"""Sets of the kernels of morphological layers, which are structuring functions: dilations and erosions add them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.axes import check_axis, numeric_axes
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.moves import Assign, Clip
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.box import Box
from projgrad.sets.entries import hold
from projgrad.values import check_bounds, native_value, set_array, set_number

__all__ = ["Extensive", "StructuringElement", "increasing", "lattice", "non_positive", "zero_to_one"]


def non_positive(lower: float = -1.0) -> Box:
    """The box of kernels between `lower` and 0."""
    return Box(lower, 0.0)


def zero_to_one() -> Box:
    """The box of kernels between 0 and 1."""
    return Box(0.0, 1.0)


def lattice(bound: float = 1.0) -> Box:
    """The box of kernels between `-bound` and `bound`."""
    return Box(-bound, bound)


@register()
@dataclass(frozen=True, repr=False)
class Extensive(Constraint):
    """The kernels ``{x : lower <= x <= 0, and x = 0 at the centre}``, for every channel.

    Convex. Exact: a comparison per bound. Cost: O(1) per entry.

    A dilation with such a kernel is extensive: no value of its input gets smaller. An erosion is anti-extensive. The
    centre is the entry ``n // 2`` of every spatial axis of length n: the middle, or the second of two middles.

    Args:
        lower: a number of at most 0; -inf for no bound.
        spatial: the spatial axes: (0, 1) for the kernels of Keras and JAX, (2, 3) for those of torch.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `lower` is above 0 or NaN, a spatial axis does not exist, or `rate` is outside (0, 1].

    Source: Serra, Image analysis and mathematical morphology, volume 2, 1988: a dilation is extensive where its
    structuring element has the origin.
    """

    lower: float = -1.0
    spatial: Any = (0, 1)
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "lower", least=-math.inf, most=0.0)
        object.__setattr__(self, "spatial", check_axis(self.spatial))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        numeric_axes(self.spatial, len(shape))

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Assign:
        centre = sum(away(x, self.spatial, xp)) == 0.0
        y = Clip(native_value(self.lower, x, xp), 0.0).apply(x, xp)
        return Assign(hold(x, y, centre, 0.0, xp))


increasing = Extensive  # as it was called in older releases of morpholayers


@register()
@dataclass(frozen=True, repr=False)
class StructuringElement(Constraint):
    """The kernels ``{x : lower <= x <= upper inside the shape, x = value outside}``, for every channel.

    Convex. Exact: a comparison per bound. Cost: O(1) per entry.

    The disk has the entries with ``sum((d / r)**2) <= 1``, the diamond those with ``sum(|d| / r) <= 1``, where d is how
    far an entry is from the centre along a spatial axis of length n, ``n // 2`` the centre, and ``r = n // 2``.

    Args:
        shape: "disk", "diamond", or an array with the spatial axes (nested lists will do), true or not 0 inside.
        value: of the entries outside: by default the bottom of the lattice [-1, 1]. A dilation or erosion never sees
            them where they are lower than the others by more than the range of the input.
        lower: of the entries inside; -inf for no bound.
        upper: of the entries inside; inf for no bound.
        spatial: the spatial axes: (0, 1) for the kernels of Keras and JAX, (2, 3) for those of torch.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `shape` is not known or does not fit the kernel, `value` is not finite, a bound is NaN, `lower`
            exceeds `upper`, a spatial axis does not exist, or `rate` is outside (0, 1].

    Source: Serra, Image analysis and mathematical morphology, 1982, for flat structuring elements.
    """

    shape: Any = "disk"
    value: float = -1.0
    lower: float = -1.0
    upper: float = 1.0
    spatial: Any = (0, 1)
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "value")
        for name in ("lower", "upper"):
            set_number(self, name, least=-math.inf, most=math.inf)
        check_bounds(self)
        object.__setattr__(self, "spatial", check_axis(self.spatial))
        if isinstance(self.shape, str):
            if self.shape not in ("disk", "diamond"):
                raise ValueError(f'StructuringElement: shape={self.shape!r} is not "disk", "diamond" or an array')
        else:
            set_array(self, "shape")
            if not isinstance(self.shape, FrozenArray):
                raise ValueError(f"StructuringElement: shape={self.shape!r} is a single number: give an array")
            object.__setattr__(self, "shape", FrozenArray(np.asarray(self.shape) != 0))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        sizes = tuple(shape[d] for d in numeric_axes(self.spatial, len(shape)))
        if isinstance(self.shape, FrozenArray) and self.shape.shape != sizes:
            raise ValueError(f"StructuringElement: shape has the sizes {self.shape.shape}, but the kernel is {sizes}")

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Assign:
        value, lower, upper = (native_value(v, x, xp) for v in (self.value, self.lower, self.upper))
        return Assign(hold(x, Clip(lower, upper).apply(x, xp), self.outside(x, xp), value, xp))

    def outside(self, x: Array, xp: Namespace) -> Array:
        """Where a kernel is outside the shape, as an array that broadcasts to it."""
        axes = numeric_axes(self.spatial, len(x.shape))
        if isinstance(self.shape, FrozenArray):
            sizes = tuple(n if d in axes else 1 for d, n in enumerate(x.shape))
            return xp.reshape(xp.constant(self.shape, x), sizes) == 0.0
        radii = [max(x.shape[axis] // 2, 1) for axis in axes]
        most = math.lcm(*radii)  # so that all are whole numbers
        scaled = [d * float(most // r) for d, r in zip(away(x, axes, xp), radii, strict=True)]
        return sum(d * d for d in scaled) > most**2 if self.shape == "disk" else sum(scaled) > most


def away(x: Array, spatial: Any, xp: Namespace) -> list[Array]:
    """How far the entries of a kernel are from the centre along each spatial axis, as arrays that broadcast to it."""
    found = []
    for axis in numeric_axes(spatial, len(x.shape)):
        line = x[tuple(slice(None) if d == axis else slice(0, 1) for d in range(len(x.shape)))]
        place = xp.cumulative_sum(xp.ones_like(xp.upcast(line)), axis=axis) - 1.0
        found.append(xp.abs(place - float(x.shape[axis] // 2)))
    return found
