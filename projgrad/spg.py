"""The spectral projected gradient method: how long a step is tried, and when it is taken.

From a point x of the set and the gradient g there, it tries ``y = P(x - c * t * g)`` for a length t and the factors
c = 1 and smaller ones, until the value at y is low enough. With s and r for how x and g changed in the last step, the
next length is ``<s, s> / <s, r>``, the inverse of the curvature along the step (Barzilai and Borwein 1988). Low enough
is compared with the largest of the last few values instead of the last one (Grippo, Lampariello and Lucidi 1986), since
these lengths are good because, not although, the value rises now and then.

Birgin, Martínez and Raydan, "Nonmonotone spectral projected gradient methods on convex sets", SIAM J. Optim. 10 (2000),
give two ways to shorten a step: along the path ``P(x - c * t * g)`` (SPG1), and along the line from x to
``P(x - t * g)`` (SPG2), which saves projections. Here it is the path. Every point tried is then a projection, so it is
in the set up to rounding, convex or not; on a line it would leave a sphere.

For any closed set, y is no farther than x from ``x - c * t * g``. So ``<g, y - x> <= -|y - x|**2 / (2 * c * t)``: short
steps go down, and where the gradient is Lipschitz continuous, some c is small enough.
"""

from __future__ import annotations

from typing import Any

from projgrad.namespace import Array
from projgrad.plan import Plan

__all__ = ["WINDOW", "check_plan", "first_length", "is_same", "is_sufficient", "next_length", "shorter"]

WINDOW = 10  # values that a new one is compared with

_SHORTEST, _LONGEST = 1e-10, 1e10  # lengths
_LEAST, _MOST = 0.1, 0.5  # of a factor, for the next one
_SHARE = 1e-4  # of the decrease that the slope promises
_ROUNDING = 2  # units in the last place by which a value may be off
_SAME = 10  # and for two ways to compute the same one


def first_length(largest: Any, xp: Any) -> Array:
    """The length with which to start, for a gradient with this largest absolute entry: no entry moves more than 1."""
    return 1 / xp.maximum(1.0, largest)


def next_length(moved: Any, bend: Any, length: Any, xp: Any) -> Array:
    """The length of the next step, from ``<s, s>`` and ``<s, r>`` of this one, which was of the given length.

    Where there is no curvature, ten times as long: the longest one, as in the paper, would have to be shortened often.
    """
    curved = bend > 0
    found = xp.where(curved, moved / xp.where(curved, bend, 1.0), 10 * length)
    return xp.clip(found, _SHORTEST, _LONGEST)


def is_sufficient(new: Any, highest: Any, slope: Any, eps: float, xp: Any) -> Array:
    """Whether a value is low enough, given the largest of the last ones, and ``<g, y - x>``.

    NaN never is, and nothing is where the largest is not finite.

    Args:
        new: the value at y.
        highest: the largest of the last few values.
        slope: the inner product of the gradient at x and the step to y.
        eps: of the dtype that values are computed in.
        xp: functions as in NumPy.
    """
    return xp.isfinite(highest) & (new <= highest + _SHARE * slope + _ROUNDING * eps * xp.abs(highest))


def shorter(factor: Any, value: Any, new: Any, slope: Any, xp: Any) -> Array:
    """The next factor c: to the minimum of the parabola through what is known, but a tenth to half of the last one."""
    above = new - value - slope
    fits = xp.isfinite(above) & (above > 0)
    lowest = xp.where(fits, -0.5 * slope / xp.where(fits, above, 1.0), _LEAST)
    return factor * xp.clip(lowest, _LEAST, _MOST)


def is_same(value: Any, last: Any, eps: float, xp: Any) -> Array:
    """Whether the value a step starts from is the one that the last step ended with: else the function is another."""
    return xp.abs(value - last) < _SAME * eps * xp.abs(last)  # of infinities, neither


def check_plan(plan: Plan) -> None:
    """Raise ValueError where what holds is not the same set, projected onto strictly, in every step."""
    for entry in plan:
        plain = type(entry.tag)(entry.constraint, metric=entry.tag.metric)
        if entry.tag != plain or entry.counts or entry.in_metric or not entry.settles:
            raise ValueError(
                f"{entry.name}: the spectral projected gradient method minimises over a set that stays as it is, with "
                f"the nearest point in the Euclidean norm after every step; it cannot have {entry.tag}"
            )
