"""What the sets of ordered sequences share: sums over the runs of a sequence, along the last axis, and metrics."""

from __future__ import annotations

import math

from projgrad.namespace import Array, Namespace

__all__ = ["Runs", "after", "balancing", "positions", "running_sums", "shifted", "weighted"]


_BLOCK = 32  # entries that are added one after the other
_SHORT = 64  # sequences up to here are added up by a mask for every entry, which is quicker


class Runs:
    """Stretches of neighbouring entries, to be added up each by itself, so that no digits are lost to a sum over all.

    A scan takes about ``log2(n)`` steps over whole arrays, or a masked sum for every entry where sequences are short.

    Args:
        new: which entries are the first of a run; the first of all is.
        xp: the functions to call.
    """

    def __init__(self, new: Array, xp: Namespace) -> None:
        self.xp, self.short = xp, new.shape[-1] <= _SHORT
        if self.short:
            number = xp.cumulative_sum(xp.astype(new, xp.int32), axis=-1)
            index = xp.cumulative_sum(xp.ones_like(number), axis=-1)
            same = number[..., :, None] == number[..., None, :]
            self.before = [same & (index[..., :, None] >= index[..., None, :])]
            self.after = [same & (index[..., :, None] <= index[..., None, :])]
            return
        # in which entries those 1, 2, 4, ... places before, or after, are in the same run
        self.steps = [1 << k for k in range((new.shape[-1] - 1).bit_length())]
        same, self.before = ~new, []
        for by in self.steps:
            self.before.append(same)
            same = same & xp.roll(same, by, axis=-1)
        self.after = [xp.roll(same, -by, axis=-1) for same, by in zip(self.before, self.steps, strict=True)]

    def scan(self, x: Array, back: bool = False) -> Array:
        """For every entry the sum of its run up to it, or from it on where `back`."""
        xp, masks = self.xp, self.after if back else self.before
        if self.short:
            return xp.sum(xp.where(masks[0], x[..., None, :], 0.0), axis=-1)
        for by, same in zip(self.steps, masks, strict=True):
            x = x + xp.where(same, xp.roll(x, -by if back else by, axis=-1), 0.0)
        return x

    def most(self, x: Array) -> Array:
        """For every entry the largest of its run."""
        xp = self.xp
        if self.short:
            return xp.max(xp.where(self.before[0] | self.after[0], x[..., None, :], -math.inf), axis=-1)
        for masks, sign in ((self.before, 1), (self.after, -1)):
            for by, same in zip(self.steps, masks, strict=True):
                x = xp.where(same, xp.maximum(x, xp.roll(x, sign * by, axis=-1)), x)
        return x

    def sums(self, x: Array) -> Array:
        """For every entry the sum over its run."""
        if self.short:
            xp = self.xp
            return xp.sum(xp.where(self.before[0] | self.after[0], x[..., None, :], 0.0), axis=-1)
        return self.scan(x) + (self.scan(x, back=True) - x)

    def means(self, x: Array, h: Array | None = None) -> Array:
        """For every entry the mean of its run, with weights h where there are any."""
        if h is None:
            return self.sums(x) / self.sums(self.xp.ones_like(x))
        return self.sums(h * x) / self.sums(h)


def weighted(x: Array, h: Array | None) -> Array:
    """``h x``, with 1 for an h that is None."""
    return x if h is None else h * x


def balancing(v: Array, xp: Namespace) -> Array:
    """A power of 2 for every group that takes its largest entry to between 2^-32 and 2^32, as far as float32 goes.

    There products with the weights of a metric, times 2^60, neither overflow nor lose digits to underflow.
    """
    top, one = xp.max(xp.abs(xp.stop_gradient(v)), axis=-1, keepdims=True), xp.ones_like(v[..., :1])
    large = xp.where(top > 2.0**64, 2.0**-96 * one, 2.0**-32 * one)
    return xp.where(top > 1.0, large, xp.where(top > 2.0**-64, 2.0**32 * one, 2.0**96 * one))


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


def running_sums(x: Array, xp: Namespace) -> Array:
    """The sums of all entries up to each, along a last axis whose length is a power of 2.

    In blocks, which loses fewer digits, and which compilers are better at.
    """
    size, batch = x.shape[-1], tuple(x.shape)[:-1]
    if size <= _BLOCK:
        return xp.cumulative_sum(x, axis=-1)
    x = xp.cumulative_sum(xp.reshape(x, (*batch, size // _BLOCK, _BLOCK)), axis=-1)
    before = shifted(running_sums(x[..., -1], xp), 1, xp)
    return xp.reshape(x + xp.expand_dims(before, axis=-1), (*batch, size))
