"""Intersections that another set is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from projgrad.composition.method import Method, Sets
from projgrad.composition.parts import (
    Plane,
    known,
    plane_of,
    same_groups,
)
from projgrad.constraint import Constraint
from projgrad.sets.monotone import Monotone
from projgrad.sets.polyhedra import Affine, Polyhedron
from projgrad.sets.simplex import CappedSimplex, Simplex
from projgrad.sets.sums import SumTo

__all__ = ["linear_conditions", "monotone_and_box", "one_set", "sum_and_box"]


def one_set(sets: Sets) -> Method | None:
    """One contains the other, or both are of a kind."""
    return Method("one set", alone=sets.parts[0]) if len(sets.parts) == 1 else None


def sum_and_box(sets: Sets) -> Method | None:
    total, bounds = sets.with_box(SumTo)
    if bounds is None:
        return None
    try:
        one: Constraint = CappedSimplex(total.total, *bounds, axis=total.axis)
        if bounds == (0.0, math.inf):
            one = Simplex(total.total, axis=total.axis)
    except ValueError:
        raise ValueError(f"the intersection of {total} and entries from {bounds[0]} to {bounds[1]} is empty") from None
    return Method("sum and box", alone=one)


def monotone_and_box(sets: Sets) -> Method | None:
    monotone, bounds = sets.with_box(Monotone)
    if bounds is None or not known(monotone.lower, monotone.upper):
        return None
    lower, upper = max(bounds[0], monotone.lower), min(bounds[1], monotone.upper)
    return Method("monotone and box", alone=replace(monotone, lower=lower, upper=upper))


def linear_conditions(sets: Sets) -> Method | None:
    """Three or more hyperplanes and halfspaces, of which two would still be a dual root."""
    first = sets.parts[0]
    planes = [plane_of(part) for part in sets.parts]
    found = [plane for plane in planes if plane is not None and known(plane.low, plane.high)]
    sizes = {plane.normal.shape[0] for plane in found if plane.normal is not None}
    alike = all(same_groups(part, first, sets.ndim) for part in sets.parts)
    if len(sets.parts) < 3 or len(found) < len(planes) or len(sizes) != 1 or not alike:
        return None
    rows = [(_row(plane, *sizes), plane) for plane in found]
    above, equal = ([pair for pair in rows if (pair[1].low == pair[1].high) is same] for same in (False, True))
    of_equal: Any = [[row for row, _ in equal], [plane.high / plane.length for _, plane in equal]]
    of_above: Any = [[row for row, _ in above], [plane.high / plane.length for _, plane in above]]
    if not above:
        return Method("linear conditions", alone=Affine(of_equal[0], of_equal[1], axis=first.axis))
    more = of_equal if equal else (None, None)
    return Method(
        "linear conditions", alone=Polyhedron(of_above[0], of_above[1], C=more[0], d=more[1], axis=first.axis)
    )


def _row(plane: Plane, size: int) -> Any:
    return [1.0] * size if plane.normal is None else plane.normal.tolist()
