"""The functions of the Array API that projgrad calls, on TensorFlow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from projgrad.frozen import FrozenArray
from projgrad.namespace import Namespace

__all__ = ["xp"]


def _where(condition: Any, x: Any, y: Any) -> tf.Tensor:
    dtype = next(v.dtype for v in (x, y) if isinstance(v, tf.Tensor))
    return tf.where(condition, _tensor(x, dtype), _tensor(y, dtype))


def _tensor(x: Any, dtype: Any) -> tf.Tensor:
    # by way of NumPy, since TensorFlow takes its remembered 0 for -0
    return x if isinstance(x, tf.Tensor) else tf.constant(np.asarray(x, dtype.as_numpy_dtype))


_FUNCTIONS = SimpleNamespace(
    bfloat16=tf.bfloat16,
    float16=tf.float16,
    float32=tf.float32,
    float64=tf.float64,
    abs=tf.abs,
    all=lambda x, axis=None, keepdims=False: tf.reduce_all(x, axis, keepdims),
    astype=tf.cast,
    concat=lambda arrays, axis=0: tf.concat(arrays, axis),
    finfo=lambda dtype: SimpleNamespace(max=dtype.max),
    imag=tf.math.imag,
    isfinite=tf.math.is_finite,
    isnan=tf.math.is_nan,
    maximum=tf.maximum,
    max=lambda x, axis=None, keepdims=False: tf.reduce_max(x, axis, keepdims),
    ones_like=tf.ones_like,
    real=tf.math.real,
    reshape=lambda x, shape: tf.reshape(x, [-1 if n is None else n for n in shape]),
    sqrt=tf.sqrt,
    squeeze=lambda x, axis: tf.squeeze(x, axis) if axis else x,
    sum=lambda x, axis=None, keepdims=False: tf.reduce_sum(x, axis, keepdims),
    where=_where,
    zeros=lambda shape, dtype: tf.zeros(shape, dtype),
)


class TensorFlowNamespace(Namespace):
    """A thin Array API over TensorFlow, which has none of its own."""

    def value(self, x: Any) -> tf.Tensor:
        return tf.convert_to_tensor(x)

    def stop_gradient(self, x: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(x)

    def constant(self, value: FrozenArray, like: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.finite(value, like.dtype), like.dtype)

    # TensorFlow does not mix complex and real numbers

    def divide(self, x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
        return tf.complex(tf.math.real(x) / by, tf.math.imag(x) / by) if x.dtype.is_complex else x / by

    def times(self, x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
        return tf.complex(tf.math.real(x) * by, tf.math.imag(x) * by) if x.dtype.is_complex else x * by


xp = TensorFlowNamespace(_FUNCTIONS)
