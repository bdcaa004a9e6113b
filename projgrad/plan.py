"""The plan: which parameter is kept in which set, with its axes as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from projgrad.constraint import Constraint

__all__ = ["Plan", "PlanEntry"]


@dataclass(frozen=True)
class PlanEntry:
    """One constrained parameter: its name, its shape and the constraint that holds."""

    name: str
    shape: tuple[int, ...]
    constraint: Constraint


class Plan(tuple[PlanEntry, ...]):
    """The constrained parameters in order; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self:
            return "Plan: no parameter is constrained"
        names = max(len(e.name) for e in self)
        shapes = max(len(str(e.shape)) for e in self)
        return "\n".join(f"{e.name:<{names}}  {e.shape!s:<{shapes}}  {e.constraint}" for e in self)
