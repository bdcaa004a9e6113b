"""Constraints on the layers themselves, where Keras applies and saves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import layers

from projgrad.axes import INCOMING
from projgrad.constraint import Constraint
from projgrad.joint import all_axes
from projgrad.tag import Tag
from projgrad_backends.keras.incoming import incoming, rank
from projgrad_backends.keras.parameters import refused

__all__ = ["constrain"]

_Layer = TypeVar("_Layer", bound=Any)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SHARED = (layers.MultiHeadAttention, layers.GroupQueryAttention)


def constrain(layer: _Layer, **constraints: Constraint | Tag | Callable[[Any], Any] | None) -> _Layer:
    """Tag parameters of a layer, built or not, with constraints that plain Keras applies and saves.

    ``axis="incoming"`` becomes numbers, since Keras hands a constraint the bare weights. Keras applies the constraints
    after every step of any optimizer, except to weights without a gradient and to averages; `ProjectedOptimizer`, which
    finds the tags, covers these too.

    Args:
        layer: the layer; a `Bidirectional` stands for both its layers, an RNN layer for its cell.
        constraints: by the name of the parameter: `kernel`, `bias`, `recurrent_kernel`, `embeddings`,
            `depthwise_kernel`, `pointwise_kernel`, ...; None takes a tag away.

    Returns:
        The layer.

    Raises:
        TypeError: a constraint is neither a constraint nor a function.
        ValueError: the layer has no such parameter, its number of dimensions is not known before it is built, LoRA has
            frozen it, or the constraint does not fit; then nothing is changed.

    Examples:
        >>> hidden = projgrad.keras.constrain(keras.layers.Dense(64), kernel=pg.MaxNorm(3.0))
    """
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"constrain tags a Keras layer, not {type(layer).__name__}")
    changes = [
        (part, *_change(part, name, constraint)) for name, constraint in constraints.items() for part in _parts(layer)
    ]
    for part, slot, variable, constraint in changes:
        setattr(part, slot, constraint)
        if variable is not None:
            variable.constraint = constraint
    return layer


def _parts(layer: Any) -> list[Any]:
    if isinstance(layer, layers.Bidirectional):
        return [*_parts(layer.forward_layer), *_parts(layer.backward_layer)]
    if isinstance(layer, layers.Wrapper):
        return _parts(layer.layer)
    if isinstance(layer, _SHARED):
        raise ValueError(
            f"{layer.name}: the projections of {type(layer).__name__} cannot be saved with constraints of their own: "
            f'give ProjectedOptimizer a rule such as "*{layer.name}/*kernel", and the model'
        )
    return [getattr(layer, "cell", layer)]


def _change(part: Any, name: str, constraint: Any) -> tuple[str, Any, Any]:
    """The attribute of the layer to set, the variable if it is there, and the constraint with numeric axes."""
    if isinstance(part, _DEPTHWISE) and name == "depthwise_kernel":
        name = "kernel"
    slot, dimensions = _slot(part, name), rank(part, name)
    variable = next((v for v in part._trainable_variables if v.name == name), None)
    if slot is None or (part.built and variable is None) or (name == "bias" and not getattr(part, "use_bias", True)):
        raise ValueError(f"{part.name}, a {type(part).__name__}, has no {name} that Keras can constrain")
    why = "" if variable is None or constraint is None else refused(part, variable)
    if why:
        raise ValueError(f"{part.name}: {name}: {why}")
    if isinstance(constraint, Tag):
        if constraint != Tag(constraint.constraint):
            raise ValueError(f"{part.name}: Keras knows no options such as those of {constraint}: give them as a rule")
        constraint = constraint.constraint
    if isinstance(constraint, type) or not (constraint is None or callable(constraint)):
        raise TypeError(f"{name}={constraint!r} is neither a constraint nor a function of the weights")
    if not isinstance(constraint, Constraint):
        return slot, variable, constraint
    try:
        if variable is not None:
            bound = constraint.bind(tuple(variable.shape), incoming(part, name))
        elif dimensions is None:
            if rank(part, longer := f"{name}_kernel") is not None or (
                name == "depthwise" and isinstance(part, _DEPTHWISE)
            ):
                raise ValueError(f"its name is {longer}")
            raise ValueError("how many dimensions it will have is not known: build the layer first")
        else:  # without an axis, all there is to check is the shape, which is yet to come
            free = constraint.axis is None or constraint.axis == ()
            if free and INCOMING in all_axes(constraint):
                raise ValueError('which axes are "incoming" is found out when the layer is built: build it first')
            lengths: Any = (None,) * dimensions
            bound = constraint if free else constraint.bind(lengths, incoming(part, name))
    except ValueError as error:
        raise ValueError(f"{part.name}: {name} cannot have {constraint}: {error}") from None
    return slot, variable, bound


def _slot(part: Any, name: str) -> str | None:
    if isinstance(part, _DEPTHWISE) and name == "kernel":
        return "depthwise_constraint"
    candidates = (f"{name}_constraint", f"{name.removesuffix('_kernel')}_constraint")
    return next((slot for slot in candidates if hasattr(part, slot)), None)
