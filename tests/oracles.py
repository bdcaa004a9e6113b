"""Projections written a second time, group by group in double precision, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def groups(x: np.ndarray, axes: tuple[int, ...]) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
    """Every group of `x` along `axes`, with the index that selects it."""
    kept = [range(n) if d not in axes else [slice(None)] for d, n in enumerate(x.shape)]
    index: list[tuple[int | slice, ...]] = [()]
    for choices in kept:
        index = [(*i, c) for i in index for c in choices]
    for i in index:
        yield i, x[i]


def by_group(x: np.ndarray, axes: tuple[int, ...], project: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`project` applied to one group after the other."""
    y = np.empty_like(x)
    for index, group in groups(x, axes):
        y[index] = project(group)
    return y


def norm(group: np.ndarray) -> float:
    """The l2 norm, in extended precision and safe from overflow."""
    size = np.abs(group).astype(np.longdouble)
    most = size.max()
    return float(most * np.sqrt(np.sum((size / most) ** 2))) if most > 0 else 0.0


def shell(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """The nearest point with ``low <= norm <= high``; a constant vector for zeros."""

    def project(group: np.ndarray) -> np.ndarray:
        size = norm(group)
        if size == 0 and low > 0:
            return np.full_like(group, low / np.sqrt(group.size))
        if size > high:
            return group / size * high
        return group / size * low if size < low else group

    return project
