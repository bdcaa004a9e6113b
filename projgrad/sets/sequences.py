"""What the sets of ordered sequences share: sums over the runs of a sequence, along the last axis."""

from __future__ import annotations

from collections.abc import Callable

from projgrad.namespace import Array, Namespace

__all__ = ["Runs", "after", "positions", "shifted"]


class Runs:
    """Stretches of neighbouring entries, to be added up each by itself.

    A scan takes about ``log2(n)`` steps over whole arrays. As no entries of different runs are added, no digits are lost
    to a sum over all.

    Args:
        new: which entries are the first of a run; the first of all is.
        xp: the functions to call.
    """

    def __init__(self, new: Array, xp: Namespace) -> None:
        self.xp = xp
        self.steps = [1 << k for k in range((new.shape[-1] - 1).bit_length())]
        # in which entries those so many places before, or after, are in the same run
        same, self.before = ~new, []
        for by in self.steps:
            self.before.append(same)
            same = same & xp.roll(same, by, axis=-1)
        self.after = [xp.roll(same, -by, axis=-1) for same, by in zip(self.before, self.steps, strict=True)]

    def scan(self, x: Array, back: bool = False, join: Callable[[Array, Array], Array] | None = None) -> Array:
        """For every entry the sum of its run up to it, or from it on where `back`; or what `join` makes of two."""
        xp = self.xp
        for by, same in zip(self.steps, self.after if back else self.before, strict=True):
            near = xp.roll(x, -by if back else by, axis=-1)
            x = x + xp.where(same, near, 0) if join is None else xp.where(same, join(x, near), x)
        return x

    def sums(self, x: Array) -> Array:
        """For every entry the sum over its run."""
        return self.scan(x) + (self.scan(x, back=True) - x)

    def most(self, x: Array) -> Array:
        """For every entry the largest of its run."""
        return self.scan(self.scan(x, join=self.xp.maximum), back=True, join=self.xp.maximum)

    def means(self, x: Array) -> Array:
        """For every entry the mean of its run."""
        sums = self.sums(self.xp.stack([x, self.xp.ones_like(x)]))
        return sums[0, ...] / sums[1, ...]


def shifted(x: Array, by: int, xp: Namespace) -> Array:
    """The entry that stands `by` places before each, or after it where `by` is negative; 0 where there is none."""
    n, many = x.shape[-1], min(abs(by), x.shape[-1])
    zeros = xp.zeros_like(x[..., :many])
    return xp.concat([zeros, x[..., : n - many]] if by > 0 else [x[..., many:], zeros], axis=-1)


def after(flags: Array, xp: Namespace) -> Array:
    """True for the first entry, and for those after an entry with a True."""
    return xp.concat([xp.ones_like(flags[..., :1]), flags[..., :-1]], axis=-1)


def positions(v: Array, xp: Namespace) -> Array:
    """0, 1, 2, ... along the last axis, of the shape and on the device of `v`, in the type that indices have."""
    return xp.cumulative_sum(xp.astype(v == v, xp.argmax(v[..., :1], axis=-1).dtype), axis=-1) - 1
