"""Decompositions of matrices on TensorFlow, as accurate in compiled functions as outside.

XLA stops its own decompositions at an error of about 1e-7, in double precision too. In graphs, which XLA may compile,
the columns are therefore turned in pairs until they are orthogonal (Hestenes, J. SIAM 6, 1958). That takes one or two
rounds after XLA's decomposition, and none where one product of matrices shows that they are orthogonal already.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

__all__ = ["eigh", "svd"]

_MOST_ROUNDS = 12


def svd(x: tf.Tensor, full_matrices: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """U, s and V' with ``x = U s V'``; U and V have as many columns as the smaller side of `x`."""
    if full_matrices:
        raise NotImplementedError("full_matrices=True")
    if x.shape[-2] < x.shape[-1]:
        u, s, vt = svd(tf.linalg.matrix_transpose(x))
        return tf.linalg.matrix_transpose(vt), s, tf.linalg.matrix_transpose(u)
    if tf.executing_eagerly():
        s, u, v = tf.linalg.svd(x)
        return u, s, tf.linalg.matrix_transpose(v)
    _, v = tf.linalg.eigh(tf.matmul(x, x, transpose_a=True))  # XLA takes 20 times as long for its own at n = 128
    g, v = _orthogonal_columns(tf.matmul(x, v), v)
    s = tf.sqrt(tf.reduce_sum(g * g, -2))
    order = tf.argsort(s, -1, "DESCENDING")
    s = tf.experimental.numpy.take_along_axis(s, order, -1)
    g, v = (_columns(m, order) for m in (g, v))
    # columns of length 0 get a direction that is orthogonal to the others
    u, r = tf.linalg.qr(g / tf.where(s > 0, s, 1.0)[..., None, :])
    sign = tf.where(tf.linalg.diag_part(r) < 0, -tf.ones_like(s), tf.ones_like(s))
    return u * sign[..., None, :], s, tf.linalg.matrix_transpose(v)


def eigh(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Eigenvalues, increasing, and eigenvectors of symmetric matrices."""
    values, vectors = tf.linalg.eigh(x)
    if tf.executing_eagerly():  # where the length of a column is off by 1e-5 at n = 512, in single precision
        return values, vectors / tf.sqrt(tf.reduce_sum(vectors * vectors, -2, keepdims=True))
    # those of a positive semidefinite matrix, whose columns become orthogonal with its eigenvectors, are the same
    least = tf.minimum(values[..., :1], 0.0)
    _, vectors = _orthogonal_columns(tf.matmul(x, vectors) - vectors * least[..., None, :], vectors)
    values = tf.reduce_sum(vectors * tf.matmul(x, vectors), -2)
    order = tf.argsort(values, -1)
    return tf.experimental.numpy.take_along_axis(values, order, -1), _columns(vectors, order)


def _columns(m: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    return tf.experimental.numpy.take_along_axis(m, order[..., None, :], -1)


def _orthogonal_columns(g: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The two matrices times the rotation that makes the columns of the first orthogonal."""
    n, height = g.shape[-1], g.shape[-2]
    if n == 1:
        return g, v
    stack = tf.concat([g, v], -2)
    if n % 2:
        stack = tf.concat([stack, tf.zeros_like(stack[..., :1])], -1)
        n += 1
    half = n // 2
    # a tournament: column i meets column i + half; then the first stays, and the others move on around the table, so
    # that after n - 1 steps all have met and are back in their places
    ring = [*range(1, half), *range(n - 1, half - 1, -1)]
    move = np.zeros(n, int)
    move[np.roll(ring, -1)] = ring
    unit = float(np.finfo(g.dtype.as_numpy_dtype).eps)
    squares = tf.reduce_sum(g * g, -2)
    size = tf.reduce_max(squares, -1, keepdims=True)[..., None]  # of the largest column, squared
    near = unit * math.sqrt(n) * tf.sqrt(size)

    def step(i: tf.Tensor, off: tf.Tensor, m: tf.Tensor) -> tuple[tf.Tensor, ...]:
        off = tf.where(i % (n - 1) == 0, tf.zeros_like(off), off)
        a, b = m[..., :half], m[..., half:]
        top_a, top_b = a[..., :height, :], b[..., :height, :]
        aa, bb = (tf.reduce_sum(t * t, -2, keepdims=True) for t in (top_a, top_b))
        ab = tf.reduce_sum(top_a * top_b, -2, keepdims=True)
        far = tf.abs(ab) > 4 * near * tf.sqrt(tf.maximum(aa, bb))
        slope = (bb - aa) / (2 * tf.where(ab == 0, tf.ones_like(ab), ab))
        sign = tf.where(slope < 0, -tf.ones_like(slope), tf.ones_like(slope))
        t = tf.where(ab == 0, tf.zeros_like(ab), sign / (tf.abs(slope) + tf.sqrt(1 + slope * slope)))
        c = 1 / tf.sqrt(1 + t * t)
        s = c * t
        m = tf.gather(tf.concat([c * a - s * b, s * a + c * b], -1), move, axis=-1)
        return i + 1, off | tf.reduce_any(far), m

    def more(i: tf.Tensor, off: tf.Tensor, m: tf.Tensor) -> tf.Tensor:
        return (i % (n - 1) != 0) | off

    # one product tells whether there is anything to do
    between = tf.linalg.set_diag(tf.matmul(g, g, transpose_a=True), tf.zeros_like(squares))
    largest = tf.sqrt(tf.maximum(squares[..., :, None], squares[..., None, :]))
    start = (tf.constant(0), tf.reduce_any(tf.abs(between) > 8 * near * largest), stack)
    _, _, stack = tf.while_loop(more, step, start, maximum_iterations=_MOST_ROUNDS * (n - 1))
    stack = stack[..., : g.shape[-1]]
    g, v = stack[..., :height, :], stack[..., height:, :]
    length = tf.sqrt(tf.reduce_sum(v * v, -2, keepdims=True))  # which grows by rounding in every step
    return g / length, v / length
