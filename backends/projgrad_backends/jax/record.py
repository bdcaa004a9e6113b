"""What a projection tells of itself: in the state, for `projgrad.optax.report`, and by a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from projgrad.plan import PlanEntry
from projgrad.record import what_it_did
from projgrad_backends.jax.parameters import is_skipped
from projgrad_backends.jax.sharding import automatic
from projgrad_backends.jax.tags import Tagged, when_due

__all__ = ["RecordState", "check_nonfinite", "empty_record", "measured", "warn_nonfinite"]

_NONE_YET = -1.0  # which no distance is, and, unlike NaN, nothing that jax_debug_nans stops at


class RecordState(NamedTuple):
    """How many updates were made, and what the last projection of every constrained parameter did, by its name."""

    count: jax.Array  # type: ignore[assignment]
    before: Mapping[str, jax.Array]  # the largest distance of a group from the set before it
    moved: Mapping[str, jax.Array]  # how far it moved the parameter


def empty_record(tagged: Tagged) -> RecordState:
    """The state before the first projection."""
    before, moved = ({entry.name: jnp.full((), _NONE_YET, jnp.float32) for entry in tagged.plan} for _ in range(2))
    return RecordState(jnp.zeros((), jnp.int32), before, moved)


def measured(
    state: RecordState, tagged: Tagged, params: list[Any], updates: list[Any], new: list[Any], step: Any
) -> RecordState:
    """The state with what a projection did; what is not projected now keeps what its last projection did.

    Args:
        state: that before the projection.
        tagged: what holds for which leaf.
        params: the leaves of the parameters.
        updates: theirs before the projection, and `new` after it.
        step: how many steps will have been made; None where that does not matter.
    """
    before, moved = dict(state.before), dict(state.moved)
    for entry in tagged.plan:
        name, held = entry.name, [[leaves[i] for i in entry.handles] for leaves in (params, updates, new)]
        if not any(is_skipped(update) for update in held[1]):
            last = before[name], moved[name]
            before[name], moved[name] = automatic(partial(_measure, entry), (None, None), *held, step, last)
    return state._replace(before=before, moved=moved)


def _measure(
    entry: PlanEntry, params: list[Any], updates: list[Any], new: list[Any], step: Any, last: tuple[Any, Any]
) -> tuple[jax.Array, ...]:
    def did() -> tuple[jax.Array, ...]:
        before, after = (list(map(_added, params, given)) for given in (updates, new))
        return tuple(x.astype(jnp.float32) for x in what_it_did(entry, before, after, step))

    return when_due(entry, step, did, lambda: last)


def check_nonfinite(nonfinite: str | None) -> None:
    """Raise ValueError where the option is not one that a pure function has."""
    if nonfinite not in (None, "warn"):
        raise ValueError(
            f'nonfinite={nonfinite!r}: optax has None and "warn"; compiled code cannot raise, so for an error look at '
            "projgrad.optax.report(params, rules), or use jax.experimental.checkify"
        )


def warn_nonfinite(tagged: Tagged, params: list[Any], updates: list[Any]) -> None:
    """Have the host warn of parameters that will not be finite, now or, in compiled code, when this is run."""
    pairs = [(name, params[i], updates[i]) for i, name in tagged.names.items() if not is_skipped(updates[i])]
    finite = {name: jnp.all(jnp.isfinite(_added(p, u))) for name, p, u in pairs}
    jax.debug.callback(_warn, finite)


def _warn(finite: Mapping[str, Any]) -> None:
    names = [name for name, ok in finite.items() if not ok]
    if names:
        warnings.warn(f"NaN or infinite after a step: {', '.join(names)}", RuntimeWarning, stacklevel=1)


def _added(p: Any, u: Any) -> jax.Array:
    p = jnp.asarray(p)
    return p + jnp.asarray(u).astype(p.dtype)
