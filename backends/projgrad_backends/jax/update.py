"""The update that takes a parameter to the nearest point of its set, in the parameter's own precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from projgrad.constraint import Constraint
from projgrad.moves import Clip
from projgrad_backends.jax.namespace import xp
from projgrad_backends.jax.parameters import is_skipped

__all__ = ["onto"]


def onto(constraint: Constraint, p: Any, u: Any) -> Any:
    """``P(p + u) - p``, rounded such that adding it to `p` ends in the set; `u` itself where ``p + u`` is in the set.

    Args:
        constraint: with numeric axes.
        p: the parameter.
        u: its update; one that was taken out of the tree is returned as it is.

    Returns:
        The update in the dtype of `p`.
    """
    if is_skipped(u):
        return u
    p = jnp.asarray(p)
    u = jnp.asarray(u).astype(p.dtype)
    if not p.size:
        return u
    z = p + u
    move = constraint.move(z, xp)
    target = xp.stored(move.apply(z, xp))
    new = jnp.where(move.keep(z, xp), u, target - p)
    # In single and double precision, rounding `new` moves a norm by far less than its tolerance.
    coarse = isinstance(move, Clip) or p.dtype.itemsize < 4
    return _inward(constraint, p, new, target) if coarse and constraint.rate == 1 else new


def _inward(constraint: Constraint, p: jax.Array, u: jax.Array, target: jax.Array) -> jax.Array:
    """`u`, stepped to the next number in the entries where rounding ``p + u`` went past the target and out of the set.

    Then ``p + u`` is on the inner side of the target, because `u` was the number next to ``target - p``, and rounding
    is monotone.
    """
    u = xp.stored(u)
    z = p + u
    move = constraint.move(z, xp)
    wide = xp.upcast(z)
    back = jnp.where(move.keep(z, xp), 0, move.apply(wide, xp) - wide)
    past = (target - z).astype(back.dtype) * back > 0
    return jnp.where(past, _next(u, jnp.where(back > 0, jnp.inf, -jnp.inf).astype(u.dtype)), u)


@jax.custom_jvp
def _next(u: jax.Array, towards: jax.Array) -> jax.Array:
    return jnp.nextafter(u, towards)


@_next.defjvp
def _next_jvp(primals: Any, tangents: Any) -> Any:
    return _next(*primals), tangents[0]
