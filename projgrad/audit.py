"""Checking that saved, loaded or averaged parameters are in their sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from projgrad.namespace import native
from projgrad.plan import PlanEntry

__all__ = ["check_inside"]


def check_inside(held: Iterable[tuple[PlanEntry, Sequence[Any]]], step: Any, tol: float | None) -> None:
    """Raise ValueError that names every entry of a plan whose parameters are not in their set.

    Args:
        held: entries, each with its parameters.
        step: the number of steps made, for schedules.
        tol: the distance that is allowed; None for that of `Constraint.contains`.
    """
    outside, lost = [], False
    for entry, arrays in held:
        array = entry.gather(arrays)
        if not entry.constraint.contains(array, tol, step=step):
            distances, xp = native(entry.constraint.violation(array, step=step))
            far = float(xp.max(distances))
            outside.append(f"{entry.name} is {far:.3g} away from {entry.constraint}")
            lost = lost or math.isnan(far)
    if outside:
        hint = ", but cannot mend NaNs" if lost else ""
        raise ValueError(f"outside of their sets: {'; '.join(outside)}; project_params() projects them{hint}")
