"""One constraint for several arrays of the same shape, stacked along a new first axis."""

from __future__ import annotations

from dataclasses import replace

from projgrad.constraint import Constraint
from projgrad.coupled import PairSet, VectorSet
from projgrad.intersection import Intersection
from projgrad.sets.box import Bounded
from projgrad.sets.entries import Mask, Quantized
from projgrad.sets.morphology import Extensive, StructuringElement
from projgrad.sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from projgrad.slices import Slices

__all__ = ["is_hashable", "stacked"]


def is_hashable(key: object) -> bool:
    """Whether this can be a key of a dict, which a set of the user's need not be."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


def stacked(constraint: Constraint, ndim: int) -> Constraint | None:
    """The constraint that a stack of arrays is kept in where each array is kept in this one.

    Args:
        constraint: as `Constraint.bind` gives it for an array.
        ndim: the number of dimensions of each of the arrays.

    Returns:
        The constraint with its axes shifted by one; None where that is not known of its class: a function of the
        weights may do anything along a new axis.
    """
    if isinstance(constraint, Bounded | Mask | Quantized):
        return constraint  # arrays of bounds broadcast from the last axis on
    if isinstance(constraint, Intersection):
        parts = [stacked(part, ndim) for part in constraint.sets]
        known = [part for part in parts if part is not None]
        return Intersection(*known, method=constraint.method, rate=constraint.rate) if known == parts else None
    if isinstance(constraint, Slices):
        return _of_slices(constraint, ndim)
    if isinstance(constraint, Extensive | StructuringElement):
        return replace(constraint, spatial=_shifted(constraint.spatial, ndim))
    if isinstance(constraint, PairSet):
        return replace(constraint, axis=tuple(_shifted(axes, ndim) for axes in constraint.axis))  # type: ignore[type-var]
    if isinstance(constraint, VectorSet | MaxNorm | MinMaxNorm | UnitNorm):
        return replace(constraint, axis=_shifted(constraint.axis, ndim))  # type: ignore[type-var]
    return None


def _of_slices(constraint: Slices, ndim: int) -> Slices | None:
    parts = {ends: part and stacked(part, ndim) for ends, part in constraint.parts}
    if None in parts or any(part is not None and parts[ends] is None for ends, part in constraint.parts):
        return None
    return replace(constraint, parts=parts, along=constraint.along % ndim + 1)


def _shifted(axis: int | tuple[int, ...] | str | None, ndim: int) -> int | tuple[int, ...]:
    assert not isinstance(axis, str)  # bound
    if axis is None:
        return tuple(range(1, ndim + 1))
    return axis % ndim + 1 if isinstance(axis, int) else tuple(a % ndim + 1 for a in axis)
