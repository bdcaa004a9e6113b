"""The base of the sets that couple the entries of a group: they see finite groups along the last axes only."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self

from projgrad.axes import INCOMING, arrange, check_axis, group_size, numeric_axes, restore
from projgrad.constraint import Constraint
from projgrad.moves import Move, Replace, are_close
from projgrad.namespace import Array, Namespace

__all__ = ["Coupled", "PairSet", "VectorSet", "normalised"]


class Coupled(Constraint):
    """A set given by `nearest`, which is handed groups that are finite, in the dtype of computation, and last.

    A group with a NaN or an infinity has no nearest point and becomes NaN.
    """

    #: how many times `projgrad.tolerance` the computed point may be off; said in the docstring where it is not 1
    accuracy: ClassVar[float] = 1.0
    #: how many dimensions `nearest` sees of a group
    dims: ClassVar[int] = 1

    @abstractmethod
    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        """Which axes make up each of the last dimensions that `nearest` sees."""

    @abstractmethod
    def nearest(self, v: Array, xp: Namespace) -> Array:
        """The nearest point of every group of `v`, which is finite, float32 or float64, with the groups last.

        Derivatives flow through what this computes: find a support or a root under `xp.stop_gradient`, and express the
        point by its closed form there.
        """

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        """The point of every group that minimises ``sum(h * (y - v)**2)``, with all else as in `nearest`.

        The weights h have the shape of `v`. They are positive, at most 1, which one of each group is, and constant.
        """
        raise NotImplementedError(f"{type(self).__name__} is projected onto in the Euclidean metric only")

    @property
    def in_metric(self) -> bool:
        return type(self).nearest_in is not Coupled.nearest_in

    def off(self, v: Array, xp: Namespace) -> Array:
        """The distance of every group from the set, with length 1 in its axes: where it is quick to tell, that."""
        away = v - self.nearest(v, xp)
        return xp.times(*xp.norm(away, tuple(range(-self.dims, 0))))

    def size_near(self, v: Array, xp: Namespace) -> Array | None:
        """The norm of every group, with length 1 in its axes, 0 for one that is far; None to take `Namespace.norm`."""
        return None

    def holds(self, v: Array, xp: Namespace) -> Array | None:
        """Per group, without its axes: whether `v` has what must hold exactly (signs, zeros); None for nothing."""
        return None

    def check_sizes(self, *sizes: int) -> None:
        """Raise ValueError where groups of these sizes, one per dimension that `nearest` sees, have no such point."""
        del sizes  # TensorFlow warns of a function without a body

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        return tuple(sorted(d for axes in self.parts(ndim) for d in axes))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        sizes = tuple(group_size(shape, axes) for axes in self.parts(len(shape)))
        if 0 not in sizes:
            self.check_sizes(*sizes)

    def pieces(self, x: Array, xp: Namespace, metric: Array | None) -> tuple[int, int] | None:
        return xp.pieces(x, self.group_axes(len(x.shape)))

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        ndim = len(x.shape)
        parts, last = self.parts(ndim), tuple(range(-self.dims, 0))
        v = arrange(xp.upcast(x), parts, xp)
        finite = xp.all_finite(v, last)
        clean = xp.can_look(finite) and xp.skips(v) and not xp.may_differentiate(v) and bool(xp.all(finite))
        if not clean:
            v = xp.where(finite, v, 0.0)
        holds, kept, near, size = self._holds(v, x, xp), None, None, None
        if metric is None:
            y = self.nearest(v, xp)
            # where nothing is left out, this takes fewer passes than the norm of what is moved
            if not xp.skips(v) and type(self).off is not Coupled.off:
                near = self._per_group(xp.where(finite, self.off(xp.stop_gradient(v), xp), float("nan")), x, xp)
                size = self.size_near(xp.stop_gradient(v), xp)
                size = None if size is None else self._per_group(size, x, xp)
            if clean and y is v and holds is None:
                kept = self._per_group(finite, x, xp)
        else:
            away = self._per_group(xp.where(finite, self.off(xp.stop_gradient(v), xp), float("nan")), x, xp)
            kept = are_close(x, away, self.group_axes(ndim), xp, self.accuracy, holds)

            def nearest(v: Array, h: Array) -> Array:
                return self.nearest_in(v, normalised(h, last, xp), xp)

            y = xp.unless(kept, nearest, v, arrange(metric, parts, xp))
        y = restore(y if clean else xp.where(finite, y, float("nan")), parts, tuple(x.shape), xp)
        return Replace(y, self.group_axes(ndim), self.accuracy, holds, kept, size=size, near=near)

    def tangent_at(self, x: Array, d: Array, xp: Namespace) -> Array:
        if self.affine:
            return super().tangent_at(x, d, xp)
        parts = self.parts(len(x.shape))
        found = self.tangent_in(arrange(xp.upcast(x), parts, xp), arrange(d, parts, xp), xp)
        return restore(found, parts, tuple(x.shape), xp)

    def tangent_in(self, v: Array, d: Array, xp: Namespace) -> Array:
        """`tangent_at`, for groups as `nearest` sees them, of a set that `has_tangent`."""
        raise NotImplementedError(type(self).__name__)

    def holds_in(self, x: Array, xp: Namespace) -> Array | None:
        """`holds` for an array as it is given, with length 1 in the axes of a group."""
        return self._holds(arrange(xp.upcast(x), self.parts(len(x.shape)), xp), x, xp)

    def _holds(self, v: Array, x: Array, xp: Namespace) -> Array | None:
        holds = self.holds(v, xp)
        return None if holds is None else self._per_group(holds, x, xp)

    def _per_group(self, values: Array, x: Array, xp: Namespace) -> Array:
        axes = self.group_axes(len(x.shape))
        kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
        return xp.reshape(values, tuple(-1 if n is None else n for n in kept))


class VectorSet(Coupled):
    """A set of vectors, the entries of a group along `axis`; `nearest` sees them along the last axis."""

    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        return (numeric_axes(self.axis, ndim),)


class PairSet(Coupled):
    """A set of matrices: `axis` is a pair of the axes of the rows' index and of the columns' index.

    Each is an int or a tuple of ints that are taken as one, so that ``axis=(0, (1, 2, 3))`` makes a matrix of a kernel.
    ``axis="incoming"`` has the weights of one unit as a row.
    """

    axis: Any = (-2, -1)
    dims = 2

    def __post_init__(self) -> None:
        axis = self.axis
        if axis != INCOMING:
            if not isinstance(axis, tuple | list) or len(axis) != 2:
                raise ValueError(
                    f'{type(self).__name__}: axis={axis!r} is not a pair (of the rows, of the columns) or "incoming"'
                )
            object.__setattr__(self, "axis", tuple(check_axis(a) for a in axis))
        self.check_rate()

    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        if self.axis == INCOMING:
            numeric_axes(INCOMING, ndim)
        rows, columns = (numeric_axes(a, ndim) for a in self.axis)
        if set(rows) & set(columns):
            raise ValueError(f"{type(self).__name__}: axis={self.axis} has an axis in both of the pair")
        return rows, columns

    def bind(self, shape: tuple[int, ...], incoming: tuple[int, ...] | str) -> Self:
        bound = self
        if self.axis == INCOMING:
            if isinstance(incoming, str):
                raise ValueError(incoming)
            units = tuple(d for d in range(len(shape)) if d not in incoming)
            bound = replace(self, axis=(units, incoming))  # type: ignore[type-var]
        pair = tuple(axes[0] if len(axes) == 1 else axes for axes in bound.parts(len(shape)))
        bound = replace(bound, axis=pair)  # type: ignore[type-var]
        if None not in shape:
            bound.check_shape(shape)
        return bound


def normalised(h: Array, last: tuple[int, ...], xp: Namespace) -> Array:
    """Weights relative to the largest of their group, and not too small for their inverse; 1 where all are 0."""
    least = 1e-25 if str(h.dtype).endswith("float32") else 1e-200
    h = xp.minimum(h, xp.largest(h.dtype) * xp.ones_like(h[..., :1]))  # as of moments that overflow
    most = xp.max(h, axis=last, keepdims=True)
    return xp.maximum(h / xp.where(most > 0, most, 1.0), xp.where(most > 0, least, xp.ones_like(most)))
