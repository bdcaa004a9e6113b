"""The frameworks that every test of a set runs on, behind one small interface."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

REAL = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Framework:
    """How to make an array, read it back, compile a function and differentiate one."""

    name: str
    needs: str
    make: Callable[[np.ndarray, str], Any]
    read: Callable[[Any], np.ndarray]
    dtypes: tuple[str, ...] = (*REAL, "complex64", "complex128")
    project: Callable[[Any, Any], Any] = field(default=lambda c, x: c.project(x))
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    gradient: Callable[[Callable[[Any], Any], Any, Any], Any] | None = None
    scope: Callable[[], Any] = contextlib.nullcontext

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.needs) is None

    def __repr__(self) -> str:
        return self.name


def wide(x: Any) -> np.ndarray:
    """A NumPy array of any dtype in double precision."""
    x = np.asarray(x)
    if x.dtype == bool:
        return x
    return x.astype(np.complex128 if "complex" in x.dtype.name else np.float64)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, signs of zero included."""
    return bool(np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b)))


# -- NumPy and a strict namespace ---------------------------------------------------------------------------------


def _numpy(values: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(values).astype(dtype)


def _strict(values: np.ndarray, dtype: str) -> Any:
    import array_api_strict

    return array_api_strict.asarray(np.asarray(values).astype(dtype))


# -- PyTorch ------------------------------------------------------------------------------------------------------


def _torch(values: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(np.array(values)).to(getattr(torch, dtype))


def _read_torch(x: Any) -> np.ndarray:
    import torch

    x = x.detach()
    return wide(x.to(torch.float32) if x.dtype == torch.bfloat16 else x)


def _project_in_place(constraint: Any, x: Any) -> Any:
    from projgrad.torch import project_

    y = x.clone()
    project_(y, constraint)
    return y


def _compile_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def _graph_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile makes of a function, without the C++ that it writes for it, which takes seconds."""
    import torch

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def _gradient_torch(function: Callable[[Any], Any], x: Any, weights: Any) -> Any:
    x = x.clone().requires_grad_()
    (function(x) * weights).sum().backward()
    return x.grad


# -- JAX ----------------------------------------------------------------------------------------------------------


def _jax(values: np.ndarray, dtype: str) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(np.asarray(values)).astype(dtype)


def _compile_jax(function: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    return jax.jit(function)


def _gradient_jax(function: Callable[[Any], Any], x: Any, weights: Any) -> Any:
    import jax

    return jax.jit(jax.grad(lambda v: (function(v) * weights).sum()))(x)


def _x64() -> Any:
    import jax

    return jax.enable_x64(True)


# -- TensorFlow and Keras -----------------------------------------------------------------------------------------


def _tensorflow(values: np.ndarray, dtype: str) -> Any:
    import tensorflow as tf

    return tf.cast(tf.constant(np.asarray(values)), dtype)


def _read_tensorflow(x: Any) -> np.ndarray:
    return wide(x.numpy())


def _compile_tensorflow(function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def _gradient_tensorflow(function: Callable[[Any], Any], x: Any, weights: Any) -> Any:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(function(x) * weights)
    return tape.gradient(y, x)


def _keras(values: np.ndarray, dtype: str) -> Any:
    import keras

    return keras.Variable(np.asarray(values), dtype=dtype)


def _read_keras(x: Any) -> np.ndarray:
    import keras

    return wide(keras.ops.convert_to_numpy(x))


NUMPY = Framework("numpy", "numpy", _numpy, wide, ("float16", "float32", "float64", "complex64", "complex128"))
STRICT = Framework("strict", "array_api_strict", _strict, wide, ("float32", "float64", "complex64", "complex128"))
TORCH = Framework("torch", "torch", _torch, _read_torch, compile=_compile_torch, gradient=_gradient_torch)
TORCH_GRAPH = Framework("torch-graph", "torch", _torch, _read_torch, compile=_graph_torch, gradient=_gradient_torch)
IN_PLACE = Framework("torch-in-place", "torch", _torch, _read_torch, project=_project_in_place)
JAX = Framework("jax", "jax", _jax, wide, compile=_compile_jax, gradient=_gradient_jax, scope=_x64)
TENSORFLOW = Framework(
    "tensorflow",
    "tensorflow",
    _tensorflow,
    _read_tensorflow,
    compile=_compile_tensorflow,
    gradient=_gradient_tensorflow,
)
KERAS = Framework("keras", "keras", _keras, _read_keras, REAL)

FRAMEWORKS = (NUMPY, STRICT, TORCH, IN_PLACE, JAX, TENSORFLOW, KERAS)
