"""A ball, a sphere or a shell with another set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from projgrad.axes import arrange, group_size, restore
from projgrad.composition.closed_forms import (
    affine_and_shell,
    cone_and_ball,
    orthant_and_shell,
    shell_and_box,
    shell_and_box_in,
)
from projgrad.composition.dual_root import norm_of
from projgrad.composition.method import Axes, Found, Method, Sets, Shape, accuracy_of, judged, or_else
from projgrad.composition.orthant_shell import orthant_and_shell_in
from projgrad.composition.parts import (
    ball_of,
    bounds_of,
    known,
    shell_of,
    signs_of,
)
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance
from projgrad.values import native_group

__all__ = ["affine_and_norm", "centred_ball", "cone_then_ball", "orthant_and_sphere", "sphere_and_box"]


def affine_and_norm(sets: Sets) -> Method | None:
    norm = sets.only(shell_of)
    others = () if norm is None else sets.without(norm)
    if norm is None or not others or not all(part.affine for part in others) or not sets.within(norm):
        return None
    flat = sets.joined(others)
    if flat is None:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        y = affine_and_shell(v, flat, *bounds_of_norm(norm), xp, axes)
        return in_shell(y, norm, xp, axes)

    return Method("affine set and norm", nearest, accuracy=2 * accuracy_of(others))


def cone_then_ball(sets: Sets) -> Method | None:
    ball = sets.only(centred_ball)
    others = () if ball is None else sets.without(ball)
    if ball is None or not others or not all(part.cone and part.convex for part in others) or not sets.within(ball):
        return None
    cone = sets.joined(others)
    if cone is None:
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return Found(cone_and_ball(v, cone, bounds_of_norm(ball)[1], xp, axes))

    return Method("cone, then ball", nearest, accuracy=accuracy_of(others))


def orthant_and_sphere(sets: Sets) -> Method | None:
    norm, orthant = sets.only(shell_of), sets.only(lambda part: signs_of(part) is not None)
    if norm is None or orthant is None or len(sets.parts) > 2:
        return None
    found = within_orthant(norm, orthant)

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        return in_shell(found(v, None, xp, axes), norm, xp, axes)

    def weighted(v: Array, h: Array, xp: Namespace, axes: Axes) -> Found:
        return in_shell(found(v, h, xp, axes), norm, xp, axes)

    return Method("orthant and sphere", nearest, weighted=weighted)


def sphere_and_box(sets: Sets) -> Method | None:
    """Also a ball and a box. With a sphere, by itself only for bounds for which there is a point in any case."""
    norm, box = sets.only(shell_of), sets.only(bounds_of)
    if norm is None or box is None or len(sets.parts) > 2:
        return None
    alike, bounds = are_alike(box), bounds_of(box)
    in_signs = within_orthant(norm, box) if signs_of(box) is not None else None
    assert bounds is not None
    if not alike and not sets.by_name and not centred_ball(norm):
        return None

    def nearest(v: Array, xp: Namespace, axes: Axes) -> Found:
        lower, upper = (native_group(bound, v, xp) for bound in bounds)
        y, error = shell_and_box(v, lower, upper, *bounds_of_norm(norm), xp, axes, alike=alike)
        return judged(y, error, xp, axes)

    def check(shape: Shape, tagging: bool) -> None:
        check_norms(norm, box, shape, tagging)

    def weighted(v: Array, h: Array, xp: Namespace, axes: Axes) -> Found:
        if in_signs is not None:
            return in_shell(in_signs(v, h, xp, axes), norm, xp, axes)
        return or_else(in_both(v, h, norm, box, xp, axes), nearest, v, xp, axes)

    return Method("ball and box" if centred_ball(norm) else "sphere and box", nearest, weighted=weighted, check=check)


def within_orthant(shell: Constraint, orthant: Constraint) -> Callable[[Array, Array | None, Namespace, Axes], Array]:
    """The function to the nearest point in both, in a metric or None; equal weights give the Euclidean one."""
    signs, bounds = signs_of(orthant), bounds_of(orthant)
    assert signs is not None
    assert bounds is not None
    lower, upper = np.broadcast_arrays(*(np.asarray(bound) for bound in bounds))
    unbounded = np.isinf(lower) & np.isinf(upper)
    any_sign = FrozenArray(unbounded + 0.0) if np.any(unbounded) else None

    def nearest(v: Array, h: Array | None, xp: Namespace, axes: Axes) -> Array:
        one = (xp.constant(signs, v) if isinstance(signs, FrozenArray) else signs) + 0.0 * v
        radii = bounds_of_norm(shell)
        y = orthant_and_shell(v, orthant, one, *radii, xp, axes)
        if h is None:
            return y
        free = None if any_sign is None else arrange(xp.constant(any_sign, v) + 0.0 * v > 0, (axes,), xp)
        groups, weights, sign = (arrange(x, (axes,), xp) for x in (v, h, one))
        inside = orthant_and_shell_in(groups, weights, sign, free, *radii, xp)
        other = restore(inside, (axes,), tuple(v.shape), xp)
        return xp.where(xp.max(h, axis=axes, keepdims=True) == xp.min(h, axis=axes, keepdims=True), y, other)

    return nearest


def in_both(v: Array, h: Array, shell: Constraint, box: Constraint, xp: Namespace, axes: Axes) -> Found:
    """The point in a shell and a box nearest in the metric h."""
    bounds = bounds_of(box)
    assert bounds is not None
    lower, upper = (native_group(bound, v, xp) for bound in bounds)
    y, error = shell_and_box_in(v, h, lower, upper, *bounds_of_norm(shell), xp, axes)
    norm = norm_of(xp.stop_gradient(y), xp, axes)
    return Found(y, error, error > tolerance(y.dtype, group_size(y.shape, axes), norm))


def bounds_of_norm(norm: Constraint) -> tuple[Any, Any]:
    shell = shell_of(norm)
    assert shell is not None
    return shell


def centred_ball(part: Constraint) -> bool:
    ball = ball_of(part)
    return ball is not None and isinstance(ball.center, float) and ball.center == 0


def are_alike(box: Constraint) -> bool:
    """Whether the bounds are equal for all entries that are not fixed, and of one sign or opposite."""
    bounds = bounds_of(box)
    assert bounds is not None
    if not known(*bounds):
        return any(known(bound) and np.all(np.asarray(bound) == 0) for bound in bounds)
    lower, upper = np.broadcast_arrays(*(np.asarray(bound) for bound in bounds))
    free = lower < upper
    pairs = {(float(a), float(b)) for a, b in zip(lower[free].flat, upper[free].flat, strict=True)}
    return len(pairs) == 0 or (len(pairs) == 1 and all(a >= 0 or b <= 0 or a == -b for a, b in pairs))


def in_shell(y: Array, norm: Constraint, xp: Namespace, axes: Axes) -> Found:
    low, high = bounds_of_norm(norm)
    found = norm_of(xp.stop_gradient(y), xp, axes)
    return judged(y, xp.where(found > high, found - high, xp.where(found < low, low - found, 0.0)), xp, axes)


def check_norms(norm: Constraint, box: Constraint, shape: Shape, tagging: bool) -> None:
    """Raise ValueError where no group within the box has a norm of the shell."""
    shell, bounds = bounds_of_norm(norm), bounds_of(box)
    if bounds is None or not known(*shell, *bounds):
        return
    axes = norm.group_axes(len(shape))
    size = group_size(shape, axes)
    far = 0.0
    if all(isinstance(bound, float) for bound in bounds):  # plain numbers, as this may be compiled
        lower, upper = bounds
        near, far = min(abs(lower), abs(upper)), max(abs(lower), abs(upper))
        start, reach = 0.0 if lower <= 0 <= upper else math.sqrt(size) * near, math.sqrt(size) * far
    elif tagging:
        low, high = (np.broadcast_to(np.asarray(bound), shape) for bound in bounds)
        least = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
        reach = float(np.linalg.norm(_rows(np.maximum(np.abs(low), np.abs(high)), axes), axis=1).min())
        start = float(np.linalg.norm(_rows(least, axes), axis=1).max())
    else:
        return
    if reach < shell[0] * (1 - 1e-9):
        needed = f": at least {math.ceil((shell[0] / far) ** 2 * (1 - 1e-9))} are needed" if far else ""
        raise ValueError(f"{size} numbers within {box} have a norm of at most {reach:g}, not {shell[0]:g}{needed}")
    if start > shell[1] * (1 + 1e-9):
        raise ValueError(f"{size} numbers within {box} have a norm of at least {start:g}, not at most {shell[1]:g}")


def _rows(values: np.ndarray, axes: Axes) -> np.ndarray:
    return np.moveaxis(values, axes, tuple(range(-len(axes), 0))).reshape(-1, math.prod(values.shape[d] for d in axes))
