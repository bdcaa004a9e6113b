"""Gradients, steps and momentum of a Keras optimizer without the part that points out of the sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, optimizers

from projgrad.namespace import native
from projgrad.plan import Plan, PlanEntry
from projgrad.tag import GRADIENT, UPDATE
from projgrad_backends.keras.metric import stepping
from projgrad_backends.keras.projection import Progress

__all__ = ["Tangents"]

# the list of momenta of an optimizer, and whether these are subtracted from the weights, as gradients are
_MOMENTUM: dict[type, tuple[str, bool]] = {
    optimizers.SGD: ("momentums", False),
    optimizers.RMSprop: ("_momentums", True),
    optimizers.Adam: ("_momentums", True),
    optimizers.Nadam: ("_momentums", True),
    optimizers.Lamb: ("_momentums", True),
    optimizers.Lion: ("_momentums", True),
    optimizers.Adamax: ("_m", True),
}
if hasattr(optimizers, "Muon"):
    _MOMENTUM[optimizers.Muon] = ("momentums", True)


class Tangents:
    """What is done around a step for the entries of a plan that ask for it.

    Args:
        plan: whose entries ask for it.
        optimizer: the one that makes the steps.
        progress: how far it is.
    """

    def __init__(self, plan: Plan, optimizer: Any, progress: Progress) -> None:
        self._optimizer, self._progress = optimizer, progress
        self._entries = [entry for entry in plan if entry.tag.tangent is not None]
        self._steps = progress.step if any(entry.counts for entry in self._entries) else None
        # their values, as steps are made in place
        self._old = [_copies(entry.handles) if entry.tag.tangent == UPDATE else None for entry in self._entries]

    def gradients(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """The gradients of these variables, tangent where that is asked for.

        Raises:
            ValueError: such a gradient is sparse.
        """
        found = list(gradients)
        where = {id(variable): i for i, variable in enumerate(variables)}
        for entry in self._entries:
            places = [where[id(variable)] for variable in entry.handles if id(variable) in where]
            whole = len(places) == len(entry.handles) and all(found[i] is not None for i in places)
            if entry.tag.tangent != GRADIENT or not whole:
                continue
            parts = [_Gradient(self._optimizer, v, found[i]) for v, i in zip(entry.handles, places, strict=True)]
            if any(part.sparse for part in parts):
                raise ValueError(f"{entry.name}: its gradient is sparse; tangent={GRADIENT!r} needs a dense one")
            tangent = _descent(entry, _values(entry.handles), [part.whole() for part in parts], self._steps)
            for i, part, direction in zip(places, parts, tangent, strict=True):
                found[i] = part.of(direction)
        return found

    def steps(self) -> None:
        """Make the steps tangent."""
        for entry, old in zip(self._entries, self._old, strict=True):
            if old is not None:
                made = [x - start for x, start in zip(_values(entry.handles), old, strict=True)]
                tangent = entry.tangent(old, made, self._steps)
                for variable, start, step in zip(entry.handles, old, tangent, strict=True):
                    variable.assign(start + step)

    def momentum(self, progress: Progress) -> None:
        """Make the momentum tangent where the variables are after the step and the projection."""
        made = progress.due(1)
        for entry in self._entries:
            found = [_momentum(stepping(self._optimizer, variable), variable) for variable in entry.handles]
            if any(momentum is None for momentum, _ in found):
                continue
            held, subtracted = [momentum for momentum, _ in found], found[0][1]
            points, values, steps = _values(entry.handles), _values(held), progress.step if entry.counts else None
            tangent = (_descent if subtracted else PlanEntry.tangent)(entry, points, values, steps)
            for momentum, old, new in zip(held, values, tangent, strict=True):
                momentum.assign(new if made is True else ops.where(made, new, old))


class _Gradient:
    """What one call gives an optimizer, as a part of the gradient that its next step is made of."""

    def __init__(self, optimizer: Any, variable: Any, gradient: Any) -> None:
        part = stepping(optimizer, variable)
        self.given, self.sparse = gradient, _is_sparse(gradient)
        self.replicas, self.scale, self.earlier, self.last = 1, 1.0, None, True
        if self.sparse:
            return
        self.given = ops.convert_to_tensor(gradient)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            context = tf.distribute.get_replica_context()
            self.replicas = 1 if context is None else context.num_replicas_in_sync
            if self.replicas > 1:
                self.given = context.all_reduce(tf.distribute.ReduceOp.SUM, self.given)
        if part.gradient_accumulation_steps:
            self.earlier = ops.convert_to_tensor(part._accumulated_gradients[part._get_variable_index(variable)])
            self.last = (ops.convert_to_tensor(part._iterations) + 1) % part.gradient_accumulation_steps == 0
            self.scale = ops.cast(_scale(optimizer, part), self.given.dtype)

    def whole(self) -> Any:
        """The gradient together with those accumulated before it, up to a factor."""
        return self.given if self.earlier is None else self.given / self.scale + self.earlier

    def of(self, whole: Any) -> Any:
        """What is to be given to the optimizer for it to find this one."""
        if self.earlier is not None:
            whole = ops.where(self.last, (whole - self.earlier) * self.scale, self.given)
        # what is not finite has to stay so, for a LossScaleOptimizer to skip the step
        return ops.where(ops.isfinite(self.given), whole, self.given) / self.replicas


def _is_sparse(gradient: Any) -> bool:
    return type(gradient).__name__ in ("IndexedSlices", "JAXSparse", "BCOO") or getattr(gradient, "is_sparse", False)


def _scale(optimizer: Any, part: Any) -> Any:
    """By what gradients are divided before they are accumulated."""
    dynamic = getattr(optimizer, "dynamic_scale", None)
    return (part.loss_scale_factor or 1.0) if dynamic is None else ops.convert_to_tensor(dynamic)


def _momentum(part: Any, variable: Any) -> tuple[Any, bool]:
    """The momentum of a variable, or None, and whether it is subtracted."""
    for kind in type(part).__mro__:
        if kind in _MOMENTUM:
            name, subtracted = _MOMENTUM[kind]
            held = getattr(part, name)
            return (held[part._get_variable_index(variable)] if held else None), subtracted
    return None, True


def _descent(entry: PlanEntry, points: list[Any], gradients: list[Any], steps: Any) -> list[Any]:
    """Tangent sums of gradients, which are subtracted."""
    return [-direction for direction in entry.tangent(points, [-g for g in gradients], steps)]


def _values(variables: Sequence[Any]) -> list[Any]:
    return [native(variable)[0] for variable in variables]


def _copies(variables: Sequence[Any]) -> list[Any]:
    return [ops.copy(value) for value in _values(variables)]
