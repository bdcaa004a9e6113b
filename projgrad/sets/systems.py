"""Linear systems, made ready once in double precision: orthonormal rows, what equations leave free, emptiness."""

from __future__ import annotations

import numpy as np

from projgrad.namespace import Array, Namespace

__all__ = ["inside_of_equations", "is_empty", "onto_equations", "products", "row_space"]

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
