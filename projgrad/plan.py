"""The plan: which parameter is kept in which set, with its axes as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from projgrad.constraint import Constraint

__all__ = ["Plan", "PlanEntry"]


@dataclass(frozen=True)
class PlanEntry:
    """One constrained parameter: its name, its shape and the constraint that holds."""

    name: str
    shape: tuple[int, ...]
    constraint: Constraint


class Plan(Sequence[PlanEntry]):
    """The constrained parameters in order; prints as a table."""

    def __init__(self, entries: Sequence[PlanEntry]) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, index: int) -> PlanEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Plan: ...
    def __getitem__(self, index: int | slice) -> Any:
        return Plan(self._entries[index]) if isinstance(index, slice) else self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        if not self._entries:
            return "Plan: no parameter is constrained"
        names = max(len(e.name) for e in self._entries)
        shapes = max(len(str(e.shape)) for e in self._entries)
        return "\n".join(f"{e.name:<{names}}  {e.shape!s:<{shapes}}  {e.constraint}" for e in self._entries)
