"""The threshold of every group for which its entries, cut off there, have a given sum.

In a metric with the weights h, it is not the same for all entries, but ``t w`` with w = 1 / h.
"""

from __future__ import annotations

import math
from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = ["COUNTED", "above_threshold", "above_threshold_of", "moderating", "off_sum", "signs", "within_bounds"]

_MOST = 75  # Newton steps; 11 were the most in groups of up to a million entries
_MOST_SEARCHED = 300  # steps between two bounds
_SHORT = 128  # entries, of which the tolerance allows for the rounding of the sum
_FEW = 16  # entries, which are quicker compared each with each
_GROUPS = 256  # so many are worth a longer program without a loop
_BLOCK = 32  # entries, of whose largest ones a first threshold is found
_ALMOST = 0.8 / _BLOCK  # of the way between two bounds, up to which the largest ones of blocks can make up the sum
COUNTED = 2**24  # entries, which single precision can count


def signs(v: Array, xp: Namespace) -> Array:
    """-1 where `v` is negative, and 1 elsewhere."""
    return 1.0 - 2.0 * xp.astype(v < 0, v.dtype)


def moderating(v: Array, xp: Namespace, last: tuple[int, ...] = (-1,)) -> Array:
    """A power of 2 for every group along the `last` axes that takes huge entries to where sums do not overflow."""
    top = xp.max(xp.abs(xp.stop_gradient(v)), axis=last, keepdims=True)
    return xp.where(top > 2.0**64, 2.0**-64, xp.ones_like(top))


def above_threshold(v: Array, total: Any, xp: Namespace, w: Array | None = None) -> Array:
    """``max(v - t w, 0)`` along the last axis with the t for which it sums to `total`; w is 1 where it is None."""
    total = xp.zeros_like(v[..., :1]) + total  # an array, as compiled loops take no numbers that may change
    fixed, count, much = xp.stop_gradient(v), None, None
    if w is None:
        v = v - xp.max(fixed, axis=-1, keepdims=True)  # t is now between -total and 0
        t, count, much = _first_threshold(xp.stop_gradient(v), total, xp)
    else:  # no entry is above the total, whatever its digits say
        start = (fixed - total) / w
        most = xp.max(start, axis=-1, keepdims=True)
        low = fixed - xp.times(most, w)
        v = xp.graft(xp.where((start >= most) | (low > total), total, low), v)
        t = _newton(xp.stop_gradient(v), total, 0.0 * total, 0.0 * total, xp, w)[0]
    # once more from v - t w, where the digits that v has beyond it are not lost, and with the derivative
    v = v - scaled(t, w, xp)
    y = xp.positive(xp.stop_gradient(v))
    above, differentiable = xp.support(y), xp.may_differentiate(v)
    if differentiable:
        y = xp.where(above > 0, v, 0.0)
    if differentiable or count is None:
        more = share(xp.accurate_sum(y, (-1,)) - total, above, xp, w)
    else:  # the last step saw the same
        more = xp.once(much / xp.where(count > 0, count, 1.0))
    y = y - xp.times(more, above if w is None else xp.times(above, w))
    return xp.where(y > 0, y, 0.0) if differentiable else xp.positive(y)


def above_threshold_of(few: Array, v: Array, total: Any, xp: Namespace) -> Array:
    """``max(v - t, 0)`` with the t of `above_threshold` for `few` of the entries of `v`, the largest one among them.

    For a `v` by which nothing is differentiated.
    """
    total = xp.zeros_like(v[..., :1]) + total
    most = xp.max(few, axis=-1, keepdims=True)
    few = few - most
    t = _first_threshold(few, total, xp)[0]
    y = xp.positive(few - t)
    more = share(xp.accurate_sum(y, (-1,)) - total, xp.support(y), xp)
    y = xp.positive((v - most) - t)  # the same numbers for each of the few
    return xp.positive(y - xp.times(more, xp.support(y)))


def _first_threshold(v: Array, total: Array, xp: Namespace) -> tuple[Array, Array | None, Array | None]:
    """The t of `above_threshold`, where 0 is the largest entry of every group, as far as the digits of `v` tell it.

    And, where they are known, how many entries are above it, and by how much more than the total.
    """
    size, t = v.shape[-1], -total
    groups = tuple(v.shape[:-1])
    if size <= _FEW and (None in groups or math.prod(groups) >= _GROUPS):
        # an entry is above t if all that exceed it do so by less than the total
        zero = xp.zeros_like(v)
        over = zero
        low = xp.maximum(v, -total)  # no infinities
        for i in range(size):
            over = over + xp.maximum(low[..., i : i + 1] - low, zero)
        above = (over < total) | (v >= 0)
        return share(xp.accurate_sum(xp.where(above, v, 0.0), (-1,)) - total, above, xp), None, None
    count = 0.0 * total
    blocks = size // _BLOCK
    if blocks > 1:  # from the maxima of blocks, as the t of some of the entries is never above that of all
        shape = (*v.shape[:-1], _BLOCK, blocks)
        tops = xp.max(xp.reshape(v[..., : blocks * _BLOCK], shape), axis=-2)
        t, count, _ = _newton(tops, total, t, count, xp)
    t, count, much = _newton(v, total, t, count, xp)
    return t, (count if size <= COUNTED else None), much


def _newton(
    v: Array, total: Array, t: Array, count: Array, xp: Namespace, w: Array | None = None
) -> tuple[Array, Array, Array]:
    """The t of `above_threshold` from one that is not above it.

    Also how many entries are above, at first and in the end, and by how much more than the total.
    """

    def step(moving: Array, t: Array, count: Array, much: Array) -> tuple[Array, Array, Array, Array]:
        y = xp.positive(v - scaled(t, w, xp))
        much = xp.accurate_sum(y, (-1,)) - total
        many = counted(xp.support(y), y.dtype, xp, w)
        further = t + much / xp.where(many > 0, many, 1.0)
        if v.shape[-1] > COUNTED or w is not None:
            return further > t, xp.maximum(further, t), 1.0 * count, much
        # where as many are above t as were above the last one, it was the last step, whatever the digits of t say
        return many != count, xp.where(many == count, t, xp.maximum(further, t)), many, much

    most = _MOST
    if w is None:
        # a step divides the excess times the count by at least 4: from total * n**2, until that is rounding
        most = math.ceil(math.log2(v.shape[-1]) - math.log2(precision(v.dtype).compute_unit) / 2) + 2
    return xp.iterate(step, (xp.isfinite(t), t, count, xp.zeros_like(total)), most)[1:]


def within_bounds(
    v: Array,
    total: Any,
    lower: Array,
    upper: Array,
    xp: Namespace,
    w: Array | None = None,
    fill: float | None = None,
) -> Array:
    """``clip(v - t w, lower, upper)`` along the last axis with the t for which it sums to `total`.

    The bounds broadcast against `v`. Where they are known to be finite numbers, `fill` says how far `total` is from the
    least sum between them (0) on the way to the largest (1), or nan where that is not known.
    """
    # two arrays, as compiled loops take no numbers that may change, and single precision not all digits of this one
    large = total * (2.0**30 + 1)
    first = large - (large - total) if isinstance(total, float) else total
    total = tuple(xp.zeros_like(v[..., :1]) + part for part in (first, total - first))
    most = 1e-3 * xp.largest(v.dtype)
    reach = None
    if fill is not None:
        reach = xp.minimum(xp.maximum(-lower, upper), _sizes(total, lower, upper, v.shape[-1], xp))

    def moved(v: Array, t: Array) -> Array:
        v = v - scaled(t, w, xp)
        if w is not None or v.shape[-1] <= _FEW:  # which may overflow
            v = xp.where(v > most, most, xp.where(v < -most, -most, v))
        return v

    def on_piece(v: Array) -> tuple[Array, Array, Array, Array]:
        """Where the sum is linear around t = 0: what is free, all entries, its root, and what is left."""
        fixed = xp.stop_gradient(v)
        free = (fixed > lower) & (fixed < upper)
        y = xp.where(free, v, xp.where(fixed > lower, upper, lower))
        much, count = excess(y, total, xp, reach), counted(free, v.dtype, xp, w)
        return free, y, much / xp.where(count > 0, count, 1.0), xp.where(count > 0, 0.0, xp.stop_gradient(xp.abs(much)))

    def again() -> tuple[Array, Array]:
        t = _threshold(xp.stop_gradient(v), total, lower, upper, xp, w, False, reach, fill)
        t = xp.where(settled, 0.0, t)  # so that no group depends on the others
        return t, on_piece(moved(v, t))[2]

    # from v - t w on, the digits that v has beyond it are not lost
    v = moved(v, _threshold(xp.stop_gradient(v), total, lower, upper, xp, w, True, reach, fill))
    free, y, rest, left = on_piece(v)
    # mostly that is the piece with the root, or what gets from one to another up to there is too little to matter
    shift = xp.stop_gradient(scaled(rest, w, xp))
    last = xp.stop_gradient(v) - shift
    inside = xp.minimum(xp.maximum(last, lower), upper)
    past = xp.abs(xp.where(free, last, xp.stop_gradient(y)) - inside)
    unit = precision(v.dtype).compute_unit
    # nor may so much be left that its own digits do: the point is off by no more than both
    off = left + xp.accurate_sum(past + (unit / math.sqrt(v.shape[-1])) * xp.abs(shift), (-1,))
    squares = xp.accurate_sum(xp.times(inside, inside), (-1,))
    settled = off <= 6 * unit * xp.sqrt(xp.where(squares < 2.0**100, squares, 0.0))
    if w is not None:  # by a bound from below, as weights of many sizes need
        settled = off <= 4 * (unit / math.sqrt(v.shape[-1])) * xp.accurate_sum(xp.abs(inside), (-1,))
    t, rest = xp.either(settled, lambda: (0.0 * rest, rest), again)
    y = moved(v, t) - scaled(rest, w, xp)
    return xp.where(y <= lower, lower, xp.where(y >= upper, upper, y))


def off_sum(v: Array, total: Any, xp: Namespace) -> Array:
    """How far a group that is close to a sum of `total` is from it, where entries that are 0 can only rise."""
    count = xp.accurate_sum(xp.astype(v != 0, v.dtype), (-1,))
    more = xp.accurate_sum(v, (-1,)) - total
    return xp.abs(more) / xp.sqrt(xp.where(more < 0, float(v.shape[-1]), xp.where(count > 0, count, 1.0)))


def _threshold(
    v: Array,
    total: tuple[Array, Array],
    lower: Array,
    upper: Array,
    xp: Namespace,
    w: Array | None,
    rough: bool,
    reach: Array | None,
    fill: float | None,
) -> Array:
    """The t of `within_bounds`, as far as the digits of `v` tell it; `rough` where sums need not be so exact yet."""
    size = v.shape[-1]
    if size <= _FEW:
        return _compared(v, total, lower, upper, xp, w)
    start = 0.0 * total[0]
    if rough and size >= 2 * _BLOCK:  # from that of some of the entries
        extreme = None
        if fill is not None and w is None:
            extreme = (xp.max, lower) if fill < _ALMOST else (xp.min, upper) if fill > 1 - _ALMOST else None
        if extreme is None:
            few = v[..., ::_BLOCK]
            part = total[0] * (few.shape[-1] / size)
        else:  # the largest ones of blocks, where nearly all others are at the lower bound, or the other way round
            pick, bound = extreme
            blocks = size // _BLOCK
            tops = pick(xp.reshape(v[..., : blocks * _BLOCK], (*v.shape[:-1], _BLOCK, blocks)), axis=-2)
            few = xp.concat([tops, v[..., blocks * _BLOCK :]], axis=-1)
            part = total[0] - bound * (size - few.shape[-1])
        lows, highs, ws = (x if x is None or x.shape[-1] == 1 else x[..., ::_BLOCK] for x in (lower, upper, w))
        start = _searched(few, (part, start), lows, highs, start, xp, ws, rough, reach)
    return _searched(v, total, lower, upper, start, xp, w, rough, reach)


def _compared(
    v: Array, total: tuple[Array, Array], lower: Array, upper: Array, xp: Namespace, w: Array | None
) -> Array:
    """The t of `within_bounds` in short groups, between two of the values at which an entry reaches a bound."""
    leaves, arrives = v - upper, v - lower  # the t at which an entry leaves its upper bound, and gets to its lower one
    if w is not None:
        leaves, arrives = leaves / w, arrives / w
    ends = xp.concat([leaves, arrives], axis=-1)
    finite = xp.isfinite(ends)  # an end at infinity is that of an infinite bound, which makes the sum infinite
    t, much, rest = xp.where(finite, ends, 0.0), -total[0], -total[1]
    lower, upper = lower + 0.0 * v, upper + 0.0 * v
    for i in range(v.shape[-1]):
        one = (..., slice(i, i + 1))
        y = v[one] - (t if w is None else xp.times(t, w[one]))
        much = much + xp.where(leaves[one] >= t, upper[one], xp.where(arrives[one] <= t, lower[one], y))
    enough = xp.where(finite, much + rest >= 0, ends < 0)
    below = xp.max(xp.where(enough, ends, -math.inf), axis=-1, keepdims=True)
    above = xp.min(xp.where(enough, math.inf, ends), axis=-1, keepdims=True)
    free = (leaves <= below) & (arrives >= above)
    t = share(excess(xp.where(free, v, xp.where(arrives <= below, lower, upper)), total, xp), free, xp, w)
    t = xp.where(t < below, below, xp.where(t > above, above, t))
    return xp.where(xp.any(free, axis=-1, keepdims=True), t, xp.where(xp.isfinite(below), below, above))


def _searched(
    v: Array,
    total: tuple[Array, Array],
    lower: Array,
    upper: Array,
    t: Array,
    xp: Namespace,
    w: Array | None,
    rough: bool,
    reach: Array | None,
) -> Array:
    """The t of `within_bounds` by Newton's method from a first one, between two ends that close in on it."""

    def off(y: Array) -> Array:
        return xp.accurate_sum(y, (-1,)) - total[0] if rough else excess(y, total, xp, reach)

    def step(moving: Array, t: Array, a: Array, b: Array, fa: Array, fb: Array, *others: Array) -> tuple[Array, ...]:
        last, least, slow = others
        y = v - scaled(t, w, xp)
        f = off(xp.minimum(xp.maximum(y, lower), upper))
        low, high = y <= lower, y >= upper
        free = xp.astype(~(low | high), y.dtype)
        slope = xp.accurate_sum(free if w is None else xp.times(free, w), (-1,))
        found = xp.abs(f) <= xp.where(slope == 0, slack, enough)
        piece = last
        if not rough and v.shape[-1] <= COUNTED:
            # the sum of 1 at the upper bound and -1 at the lower one falls from each linear piece of f to the next
            piece = xp.accurate_sum(xp.astype(high, y.dtype) - xp.astype(low, y.dtype), (-1,))
            found = found | (piece == last)  # as where the last step was made
        width, right = 0.5 * b - 0.5 * a, f > 0
        up, down = moving & right, moving & ~right
        a, fa = xp.where(up, t, a), xp.where(up, f, fa)
        b, fb = xp.where(down, t, b), xp.where(down, f, fb)
        # Newton's steps to the root of a convex function, or a concave one, make this fall by 1 / 4
        rate = xp.where(slope > 0, xp.times(xp.abs(f), slope), most)
        slow = xp.where((0.5 * b - 0.5 * a > 0.5 * width) & (rate > 0.5 * least), slow + 1, 0.0)
        newton = t + f / xp.where(slope > 0, slope, 1.0)
        last_step = xp.where(found & (slope > 0), xp.minimum(xp.maximum(newton, a), b), t)
        # less than a digit of t may still be more than there is between the bounds
        least_step = digit * xp.abs(t)
        newton = xp.where(newton == t, xp.where(right, t + least_step, t - least_step), newton)
        good = (slope > 0) & (newton >= a) & (newton <= b) & (slow < 2)
        half = 0.5 * b - 0.5 * a
        middle, chord = a + half, a + half * (2 * (fa / (fa - fb)))
        further = xp.where(good, newton, xp.where((slow < 2) & (chord > a) & (chord < b), chord, middle))
        going = moving & ~found & (further != t) & (good | ((further > a) & (further < b)))
        t = xp.where(going, further, xp.where(moving, last_step, t) if rough else t)
        return going, t, a, b, fa, fb, xp.where(good, piece, math.nan), xp.minimum(rate, least), slow

    unit = precision(v.dtype).compute_unit
    slack, digit = 2 * unit * xp.abs(total[0]), 2 * unit
    a, b = _ends(v, total, lower, upper, xp, w, reach is not None)
    a, b = a - digit * xp.abs(a), b + digit * xp.abs(b)  # they are rounded
    t = xp.minimum(xp.maximum(t, a), b)
    enough = 0.0 * t
    if rough:  # what rounding may make of the sum
        sizes = _sizes(total, lower, upper, v.shape[-1], xp)
        if reach is None:
            y = xp.minimum(xp.maximum(v - scaled(t, w, xp), lower), upper)
            sizes = xp.minimum(sizes, xp.accurate_sum(xp.abs(y), (-1,)))
        enough = slack + 8 * unit * sizes
    zero = xp.zeros_like(t)
    none, most = zero + math.nan, zero + xp.largest(t.dtype)
    _, t, a, b, *_ = xp.iterate(step, (xp.isfinite(t), t, a, b, none, none, none, most, zero), _MOST_SEARCHED)
    if rough and w is None:
        return t
    middle = a + (0.5 * b - 0.5 * a)
    between = (middle > a) & (middle < b)

    def closest() -> Array:
        # where no number is left between the ends, what gets from one bound to the other there decides
        last, first = (v - scaled(end, w, xp) for end in (b, a))
        free = (last < upper) & (first > lower)
        # from a on, as a sum of the entries themselves has fewer digits
        y = xp.where(free, first, xp.where(first <= lower, lower, upper))
        rest = a + share(excess(y, total, xp, reach), free, xp, w)
        none = ~xp.any(free, axis=-1, keepdims=True)
        return xp.where(between | none, t, xp.minimum(xp.maximum(rest, a), b))

    return xp.either(between, lambda: t, closest)


def _sizes(total: tuple[Array, Array], lower: Array, upper: Array, size: int, xp: Namespace) -> Array:
    """The most that the sizes of `size` numbers add up to: the total, and twice what is on one side of 0."""
    sides = []
    for below in (-lower, upper):
        side = xp.accurate_sum(xp.maximum(below, xp.zeros_like(below)), (-1,))
        sides.append(side * (size / below.shape[-1]))
    return xp.abs(total[0]) + 2 * xp.minimum(*sides)


def _ends(
    v: Array, total: tuple[Array, Array], lower: Array, upper: Array, xp: Namespace, w: Array | None, finite: bool
) -> tuple[Array, Array]:
    """Values of t from which on to the left the sum is not too small, and to the right not too large."""
    found = []
    for bound, pick, sign in ((upper, xp.min, 1.0), (lower, xp.max, -1.0)):
        if finite and w is None:
            found.append(pick(v, axis=-1, keepdims=True) - bound)
            continue
        ends = v - bound if w is None else (v - bound) / w
        if finite:
            found.append(pick(ends, axis=-1, keepdims=True))
            continue
        bounded = xp.isfinite(ends)
        end = xp.min(xp.where(bounded, sign * ends, math.inf), axis=-1, keepdims=True)
        # where all that has a bound is there, what has none makes up the sum
        rest = share(excess(xp.where(bounded, bound + 0.0 * v, v), total, xp), ~bounded, xp, w)
        found.append(sign * xp.where(xp.all(bounded, axis=-1, keepdims=True), end, xp.minimum(end, sign * rest)))
    return found[0], found[1]


def share(much: Array, free: Array, xp: Namespace, w: Array | None = None) -> Array:
    """The t for which the sum along the last axis falls by so much, where every `free` entry falls by ``t w``."""
    count = counted(free, much.dtype, xp, w)
    return much / xp.where(count > 0, count, 1.0)


def counted(free: Array, dtype: Any, xp: Namespace, w: Array | None) -> Array:
    """How many entries are `free` (bools, or 1 and 0), or the sum of their w."""
    of_one = free if free.dtype == dtype else xp.astype(free, dtype)
    return xp.accurate_sum(of_one if w is None else xp.times(of_one, w), (-1,))


def scaled(t: Array, w: Array | None, xp: Namespace) -> Array:
    """``t w``, with 1 for a w that is None."""
    return t if w is None else xp.times(t, w)


def excess(y: Array, total: tuple[Array, Array], xp: Namespace, reach: Array | None = None) -> Array:
    """``sum(y) - total`` along the last axis, with the total in two parts; no entry is larger than `reach`, if given.

    One free entry makes up for the sum of all, in which its digits may be lost. So a long sum is taken in two parts,
    the first of multiples of one small number, which a sum of them is too, without any rounding.
    """
    size, (first, rest) = y.shape[-1], total
    if size <= _SHORT:
        return (xp.accurate_sum(y, (-1,)) - first) - rest
    if reach is None:
        reach = xp.max(xp.abs(xp.stop_gradient(y)), axis=-1, keepdims=True)
    fixed, large = xp.stop_gradient(y), (2.0 * size) * reach
    coarse = (fixed + large) - large
    return (xp.sum(coarse, axis=-1, keepdims=True) - first) + (xp.accurate_sum(y - coarse, (-1,)) - rest)
