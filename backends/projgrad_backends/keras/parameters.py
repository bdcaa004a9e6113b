"""The parameters of a Keras model as the rules see them: their names, layers and tags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import layers

from projgrad.constraint import Constraint
from projgrad.rules import Parameter, Use
from projgrad_backends.keras.incoming import incoming

__all__ = ["described", "in_list", "in_model", "is_built", "path", "short_names"]

_NO_LAYER = 'only a layer tells what is "incoming": pass model=..., or give the axes as numbers, e.g. axis=0'
# the weights of these stand on a cell that the user did not make
_WITH_CELL = (
    layers.SimpleRNN,
    layers.LSTM,
    layers.GRU,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
)


def described(model: Any) -> list[Parameter]:
    """The parameters of a built layer or model, or of a list of variables, which are their handles.

    Raises:
        TypeError, ValueError: it is neither, or it is not built.
    """
    if isinstance(model, keras.layers.Layer):
        if not model.built:
            raise ValueError(f"{model.name} is not built, so it has no weights yet: call it once, or build it")
        return in_model(model)
    if isinstance(model, Iterable):
        return in_list(list(model))
    raise TypeError(f"give a Keras model, a layer or a list of variables, not {type(model).__name__}")


def is_built(model: Any) -> bool:
    """Whether the model and all layers in it have their weights."""
    return all(layer.built for layer in model._flatten_layers())


def in_model(model: Any) -> list[Parameter]:
    """The parameters of a model or layer, frozen ones too, in the order of its weights."""
    found: dict[int, tuple[Any, list[Use]]] = {}
    parts = model._flatten_layers()
    outer = {id(part.cell): part for part in parts if isinstance(part, _WITH_CELL)}
    for part in parts:
        # a statistic, such as a moving mean, is no parameter, and a frozen weight is one
        for variable in part._trainable_variables:
            use = _use(variable, outer.get(id(part), part), f"{model.name}/")
            found.setdefault(id(variable), (variable, []))[1].append(use)
    order = {id(variable): i for i, variable in enumerate(model.weights)}
    held = [_parameter(variable, tuple(uses)) for variable, uses in found.values()]
    return sorted(held, key=lambda parameter: order.get(id(parameter.handle), len(order)))


def in_list(variables: Sequence[Any]) -> list[Parameter]:
    """Variables of unknown layers as parameters."""
    paths = [path(variable) for variable in variables]
    return [
        _parameter(variable, (Use(short, _NO_LAYER, tag=_tag(variable), aliases=(full,)),))
        for variable, short, full in zip(variables, short_names(paths), paths, strict=True)
    ]


def path(variable: Any) -> str:
    """The full name of a Keras variable, or of a TensorFlow one."""
    return getattr(variable, "path", None) or str(variable.name).removesuffix(":0")


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths without the first component, where that is the same in all of them (the name of the model)."""
    first = {p.partition("/")[0] for p in paths}
    return [p.partition("/")[2] for p in paths] if len(first) == 1 and all("/" in p for p in paths) else list(paths)


def _use(variable: Any, layer: Any, prefix: str) -> Use:
    full, attribute = path(variable), variable.name
    name = full.removeprefix(prefix)
    return Use(name, incoming(layer, attribute), layer, attribute, _tag(variable), (full,))


def _tag(variable: Any) -> Constraint | None:
    tag = getattr(variable, "constraint", None)
    return tag if isinstance(tag, Constraint) else None


def _parameter(variable: Any, uses: tuple[Use, ...]) -> Parameter:
    return Parameter(uses, tuple(variable.shape), variable.dtype, handle=variable)
