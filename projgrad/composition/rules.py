"""Which method an intersection takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from projgrad.axes import group_size
from projgrad.composition.alone import linear_conditions, monotone_and_box, one_set, sum_and_box
from projgrad.composition.dual_root import onto_ball, onto_plane, point
from projgrad.composition.merge import merged
from projgrad.composition.method import NESTED, Axes, Found, Method, Sets, Shape, accuracy_of, judged, or_else
from projgrad.composition.norms import affine_and_norm, centred_ball, cone_then_ball, orthant_and_sphere, sphere_and_box
from projgrad.composition.parts import (
    ball_of,
    entrywise,
    group_values,
    known,
    plane_of,
    signs_of,
)
from projgrad.composition.splitting import alternating, split
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.sets.simplex import Simplex

__all__ = ["RULES", "choose"]


# -- the rules, each a function of the sets that returns a method or None -------------------------------------------


def entry_by_entry(sets: Sets) -> Method | None:
    """Intervals for every entry: first into the one, then into the other."""
    return Method("entry by entry") if all(entrywise(part) and part.convex for part in sets.parts) else None


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

    def weighted(v: Array, h: Array, xp: Namespace, axes: Axes) -> Found:
        return Found(point(solid, point(orthant, v, xp), xp, h))

    return Method("orthant, then the other", nearest, weighted=weighted, accuracy=accuracy_of(others))


def one_condition(sets: Sets) -> Method | None:
    """A set and one more condition, linear or a ball, by the root of a function of one number per group."""
    if not all(part.convex for part in sets.parts):
        return None
    for last in sets.parts:
        plane, ball = plane_of(last), ball_of(last)
        if (plane is None and ball is None) or not sets.within(last):
            continue
        part = sets.joined(sets.without(last), roots=NESTED - 1)
        if part is not None:
            return _by_root(part, last)
    return None


def _by_root(part: Constraint, last: Constraint) -> Method:
    plane, ball = plane_of(last), ball_of(last)

    def by_root(v: Array, h: Array | None, xp: Namespace, axes: Axes) -> Found:
        if plane is not None:
            y, error = onto_plane(v, part, *plane.native(v, xp, axes), xp, axes, h)
        else:
            assert ball is not None
            center = group_values(ball.center, v, xp, axes) if isinstance(ball.center, FrozenArray) else ball.center
            y, error = onto_ball(v, part, center, ball.radius, xp, axes, h)
        return judged(y, error, xp, axes)

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return by_root(v, None, xp, axes)

    def weighted(v: Array, h: Array, xp: Namespace, axes: Axes) -> Found:
        return or_else(by_root(v, h, xp, axes), nearest, v, xp, axes)

    def check(shape: Shape, tagging: bool) -> None:
        if isinstance(part, Simplex) and ball is not None and centred_ball(last) and known(part.total, ball.radius):
            size = group_size(shape, part.group_axes(len(shape)))
            if part.total > ball.radius * math.sqrt(size) * (1 + 1e-9):
                raise ValueError(f"{size} numbers with the sum {part.total:g} have a norm of more than {ball.radius:g}")

    inner = getattr(part, "roots", 0)
    accuracy = 2 * accuracy_of((part, last))
    return Method("dual root", nearest, weighted=weighted, accuracy=accuracy, check=check, roots=1 + inner)


def by_splitting(sets: Sets) -> Method | None:
    if not all(part.convex for part in sets.parts):
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return Found(*split(v, sorted(sets.parts, key=entrywise), xp, axes))  # bounds hold exactly

    return Method("admm", nearest, accuracy=4 * accuracy_of(sets.parts), roots=math.inf)


def by_turns(sets: Sets) -> Method | None:
    """By name only: a point of all sets, which need not be the nearest."""
    if not sets.by_name:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        y, error = alternating(v, sets.parts, xp, axes)
        return judged(y, error, xp, axes)

    return Method("alternating", nearest, accuracy=4 * accuracy_of(sets.parts), roots=math.inf)


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
    "admm": by_splitting,
    "alternating": by_turns,
}


def choose(sets: Sequence[Constraint], name: str | None, ndim: int | None, *, in_metric: bool = False) -> Method:
    """The method of this name, or the first one that fits; if asked for, of those that find the point in a metric.

    Raises:
        ValueError: the intersection is empty; there is no method of that name, or it does not fit; or none fits.
        Undecided: that depends on the number of dimensions.
    """
    if name is not None and name not in RULES:
        raise ValueError(f"method={name!r} is not known: it is None or one of {', '.join(map(repr, RULES))}")
    # by the general methods, as the sets are
    parts = tuple(sets) if name in ("admm", "alternating") else merged(sets, ndim)
    wanted = Sets(parts, ndim, name is not None, in_metric)
    for rule_name, rule in RULES.items():
        method = rule(wanted) if name in (None, rule_name) else None
        if method is not None and name in (None, method.name) and (method.in_metric or not in_metric):
            return method
    shown = " and ".join(map(repr, sets))
    if name is not None:
        raise ValueError(f"method={name!r} does not fit {shown}{' in a metric' if in_metric else ''}")
    rough = ", ".join(repr(part) for part in parts if not part.convex)
    raise ValueError(
        f"no way is known to the nearest point of {shown}, since {rough} is not convex; method='alternating' "
        "projects onto one set after the other, which gives a point of all of them that need not be the nearest"
    )
