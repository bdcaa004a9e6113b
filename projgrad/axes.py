"""Axes: the ones over which a norm is taken, as in NumPy and Keras."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["INCOMING", "Axis", "arrange", "check_axis", "group_size", "numeric_axes", "restore"]

INCOMING = "incoming"
Axis = int | tuple[int, ...] | str | None


def check_axis(axis: Any) -> Axis:
    """`axis` as an int, a tuple of distinct ints, None or "incoming".

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if axis is None or axis == INCOMING:
        return axis
    if isinstance(axis, str):
        raise ValueError(f'axis={axis!r} is not known: give an int, a tuple of ints, None (all axes) or "incoming"')
    if isinstance(axis, Iterable):
        axes = tuple(_as_int(a) for a in axis)
        if not axes:
            raise ValueError(
                "axis=() leaves nothing to take a norm over: use Box for single entries, None for all axes"
            )
        if len(set(axes)) < len(axes):
            raise ValueError(f"axis={axes} names an axis twice")
        return axes
    return _as_int(axis)


def _as_int(axis: Any) -> int:
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f'axis={axis!r} is not an int: give an int, a tuple of ints, None (all axes) or "incoming"')
    return int(axis.__index__())


def numeric_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as sorted non-negative axes of an array with `ndim` dimensions.

    Raises:
        ValueError: an axis is out of range, named twice, or "incoming", which an array alone does not tell.
    """
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, str):
        raise ValueError(
            'axis="incoming" is the weights that feed one unit, which only a layer can tell: tag the layer or pass the '
            "model, or give the axes as numbers, e.g. axis=0"
        )
    given = axis if isinstance(axis, tuple) else (axis,)
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} does not exist in an array of {ndim} dimension{'s' * (ndim != 1)}")
    axes = tuple(d for d in range(ndim) for a in given if a % ndim == d)  # plain ints even where given ones are traced
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} names an axis of {ndim} dimensions twice")
    return axes


def group_size(shape: Iterable[int], axes: tuple[int, ...]) -> int:
    """The number of entries in one group.

    Raises:
        ValueError: a dimension is not known, as may be in a traced function.
    """
    shape, size = tuple(shape), 1
    for a in axes:
        if shape[a] is None:
            raise ValueError(f"the length of axis {a} is not known, but a group along it needs a fixed one")
        size *= shape[a]
    return size


def arrange(x: Any, parts: Sequence[tuple[int, ...]], xp: Any) -> Any:
    """`x` with the axes of every part flattened into one, these last and in the order of `parts`."""
    order, shape = _order(x.shape, parts)
    moved = x if order == list(range(len(order))) else xp.permute_dims(x, tuple(order))
    sizes = [group_size(x.shape, axes) for axes in parts]
    return xp.reshape(moved, (*shape, *sizes))


def restore(y: Any, parts: Sequence[tuple[int, ...]], shape: Sequence[int], xp: Any) -> Any:
    """The array of the given shape of which `arrange` made `y`."""
    order, _ = _order(shape, parts)
    moved = xp.reshape(y, tuple(shape[d] for d in order))
    if order == list(range(len(order))):
        return moved
    return xp.permute_dims(moved, tuple(order.index(d) for d in range(len(order))))


def _order(shape: Sequence[int], parts: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """The axes of an array in the order that `arrange` puts them, and the lengths of those in no part."""
    inside = [d for axes in parts for d in axes]
    outside = [d for d in range(len(shape)) if d not in inside]
    return outside + inside, [shape[d] for d in outside]
