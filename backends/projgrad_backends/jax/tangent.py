"""Gradients, updates and momentum of an optax transformation without the part that points out of the sets."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from projgrad.plan import PlanEntry
from projgrad_backends.jax.parameters import is_skipped
from projgrad_backends.jax.tags import Tagged
from projgrad_backends.jax.update import added

__all__ = ["made_tangent", "with_tangent_momentum"]

# what adds up gradients in optax's states: fields, each with the only state that has it in this sense, or None for any
_MOMENTUM = {"mu": None, "trace": None, "m": "ScaleByAdanState"}
# whose `mu` is the mean that a variance is taken around
_MEANS = ("ScaleByRStdDevState", "ScaleByRStdDevWithCountState")


def made_tangent(
    tagged: Tagged, what: str | None, points: list[Any], tree: Any, step: Any, *, descent: bool = False
) -> Any:
    """`tree`, with the directions of the entries that ask for it made tangent at `points`.

    Args:
        tagged: what holds for which leaf.
        what: the option that asks for it; None for all of its values.
        points: the leaves of the parameters.
        tree: of the structure of the parameters, with a direction for each or, by position, what is left as it is.
        step: how many steps were made; None where that does not matter.
        descent: the directions are taken with a minus, as gradients are.
    """
    if not any(_asks(entry, what) for entry in tagged.plan):
        return tree

    def tangent(entry: PlanEntry, points: list[Any], directions: list[Any], step: Any) -> list[Any]:
        if not _asks(entry, what) or any(is_skipped(d) for d in directions):
            return directions
        sign = -1 if descent else 1
        found = entry.tangent([jnp.asarray(p) for p in points], [sign * jnp.asarray(d) for d in directions], step)
        return [sign * d for d in found]

    return tagged.map(tangent, step, points, tagged.treedef.flatten_up_to(tree))


def with_tangent_momentum(tagged: Tagged, state: Any, params: Any, updates: Any, step: Any) -> Any:
    """The state of the transformation, with momentum that is tangent at the parameters that `updates` lead to."""
    if not any(_asks(entry, None) for entry in tagged.plan):
        return state
    moved = zip(tagged.treedef.flatten_up_to(params), tagged.treedef.flatten_up_to(updates), strict=True)
    points = [p if is_skipped(p) or is_skipped(u) else added(p, u) for p, u in moved]
    for name, only in _MOMENTUM.items():
        for path, tree in optax.tree_utils.tree_get_all_with_path(state, name):
            owner = getattr(path[-1], "tuple_name", None)
            if owner in _MEANS or (only is not None and owner != only) or not _is_like(tagged, points, tree):
                continue
            tangent = made_tangent(tagged, None, points, tree, step, descent=True)
            state = optax.tree_utils.tree_set(state, lambda at, _, path=path: at == path, **{name: tangent})
    return state


def _asks(entry: PlanEntry, what: str | None) -> bool:
    return entry.tag.tangent is not None and what in (None, entry.tag.tangent)


def _is_like(tagged: Tagged, points: list[Any], tree: Any) -> bool:
    """Whether `tree` has the structure and shapes of the parameters, but for what is left out of it."""
    try:
        leaves = tagged.treedef.flatten_up_to(tree)
    except ValueError:
        return False
    pairs = ((p, leaf) for p, leaf in zip(points, leaves, strict=True) if not (is_skipped(p) or is_skipped(leaf)))
    return all(jnp.shape(p) == jnp.shape(leaf) for p, leaf in pairs)
