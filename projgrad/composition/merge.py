"""What an intersection is made of once sets of a kind are one, and sets that contain another are gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from projgrad.composition.parts import bounds_of, entrywise, known, same_groups, shell_of
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.sets.box import Box
from projgrad.sets.groups import GroupL1Ball, L1InfBall
from projgrad.sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from projgrad.sets.simplex import CappedSimplex, L1Ball, Simplex
from projgrad.sets.sparse import Cardinality, L0Groups
from projgrad.sets.spectral import NuclearNorm, Rank, SpectralNorm
from projgrad.sets.sums import SumTo, ZeroMean

__all__ = ["merged"]

# sets of which the one with the smaller number is a part of the other, where all else is the same
_GROWING: dict[type, str] = {
    L1Ball: "radius",
    GroupL1Ball: "radius",
    L1InfBall: "radius",
    NuclearNorm: "radius",
    SpectralNorm: "max_value",
    Cardinality: "k",
    L0Groups: "k",
    Rank: "k",
}


def merged(sets: Sequence[Constraint], ndim: int | None) -> tuple[Constraint, ...]:
    """The same intersection, of as few sets as is cheap to know.

    Raises:
        ValueError: it is empty.
        Undecided: how the axes of two sets compare is not known.
    """
    parts = _boxes_merged(sets)
    parts = _pairs_merged(parts, ndim)
    if any(isinstance(part, Simplex | CappedSimplex) for part in parts) and any(entrywise(part) for part in parts):
        parts = _boxes_merged([piece for part in parts for piece in _taken_apart(part)])
        parts = _pairs_merged(parts, ndim)
    return parts


def _boxes_merged(parts: Sequence[Constraint]) -> tuple[Constraint, ...]:
    """With one box at the end for all sets of bounds; its bounds then hold exactly where methods end with the last."""
    boxes = [part for part in parts if (bounds := bounds_of(part)) is not None and known(*bounds)]
    others = [part for part in parts if part not in boxes]
    others.sort(key=entrywise)
    return (*others, *((boxes[0],) if len(boxes) == 1 else (_common_box(boxes),) if boxes else ()))


def _common_box(boxes: Sequence[Constraint]) -> Box:
    lower, upper = np.asarray(-math.inf), np.asarray(math.inf)
    for box in boxes:
        bounds = bounds_of(box)
        assert bounds is not None
        try:
            lower, upper = np.maximum(lower, np.asarray(bounds[0])), np.minimum(upper, np.asarray(bounds[1]))
        except ValueError:
            raise ValueError(f"{_listed(boxes)}: the bounds do not broadcast together") from None
    try:
        both: Any = [float(bound) if bound.ndim == 0 else FrozenArray(bound) for bound in (lower, upper)]
        return Box(*both)
    except ValueError:
        raise ValueError(f"the intersection of {_listed(boxes)} is empty") from None


def _pairs_merged(parts: Sequence[Constraint], ndim: int | None) -> tuple[Constraint, ...]:
    parts = list(parts)
    for i in range(len(parts)):
        for j in range(len(parts)):
            if i != j and parts[i] is not None and parts[j] is not None:
                both = _both(parts[i], parts[j], ndim)
                if both is not None:
                    parts[i], parts[j] = both, None  # type: ignore[call-overload]
    return tuple(part for part in parts if part is not None)


def _both(a: Constraint, b: Constraint, ndim: int | None) -> Constraint | None:
    """One set for the two, where there is one that is cheap to know."""
    shells = shell_of(a), shell_of(b)
    if shells[0] is not None and shells[1] is not None and known(*shells[0], *shells[1]) and same_groups(a, b, ndim):
        return _common_shell(a, b, max(shells[0][0], shells[1][0]), min(shells[0][1], shells[1][1]))
    totals = _total(a), _total(b)
    if known(*totals) and totals[0] != totals[1] and same_groups(a, b, ndim):
        raise ValueError(f"the intersection of {_listed((a, b))} is empty, since their sums differ")
    return b if _contains(a, b, ndim) else None


def _common_shell(a: Constraint, b: Constraint, low: float, high: float) -> Constraint:
    if low > high:
        raise ValueError(f"the intersection of {_listed((a, b))} is empty")
    for given in (a, b):
        if shell_of(given) == (low, high):
            return given
    if low == high == 1:
        return UnitNorm(axis=a.axis)
    return MaxNorm(high, axis=a.axis) if low == 0 else MinMaxNorm(low, high, axis=a.axis)


def _total(part: Constraint) -> Any:
    if isinstance(part, Simplex | CappedSimplex | SumTo):
        return part.total
    return 0.0 if isinstance(part, ZeroMean) else None


def _contains(large: Constraint, small: Constraint, ndim: int | None) -> bool:
    """Whether it is known that `small` is a part of `large`."""
    if isinstance(large, SumTo) and isinstance(small, Simplex | CappedSimplex) and known(large.total, small.total):
        return large.total == small.total and same_groups(large, small, ndim)
    bounds, shell, most = bounds_of(large), shell_of(large), _largest_entry(small)
    if bounds is not None and most is not None and known(*bounds):
        lower, upper = (np.asarray(bound) for bound in bounds)
        return bool(np.all(lower <= (0.0 if isinstance(small, Simplex) else -most)) and np.all(upper >= most))
    if most is None or not isinstance(small, Simplex | L1Ball):
        field = _GROWING.get(type(large))
        if field is None or type(small) is not type(large):
            return False
        values = getattr(large, field), getattr(small, field)
        return known(*values) and values[0] >= values[1] and _alike(large, small, field)
    if isinstance(large, L1Ball) and known(large.radius):
        return large.radius >= most and same_groups(large, small, ndim)
    if shell is not None and known(*shell):
        return shell[0] == 0 and shell[1] >= most and same_groups(large, small, ndim)
    return False


def _largest_entry(part: Constraint) -> float | None:
    """What no entry of the set exceeds in size."""
    shell = shell_of(part)
    most: Any = shell[1] if shell is not None else None
    if isinstance(part, Simplex):
        most = part.total
    if isinstance(part, L1Ball):
        most = part.radius
    return most if known(most) and math.isfinite(most) else None


def _alike(a: Constraint, b: Constraint, apart_from: str) -> bool:
    return {**vars(a), apart_from: 0} == {**vars(b), apart_from: 0}


def _taken_apart(part: Constraint) -> tuple[Constraint, ...]:
    """A simplex as a sum and a box, where its bounds are numbers."""
    if isinstance(part, Simplex):
        return SumTo(part.total, axis=part.axis), Box(0.0, math.inf)
    if isinstance(part, CappedSimplex) and isinstance(part.lower, float) and isinstance(part.upper, float):
        return SumTo(part.total, axis=part.axis), Box(part.lower, part.upper)
    return (part,)


def _listed(parts: Sequence[Constraint]) -> str:
    return " and ".join(map(repr, parts))
