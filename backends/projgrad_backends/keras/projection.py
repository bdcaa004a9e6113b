"""The constrained variables of a plan, and how they are projected on each of Keras's backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from projgrad.audit import check_inside
from projgrad.constraint import Constraint
from projgrad.namespace import native
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Rules, resolve
from projgrad_backends.keras.parameters import described
from projgrad_backends.keras.record import Record

__all__ = ["Progress", "Projection", "audit", "has_value", "project_params", "violations", "without_gradients"]


_Weights = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Progress:
    """How far an optimizer is.

    Args:
        count: how often it was called, an int, an array or a variable.
        per_step: how many of these calls make a step, which is more than one where gradients are accumulated.
        before: the count before the last call, where that may have been skipped.
    """

    count: Any
    per_step: int = 1
    before: Any = None

    @property
    def step(self) -> Any:
        """The number of steps made."""
        return self._count // self.per_step

    def due(self, every: int) -> Any:
        """Whether a step was made just now, and that is one of every so many; an array where it is decided later."""
        calls = every * self.per_step
        due = calls == 1 or self._count % calls == 0
        return due if self.before is None else (self._count != self.before) & due

    def projects(self, entry: PlanEntry) -> Any:
        """Whether an entry is to be projected; once more after a skipped step, where that makes no difference."""
        return (entry.tag.every * self.per_step == 1 and entry.settles) or self.due(entry.tag.every)

    @property
    def _count(self) -> Any:
        return self.count if isinstance(self.count, int) else native(self.count)[0]


class Projection:
    """A plan whose handles are variables."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._in_place: Any = None

    @property
    def variables(self) -> list[Any]:
        """All constrained variables."""
        return [variable for entry in self.plan for variable in entry.handles]

    def project(self, progress: Progress, weights: _Weights, record: Record) -> None:
        """Replace every variable for which that is due by the nearest point of its set.

        Args:
            progress: how far the optimizer is.
            weights: of the entries of some variables in the metric of the optimizer, for what is projected in it.
            record: where to note what that does.
        """
        with without_gradients():
            if not record.variables and self._projects_in_place(progress, weights):
                return
            for entry in self.plan:
                found = _projected(entry, progress, weights)
                record.note(entry, found, progress.step if entry.counts else None, progress.due(entry.tag.every))
                _assign(entry, found)

    def _projects_in_place(self, progress: Progress, weights: _Weights) -> bool:
        """Project all in the memory of the variables, or, where that is not possible, none."""
        if keras.backend.backend() != "torch" or self.plan.counts:
            return False
        if not all(progress.projects(entry) is True for entry in self.plan):
            return False
        if self._in_place is None:
            from projgrad_backends.keras.in_place import InPlace

            self._in_place = InPlace(self.plan)
        return bool(self._in_place.project(weights))

    def project_all(self, step: Any) -> None:
        """Replace all variables in the Euclidean metric, or, where a function fails, none; it needs more memory."""
        with without_gradients():
            values = [entry.project(entry.handles, step) for entry in self.plan]
            for entry, found in zip(self.plan, values, strict=True):
                _assign(entry, found)

    def project_at_start(self, progress: Progress, *, new: bool) -> None:
        """Project all for good, even where a function is being traced.

        Where TensorFlow makes the variables in that same trace, they have no values yet; the first step projects them.
        Where it gave a `new` state the values of a checkpoint, the weights have theirs too, and are left to the steps.
        """
        with _outside_of_a_trace():
            if not all(has_value(variable) for variable in (*self.variables, progress.count)):
                return
            if new and keras.backend.backend() == "tensorflow" and int(keras.ops.convert_to_numpy(progress.count)):
                return
            self.project_all(int(keras.ops.convert_to_numpy(progress.step)) if self.plan.counts else None)

    def violations(self, step: Any) -> dict[str, float]:
        """The largest distance of a group from its set, by name; equal names count as one."""
        found: dict[str, float] = {}
        with without_gradients():
            for entry in self.plan:
                distances = keras.ops.convert_to_numpy(entry.violation(entry.handles, step))
                largest = float(np.max(distances, initial=0.0))
                found[entry.name] = float(np.maximum(found.get(entry.name, 0.0), largest))
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which Keras leaves the tagged variables to this projection, so that `rate` acts once a step.

        After it, the tags have the axes of the plan.
        """
        pairs = [(variable, entry) for entry in self.plan for variable in entry.handles]
        tagged = [(v, entry) for v, entry in pairs if isinstance(getattr(v, "constraint", None), Constraint)]
        for variable, _ in tagged:
            variable.constraint = None
        try:
            yield
        finally:
            for variable, entry in tagged:
                variable.constraint = entry.constraint


def _projected(entry: PlanEntry, progress: Progress, weights: _Weights) -> list[Any]:
    due, values = progress.projects(entry), [native(variable)[0] for variable in entry.handles]

    def do() -> list[Any]:
        h = weights(entry.handles) if entry.in_metric else None
        return entry.project(values, progress.step if entry.counts else None, h)

    if isinstance(due, bool):
        return do() if due else values
    return keras.ops.cond(due, do, lambda: values)


def _assign(entry: PlanEntry, values: Sequence[Any]) -> None:
    for variable, value in zip(entry.handles, values, strict=True):
        variable.assign(value)


def project_params(model: Any, rules: Rules | None = None, *, step: int | None = None) -> None:
    """Replace the constrained weights of a model by the nearest points of their sets, in place.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.
        step: the number of steps made, for schedules, and to project only what is due then by the option `every`; None
            to project all.

    Raises:
        TypeError, ValueError: the rules do not fit the model; then nothing is changed.

    Examples:
        >>> projgrad.keras.project_params(model, {"*/kernel": pg.MaxNorm(3.0)})
    """
    plan = resolve(rules, described(model))
    Projection(Plan(entry for entry in plan if step is None or entry.due(step))).project_all(step)


def violations(model: Any, rules: Rules | None = None, *, step: int | None = None) -> dict[str, float]:
    """How far the constrained weights of a model are from their sets.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.
        step: the number of steps made, for schedules.

    Returns:
        The largest distance over the groups of each constrained weight, by its name.

    Raises:
        TypeError, ValueError: the rules do not fit the model.
    """
    return Projection(resolve(rules, described(model))).violations(step)


def audit(model: Any, rules: Rules | None = None, *, step: int | None = None, tol: float | None = None) -> None:
    """Raise an error that names the weights outside of their sets, as after averaging or loading there may be some.

    Args:
        model: a built Keras model or layer, or a list of variables.
        rules: what is constrained; None for what the layers are tagged with.
        step: the number of steps made, for schedules.
        tol: the distance from the set that is allowed; None for 1.5 times `projgrad.tolerance`.

    Raises:
        TypeError: the rules do not fit the model.
        ValueError: a weight is outside or NaN; the rules do not fit the model.
    """
    with without_gradients():
        check_inside(((entry, entry.handles) for entry in resolve(rules, described(model))), step, tol)


def without_gradients() -> AbstractContextManager[Any]:
    """A context in which PyTorch records nothing for derivatives."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _outside_of_a_trace() -> AbstractContextManager[Any]:
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def has_value(variable: Any) -> bool:
    """Whether it holds numbers: not before it is initialised, nor after a failed step on JAX, which uses them up."""
    if isinstance(variable, keras.Variable) and variable._value is None:
        return False
    if keras.backend.backend() != "tensorflow" or isinstance(variable, int):
        return True
    return bool((variable.value if isinstance(variable, keras.Variable) else variable).is_initialized())
