"""The update that takes a parameter to the nearest point of its set, in the parameter's own precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from projgrad.constraint import Constraint
from projgrad.moves import Clip, Move, Piecewise, Relaxed, Scale, is_one
from projgrad.plan import PlanEntry
from projgrad_backends.jax.namespace import xp
from projgrad_backends.jax.parameters import is_skipped
from projgrad_backends.jax.tags import when_due

__all__ = ["added", "onto"]


def added(p: Any, u: Any) -> jax.Array:
    """``p + u`` in the dtype of the parameter `p`, which the update `u` is rounded to before."""
    p = jnp.asarray(p)
    return p + jnp.asarray(u).astype(p.dtype)


def onto(entry: PlanEntry, params: list[Any], weights: list[Any], updates: list[Any], step: Any) -> list[Any]:
    """``P(p + u) - p``, rounded such that adding it to `p` ends in the set, at ``p + u`` where that is in the set.

    In sets of norms it may end at the number next to ``p + u`` there, in entries where `u` is larger than `p` and their
    sum a power of two.

    Args:
        entry: what holds for the parameters.
        params: the parameters of the entry.
        weights: of their entries, for the nearest point in that metric; None where there are none.
        updates: theirs; one that was taken out of the tree is returned as it is.
        step: how many steps will have been made; None where that does not matter.

    Returns:
        The updates in the dtype of the parameters.

    Raises:
        ValueError: one set holds over several parameters, of which only some have an update.
    """
    missing = [name for name, u in zip(entry.names, updates, strict=True) if is_skipped(u)]
    if len(missing) == len(updates):
        return updates
    if missing:
        raise ValueError(f"{entry.name}: one set over several parameters, but {', '.join(missing)} has no update")
    params = [jnp.asarray(p) for p in params]
    updates = [jnp.asarray(u).astype(p.dtype) for p, u in zip(params, updates, strict=True)]

    def projected() -> list[Any]:
        p, u, h = entry.gather(params), entry.gather(updates), entry.gather_metric(weights)
        constraint = entry.constraint.at(step, p.dtype) if entry.counts else entry.constraint
        return entry.scatter(_onto(constraint, p, u, h))

    return when_due(entry, step, projected, lambda: updates)


def _onto(constraint: Constraint, p: jax.Array, u: jax.Array, h: jax.Array | None) -> jax.Array:
    if not p.size:
        return u
    z = p + u
    move = constraint.move(z, xp, None if h is None else h.astype(xp.real(xp.upcast(z)).dtype))
    target = xp.stored(move.apply(z, xp))
    # Where the move is written over z, keeping `u` costs an array. p + (z - p) is z too, unless `u` is larger than `p`
    # and z a power of two: then it may be the number next to that.
    over = isinstance(move, Scale) and move.m is None and p.dtype.itemsize >= 4
    new = target - p if over else jnp.where(move.keep(z, xp), u, target - p)
    # In single and double precision, rounding `new` moves a norm by far less than its tolerance.
    coarse = _clips(move) or (p.dtype.itemsize < 4 and not _is_orthant(move))
    strict = is_one(constraint.rate) or hasattr(constraint.rate, "dtype")  # an array may be 1
    return _inward(constraint, p, new, target) if coarse and strict else new


def _clips(move: Move | None) -> bool:
    """Whether some entries are clipped to bounds that are to hold exactly, and that rounding may miss."""
    if isinstance(move, Piecewise):
        return any(_clips(part) for _, _, part in move.moves)
    return isinstance(move.move if isinstance(move, Relaxed) else move, Clip) and not _is_orthant(move)


def _is_orthant(move: Move | None) -> bool:
    """Whether entries are clipped at 0 only, where ``p + (0 - p)`` is exact."""
    if not isinstance(move, Clip):
        return False
    return all(bound is None or (isinstance(bound, float) and bound == 0) for bound in (move.lower, move.upper))


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
    return jnp.where(past & (u != 0), _next(u, back > 0), u)  # 0 where the difference is flushed


@jax.custom_jvp
def _next(u: jax.Array, up: jax.Array) -> jax.Array:
    """The number next to `u`, which is not 0: its bits count up, away from 0."""
    bits = jax.lax.bitcast_convert_type(u, f"int{8 * u.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(bits + jnp.where((u > 0) == up, 1, -1).astype(bits.dtype), u.dtype)


@_next.defjvp
def _next_jvp(primals: Any, tangents: Any) -> Any:
    return _next(*primals), tangents[0]
