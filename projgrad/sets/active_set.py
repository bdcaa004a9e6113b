"""The dual active set method for the nearest points under linear inequalities, for all groups at once."""

from __future__ import annotations

from collections.abc import Callable

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision, tolerance
from projgrad.sets.decomposition import eye
from projgrad.sets.systems import products

__all__ = ["below"]


def below(
    x: Array,
    rows: Array,
    offsets: Array,
    gram: Array,
    index: Array,
    rank: int,
    onto: Callable[[Array], Array],
    xp: Namespace,
) -> tuple[Array, Array, Array]:
    """The nearest points with ``rows x <= offsets`` to vectors of shape (b, n).

    The multipliers l >= 0 and the excess w of ``x - rows' l``, of which one is 0 in each row, are solved for as
    ``(l of active rows, w of the others) = value - table (w of active rows, l of the others)``, where a row becomes
    active or not by an exchange in `table`. A round ends where no excess is left: then x moves, and all starts again.

    Args:
        x: where to start.
        rows, offsets: of inequalities, the rows of norm 1; offsets of shape (b, m).
        gram: the inner products of the rows.
        index: 0, 1, ..., m - 1.
        rank: of the rows.
        onto: what makes up for rounding after a move.
        xp: the functions to call.

    Returns:
        The points, the sums of the multipliers, and whether the tolerance was reached.
    """
    m, n = rows.shape
    unit = precision(x.dtype).compute_unit
    x = onto(x)

    def excess(x: Array) -> tuple[Array, Array, Array]:
        """The excess in every row, how much of it is none, and the largest of the rest."""
        found = products(x, rows, xp) - offsets
        slack = 0.5 * tolerance(x.dtype, n, xp.times(*xp.norm(x, (-1,))))
        return found, slack, xp.max(found, axis=-1, keepdims=True) - slack

    def step(go: Array, x: Array, table: Array, value: Array, multiplier: Array, active: Array, total: Array,
             slack: Array, worst: Array) -> tuple[Array, ...]:  # fmt: skip
        alive = xp.reshape(go, slack.shape)
        multiplier, chosen = _choose(table, value, multiplier, active, slack, index, rank, xp)
        ended = alive & ~xp.any(chosen, axis=-1, keepdims=True)
        new_table, new_value = _exchange(table, value, chosen & alive, xp)
        # the end of a round: the point moves, and the equations of the active rows are solved once more
        there = x - xp.matmul(multiplier, rows)
        rest = xp.where(active, products(there, rows, xp) - offsets, 0.0)
        rest = xp.where(active, xp.sum(table * rest[:, None, :], axis=-1), 0.0)
        there = onto(there - xp.matmul(rest, rows))
        there = xp.where(xp.max(xp.abs(there), axis=-1, keepdims=True) > nothing, there, 0.0)
        start, new_slack, new_worst = excess(there)
        stop = ended & ((new_worst <= 0) | (new_worst > 0.5 * worst))
        return (
            go & ~xp.reshape(stop, go.shape),
            xp.where(ended, there, x),
            xp.where(ended[:, :, None], gram, new_table),
            xp.where(ended, start, new_value),
            xp.where(ended, 0.0, multiplier),
            ~ended & (active != chosen),
            xp.where(ended, total + multiplier + rest, total),
            xp.where(ended, new_slack, slack),
            xp.where(ended, new_worst, worst),
        )

    # a point as small as this, to the first one and to the offsets, is what rounding makes of 0
    most, bound = (xp.max(xp.abs(y), axis=-1, keepdims=True) for y in (x, offsets))
    nothing = unit**2 * xp.where(bound > 0, xp.minimum(most, bound), most)
    value, slack, worst = excess(x)
    none = 0.0 * value
    table = gram + none[:, :, None]
    state = (worst[:, 0] > 0, x, table, value, 1.0 * none, none > 0, none, slack, xp.maximum(worst, 4 * worst))
    go, x, _, _, _, _, total, slack, worst = xp.iterate(step, state, 40 * m + 100)
    # certificate: x is feasible, and all that it was moved along pushes inwards and holds with equality there
    tol = tolerance(x.dtype, n, xp.maximum(most, xp.max(xp.abs(x), axis=-1, keepdims=True)) * n**0.5)
    loose = xp.where(total > tol, offsets - products(x, rows, xp), -total)
    loose = xp.max(loose, axis=-1, keepdims=True)
    return x, total, ~go & ((worst <= 3 * slack) & (loose <= 4 * tol))[:, 0]


def _choose(
    table: Array, value: Array, multiplier: Array, active: Array, slack: Array, index: Array, rank: int, xp: Namespace
) -> tuple[Array, Array]:
    """The multipliers after a step, and the row that becomes active or no longer is; none at the end of a round."""
    unit = precision(value.dtype).compute_unit
    # a row with a multiplier that is not active enters at once
    pending = ~active & (multiplier > 0)
    waiting = xp.any(pending, axis=-1, keepdims=True)
    # else as far towards the active set's solution as the multipliers stay positive; the one that stops it leaves
    low = active & (value < 0) & ~waiting
    leaving = xp.any(low, axis=-1, keepdims=True)
    share = xp.where(low, multiplier / xp.where(low, multiplier - value, 1.0), 1.0)
    part = xp.min(share, axis=-1, keepdims=True)
    moved = xp.where(active & ~waiting, multiplier + part * (value - multiplier), multiplier)
    # else the row with the largest excess enters, unless it is rounding of the multipliers, left to the next round
    full = xp.sum(xp.astype(active, value.dtype), axis=-1, keepdims=True) >= rank
    dependent = full | (xp.sum(xp.where(eye(table, xp), table, 0.0), axis=-1) < 16 * unit)
    replaces = active[:, :, None] & (table > unit**0.5)
    possible = ~active & (~dependent | xp.any(replaces, axis=-2))
    enters = xp.where(possible, value - slack - 16 * unit * xp.max(moved, axis=-1, keepdims=True), -1.0)
    leaves = xp.where(low, 1.0 - share, -1.0)
    score = xp.where(waiting, xp.where(pending, multiplier, -1.0), xp.where(leaving, leaves, enters))
    chosen = _largest(score, index, xp) & (score > 0)
    # one that depends on active rows takes over from them, until the first has no multiplier left, which leaves
    instead = chosen & dependent & ~active & ~waiting
    swap = xp.any(instead, axis=-1, keepdims=True)
    column = xp.sum(xp.where(instead[:, None, :] & active[:, :, None], table, 0.0), axis=-1)
    falls = active & (column > unit**0.5)
    ratio = xp.where(falls, -moved / xp.where(falls, column, 1.0), -xp.largest(value.dtype))
    taken = xp.where(swap, -xp.max(ratio, axis=-1, keepdims=True), 0.0)
    moved = xp.where(swap & active, xp.maximum(moved - taken * column, 0.0 * moved), moved)
    moved = xp.where(instead, taken, moved)
    chosen = xp.where(swap, _largest(ratio, index, xp), chosen)
    return xp.where((leaving | swap) & chosen, 0.0, moved), chosen


def _largest(score: Array, index: Array, xp: Namespace) -> Array:
    """Which entry is the largest of its group, the first where several are."""
    return index == xp.astype(xp.argmax(score, axis=-1, keepdims=True), index.dtype)


def _exchange(table: Array, value: Array, chosen: Array, xp: Namespace) -> tuple[Array, Array]:
    """The system ``y = value - table z`` solved for the chosen entry of z in the place of that of y."""
    e = xp.astype(chosen, value.dtype)
    others = 1.0 - e
    column = xp.sum(table * e[:, None, :], axis=-1)
    row = xp.sum(table * e[:, :, None], axis=-2)
    pivot = xp.sum(row * e, axis=-1, keepdims=True)
    out = (e - column * others) / xp.where(pivot == 0, 1.0, pivot)
    table = table * others[:, None, :] * others[:, :, None] + out[:, :, None] * (row * others + e)[:, None, :]
    return table, value * others + out * xp.sum(value * e, axis=-1, keepdims=True)
