"""The few ways to get from an array to its nearest point in a set.

A set's `solve` reduces the array to a few numbers and returns one of these moves. All else follows from the move, once
for all sets: the projected array, the distance from the set, which groups stay as they are, relaxation, and (in the
backends) writing in place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from projgrad.axes import group_size
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance

__all__ = ["Assign", "Clip", "Either", "Move", "Piecewise", "Replace", "Scale", "are_close", "cut", "is_one"]


class Move(ABC):
    """How to get to the nearest point of a set."""

    @abstractmethod
    def apply(self, x: Array, xp: Namespace) -> Array:
        """The nearest point of `x`, with its dtype and shape; groups that are kept come back bit for bit."""

    @abstractmethod
    def distance(self, x: Array, xp: Namespace) -> Array:
        """The distance of every group of `x` from the set."""

    @abstractmethod
    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        """Which groups of `x` are in the set already, up to `slack` times the tolerance; broadcasts against `x`."""

    def point(self, x: Array, xp: Namespace) -> Array:
        """The nearest point as computed, also of groups that are kept."""
        return self.apply(x, xp)

    def relaxed(self, rate: float) -> Move:
        """The move to ``(1 - rate) * x + rate * P(x)``."""
        return Relaxed(self, rate)


@dataclass(frozen=True)
class Scale(Move):
    """Every group is scaled to the nearest norm between `low` and `high`.

    Args:
        m: of the two factors of the norm of every group that `Namespace.norm` gives, the first; None to take them when
            they are needed.
        u: the second.
        low: the lower bound of the norm, a number or one per group; None for none.
        high: the upper bound.
        axes: the axes of a group, with length 1 in all of these.
        size: the number of entries in a group.
        sphere: the bounds are equal.
        rate: how far to go.
    """

    m: Array | None
    u: Array | None
    low: Any
    high: Any
    axes: tuple[int, ...]
    size: int
    sphere: bool = False
    rate: float = 1.0

    def apply(self, x: Array, xp: Namespace) -> Array:
        # a number that is an array may have a derivative, which what a branch is given by a closure has not
        plain = all(bound is None or isinstance(bound, int | float) for bound in (self.low, self.high, self.rate))
        if self.m is not None or not plain or not xp.branches(x):
            scale = self.measured(x, xp)
            return _scaled(x, scale.inverse_factors(x, xp), xp)
        squares = xp.sum_of_squares(x, self.axes)
        norm = xp.sqrt(squares)
        kept = replace(self, m=norm, u=xp.ones_like(norm)).keep(x, xp) & xp.is_ordinary(squares)

        def outside(x: Array, *known: Array) -> Array:
            (squares,) = known or (xp.sum_of_squares(x, self.axes),)
            made = lambda m, u: replace(self, m=m, u=u).inverse_factors(x, xp)  # noqa: E731
            return _scaled(x, xp.of_norm(x, self.axes, squares, made), xp)

        return xp.unless(kept, outside, x, known=(squares,))

    def measured(self, x: Array, xp: Namespace) -> Scale:
        """The move with the norms of the groups of `x`, if it has none yet."""
        if self.m is not None:
            return self
        m, u = xp.norm(x, self.axes)
        return replace(self, m=m, u=u)

    def factors(self, x: Array, xp: Namespace, kept: Array) -> tuple[Array, Array, Array | None]:
        """`m`, `s` and `fill` per group with ``y = x / m * s + fill``, which are 1, 1 and -0 in the groups to keep.

        Two factors, because the norm of a group of 3e37s is infinite in float32; -0 rather than 0, because ``x + -0``
        is `x` for every `x`. `fill` makes up for the direction that a group of zeros does not have; None if not needed.
        """
        zero, fill = self.u == 0, None
        one = xp.ones_like(self.u)
        s = self.high * one
        if self.low is not None:
            s = xp.where(xp.times(self.m, self.u) > self.high, s, self.low)
        s = s / xp.where(zero, 1.0, self.u)
        # in a kept group 1, on a sphere with the derivative that x / ||x|| has there
        s_kept = one
        if self.sphere:
            on = s / xp.where(kept, self.m, 1.0)
            s_kept = on + xp.stop_gradient(1.0 - on)
        if not is_one(self.rate):  # x / m * ((1 - rate) m + rate s)
            s, s_kept = s + (1 - self.rate) * (self.m - s), s_kept + (1 - self.rate) * (one - s_kept)
        if self.low is not None:
            fill = xp.where(zero & (self.low > 0), self.rate * self.low / math.sqrt(self.size) * one, -0.0)
            s = xp.where(zero, 0.0, s)
        return xp.where(kept, 1.0, self.m), xp.where(kept, s_kept, s), fill

    def inverse_factors(self, x: Array, xp: Namespace) -> tuple[Array, ...]:
        """``1 / m``, `s` and, if needed, `fill` for what is not kept; the move has the norms."""
        m, s, fill = self.factors(x, xp, self.keep(x, xp))
        return (1.0 / m, s) if fill is None else (1.0 / m, s, fill)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return xp.squeeze(self.measured(x, xp).away(xp), axis=self.axes)

    def away(self, xp: Namespace) -> Array:
        """The distance of every group from the set, with length 1 in `axes`."""
        norm = xp.times(self.m, self.u)
        away = xp.where(xp.isnan(norm), norm, 0.0)
        if self.low is not None:
            away = xp.where(norm < self.low, self.low - norm, away)
        return xp.where(norm > self.high, norm - self.high, away)

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        scale = self.measured(x, xp)
        norm = xp.times(scale.m, scale.u)
        kept = norm <= self.high + slack * tolerance(x.dtype, self.size, self.high)  # false for NaN
        if self.low is not None:
            kept = kept & (norm >= self.low - slack * tolerance(x.dtype, self.size, self.low))
        return kept

    def relaxed(self, rate: float) -> Scale:
        return replace(self, rate=self.rate * rate)


def _scaled(x: Array, factors: tuple[Array, ...], xp: Namespace) -> Array:
    """``x * factors[0] * factors[1]``, and a third one added if there is one, in the dtype of `x`."""
    y = xp.times(xp.times(xp.upcast(x), factors[0]), factors[1])
    for fill in factors[2:]:
        y = y + xp.astype(fill, y.dtype)
    return xp.astype(y, x.dtype)


class Entrywise(Move):
    """Every entry is a group of its own, and is kept where it equals its nearest point."""

    def distance(self, x: Array, xp: Namespace) -> Array:
        y, x = xp.upcast(self.apply(x, xp)), xp.upcast(x)
        same = x == y  # infinities too
        return xp.abs(xp.where(same, 0.0, x) - xp.where(same, 0.0, y))

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        return x == self.apply(x, xp)


@dataclass(frozen=True)
class Assign(Entrywise):
    """``y`` is an array given as a whole, of the dtype of `x`, and bit for bit `x` where it equals `x`."""

    y: Array

    def apply(self, x: Array, xp: Namespace) -> Array:
        return self.y


@dataclass(frozen=True)
class Clip(Entrywise):
    """``y = min(max(x, lower), upper)``; a bound that is None does not bind."""

    lower: Array | None
    upper: Array | None

    def apply(self, x: Array, xp: Namespace) -> Array:
        # by comparison, since minimum and maximum may turn -0 into 0
        y = x
        if self.lower is not None:
            y = xp.where(x < self.lower, self.lower, y)
        if self.upper is not None:
            y = xp.where(x > self.upper, self.upper, y)
        return y


@dataclass(frozen=True)
class Replace(Move):
    """``y`` is an array given as a whole; the distance is the l2 norm of ``x - y`` over `axes`.

    A group that moves by no more than the tolerance that belongs to its own norm is kept. The derivative is that of
    `y` in all groups.

    Args:
        y: the nearest point, of the shape of `x`, in the dtype that projgrad computes in.
        axes: the axes of a group.
        accuracy: how many times the tolerance `y` may be off.
        holds: per group, with length 1 in `axes`, whether `x` has what must hold exactly; None for nothing.
        kept: per group, with length 1 in `axes`, whether `x` is in the set, where `y` does not tell: in a metric, that
            may be farther away than the set is.
        away: the distance of every group, with length 1 in `axes`, where it is known.
        size: its norm, likewise.
        near: the distance, of which only that of a group that is close counts.
    """

    y: Array
    axes: tuple[int, ...]
    accuracy: float = 1.0
    holds: Array | None = None
    kept: Array | None = None
    away: Array | None = None
    size: Array | None = None
    near: Array | None = None

    def apply(self, x: Array, xp: Namespace) -> Array:
        y, kept = xp.astype(self.y, x.dtype), xp.once(self.keep(x, xp))
        return y if _none(kept, xp) else xp.graft(xp.where(kept, x, y), y)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return xp.squeeze(self._away(x, xp), axis=self.axes)

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        if self.kept is not None:
            return self.kept
        if self.holds is not None and _none(self.holds, xp):
            return self.holds
        away = self._away(x, xp) if self.near is None else self.near
        return are_close(x, away, self.axes, xp, slack * self.accuracy, self.holds, self.size)

    def point(self, x: Array, xp: Namespace) -> Array:
        return self.y

    def _away(self, x: Array, xp: Namespace) -> Array:
        if self.away is not None:
            return self.away
        return xp.times(*xp.norm(xp.upcast(x) - xp.upcast(self.y), self.axes))


def _none(flags: Array, xp: Namespace) -> bool:
    """Whether all of these are known to be False."""
    return xp.can_look(flags) and xp.skips(flags) and not bool(xp.any(flags))


def are_close(
    x: Array,
    away: Array,
    axes: tuple[int, ...],
    xp: Namespace,
    accuracy: float = 1.0,
    holds: Array | None = None,
    size: Array | None = None,
) -> Array:
    """Which groups of `x` are in a set that is so far `away`, up to the tolerance that belongs to their norm `size`."""
    radius = xp.times(*xp.norm(x, axes)) if size is None else size
    most = xp.largest(radius.dtype)  # with which an infinite tolerance would keep every group
    radius = xp.where(radius > most, most, radius)
    kept = away <= accuracy * tolerance(x.dtype, group_size(x.shape, axes), radius)
    return kept if holds is None else kept & holds


@dataclass(frozen=True)
class Either(Move):
    """The first of two moves to the same point where all of `ok` is True, and the second otherwise.

    Args:
        ok: as in `Namespace.either`.
        known: of the groups, which follows `x` or not, as in `Namespace.unless`.
        quick: makes a move of `x` and what is known.
        slow: makes a move of `x`.
    """

    ok: Array
    known: tuple[Array, ...]
    quick: Callable[..., Move]
    slow: Callable[[Array], Move]

    def apply(self, x: Array, xp: Namespace) -> Array:
        if not xp.branches(x):
            return self._either(x, lambda move: move.apply(x, xp), xp)
        # one after the other, as each may write over what it is given
        odd = ~xp.all(self.ok)
        y = xp.unless(odd, lambda x, *known: self.quick(x, *known).apply(x, xp), x, known=self.known)
        return xp.unless(~odd, lambda x: self.slow(x).apply(x, xp), y)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return self._either(x, lambda move: move.distance(x, xp), xp)

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        return self._either(x, lambda move: move.keep(x, xp, slack), xp)

    def point(self, x: Array, xp: Namespace) -> Array:
        return self._either(x, lambda move: move.point(x, xp), xp)

    def _either(self, x: Array, what: Callable[[Move], Array], xp: Namespace) -> Array:
        return xp.either(self.ok, lambda: what(self.quick(x, *self.known)), lambda: what(self.slow(x)))


@dataclass(frozen=True)
class Relaxed(Move):
    """``(1 - rate) * x + rate * y`` of a move to `y` that has no shorter form of it."""

    move: Move
    rate: float

    def apply(self, x: Array, xp: Namespace) -> Array:
        full, start = xp.upcast(self.move.apply(x, xp)), xp.upcast(x)
        part = (1 - self.rate) * start + self.rate * full
        if not isinstance(self.rate, int | float):  # an array, and maybe a 1, which must not make NaN of an infinity
            part = xp.where(self.rate == 1, full, part)
        part = xp.astype(part, x.dtype)
        return xp.where(self.move.keep(x, xp), x, part)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return self.move.distance(x, xp)

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        return self.move.keep(x, xp, slack)

    def relaxed(self, rate: float) -> Relaxed:
        return Relaxed(self.move, self.rate * rate)


@dataclass(frozen=True)
class Piecewise(Move):
    """A move of its own for every slice along an axis; None where there is nothing to do."""

    along: int
    moves: tuple[tuple[int, int, Move | None], ...]

    def pieces(self, x: Array) -> Iterator[tuple[Array, Move | None]]:
        """The slices of `x` with their moves."""
        return ((x[cut(self.along, start, stop)], move) for start, stop, move in self.moves)

    def apply(self, x: Array, xp: Namespace) -> Array:
        made = [piece if move is None else move.apply(piece, xp) for piece, move in self.pieces(x)]
        return xp.concat(made, axis=self.along)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return xp.stack([xp.max(move.distance(piece, xp)) for piece, move in self.pieces(x) if move is not None])

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        every = [(piece, True if move is None else move.keep(piece, xp, slack)) for piece, move in self.pieces(x)]
        return xp.concat([xp.ones_like(piece, dtype=xp.bool) & kept for piece, kept in every], axis=self.along)


def cut(along: int, start: int, stop: int) -> tuple[Any, ...]:
    """The index of a slice along one axis."""
    return (*(slice(None),) * along, slice(start, stop), ...)


def is_one(rate: Any) -> bool:
    """Whether this is the number 1; what an array holds is not known."""
    return isinstance(rate, int | float) and rate == 1
