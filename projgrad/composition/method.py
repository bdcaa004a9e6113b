"""What a method of an intersection is, and what the rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from projgrad.axes import group_size
from projgrad.composition.dual_root import norm_of
from projgrad.composition.parts import bounds_of, inside
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance

__all__ = ["Axes", "Found", "Method", "Sets", "Shape", "accuracy_of", "judged", "or_else"]

NESTED = 2  # roots within a root, each of which takes some 20 evaluations of what is within

Axes = tuple[int, ...]
Shape = tuple[int, ...]


class Found(NamedTuple):
    """The nearest point; and per group how far it may be off, and whether that is too far, or None for neither."""

    y: Array
    error: Array | None = None
    failed: Array | None = None


@dataclass(frozen=True)
class Method:
    """How the nearest point of an intersection is found.

    Args:
        name: as shown in the `repr`.
        nearest: of finite groups in the dtype of computation, along the axes of a group.
        alone: a set that is the intersection, and is asked instead.
        weighted: the same in a metric, given as weights after the groups; None where that is not known.
        accuracy: how many times `projgrad.tolerance` the point may be off.
        roots: how many of them are found, one within the other; infinite where it only gets near.
        check: raises ValueError where no array of a shape can be in the intersection; when tagging, also where that
            takes looking at every entry of an array of bounds.
    """

    name: str
    nearest: Callable[[Array, Namespace, Axes], Found] | None = None
    alone: Constraint | None = None
    weighted: Callable[[Array, Array, Namespace, Axes], Found] | None = None
    accuracy: float = 1.0
    roots: float = 0
    check: Callable[[Shape, bool], None] = field(default=lambda shape, tagging: None)

    @property
    def in_metric(self) -> bool:
        """Whether it finds the nearest point in a metric too; for single entries, that is the same."""
        if self.alone is not None:
            return self.alone.in_metric
        return self.weighted is not None or self.nearest is None


def accuracy_of(parts: Sequence[Constraint]) -> float:
    return float(max(getattr(part, "accuracy", 1.0) for part in parts))


def judged(y: Array, error: Array, xp: Namespace, axes: Axes) -> Found:
    norm = norm_of(xp.stop_gradient(y), xp, axes)
    return Found(y, error, error > 100 * tolerance(y.dtype, group_size(y.shape, axes), norm + error) + 1e-30)


def or_else(found: Found, nearest: Callable[..., Found], v: Array, xp: Namespace, axes: Axes) -> Found:
    """The point in a metric where it is known, and the Euclidean `nearest` in the other groups.

    No digits are left of it, either, where it is far beyond both `v` and that one.
    """

    def lost(size: Array) -> Array:
        allowed = 100 * tolerance(v.dtype, group_size(v.shape, axes), size)
        return found.failed | ~(found.error <= allowed)

    size = norm_of(xp.stop_gradient(v), xp, axes)
    if xp.can_look(v) and not xp.may_differentiate(v) and not bool(xp.any(lost(size))):
        return found
    euclidean = nearest(v, xp, axes)
    gone = lost(size + norm_of(xp.stop_gradient(euclidean.y), xp, axes))
    return Found(*(xp.where(gone, b, a) for a, b in zip(found, euclidean, strict=True)))


@dataclass(frozen=True)
class Sets:
    """The sets of an intersection, merged, and what is asked of all of them together."""

    parts: tuple[Constraint, ...]
    ndim: int | None
    by_name: bool = False
    in_metric: bool = False

    def without(self, one: Constraint) -> tuple[Constraint, ...]:
        """All sets but one."""
        return tuple(part for part in self.parts if part is not one)

    def within(self, one: Constraint) -> bool:
        """Whether the groups of all are parts of those of one."""
        return all(inside(part, one, self.ndim) for part in self.parts)

    def only(self, kind: Callable[[Constraint], Any]) -> Constraint | None:
        """The set of this kind, where there is exactly one."""
        found = [part for part in self.parts if kind(part)]
        return found[0] if len(found) == 1 else None

    def with_box(self, kind: type[Constraint]) -> tuple[Any, tuple[float, float] | None]:
        """Of just two sets, the one of this kind and the bounds of the other, where these are numbers."""
        one, box = self.only(lambda part: isinstance(part, kind)), self.only(bounds_of)
        bounds = bounds_of(box) if one and box and len(self.parts) == 2 else None
        return one, bounds if bounds and all(isinstance(bound, float) for bound in bounds) else None

    def joined(self, parts: Sequence[Constraint], roots: int = NESTED) -> Constraint | None:
        """Several sets as one, where that has a method which is exact, by at most so many roots within a root."""
        from projgrad.composition.rules import choose
        from projgrad.intersection import Intersection

        if len(parts) == 1:
            return parts[0] if parts[0].in_metric or not self.in_metric else None
        try:
            method = choose(parts, None, self.ndim, in_metric=self.in_metric)
        except ValueError:  # there is none
            return None
        return Intersection(*parts) if method.roots <= roots else None
