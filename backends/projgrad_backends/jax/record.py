"""What a projection tells of itself: in the state, for `projgrad.optax.report`, and by a warning."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from projgrad.plan import PlanEntry
from projgrad.record import NONE_YET, tell_nonfinite, what_it_did
from projgrad_backends.jax.parameters import is_skipped
from projgrad_backends.jax.sharding import automatic
from projgrad_backends.jax.tags import Tagged, when_due
from projgrad_backends.jax.update import added

__all__ = ["RecordState", "check_nonfinite", "empty_record", "measured", "warn_nonfinite"]


class RecordState(NamedTuple):
    """How many updates were made, and what the last projection of every constrained parameter did, by its name."""

    count: jax.Array  # type: ignore[assignment]
    before: Mapping[str, jax.Array]  # the largest distance of a group from the set before it
    moved: Mapping[str, jax.Array]  # how far it moved the parameter


def empty_record(tagged: Tagged) -> RecordState:
    """The state before the first projection."""
    before, moved = ({entry.name: jnp.full((), NONE_YET, jnp.float32) for entry in tagged.plan} for _ in range(2))
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
        before, after = (list(map(added, params, given)) for given in (updates, new))
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
    finite = {name: jnp.all(jnp.isfinite(added(p, u))) for name, p, u in pairs}
    jax.debug.callback(_warn, finite)


def _warn(finite: Mapping[str, Any]) -> None:
    tell_nonfinite([name for name, ok in finite.items() if not ok], "warn")
