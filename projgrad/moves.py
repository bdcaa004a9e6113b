"""The few ways to get from an array to its nearest point in a set.

A set's `solve` reduces the array to a few numbers and returns one of these moves. All else follows from the move, once
for all sets: the projected array, the distance from the set, which groups stay as they are, relaxation, and (in the
backends) writing in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from projgrad.namespace import Array, Namespace

__all__ = ["Clip", "Move", "Replace", "Scale"]


class Move(ABC):
    """How to get to the nearest point of a set."""

    @abstractmethod
    def apply(self, x: Array, xp: Namespace) -> Array:
        """The nearest point of `x`, with its dtype and shape; groups that are kept come back bit for bit."""

    @abstractmethod
    def distance(self, x: Array, xp: Namespace) -> Array:
        """The distance of every group of `x` from the set."""

    @abstractmethod
    def keep(self, x: Array, xp: Namespace) -> Array:
        """Which groups of `x` are in the set already, up to the tolerance; broadcasts against `x`."""

    @abstractmethod
    def relaxed(self, rate: float) -> Move:
        """The move to ``(1 - rate) * x + rate * P(x)``."""


@dataclass(frozen=True)
class Scale(Move):
    """``y = x / m * s + fill`` with one `m`, `s` and `fill` per group, kept groups having 1, 1 and -0.

    Two factors, because the norm of a group of 3e37s is infinite in float32; -0 rather than 0, because ``x + -0`` is
    `x` for every `x`. `away` and `kept` are the distance and the verdict per group. All have length 1 along `axes`.
    """

    m: Array
    s: Array
    fill: Array | None
    away: Array
    kept: Array
    axes: tuple[int, ...]

    def apply(self, x: Array, xp: Namespace) -> Array:
        y = xp.times(xp.divide(xp.upcast(x), self.m), self.s)
        if self.fill is not None:
            y = y + xp.astype(self.fill, y.dtype)
        return xp.astype(y, x.dtype)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return xp.squeeze(self.away, axis=self.axes)

    def keep(self, x: Array, xp: Namespace) -> Array:
        return self.kept

    def relaxed(self, rate: float) -> Scale:
        # x / m * ((1 - rate) m + rate s); in kept groups m and s are 1 and the change from s vanishes
        fill = None if self.fill is None else rate * self.fill
        return replace(self, s=self.s + (1 - rate) * (self.m - self.s), fill=fill)


@dataclass(frozen=True)
class Clip(Move):
    """``y = min(max(x, lower), upper)``; a bound that is None does not bind. Every entry is a group of its own."""

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

    def distance(self, x: Array, xp: Namespace) -> Array:
        y, x = xp.upcast(self.apply(x, xp)), xp.upcast(x)
        same = x == y  # infinities too
        return xp.abs(xp.where(same, 0.0, x) - xp.where(same, 0.0, y))

    def keep(self, x: Array, xp: Namespace) -> Array:
        return x == self.apply(x, xp)

    def relaxed(self, rate: float) -> Relaxed:
        return Relaxed(self, rate)


@dataclass(frozen=True)
class Replace(Move):
    """``y`` is an array given as a whole; the distance is the l2 norm of ``x - y`` over `axes`."""

    y: Array
    axes: tuple[int, ...]

    def apply(self, x: Array, xp: Namespace) -> Array:
        return xp.astype(self.y, x.dtype)

    def distance(self, x: Array, xp: Namespace) -> Array:
        m, u = xp.norm(xp.upcast(x) - xp.upcast(self.y), self.axes)
        return xp.squeeze(m * u, axis=self.axes)

    def keep(self, x: Array, xp: Namespace) -> Array:
        return xp.all(x == self.y, axis=self.axes, keepdims=True)

    def relaxed(self, rate: float) -> Relaxed:
        return Relaxed(self, rate)


@dataclass(frozen=True)
class Relaxed(Move):
    """``(1 - rate) * x + rate * y`` of a move to `y` that has no shorter form of it."""

    move: Move
    rate: float

    def apply(self, x: Array, xp: Namespace) -> Array:
        full, start = xp.upcast(self.move.apply(x, xp)), xp.upcast(x)
        part = xp.astype((1 - self.rate) * start + self.rate * full, x.dtype)
        return xp.where(self.move.keep(x, xp), x, part)

    def distance(self, x: Array, xp: Namespace) -> Array:
        return self.move.distance(x, xp)

    def keep(self, x: Array, xp: Namespace) -> Array:
        return self.move.keep(x, xp)

    def relaxed(self, rate: float) -> Relaxed:
        return Relaxed(self.move, self.rate * rate)
