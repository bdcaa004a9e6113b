"""The plan: which parameters are kept in which sets, with axes as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from projgrad.composition.parts import Undecided
from projgrad.composition.rules import choose
from projgrad.constraint import Constraint
from projgrad.intersection import Intersection
from projgrad.joint import Layout
from projgrad.moves import is_one
from projgrad.namespace import Array
from projgrad.schedule import is_step
from projgrad.tag import OPTIMIZER, Tag

__all__ = ["Plan", "PlanEntry"]


@dataclass(frozen=True)
class PlanEntry:
    """What holds for one parameter, or for several together.

    Args:
        names: of the parameters.
        shapes: theirs.
        tag: the constraint, with axes as numbers, and its options.
        layout: how several parameters are one array; None for one parameter by itself.
        handles: by which the framework finds the parameters; no part of what two plans are compared by.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    tag: Tag
    layout: Layout | None = None
    handles: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name; of several parameters, all names."""
        return " + ".join(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; of several parameters, that of the array they form together."""
        return self.shapes[0] if self.layout is None else self.layout.shape

    @property
    def constraint(self) -> Constraint:
        """The constraint of that array."""
        return self.tag.constraint

    @property
    def in_metric(self) -> bool:
        """Whether the nearest point is the one in the metric of the optimizer."""
        return self.tag.metric == OPTIMIZER

    @property
    def shown(self) -> Tag:
        """The tag, in which an intersection has the method that is taken in the metric that holds."""
        whole = self.constraint
        if not (self.in_metric and isinstance(whole, Intersection)):
            return self.tag
        try:
            method = choose(whole.sets, whole.method, len(self.shape), in_metric=True)
        except (Undecided, ValueError):  # as long as numbers change
            return self.tag
        return replace(self.tag, constraint=Intersection(*whole.sets, method=method.name, rate=whole.rate))

    @property
    def counts(self) -> bool:
        """Whether it matters which step it is."""
        return self.tag.every > 1 or self.constraint.scheduled

    @property
    def settles(self) -> bool:
        """Whether a projection goes all the way, so that one more changes nothing."""
        return _settles(self.constraint)

    def due(self, step: Any) -> Any:
        """Whether the projection is to be done after so many steps; an array where `step` is one."""
        due = self.tag.every == 1 or step % self.tag.every == 0
        return bool(due) if is_step(step) else due

    def gather(self, arrays: Sequence[Any]) -> Array:
        """The parameters as the one array that the constraint is for."""
        return arrays[0] if self.layout is None else self.layout.gather(arrays)

    def gather_metric(self, weights: Sequence[Any]) -> Array | None:
        """The weights of the entries of each parameter as one array; None if one of them has none, as at the start."""
        return None if any(weight is None for weight in weights) else self.gather(weights)

    def scatter(self, array: Array) -> list[Array]:
        """The parameters, of that one array."""
        return [array] if self.layout is None else self.layout.scatter(array)

    def project(self, arrays: Sequence[Any], step: Any = None, weights: Sequence[Any] | None = None) -> list[Array]:
        """The parameters projected; with weights, one array or None for each, in that metric."""
        metric = None if weights is None else self.gather_metric(weights)
        return self.scatter(self.constraint.project(self.gather(arrays), metric=metric, step=step))

    def tangent(self, points: Sequence[Any], directions: Sequence[Any], step: Any = None) -> list[Array]:
        """The directions without what points out of the set at the parameters `points`."""
        point, direction = self.gather(points), self.gather(directions)
        return self.scatter(self.constraint.tangent(point, direction, step=step))

    def violation(self, arrays: Sequence[Any], step: Any = None) -> Array:
        """The distance of every group from the set."""
        return self.constraint.violation(self.gather(arrays), step=step)


def _settles(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_settles(part) for part in value)
    return not isinstance(value, Constraint) or (is_one(value.rate) and _settles(tuple(vars(value).values())))


class Plan(tuple[PlanEntry, ...]):
    """What holds for the constrained parameters, in order; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self:
            return "Plan: no parameter is constrained"
        names = max(len(e.name) for e in self)
        shapes = max(len(str(e.shape)) for e in self)
        return "\n".join(f"{e.name:<{names}}  {e.shape!s:<{shapes}}  {e.shown}" for e in self)

    @property
    def counts(self) -> bool:
        """Whether it matters which step it is."""
        return any(entry.counts for entry in self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, which `projgrad.load_plan` and the command `projgrad` read, in the place of such a file.

        All options, schedules, slices and sets over several parameters are kept; `handles` are not.

        Raises:
            OSError: the file cannot be written.
            ValueError: a constraint is a function, or of a class, that is not registered (`projgrad.register`), or has
                numbers that only compiled code knows.
        """
        from projgrad.portable import save_plan

        save_plan(self, path)
