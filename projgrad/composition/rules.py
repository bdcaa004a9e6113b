"""Which method an intersection takes: the first of `RULES` that fits what `merged` leaves of its sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from projgrad.axes import group_size
from projgrad.composition.closed_forms import affine_and_shell, cone_and_ball, orthant_and_shell, shell_and_box
from projgrad.composition.dual_root import norm_of, onto_ball, onto_plane, point
from projgrad.composition.dykstra import alternating, dykstra
from projgrad.composition.merge import merged
from projgrad.composition.method import (
    Axes,
    Found,
    Method,
    Shape,
    accuracy_of,
    are_alike,
    bounds_of_norm,
    centred_ball,
    check_norms,
    in_shell,
    judged,
)
from projgrad.composition.parts import (
    Plane,
    ball_of,
    bounds_of,
    entrywise,
    group_values,
    inside,
    known,
    native_bounds,
    plane_of,
    same_groups,
    shell_of,
    signs_of,
)
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance
from projgrad.sets.monotone import Monotone
from projgrad.sets.polyhedra import Affine, Polyhedron
from projgrad.sets.simplex import CappedSimplex, Simplex
from projgrad.sets.sums import SumTo

__all__ = ["RULES", "choose"]

_NESTED = 2  # roots within a root, each of which takes some 20 evaluations of what is within


@dataclass(frozen=True)
class Sets:
    """The sets of an intersection, merged, and what is asked of all of them together."""

    parts: tuple[Constraint, ...]
    ndim: int | None
    by_name: bool = False

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

    def joined(self, parts: Sequence[Constraint], roots: int = _NESTED) -> Constraint | None:
        """Several sets as one, where that has a method which is exact, by at most so many roots within a root."""
        from projgrad.intersection import Intersection

        if len(parts) == 1:
            return parts[0]
        try:
            method = choose(parts, None, self.ndim)
        except ValueError:  # there is none
            return None
        return Intersection(*parts) if method.exact and method.roots <= roots else None


# -- the rules, each a function of the sets that returns a method or None -------------------------------------------


def one_set(sets: Sets) -> Method | None:
    """One contains the other, or both are of a kind."""
    return Method("one set", alone=sets.parts[0]) if len(sets.parts) == 1 else None


def entry_by_entry(sets: Sets) -> Method | None:
    """Intervals for every entry: first into the one, then into the other."""
    if not all(entrywise(part) and part.convex for part in sets.parts):
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        for part in sets.parts:
            v = point(part, v, xp)
        return Found(v)

    return Method("entry by entry", nearest)


def sum_and_box(sets: Sets) -> Method | None:
    total, box = sets.only(lambda part: isinstance(part, SumTo)), sets.only(bounds_of)
    if total is None or box is None or len(sets.parts) > 2:
        return None
    bounds = bounds_of(box)
    assert bounds is not None
    if not all(isinstance(bound, float) for bound in bounds):
        return None
    one: Constraint = CappedSimplex(total.total, *bounds, axis=total.axis)  # type: ignore[attr-defined]
    if bounds == (0.0, math.inf):
        one = Simplex(total.total, axis=total.axis)  # type: ignore[attr-defined]
    return Method("sum and box", alone=one)


def monotone_and_box(sets: Sets) -> Method | None:
    monotone, box = sets.only(lambda part: isinstance(part, Monotone)), sets.only(bounds_of)
    if monotone is None or box is None or len(sets.parts) > 2:
        return None
    bounds = bounds_of(box)
    assert bounds is not None
    if not all(isinstance(bound, float) for bound in bounds):
        return None

    assert isinstance(monotone, Monotone)
    lower, upper = max(bounds[0], monotone.lower), min(bounds[1], monotone.upper)
    return Method("monotone and box", alone=replace(monotone, lower=lower, upper=upper))


def affine_and_norm(sets: Sets) -> Method | None:
    norm = sets.only(shell_of)
    others = () if norm is None else sets.without(norm)
    if norm is None or not others or not all(part.affine for part in others) or not sets.within(norm):
        return None
    flat = sets.joined(others)
    if flat is None:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        y = affine_and_shell(v, flat, *bounds_of_norm(norm), xp, axes)
        return in_shell(y, norm, xp, axes)

    return Method("affine set and norm", nearest, accuracy=2 * accuracy_of(others))


def cone_then_ball(sets: Sets) -> Method | None:
    ball = sets.only(centred_ball)
    others = () if ball is None else sets.without(ball)
    if ball is None or not others or not all(part.cone and part.convex for part in others) or not sets.within(ball):
        return None
    cone = sets.joined(others)
    if cone is None:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return Found(cone_and_ball(v, cone, bounds_of_norm(ball)[1], xp, axes))

    return Method("cone, then ball", nearest, accuracy=accuracy_of(others))


def orthant_and_sphere(sets: Sets) -> Method | None:
    norm, orthant = sets.only(shell_of), sets.only(lambda part: signs_of(part) is not None)
    if norm is None or orthant is None or len(sets.parts) > 2:
        return None
    signs = signs_of(orthant)

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        one = (xp.constant(signs, v) if isinstance(signs, FrozenArray) else signs) + 0.0 * v
        y = orthant_and_shell(v, orthant, one, *bounds_of_norm(norm), xp, axes)
        return in_shell(y, norm, xp, axes)

    return Method("orthant and sphere", nearest)


def orthant_then_solid(sets: Sets) -> Method | None:
    """A solid set stays so in an orthant: what is pulled to 0 first is not missed."""
    orthant = sets.only(lambda part: signs_of(part) is not None)
    others = () if orthant is None else sets.without(orthant)
    if orthant is None or not others or not all(part.solid for part in others):
        return None
    solid = sets.joined(others)
    if solid is None:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return Found(point(solid, point(orthant, v, xp), xp))

    return Method("orthant, then the other", nearest, accuracy=accuracy_of(others))


def sphere_and_box(sets: Sets) -> Method | None:
    """Also a ball and a box. With a sphere, by itself only for bounds for which there is a point in any case."""
    norm, box = sets.only(shell_of), sets.only(bounds_of)
    if norm is None or box is None or len(sets.parts) > 2:
        return None
    alike, bounds = are_alike(box), bounds_of(box)
    assert bounds is not None
    if not alike and not sets.by_name and not centred_ball(norm):
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        low, high = bounds_of_norm(norm)
        y, error = shell_and_box(v, *native_bounds(bounds, v, xp), low, high, xp, axes, alike=alike)
        return judged(y, error, xp, axes)

    def check(shape: Shape, tagging: bool) -> None:
        check_norms(norm, box, shape, tagging)

    return Method("ball and box" if centred_ball(norm) else "sphere and box", nearest, check=check)


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


def one_condition(sets: Sets) -> Method | None:
    """A set and one more condition, linear or a ball, by the root of a function of one number per group."""
    if not all(part.convex for part in sets.parts):
        return None
    for last in sets.parts:
        plane, ball = plane_of(last), ball_of(last)
        if (plane is None and ball is None) or not sets.within(last):
            continue
        part = sets.joined(sets.without(last), roots=_NESTED - 1)
        if part is not None:
            return _by_root(part, last)
    return None


def _by_root(part: Constraint, last: Constraint) -> Method:
    plane, ball = plane_of(last), ball_of(last)

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        if plane is not None:
            y, error = onto_plane(v, part, *plane.native(v, xp, axes), xp, axes)
        else:
            assert ball is not None
            center = group_values(ball.center, v, xp, axes) if isinstance(ball.center, FrozenArray) else ball.center
            y, error = onto_ball(v, part, center, ball.radius, xp, axes)
        return judged(y, error, xp, axes)

    def check(shape: Shape, tagging: bool) -> None:
        if isinstance(part, Simplex) and ball is not None and centred_ball(last) and known(part.total, ball.radius):
            size = group_size(shape, part.group_axes(len(shape)))
            if part.total > ball.radius * math.sqrt(size) * (1 + 1e-9):
                raise ValueError(f"{size} numbers with the sum {part.total:g} have a norm of more than {ball.radius:g}")

    inner = getattr(part, "roots", 0)
    return Method("dual root", nearest, accuracy=2 * accuracy_of((part, last)), check=check, roots=1 + inner)


def by_dykstra(sets: Sets) -> Method | None:
    if not all(part.convex for part in sets.parts):
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        y, error = dykstra(v, sets.parts, xp, axes)
        size = group_size(v.shape, axes)
        allowed = 4 * math.sqrt(tolerance(v.dtype, size, 1.0)) * xp.maximum(norm_of(y, xp, axes), norm_of(v, xp, axes))
        return Found(y, error, error > xp.stop_gradient(allowed))

    return Method("dykstra", nearest, accuracy=4 * accuracy_of(sets.parts), exact=False)


def by_turns(sets: Sets) -> Method | None:
    """By name only: a point of all sets, which need not be the nearest."""
    if not sets.by_name:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        y, error = alternating(v, sets.parts, xp, axes)
        return judged(y, error, xp, axes)

    return Method("alternating", nearest, accuracy=4 * accuracy_of(sets.parts), exact=False)


RULES: dict[str, Callable[[Sets], Method | None]] = {
    "one set": one_set,
    "entry by entry": entry_by_entry,
    "sum and box": sum_and_box,
    "monotone and box": monotone_and_box,
    "cone, then ball": cone_then_ball,
    "affine set and norm": affine_and_norm,
    "orthant and sphere": orthant_and_sphere,
    "orthant, then the other": orthant_then_solid,
    "ball and box": sphere_and_box,
    "sphere and box": sphere_and_box,
    "linear conditions": linear_conditions,
    "dual root": one_condition,
    "dykstra": by_dykstra,
    "alternating": by_turns,
}


def choose(sets: Sequence[Constraint], name: str | None, ndim: int | None) -> Method:
    """The method of this name, or the first one that fits.

    Raises:
        ValueError: the intersection is empty; there is no method of that name, or it does not fit; or none fits.
        Undecided: that depends on the number of dimensions.
    """
    if name is not None and name not in RULES:
        raise ValueError(f"method={name!r} is not known: it is None or one of {', '.join(map(repr, RULES))}")
    # by the general methods, as the sets are
    parts = tuple(sets) if name in ("dykstra", "alternating") else merged(sets, ndim)
    wanted = Sets(parts, ndim, by_name=name is not None)
    for rule_name, rule in RULES.items():
        method = rule(wanted) if name in (None, rule_name) else None
        if method is not None and name in (None, method.name):
            return method
    shown = " and ".join(map(repr, sets))
    if name is not None:
        raise ValueError(f"method={name!r} does not fit {shown}")
    rough = ", ".join(repr(part) for part in parts if not part.convex)
    raise ValueError(
        f"no way is known to the nearest point of {shown}, since {rough} is not convex; method='alternating' "
        "projects onto one set after the other, which gives a point of all of them that need not be the nearest"
    )
