"""What Keras needs to save constraints and plans, and to find the variables of a saved plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from projgrad.constraint import Constraint
from projgrad.function import Function
from projgrad.joint import Layout
from projgrad.plan import Plan, PlanEntry
from projgrad.registry import from_dict
from projgrad.rules import Rules
from projgrad.tag import Joint, Tag, as_tag
from projgrad_backends.keras.parameters import path, short_names

__all__ = ["load_plan", "load_rules", "save_plan", "save_rules"]


def save_plan(plan: Plan, trained: Sequence[Any]) -> dict[str, Any]:
    """A resolved plan as plain JSON.

    Args:
        plan: with the constrained variables as handles.
        trained: all variables of the optimizer, among which the constrained ones will be found again.
    """
    position = {id(variable): i for i, variable in enumerate(trained)}
    entries = [
        {
            "names": list(entry.names),
            "positions": [position[id(variable)] for variable in entry.handles],
            "shapes": [list(shape) for shape in entry.shapes],
            "tag": _save_tag(entry.tag),
            "layout": None if entry.layout is None else [[list(axes) for axes in p] for p in entry.layout.parts],
        }
        for entry in plan
    ]
    return {"variables": [path(variable) for variable in trained], "entries": entries}


def load_plan(saved: dict[str, Any], trained: Sequence[Any]) -> Plan:
    """The plan that `save_plan` saved, on the variables of the loaded model.

    They are found by their names, or, where Keras numbered the layers anew, by their order.

    Raises:
        ValueError: these are other variables than those the plan was saved for.
    """
    where = _match(saved["variables"], [path(variable) for variable in trained])
    return Plan(_load_entry(entry, where, trained) for entry in saved["entries"])


def _load_entry(saved: dict[str, Any], where: dict[int, int], trained: Sequence[Any]) -> PlanEntry:
    shapes, variables = tuple(tuple(shape) for shape in saved["shapes"]), []
    for name, shape, position in zip(saved["names"], shapes, saved["positions"], strict=True):
        at = where.get(position)
        if at is None or tuple(trained[at].shape) != shape:
            raise ValueError(
                f"the saved plan has {name} of shape {shape}, which is not among the variables that the "
                "optimizer is built with: wrap the optimizer anew for another model"
            )
        variables.append(trained[at])
    parts = saved["layout"]
    layout = None if parts is None else Layout(shapes, tuple(tuple(tuple(axes) for axes in p) for p in parts))
    return PlanEntry(tuple(saved["names"]), shapes, _load_tag(saved["tag"]), layout, tuple(variables))


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
    return {str(selector): None if rule is None else _save_tag(as_tag(rule)) for selector, rule in rules.items()}


def load_rules(saved: dict[str, Any]) -> Rules:
    """The rules that `save_rules` saved."""
    return {selector: None if rule is None else _load_tag(rule) for selector, rule in saved.items()}


def _save_tag(tag: Tag) -> dict[str, Any]:
    constraint = tag.constraint
    function = constraint.function if isinstance(constraint, Function) else None
    if isinstance(function, keras.constraints.Constraint):
        inside = {"keras": keras.saving.serialize_keras_object(function)}
    else:
        inside = constraint.to_dict()
    options = {"every": tag.every, "metric": tag.metric, "tangent": tag.tangent}
    return {"joint": isinstance(tag, Joint), **options, "constraint": inside}


def _load_tag(saved: dict[str, Any]) -> Tag:
    inside = saved["constraint"]
    if "keras" in inside:
        constraint: Constraint = Function(keras.saving.deserialize_keras_object(inside["keras"]))
    else:
        constraint = from_dict(inside)
    return (Joint if saved["joint"] else Tag)(constraint, saved["every"], saved.get("metric"), saved.get("tangent"))
