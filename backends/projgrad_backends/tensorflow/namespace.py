"""The functions of the Array API that projgrad calls, on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from projgrad.frozen import FrozenArray
from projgrad.namespace import Namespace
from projgrad_backends.tensorflow import linalg

__all__ = ["xp"]


def _where(condition: Any, x: Any, y: Any) -> tf.Tensor:
    dtype = next(v.dtype for v in (x, y) if isinstance(v, tf.Tensor))
    return tf.where(condition, _tensor(x, dtype), _tensor(y, dtype))


def _tensor(x: Any, dtype: Any) -> tf.Tensor:
    # by way of NumPy, since TensorFlow takes its remembered 0 for -0
    return x if isinstance(x, tf.Tensor) else tf.constant(np.asarray(x, dtype.as_numpy_dtype))


def _shape(shape: Any) -> list[Any]:
    return [-1 if n is None else n for n in shape]


def _take_along(x: tf.Tensor, indices: tf.Tensor, axis: int = -1) -> tf.Tensor:
    return tf.experimental.numpy.take_along_axis(x, indices, axis)


def _arg(function: Any, x: tf.Tensor, axis: int, keepdims: bool) -> tf.Tensor:
    found = function(x, axis)
    return tf.expand_dims(found, axis) if keepdims else found


def _squeeze(x: tf.Tensor, axis: Any) -> tf.Tensor:
    return tf.squeeze(x, axis) if axis != () else x


_LINALG = SimpleNamespace(
    cholesky=tf.linalg.cholesky,
    eigh=linalg.eigh,
    inv=tf.linalg.inv,
    qr=lambda x: tf.linalg.qr(x),
    solve=tf.linalg.solve,
    svd=linalg.svd,
)

_FUNCTIONS = SimpleNamespace(
    bfloat16=tf.bfloat16,
    bool=tf.bool,
    float16=tf.float16,
    float32=tf.float32,
    float64=tf.float64,
    int32=tf.int32,
    int64=tf.int64,
    abs=tf.abs,
    all=lambda x, axis=None, keepdims=False: tf.reduce_all(x, axis, keepdims),
    any=lambda x, axis=None, keepdims=False: tf.reduce_any(x, axis, keepdims),
    arange=lambda start, stop=None, step=1, dtype=None: tf.range(
        *((0, start) if stop is None else (start, stop)), step, dtype=dtype
    ),
    argmax=lambda x, axis, keepdims=False: _arg(tf.argmax, x, axis, keepdims),
    argmin=lambda x, axis, keepdims=False: _arg(tf.argmin, x, axis, keepdims),
    argsort=lambda x, axis=-1, descending=False, stable=True: tf.argsort(
        x, axis, "DESCENDING" if descending else "ASCENDING", stable=stable
    ),
    astype=tf.cast,
    broadcast_to=lambda x, shape: tf.broadcast_to(x, shape),
    ceil=tf.math.ceil,
    concat=lambda arrays, axis=0: tf.concat(arrays, axis),
    cumulative_sum=lambda x, axis: tf.cumsum(x, axis),
    exp=tf.exp,
    expand_dims=lambda x, axis=0: tf.expand_dims(x, axis),
    eye=lambda n, m=None, dtype=tf.float32: tf.eye(n, m, dtype=dtype),
    finfo=lambda dtype: SimpleNamespace(
        max=dtype.max, eps=float(np.finfo(dtype.as_numpy_dtype).eps) if dtype != tf.bfloat16 else 2.0**-7
    ),
    flip=lambda x, axis: tf.reverse(x, [axis] if isinstance(axis, int) else list(axis)),
    floor=tf.math.floor,
    full_like=lambda x, value: tf.fill(tf.shape(x), tf.cast(value, x.dtype)),
    imag=tf.math.imag,
    isfinite=tf.math.is_finite,
    isnan=tf.math.is_nan,
    linalg=_LINALG,
    log=tf.math.log,
    matmul=tf.linalg.matmul,
    matrix_transpose=tf.linalg.matrix_transpose,
    max=lambda x, axis=None, keepdims=False: tf.reduce_max(x, axis, keepdims),
    maximum=tf.maximum,
    min=lambda x, axis=None, keepdims=False: tf.reduce_min(x, axis, keepdims),
    minimum=tf.minimum,
    ones=lambda shape, dtype: tf.ones(shape, dtype),
    ones_like=tf.ones_like,
    permute_dims=lambda x, axes: tf.transpose(x, axes),
    real=tf.math.real,
    reshape=lambda x, shape: tf.reshape(x, _shape(shape)),
    roll=lambda x, shift, axis: tf.roll(x, shift, axis),
    round=tf.round,
    searchsorted=lambda x, values: tf.searchsorted(x, values),
    sign=tf.sign,
    sort=lambda x, axis=-1, descending=False: tf.sort(x, axis, "DESCENDING" if descending else "ASCENDING"),
    sqrt=tf.sqrt,
    squeeze=_squeeze,
    stack=lambda arrays, axis=0: tf.stack(arrays, axis),
    sum=lambda x, axis=None, keepdims=False: tf.reduce_sum(x, axis, keepdims),
    take=lambda x, indices, axis: tf.gather(x, indices, axis=axis),
    take_along_axis=_take_along,
    where=_where,
    zeros=lambda shape, dtype: tf.zeros(shape, dtype),
    zeros_like=tf.zeros_like,
)


def _gradient(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, upstream)


class TensorFlowNamespace(Namespace):
    """A thin Array API over TensorFlow, which has none of its own."""

    def value(self, x: Any) -> tf.Tensor:
        return tf.convert_to_tensor(x)

    def on_host(self, function: Callable[..., np.ndarray | None], *arrays: tf.Tensor) -> tf.Tensor | None:
        if not all(self.can_look(x) for x in arrays):
            return None
        made = function(*(x.numpy() for x in arrays))
        return None if made is None else tf.constant(made)

    def stop_gradient(self, x: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(x)

    def graft(self, value: tf.Tensor, derivative: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(value) - (tf.stop_gradient(derivative) - derivative)  # -0 - 0 is -0

    def with_derivative(self, value: tf.Tensor, x: tf.Tensor, derivative: Callable[..., Any]) -> tf.Tensor:
        def held(x: tf.Tensor) -> Any:
            return tf.identity(value), lambda upstream: _gradient(derivative, tf.zeros_like(x), upstream)

        return tf.custom_gradient(held)(x)

    def can_look(self, x: tf.Tensor) -> bool:
        return tf.executing_eagerly() and "CPU" in x.device

    def skips(self, x: tf.Tensor) -> bool:
        return False  # a failing Cholesky factorisation ends a graph

    def may_differentiate(self, x: tf.Tensor) -> bool:
        return True

    def iterate(self, step: Callable[..., Any], state: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        go = lambda moving, *_: tf.reduce_any(moving)  # noqa: E731
        return tuple(tf.while_loop(go, lambda *s: tuple(step(*s)), state, maximum_iterations=most))

    def top(self, x: tf.Tensor, count: int) -> tf.Tensor:
        return tf.math.top_k(x, count).values

    def least_of_largest(self, x: tf.Tensor, count: int) -> tf.Tensor:
        return self.top(x, count)[..., -1:]

    def unless(
        self, done: Any, function: Callable[..., Any], x: tf.Tensor, *others: Any, known: tuple[Any, ...] = ()
    ) -> tf.Tensor:
        def skipping(x: tf.Tensor) -> Any:
            y = tf.cond(tf.reduce_all(done), lambda: x, lambda: function(x, *others, *known))
            return y, lambda upstream: _gradient(lambda x: function(x, *others), x, upstream)

        return tf.custom_gradient(skipping)(x)

    def either(self, ok: Any, quick: Callable[[], Any], slow: Callable[[], Any]) -> Any:
        if self.can_look(ok):
            return super().either(ok, quick, slow)
        return tf.cond(tf.reduce_all(ok), quick, slow) if self.branches(ok) else slow()

    def branches(self, x: tf.Tensor) -> bool:
        # where a graph is to run is not known
        return not tf.executing_eagerly() and not tf.config.list_physical_devices("GPU")

    def constant(self, value: FrozenArray, like: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.finite(value, like.dtype), like.dtype)

    # TensorFlow does not mix complex and real numbers

    def divide(self, x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
        return tf.complex(tf.math.real(x) / by, tf.math.imag(x) / by) if x.dtype.is_complex else x / by

    def times(self, x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
        return tf.complex(tf.math.real(x) * by, tf.math.imag(x) * by) if x.dtype.is_complex else x * by


xp = TensorFlowNamespace(_FUNCTIONS)
