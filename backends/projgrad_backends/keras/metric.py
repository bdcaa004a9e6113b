"""By what a Keras optimizer divides each entry of its step, which is the metric that its steps are taken in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
from keras import ops, optimizers

from projgrad.plan import Plan
from projgrad.scaling import look_up

__all__ = ["check_scaling", "moments_before", "register_metric", "stepping", "weights_of"]

_F = TypeVar("_F", bound=Callable[..., Any])
_known: dict[type, Callable[..., Any] | str | None] = {}


def register_metric(optimizer: type) -> Callable[[_F], _F]:
    """Say by what an optimizer divides the entries of its steps, for ``metric="optimizer"``.

    It decorates a function of the optimizer, after its step, and of the index of a variable in its lists of moments.
    The function returns a tensor h, of the shape of the variable, if the step from a gradient g is g / h, up to a
    constant; None where all entries are alike. It holds for the classes derived from `optimizer` too, calls only
    `keras.ops` or what else works on the backend, and must compile.

    Args:
        optimizer: the class of optimizers.

    Raises:
        TypeError: `optimizer` is not a class of Keras optimizers.

    Examples:
        >>> @projgrad.keras.register_metric(MyAdam)
        ... def scaling(optimizer, index):
        ...     return keras.ops.sqrt(optimizer.velocities[index]) + optimizer.epsilon
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, optimizers.Optimizer)):
        raise TypeError(
            f"register_metric takes a class that derives from keras.optimizers.Optimizer, not {optimizer!r}"
        )

    def add(function: _F) -> _F:
        _known[optimizer] = function
        return function

    return add


def check_scaling(plan: Plan, optimizer: Any) -> None:
    """Raise ValueError where an entry of the plan needs a metric that is not known."""
    for entry in plan:
        if entry.in_metric:
            for variable in entry.handles:
                part = stepping(optimizer, variable)
                if part is not None:
                    _scaling(type(part))


def moments_before(plan: Plan, optimizer: Any) -> dict[int, Any]:
    """What the metric of a step needs of the state before it, by the id of the variable."""
    found = {}
    for variable in _in_metric(plan):
        part = stepping(optimizer, variable)
        if isinstance(part, optimizers.Adadelta) and _scaling(type(part)) is _adadelta:
            moved = part._accumulated_delta_vars[part._get_variable_index(variable)]
            found[id(variable)] = ops.copy(moved)  # its step changes them in place
    return found


def weights_of(optimizer: Any, variables: Sequence[Any], before: dict[int, Any]) -> list[Any]:
    """The weight of each entry in the metric of the last step, with ones before the first step.

    Args:
        optimizer: whose state it is read from.
        variables: the variables of one set.
        before: what `moments_before` gave.

    Returns:
        For each variable a tensor; None if all its entries are alike.
    """
    return [_weights(stepping(optimizer, variable), variable, before.get(id(variable))) for variable in variables]


def _weights(optimizer: Any, variable: Any, before: Any) -> Any:
    scaling = _scaling(type(optimizer))
    if scaling is None:
        return None
    index = optimizer._get_variable_index(variable)
    h = scaling(optimizer, index, before) if scaling is _adadelta else scaling(optimizer, index)
    if h is None:
        return None
    h = ops.broadcast_to(_wide(h), variable.shape)
    # positive and finite; that of a step that diverged does not matter
    h = ops.minimum(ops.where(h > 1e-37, h, 1e-37), 1e37)
    return ops.where(ops.convert_to_tensor(optimizer.iterations) > 0, h, ops.ones_like(h))


def _scaling(kind: type) -> Callable[..., Any] | None:
    return look_up(_known, kind, "keras")


def stepping(optimizer: Any, variable: Any) -> Any:
    """The optimizer that makes the steps of a variable; None before a MultiOptimizer is built."""
    while hasattr(optimizer, "inner_optimizer"):  # a LossScaleOptimizer
        optimizer = optimizer.inner_optimizer
    if hasattr(optimizer, "_var_to_optimizer_idx"):
        return optimizer.optimizers[optimizer._var_to_optimizer_idx[optimizer._var_key(variable)]]
    return None if type(optimizer).__name__ == "MultiOptimizer" else optimizer


def _in_metric(plan: Plan) -> list[Any]:
    return [variable for entry in plan if entry.in_metric for variable in entry.handles]


# -- the optimizers of Keras, each as its own step computes it --------------------------------------------------------


@register_metric(optimizers.Adam)
def _adam(optimizer: Any, index: int) -> Any:
    v = (optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities)[index]
    # the bias is corrected in the learning rate, which eps is not part of
    return ops.sqrt(_wide(v)) + optimizer.epsilon


@register_metric(optimizers.Nadam)
@register_metric(optimizers.Lamb)
def _corrected(optimizer: Any, index: int) -> Any:
    v = _wide(optimizer._velocities[index])
    steps = ops.maximum(ops.cast(optimizer.iterations, v.dtype), 1)
    return ops.sqrt(v / (1 - ops.power(ops.cast(optimizer.beta_2, v.dtype), steps))) + optimizer.epsilon


@register_metric(optimizers.Adamax)
def _adamax(optimizer: Any, index: int) -> Any:
    return _wide(optimizer._u[index]) + optimizer.epsilon


@register_metric(optimizers.RMSprop)
def _rmsprop(optimizer: Any, index: int) -> Any:
    v = _wide(optimizer._velocities[index])
    if optimizer.centered:
        v = v - ops.square(_wide(optimizer._average_gradients[index]))
    return ops.sqrt(ops.maximum(v + optimizer.epsilon, 0))


@register_metric(optimizers.Adagrad)
def _adagrad(optimizer: Any, index: int) -> Any:
    return ops.sqrt(_wide(optimizer._accumulators[index]) + optimizer.epsilon)


@register_metric(optimizers.Adadelta)
def _adadelta(optimizer: Any, index: int, moved: Any) -> Any:
    """Besides, of how far it moved until before the step."""
    eps = optimizer.epsilon
    return ops.sqrt(_wide(optimizer._accumulated_grads[index]) + eps) / ops.sqrt(_wide(moved) + eps)


@register_metric(optimizers.Adafactor)
def _adafactor(optimizer: Any, index: int) -> Any:
    return ops.sqrt(_wide(optimizer._v[index]))


_known[optimizers.SGD] = None
_known[optimizers.Lion] = "its steps have the sign of the gradient, but not its size"
_known[optimizers.Ftrl] = "it makes the weights of sums over all its steps, and so forgets the projected ones"
if hasattr(optimizers, "Muon"):
    _known[optimizers.Muon] = "its steps mix the entries of the gradient"


def _wide(x: Any) -> Any:
    x = ops.convert_to_tensor(x)
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")
