"""What a method of an intersection is, and what the rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from projgrad.axes import group_size
from projgrad.composition.dual_root import norm_of
from projgrad.composition.parts import ball_of, bounds_of, known, shell_of
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance

__all__ = [
    "Axes",
    "Found",
    "Method",
    "Shape",
    "accuracy_of",
    "are_alike",
    "bounds_of_norm",
    "centred_ball",
    "check_norms",
    "in_shell",
    "judged",
]

Axes = tuple[int, ...]
Shape = tuple[int, ...]


class Found(NamedTuple):
    """The nearest point; and per group how far it may be off, and whether that is too far, or None for neither."""

    y: Array
    error: Array | None = None
    failed: Array | None = None


@dataclass(frozen=True)
class Method:
    """How the nearest point of an intersection is found.

    Args:
        name: as shown in the `repr`.
        nearest: of finite groups in the dtype of computation, along the axes of a group.
        alone: a set that is the intersection, and is asked instead.
        accuracy: how many times `projgrad.tolerance` the point may be off.
        exact: not only to the error that it finds.
        roots: how many of them are found, one within the other.
        check: raises ValueError where no array of a shape can be in the intersection; when tagging, also where that
            takes looking at every entry of an array of bounds.
    """

    name: str
    nearest: Callable[[Array, Namespace, Axes], Found] | None = None
    alone: Constraint | None = None
    accuracy: float = 1.0
    exact: bool = True
    roots: int = 0
    check: Callable[[Shape, bool], None] = field(default=lambda shape, tagging: None)


def bounds_of_norm(norm: Constraint) -> tuple[Any, Any]:
    shell = shell_of(norm)
    assert shell is not None
    return shell


def centred_ball(part: Constraint) -> bool:
    ball = ball_of(part)
    return ball is not None and isinstance(ball.center, float) and ball.center == 0


def accuracy_of(parts: Sequence[Constraint]) -> float:
    return float(max(getattr(part, "accuracy", 1.0) for part in parts))


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


def judged(y: Array, error: Array, xp: Namespace, axes: Axes) -> Found:
    norm = norm_of(xp.stop_gradient(y), xp, axes)
    return Found(y, error, error > 100 * tolerance(y.dtype, group_size(y.shape, axes), norm + error) + 1e-30)


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
