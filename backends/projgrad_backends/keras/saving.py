"""What Keras needs to save constraints and plans, and to find the variables of a saved plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from projgrad.constraint import Constraint
from projgrad.function import Function
from projgrad.plan import Plan, PlanEntry
from projgrad.registry import from_dict
from projgrad.rules import Rules
from projgrad_backends.keras.parameters import path, short_names
from projgrad_backends.keras.projection import Projection

__all__ = ["load_plan", "load_rules", "save_plan", "save_rules"]


def save_plan(projection: Projection, trained: Sequence[Any]) -> dict[str, Any]:
    """A resolved plan as plain JSON.

    Args:
        projection: the constrained variables.
        trained: all variables of the optimizer, among which the constrained ones will be found again.
    """
    position = {id(variable): i for i, variable in enumerate(trained)}
    entries = [
        {
            "name": entry.name,
            "position": position[id(variable)],
            "shape": list(entry.shape),
            "constraint": _save(entry.constraint),
        }
        for variable, entry in zip(projection.variables, projection.plan, strict=True)
    ]
    return {"variables": [path(variable) for variable in trained], "entries": entries}


def load_plan(saved: dict[str, Any], trained: Sequence[Any]) -> Projection:
    """The plan that `save_plan` saved, on the variables of the loaded model.

    They are found by their names, or, where Keras numbered the layers anew, by their order.

    Raises:
        ValueError: these are other variables than those the plan was saved for.
    """
    where = _match(saved["variables"], [path(variable) for variable in trained])
    variables, entries = [], []
    for entry in saved["entries"]:
        shape, at = tuple(entry["shape"]), where.get(entry["position"])
        if at is None or tuple(trained[at].shape) != shape:
            raise ValueError(
                f"the saved plan has {entry['name']} of shape {shape}, which is not among the variables that the "
                "optimizer is built with: wrap the optimizer anew for another model"
            )
        variables.append(trained[at])
        entries.append(PlanEntry(entry["name"], shape, _load(entry["constraint"])))
    return Projection(variables, Plan(entries))


def _match(saved: Sequence[str], given: Sequence[str]) -> dict[int, int]:
    spellings: tuple[Callable[[Sequence[str]], list[str]], ...] = (list, short_names)
    for spelling in spellings:
        old, new = spelling(saved), spelling(given)
        if set(old) == set(new) and len(set(old)) == len(old) == len(new):
            return {i: new.index(name) for i, name in enumerate(old)}
    last = [[name.rpartition("/")[2] for name in names] for names in (saved, given)]
    return {i: i for i in range(len(saved))} if last[0] == last[1] else {}


def save_rules(rules: Rules) -> dict[str, Any]:
    """Rules by name that are not resolved yet, as plain JSON."""
    return {str(selector): None if rule is None else _save(rule) for selector, rule in rules.items()}


def load_rules(saved: dict[str, Any]) -> Rules:
    """The rules that `save_rules` saved."""
    return {selector: None if rule is None else _load(rule) for selector, rule in saved.items()}


def _save(constraint: Any) -> dict[str, Any]:
    function = constraint.function if isinstance(constraint, Function) else constraint
    if isinstance(function, keras.constraints.Constraint):
        return {"keras": keras.saving.serialize_keras_object(function)}
    return (constraint if isinstance(constraint, Constraint) else Function(constraint)).to_dict()


def _load(saved: dict[str, Any]) -> Constraint:
    if "keras" in saved:
        return Function(keras.saving.deserialize_keras_object(saved["keras"]))
    return from_dict(saved)
