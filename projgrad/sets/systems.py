"""Linear systems, made ready once in double precision: orthonormal rows, what equations leave free, emptiness."""

from __future__ import annotations

import numpy as np

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.sets.sums import comfortable

__all__ = ["echelon", "inside_of_equations", "is_empty", "onto_equations", "onto_equations_in", "products", "row_space"]

_BLOCK = 4096  # terms that a product of matrices may add up in any order
_DEPENDENT = 1e-11  # rows of norm 1 that are as near to the span of others depend on them
_EMPTY = 1e-9  # offsets that contradict each other by no more than this, relatively, are taken as rounded


def unit_rows(rows: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and offsets divided by the norms of the rows, or by 1 for a row of zeros."""
    most = np.max(np.abs(rows), axis=1, initial=0.0)
    most = np.where(most > 0, most, 1.0)
    length = np.linalg.norm(rows / most[:, None], axis=1)
    length = np.where(length > 0, length, 1.0)
    return rows / most[:, None] / length[:, None], offsets / most / length


def row_space(rows: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Orthonormal rows Q and the c for which ``Q x = c`` has the solutions of ``rows x = offsets``; None if none."""
    rows, offsets = unit_rows(rows, offsets)
    u, s, q = np.linalg.svd(rows, full_matrices=False)
    rank = int(np.sum(s > _DEPENDENT * max(rows.shape)))
    u, s, q = u[:, :rank], s[:rank], q[:rank]
    inner = u.T @ offsets
    if np.any(np.abs(offsets - u @ inner) > _EMPTY * np.max(np.abs(offsets), initial=0.0)):
        return None
    return q, inner / s


def echelon(rows: np.ndarray, rank: int) -> np.ndarray:
    """As many rows as the rank, with the span of those given, each with a 1 where the others have 0."""
    rows, _ = unit_rows(rows, np.zeros(len(rows)))
    free = np.ones(len(rows), bool)
    for _ in range(rank):
        i, j = np.unravel_index(np.argmax(np.where(free[:, None], np.abs(rows), -1.0)), rows.shape)
        row = rows[i] / rows[i, j]
        taken = rows[:, [j]] * row
        left = rows - taken
        rows = np.where(np.abs(left) <= 1e-14 * np.abs(taken), 0.0, left)  # what rounding left must not get a weight
        rows[i], free[i] = row, False
    return rows[~free]


def inside_of_equations(
    rows: np.ndarray, offsets: np.ndarray, q: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The inequalities ``rows x <= offsets`` within ``q x = c``, by rows of norm 1 there; and whether one cannot hold.

    The offsets are linear in those given and in c; rows that q determines are left out.
    """
    rows, offsets = unit_rows(rows, offsets)
    size = np.abs(offsets) + np.linalg.norm(c)
    offsets = offsets - (rows @ q.T) @ c
    for _ in range(2):  # what rounding left
        rows = rows - (rows @ q.T) @ q
    left = np.linalg.norm(rows, axis=1) > _DEPENDENT * rows.shape[1]
    impossible = bool(np.any(~left & (offsets < -_EMPTY * size)))
    rows, offsets = unit_rows(rows[left], offsets[left])
    return rows, offsets, impossible


def is_empty(rows: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether no x has ``rows x <= offsets``, for rows of norm 1, by Farkas's lemma.

    That is so where there are u >= 0 with ``rows' u = 0`` and ``offsets' u = -1``: least squares under u >= 0, by the
    active set method of Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    scale = float(np.max(np.abs(offsets), initial=0.0))
    if scale == 0:
        return False
    system = np.vstack([rows.T, offsets / scale])
    right = np.append(np.zeros(rows.shape[1]), -1.0)
    u, active = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for _ in range(10 * len(rows) + 10):
        slope = np.where(active, 0.0, system.T @ (right - system @ u))
        if slope.max() <= 1e-13:
            break
        active[slope.argmax()] = True
        while True:
            best = np.zeros_like(u)
            best[active] = np.linalg.lstsq(system[:, active], right, rcond=None)[0]
            below = active & (best <= 0)
            if not below.any():
                break
            part = np.min(u[below] / np.maximum(u[below] - best[below], 1e-300))
            u = u + part * (best - u)
            active &= ~(below & (u <= 1e-15 * np.max(u, initial=0.0))) & (u > 0)
            u[~active] = 0.0
        u = best
    return float(np.linalg.norm(right - system @ u)) < _EMPTY and float(u.sum()) < 1 / _EMPTY


def products(v: Array, rows: Array, xp: Namespace) -> Array:
    """The inner products of vectors, of shape (b, n), with k rows, as an array of shape (b, k)."""
    blocks = v.shape[-1] // _BLOCK
    across = xp.matrix_transpose(rows)
    if blocks < 2:
        return xp.matmul(v, across)
    end = blocks * _BLOCK
    parts = xp.matmul(
        xp.permute_dims(xp.reshape(v[:, :end], (v.shape[0], blocks, _BLOCK)), (1, 0, 2)),
        xp.reshape(across[:end, :], (blocks, _BLOCK, rows.shape[0])),
    )
    total = xp.accurate_sum(parts, (0,))[0, ...]
    return total + xp.matmul(v[:, end:], across[end:, :]) if end < v.shape[-1] else total


def onto_equations(v: Array, q: Array, c: Array, xp: Namespace) -> Array:
    """The nearest points of ``q x = c``, with orthonormal rows q, to vectors of shape (b, n)."""
    for _ in range(2):  # once more, for what rounding left
        v = v - xp.matmul(products(v, q, xp) - c, q)
    return v


def onto_equations_in(v: Array, h: Array, q: Array, c: Array, xp: Namespace) -> Array:
    """The points of ``q x = c`` that minimise ``sum(h * (x - v)**2)``, for vectors of shape (b, n).

    With ``u = sqrt(h) (x - v)``, the way is the shortest u with ``s u = c - q v``, where ``s = q / sqrt(h)`` has
    columns of very different sizes. The largest of all entries is chosen as a pivot, its row divided by it and taken
    off the others, and so on with the rows that are left. No entry is then much larger than the pivot 1 of its row,
    which is alone in its column: ``s s'`` can be solved, whatever the weights. What is left of a difference by rounding
    is taken as 0, since a large weight would make something of it.
    """
    if q.shape[0] == 0:
        return v
    root = xp.sqrt(h)[:, None, :]
    s = q / root
    columns = xp.cumulative_sum(xp.ones_like(root), axis=-1)
    rows = xp.cumulative_sum(xp.ones_like(s[:, :, :1]), axis=-2)

    noise = 16 * precision(v.dtype).compute_unit

    def step(free: Array, s: Array, made: Array) -> tuple[Array, Array, Array]:
        size = xp.where(free, xp.abs(s), -1.0)
        here = first(rows, xp.max(size, axis=-1, keepdims=True), -2, xp)
        row = xp.sum(xp.where(here, s, 0.0), axis=-2, keepdims=True)
        there = first(columns, xp.abs(row), -1, xp)
        pivot = xp.sum(xp.where(there, row, 0.0), axis=-1, keepdims=True)
        column = xp.sum(xp.where(there, s, 0.0), axis=-1, keepdims=True)
        made_row = xp.sum(xp.where(here, made, 0.0), axis=-2, keepdims=True) / pivot
        made = xp.where(here, made_row, made - column * made_row)
        row = xp.where(there, 1.0, row / pivot)
        taken = column * row
        s = xp.where(here, row, xp.where(there | (xp.abs(s - taken) <= noise * xp.abs(taken)), 0.0, s - taken))
        return free & ~here, s, made

    one = xp.ones_like(s[:, :, :1])
    made = xp.where(rows == xp.matrix_transpose(rows), one, 0.0)  # what s is multiplied by
    _, s, made = xp.iterate(step, (one > 0, s, made), q.shape[0])
    across = xp.matrix_transpose(s)
    squares = xp.matmul(s, across)
    scale = comfortable(v, xp.max(xp.abs(c)), xp)  # with which no product with the roots of weights is lost
    v, c = v * scale, c * scale
    for _ in range(3):  # again, for what rounding left
        left = xp.matmul(made, (c - products(v, q, xp))[..., None])
        v = v + xp.matmul(across, xp.solve(squares, left))[..., 0] / root[:, 0, :]
    return v / scale


def first(index: Array, size: Array, axis: int, xp: Namespace) -> Array:
    """Where along the axis the largest `size` is, the first of several; `index` counts along it."""
    most = xp.max(size, axis=axis, keepdims=True)
    return index == xp.min(xp.where(size == most, index, float("inf")), axis=axis, keepdims=True)
