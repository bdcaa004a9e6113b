"""Any convex sets, by splitting them: the alternating direction method of multipliers, with a bound of the error.

Source: Boyd, Parikh, Chu, Peleato and Eckstein, Distributed optimization and statistical learning via the alternating
direction method of multipliers, Foundations and Trends in Machine Learning 3 (2010), sections 3.4 and 7.1. The bound,
as Boyle and Dykstra's (1986): with p_i in the normal cones of the sets at z_i, and for y within eps of the
intersection, ``||y - P(v)||^2 <= sum(<p_i, z_i - y>) + ||v - y|| eps``, and more by what ``v - y`` and the sum of all
p_i differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from projgrad.axes import group_size
from projgrad.composition.dual_root import norm_of, point
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance

__all__ = ["alternating", "split"]

MOST = 10_000  # rounds, with a projection onto every set
_TURNS = 20_000
_ROUNDS = 30  # that the derivative is taken of
_RELAXED = 1.6  # how far a step goes, where 1 is as far as it says
_PATIENCE = 20  # rounds before the penalty changes
_TURN = 500  # rounds in which it does so in one of two ways

Axes = tuple[int, ...]


def split(v: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes) -> tuple[Array, Array, Array]:
    """The point of all `parts` nearest to `v`, a bound of its distance from that, and whether that is too large.

    Once more from the point that is found, where the digits that `v` has beyond it are not lost.
    """
    y, error, failed = _split(v, parts, xp, axes)
    again, more, still = _split(xp.stop_gradient(y), parts, xp, axes)
    return xp.graft(again, y), error + more, failed | still


def _split(v: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes) -> tuple[Array, Array, Array]:
    """The same, as far as the digits of `v` tell.

    Each set has a copy z of the point, and a multiplier p; a penalty draws the copies together, which is changed now
    and then so that neither these nor the multipliers lag behind. The last copy is returned: it is in the last set, and
    no farther from the others than the tolerance.
    """
    fixed = xp.stop_gradient(v)
    size, count = group_size(v.shape, axes), len(parts)
    relative = tolerance(v.dtype, size, 1.0)
    copies = [point(part, fixed, xp) for part in parts]
    close = _largest([norm_of(z, xp, axes) for z in copies], xp)
    wide = norm_of(fixed, xp, axes)
    large = xp.maximum(wide, close)  # what multipliers are measured by
    large = xp.where(large > 0, large, 1.0)

    def turn(v: Array, penalty: Array, pairs: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        copies, multipliers = pairs[:count], pairs[count:]
        x = v / (1.0 + count * penalty)
        for z, p in zip(copies, multipliers, strict=True):
            x = x + (penalty * z - p) / (1.0 + count * penalty)
        new, pushes = [], []
        for part, z, p in zip(parts, copies, multipliers, strict=True):
            w = _RELAXED * x + (1 - _RELAXED) * z + p / penalty
            new.append(point(part, w, xp))
            pushes.append(penalty * (w - new[-1]))
        return x, new, pushes

    def step(moving: Array, error: Array, penalty: Array, rounds: Array, *pairs: Array) -> tuple[Array, ...]:
        x, copies, multipliers = turn(fixed, penalty, pairs)
        y = copies[-1]
        far = _largest([norm_of(z - y, xp, axes) for z in copies], xp)
        near = _largest([norm_of(z, xp, axes) for z in copies], xp) + relative * wide
        near = xp.where(near > 0, near, 1.0)
        gap, rest = 0.0 * large, fixed - y
        for z, p in zip(copies, multipliers, strict=True):
            gap = gap + xp.accurate_sum((p / large) * ((z - y) / near), axes)
            rest = rest - p
        left = norm_of(rest, xp, axes)
        gap = xp.where(gap > 0, gap, 0.0) + norm_of(fixed - y, xp, axes) / large * (far / near)
        most = xp.sqrt(relative * large) * xp.sqrt(near) + relative * large
        done = (gap <= relative) & (far <= 0.5 * relative * near) & (left <= most)
        # a copy has the digits of what it is projected from: where it rests, there are no more; the second time, it is
        # projected from no farther away
        moves = _largest([norm_of(z - old, xp, axes) for z, old in zip(copies, pairs[:count], strict=True)], xp)
        digits = relative * (1.0 + _largest([norm_of(p, xp, axes) for p in multipliers], xp) / penalty / near)
        rests = moves <= relative * near
        done = done | (rests & (gap <= digits) & (far <= 0.5 * digits * near) & (left <= most))
        # how far the copies still have to go, and the multipliers: relative to their sizes, and by turns as they are
        relatively = xp.floor(rounds / (2 * _TURN)) * 2 * _TURN + _TURN > rounds
        apart = _largest([norm_of(x - z, xp, axes) for z in copies], xp) * xp.where(relatively, large / near, 1.0)
        moved = penalty * moves
        ratio = xp.sqrt(apart) / xp.where(moved > 0, xp.sqrt(moved), 1.0)
        ratio = xp.where(moved > 0, xp.where(ratio > 5, 5.0, xp.where(ratio < 0.2, 0.2, ratio)), 1.0)
        due = rounds == xp.floor(rounds / _PATIENCE) * _PATIENCE
        changed = xp.where(due & ((ratio > 2) | (ratio < 0.5)), penalty * ratio, penalty)
        new = (xp.where(moving, b, a) for a, b in zip(pairs, (*copies, *multipliers), strict=True))
        return (
            moving & ~done,
            xp.where(moving, left + xp.sqrt(gap * large) * xp.sqrt(near), error),
            xp.where(moving, changed, penalty),
            rounds + 1.0,
            *new,
        )

    penalty = xp.ones_like(large)
    # what is no larger than this has no digits left where subnormal numbers are flushed to zero
    start = (large > 1e-30, 0.0 * large, penalty, 0.0 * large + 1.0, *copies, *(0.0 * z for z in copies))
    moving, error, penalty, _, *pairs = xp.iterate(step, start, MOST)
    y = pairs[count - 1]
    if xp.may_differentiate(v):
        found = list(pairs)
        for _ in range(_ROUNDS):
            _, copies, multipliers = turn(v, penalty, found)
            found = [*copies, *multipliers]
        y = xp.graft(y, found[count - 1])
    return y, error, moving


def alternating(v: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes) -> tuple[Array, Array]:
    """A point of all `parts`, by projecting onto one after the other, and its distance from them.

    It need not be the one nearest to `v`, not even where all are convex.
    """

    def sweep(moving: Array, x: Array, error: Array) -> tuple[Array, Array, Array]:
        y, found = x, []
        for part in parts:
            y = point(part, y, xp)
            found.append(y)
        far = _largest([norm_of(z - y, xp, axes) for z in found], xp)
        allowed = 0.5 * tolerance(y.dtype, group_size(y.shape, axes), norm_of(y, xp, axes))
        return moving & (far > allowed), xp.where(moving, y, x), xp.where(moving, far, error)

    fixed = xp.stop_gradient(v)
    zero = norm_of(0.0 * fixed, xp, axes)
    _, x, error = xp.iterate(sweep, (zero == 0, fixed, zero), _TURNS)
    y = v
    for part in parts:
        y = point(part, y, xp)
    return xp.graft(x, y), error


def _largest(values: Sequence[Array], xp: Namespace) -> Array:
    return reduce(xp.maximum, values)
