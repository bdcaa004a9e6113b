"""What there is to see of the parameters of a pytree."""

from __future__ import annotations

from typing import Any

import jax

from projgrad.record import rows_of, was_recorded
from projgrad.report import Report, make_report
from projgrad.rules import Rules
from projgrad_backends.jax.parameters import opened
from projgrad_backends.jax.params import alike
from projgrad_backends.jax.record import RecordState
from projgrad_backends.jax.sharding import automatic
from projgrad_backends.jax.tags import Tags
from projgrad_backends.jax.transform import ProjectState

__all__ = ["report"]


def report(
    params: Any,
    rules: Rules | None = None,
    *,
    tree: Any = None,
    model: Any = None,
    state: Any = None,
    step: Any = None,
) -> Report:
    """What there is to see of all parameters, the unconstrained too, a row each: print it, or see `projgrad.Report`.

    Args:
        params: a pytree of arrays, an equinox module, or an nnx.Module; not traced.
        rules: as in `project`.
        tree: as in `project`.
        model: as in `project`; not needed where `params` is a module.
        state: the optimizer's, or anything that holds it, such as a TrainState or an nnx.Optimizer. If the projection
            was made with ``record=True``, the rows say what it did last, which is found in chains, masks, partitions,
            `optax.MultiSteps` and whatever else is a pytree. From there comes the number of steps, too.
        step: the number of steps made, for schedules, where there is no state.

    Returns:
        The rows, in the order of the leaves; those of one set over several parameters are one.

    Raises:
        TypeError: as in `project`.
        ValueError: as in `project`; there is nothing of a projection in the state.

    Examples:
        >>> tx = optax.chain(optax.adam(1e-3), projgrad.optax.project(rules, record=True))
        >>> print(projgrad.optax.report(params, rules, state=state))
    """
    params, model = opened(params, model)
    leaves, tagged = Tags(rules, tree, model).of(params)
    found = [] if state is None else _found(state)
    if found and step is None:
        step = max(int(jax.tree.leaves(one.count)[0]) for one in found)
    recorded: dict[str, tuple[Any, Any]] = {}
    for one in found:
        if isinstance(one, RecordState):  # whose leaves may be variables of nnx
            before, moved = (jax.device_get(jax.tree.leaves(numbers)) for numbers in one[1:])
            pairs = zip(sorted(one.before), zip(before, moved, strict=True), strict=True)
            recorded |= {name: pair for name, pair in pairs if was_recorded(pair)}
    made: list[Report] = []

    def make(leaves: list[Any]) -> None:
        rows = rows_of(((entry, entry.handles) for entry in tagged.plan), tagged.names.items())
        held = ((row, alike([leaves[i] for i in positions])) for row, positions in rows)
        made.append(make_report(held, step, recorded))

    automatic(make, None, leaves)
    return made[0]


def _found(state: Any) -> list[RecordState | ProjectState]:
    kinds = (RecordState, ProjectState)
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kinds))
    found = [leaf for leaf in leaves if isinstance(leaf, kinds)]
    if not found:
        raise ValueError("the state has no record of a projection: make the transformation with record=True")
    return found
