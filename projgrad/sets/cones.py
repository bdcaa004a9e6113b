"""Cones given by a norm."""

from __future__ import annotations

from dataclasses import dataclass

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.sets.groups import norms_of_rows
from projgrad.values import set_number

__all__ = ["SecondOrderCone"]


@register()
@dataclass(frozen=True, repr=False)
class SecondOrderCone(VectorSet):
    """The second-order cone ``{(z, t) : ||z||_2 <= slope t}``, for every group of entries along `axis`.

    Convex. Exact: a closed form. Cost: O(n). In a metric: by Newton's method on the norm and its multiplier.

    The last entry of a group is t, and z are the others. A group with ``slope ||z|| <= -t`` goes to zero; any other
    outside goes to ``(||z|| slope + t) / (1 + slope^2)`` times ``(slope z / ||z||, 1)``.

    Args:
        slope: how much larger than t the norm may be, at least 0.
        axis: the axes of a group: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `slope` is negative or not finite, or `rate` is outside (0, 1].

    Source: Parikh and Boyd, Proximal algorithms, Foundations and Trends in Optimization 1 (2014), section 6.3.2.
    """

    slope: float = 1.0
    axis: Axis = -1
    rate: float = 1.0
    cone = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "slope", least=0, what="a ratio of norms")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        # a unit vector along the edge of the cone, (across, up), which is finite for any slope
        across, up = self.slope / (1 + self.slope), 1 / (1 + self.slope)
        length = (across**2 + up**2) ** 0.5
        across, up = across / length, up / length
        m = xp.stop_gradient(xp.max(xp.abs(v), axis=-1, keepdims=True))
        m = xp.where(m < precision(v.dtype).tiny, 1.0, m)
        w = xp.divide(v, m)
        z, t = w[..., :-1], w[..., -1:]
        if v.shape[-1] == 1:
            return xp.where(t > 0, t, 0.0) * m
        norm = xp.times(*xp.norm(z, (-1,)))
        along = norm * across + t * up
        edge = xp.concat([z / xp.where(norm > 0, norm, 1.0) * across, xp.ones_like(t) * up], axis=-1)
        y = xp.where(norm * up <= t * across, w, xp.where(norm * across <= -t * up, 0.0, along * edge))
        return y * m

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        m = xp.stop_gradient(xp.max(xp.abs(v), axis=-1, keepdims=True))
        m = xp.where(m < precision(v.dtype).tiny, 1.0, m)
        a = xp.divide(v, m)
        z, t = a[..., :-1], a[..., -1:]
        up = xp.where(t > 0, t, 0.0)
        if v.shape[-1] == 1:
            return up * m
        size = xp.times(*xp.norm(xp.stop_gradient(z), (-1,)))
        inside = size / (1 + self.slope) <= xp.stop_gradient(t) * (self.slope / (1 + self.slope))
        # a cone that is all but a half-space is taken as a little narrower, where nothing overflows
        large = xp.largest(v.dtype) ** 0.42
        slope = self.slope if hasattr(self.slope, "dtype") else min(self.slope, large)
        slope = slope + xp.zeros_like(t)
        slope = xp.where(slope < large, slope, large)
        unit = xp.where(slope > 1, slope, 1.0)
        # with the multiplier p of ``||z|| <= slope t``, t moves to t + p slope / h, and z as in a ball; in units of p
        z, w = xp.where(inside, 0.0, z), 1.0 / h[..., :-1] / unit
        least = slope / large * (slope / unit) / large**1.3
        more = slope * (slope / unit) / xp.where(h[..., -1:] > least, h[..., -1:], xp.where(least > 0, least, 1.0))
        goal = slope * t
        row, of_row, start, rise = (xp.expand_dims(x, axis=-2) for x in (z, w, xp.stop_gradient(goal), more))
        found = norms_of_rows(row, of_row, start, rise, xp)
        pull, height, fall = (xp.squeeze(x, axis=-2) for x in found)
        goal = goal + more * pull
        both = xp.where(fall + more > 0, fall + more, 1.0)
        further = (height - goal) / both  # of the multiplier, 0 but for its derivative and rounding
        norm = height * (more / both) + goal * (fall / both)
        on = xp.stop_gradient(norm) > 0
        norm = xp.where(on, norm, 0.0)
        z = xp.divide(z, xp.where(on, norm + xp.times(xp.graft(pull, further), w), 1.0))
        most, size = xp.norm(z, (-1,))
        z = xp.where(on, xp.divide(z, most) * (norm / xp.where(size > 0, size, 1.0)), 0.0)
        y = xp.concat([z, xp.where(slope > 0, norm / xp.where(slope > 0, slope, 1.0), up)], axis=-1)
        return xp.where(inside, v, xp.times(y, m))
