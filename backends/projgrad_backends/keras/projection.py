"""Variables with the constraint that holds for each, and how they are projected on each of Keras's backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from projgrad.constraint import Constraint
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules, resolve
from projgrad_backends.keras.parameters import Held, described

__all__ = ["Projection", "project_params", "resolved", "violations"]


class Projection:
    """The constrained variables and their plan."""

    def __init__(self, variables: Sequence[Any], plan: Plan) -> None:
        self.variables = tuple(variables)
        self.plan = plan

    def project(self) -> None:
        """Replace every variable by the nearest point of its set."""
        with _without_gradients():
            for variable, entry in zip(self.variables, self.plan, strict=True):
                variable.assign(entry.constraint(variable))

    def project_all(self) -> None:
        """The same, all or, where a function fails, none of them; it needs more memory."""
        with _without_gradients():
            values = [entry.constraint(v) for v, entry in zip(self.variables, self.plan, strict=True)]
            for variable, value in zip(self.variables, values, strict=True):
                variable.assign(value)

    def project_values(self, values: dict[int, Any]) -> None:
        """The same for the values that stand for the variables in a stateless step, by the id of the variable."""
        with _without_gradients():
            for variable, entry in zip(self.variables, self.plan, strict=True):
                values[id(variable)] = entry.constraint(values[id(variable)])

    def project_at_start(self) -> None:
        """Project for good, even where a function is being traced.

        Where TensorFlow makes the variables in that same trace, they have no values yet; the first step projects them.
        """
        with _outside_of_a_trace():
            if all(_has_value(variable) for variable in self.variables):
                self.project_all()

    def violations(self) -> dict[str, float]:
        """The largest distance of a group from its set, by name; equal names count as one."""
        found: dict[str, float] = {}
        with _without_gradients():
            for variable, entry in zip(self.variables, self.plan, strict=True):
                distances = keras.ops.convert_to_numpy(entry.constraint.violation(variable))
                largest = float(np.max(distances, initial=0.0))
                found[entry.name] = float(np.maximum(found.get(entry.name, 0.0), largest))
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which Keras leaves the tagged variables to this projection, so that `rate` acts once a step.

        After it, the tags have the axes of the plan.
        """
        pairs = zip(self.variables, self.plan, strict=True)
        tagged = [(v, entry) for v, entry in pairs if isinstance(getattr(v, "constraint", None), Constraint)]
        for variable, _ in tagged:
            variable.constraint = None
        try:
            yield
        finally:
            for variable, entry in tagged:
                variable.constraint = entry.constraint


def resolved(rules: Rules | None, held: Sequence[Held]) -> Projection:
    """What the rules and the tags ask of these parameters."""
    found = resolve(rules, [parameter for _, parameter in held])
    entries = [PlanEntry(held[i][1].name, held[i][1].shape, constraint) for i, constraint in found.items()]
    return Projection([held[i][0] for i in found], Plan(entries))


def project_params(model: Any, rules: Rules | None = None) -> None:
    """Replace the constrained weights of a model by the nearest points of their sets, in place.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.

    Raises:
        TypeError, ValueError: the rules do not fit the model; then nothing is changed.

    Example:
        >>> projgrad.keras.project_params(model, {"*/kernel": pg.MaxNorm(3.0)})
    """
    resolved(rules, described(model)).project_all()


def violations(model: Any, rules: Rules | None = None) -> dict[str, float]:
    """How far the constrained weights of a model are from their sets.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.

    Returns:
        The largest distance over the groups of each constrained weight, by its name.

    Raises:
        TypeError, ValueError: the rules do not fit the model.
    """
    return resolved(rules, described(model)).violations()


def _without_gradients() -> AbstractContextManager[Any]:
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _outside_of_a_trace() -> AbstractContextManager[Any]:
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def _has_value(variable: Any) -> bool:
    if keras.backend.backend() != "tensorflow":
        return True
    return bool((variable.value if isinstance(variable, keras.Variable) else variable).is_initialized())
