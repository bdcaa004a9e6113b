"""The Array API functions of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from projgrad.frozen import FrozenArray
from projgrad.namespace import Namespace
from projgrad_backends.jax.sharding import spec

__all__ = ["xp"]

_SHORT = 16  # entries of a row that is added entry by entry
_LONG = 2**12  # entries of a constant


class JaxNamespace(Namespace):
    """jax.numpy, which follows the standard, with what differs."""

    def astype(self, x: Any, dtype: Any) -> jax.Array:
        return jnp.asarray(x).astype(dtype)

    def upcast(self, x: Any) -> jax.Array:
        return super().upcast(self.stored(x))

    def stored(self, x: Any) -> Any:
        """`x` as memory holds it: compiled code computes bfloat16 in float32 and may leave out the rounding."""
        return jax.lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x

    def divide(self, x: jax.Array, by: jax.Array) -> jax.Array:
        # XLA may multiply by 1 / by instead, which is flushed to zero where `by` is near the largest number
        if jnp.iscomplexobj(x):
            return jax.lax.complex(self.divide(x.real, by), self.divide(x.imag, by))
        shrink = jnp.where(by > 2.0**100, 2.0**-32, 1.0).astype(by.dtype)
        return (x * shrink) / (by * shrink)

    def on_host(self, function: Callable[..., np.ndarray | None], *arrays: jax.Array) -> jax.Array | None:
        if not all(self.can_look(x) and [d.platform for d in x.devices()] == ["cpu"] for x in arrays):
            return None
        made = function(*(np.asarray(x) for x in arrays))
        return None if made is None else jnp.asarray(made)

    def stop_gradient(self, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(x)

    def graft(self, value: jax.Array, derivative: jax.Array) -> jax.Array:
        return _grafted(value, derivative) if self.may_differentiate(derivative) else value

    def with_derivative(self, value: jax.Array, x: jax.Array, derivative: Callable[..., Any]) -> jax.Array:
        @jax.custom_jvp
        def held(x: jax.Array) -> jax.Array:
            return value

        held.defjvps(lambda d, y, x: derivative(d))
        return held(x)

    def can_look(self, x: Any) -> bool:
        return not isinstance(x, jax.core.Tracer)

    def skips(self, x: Any) -> bool:
        return True

    def is_below(self, x: jax.Array, bound: jax.Array) -> jax.Array:
        shifted = bound * jnp.eye(x.shape[-1], dtype=x.dtype) - x
        factor = jnp.linalg.cholesky(shifted, symmetrize_input=False)  # of NaN where there is none
        return jnp.isfinite(factor).all((-2, -1), keepdims=True)

    def may_differentiate(self, x: Any) -> bool:
        return isinstance(x, jax.core.Tracer)

    def iterate(self, step: Callable[..., Any], state: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        if not any(isinstance(x, jax.core.Tracer) for x in state):
            return super().iterate(step, state, most)  # rather than compile each loop for a single use

        def go(carried: tuple[Any, ...]) -> Any:
            return (carried[0] < most) & jnp.any(carried[1])

        # made of the state, for where vmap is over an explicit axis of a mesh, which JAX gives to no constant
        start = 0 * jnp.any(state[0]).astype("int32")
        return jax.lax.while_loop(go, lambda c: (c[0] + 1, *step(*c[1:])), (start, *state))[1:]

    def top(self, x: jax.Array, count: int) -> jax.Array:
        return jax.lax.top_k(x, count)[0]  # of which all are to be used, or XLA would sort

    def unless(
        self, done: Any, function: Callable[..., Any], x: jax.Array, *others: Any, known: tuple[Any, ...] = ()
    ) -> jax.Array:
        if self.can_look(x):
            return super().unless(done, function, x, *others, known=known)

        @jax.custom_jvp
        def skipping(done: jax.Array, x: jax.Array, *given: Any) -> jax.Array:
            # of sums that are constants XLA would find which way a norm is scaled, and square the scale, to infinity
            given = (*given[: len(others)], *jax.lax.optimization_barrier(given[len(others) :]))
            # a loop of at most one round writes in place, where a branch that returns `x` would copy it
            state = (~jnp.all(done), x)
            return jax.lax.while_loop(lambda c: c[0], lambda c: (c[0] & False, function(c[1], *given)), state)[1]

        @skipping.defjvp
        def jvp(primals: Any, tangents: Any) -> Any:
            constant = primals[2 : 2 + len(others)]
            return jax.jvp(lambda x: function(x, *constant), primals[1:2], tangents[1:2])

        return skipping(done, x, *others, *known)

    def either(self, ok: Any, quick: Callable[[], Any], slow: Callable[[], Any]) -> Any:
        if self.branches(ok):
            return jax.lax.cond(jnp.all(ok), quick, slow)
        on_host = self.can_look(ok) and {d.platform for d in ok.devices()} == {"cpu"}
        return super().either(ok, quick, slow) if on_host else slow()

    def branches(self, x: Any) -> bool:
        # where traced code is to run is not known: by default, on the first kind of device
        return not self.can_look(x) and jax.default_backend() == "cpu"

    def constant(self, value: FrozenArray, like: jax.Array) -> jax.Array:
        made = jnp.asarray(self.finite(value, like.dtype).astype(like.dtype))
        # XLA would copy what is long into each branch and loop, where it also is read more slowly
        return jax.lax.optimization_barrier(made) if made.size >= _LONG and self.may_differentiate(like) else made

    def accurate_sum(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        if _are_short_rows(x, axes):
            return _sum_of_rows(x)
        return jnp.sum(x, axis=axes, keepdims=True)  # XLA adds in a tree


def _are_short_rows(x: Any, axes: tuple[int, ...]) -> bool:
    """Whether these are sums of few entries that follow one another, on one device, in compiled code."""
    if not isinstance(x, jax.core.Tracer) or x.ndim < 2 or tuple(axes) not in ((-1,), (x.ndim - 1,)):
        return False
    length = x.shape[-1]
    return isinstance(length, int) and 1 < length <= _SHORT and not any(spec(x))


@jax.custom_jvp
def _grafted(value: jax.Array, derivative: jax.Array) -> jax.Array:
    return value


_grafted.defjvps(None, lambda tangent, *_: tangent)


@jax.custom_jvp
def _sum_of_rows(x: jax.Array) -> jax.Array:
    # entry by entry, as XLA's own sums of short rows take up to eight times as long on a CPU
    terms = [x[..., i : i + 1] for i in range(x.shape[-1])]
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


@_sum_of_rows.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _sum_of_rows(*primals), jnp.sum(tangents[0], axis=-1, keepdims=True)


xp = JaxNamespace(jnp)
