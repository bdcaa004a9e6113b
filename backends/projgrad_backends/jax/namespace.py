"""The Array API functions of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from projgrad.frozen import FrozenArray
from projgrad.namespace import Namespace

__all__ = ["xp"]


class JaxNamespace(Namespace):
    """jax.numpy, which follows the standard, with what differs."""

    def astype(self, x: Any, dtype: Any) -> jax.Array:
        return jnp.asarray(x).astype(dtype)

    def stop_gradient(self, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(x)

    def constant(self, value: FrozenArray, like: jax.Array) -> jax.Array:
        return jnp.asarray(self.finite(value, like.dtype).astype(like.dtype))

    def accurate_sum(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return jnp.sum(x, axis=axes, keepdims=True)  # XLA adds in a tree


xp = JaxNamespace(jnp)
