"""The parameters of a Keras model as the rules see them: their names, layers and tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import layers

from projgrad.constraint import Constraint
from projgrad.rules import Parameter, Use
from projgrad_backends.keras.incoming import incoming, rank

__all__ = ["described", "in_list", "in_model", "is_built", "path", "refused", "short_names"]

_NO_LAYER = 'only a layer tells what is "incoming": pass model=..., or give the axes as numbers, e.g. axis=0'
_LORA = (
    "enable_lora() has frozen it, and what the layer computes with is its sum with the product of its LoRA weights, "
    "which no projection of it keeps in a set: leave it free by a None rule, or train without LoRA"
)
_QUANTIZED = (
    "it is quantized, so it cannot go to the nearest point of a set: leave it free by a None rule, and constrain it "
    "before it is quantized"
)
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
    found: dict[int, tuple[Any, list[Use], str]] = {}
    parts = model._flatten_layers()
    outer = {id(part.cell): part for part in parts if isinstance(part, _WITH_CELL)}
    for part in parts:
        # a statistic, such as a moving mean, is no parameter, and a frozen weight is one
        quantized = [variable for variable in part._non_trainable_variables if _is_quantized(part, variable)]
        for variable in (*part._trainable_variables, *quantized):
            use = _use(variable, outer.get(id(part), part), f"{model.name}/")
            found.setdefault(id(variable), (variable, [], refused(part, variable)))[1].append(use)
    order = {id(variable): i for i, variable in enumerate(model.weights)}
    held = [_parameter(variable, tuple(uses), why) for variable, uses, why in found.values()]
    return sorted(held, key=lambda parameter: order.get(id(parameter.handle), len(order)))


def in_list(variables: Sequence[Any]) -> list[Parameter]:
    """Variables of unknown layers as parameters."""
    paths = [path(variable) for variable in variables]
    found = [
        _parameter(variable, (Use(short, _NO_LAYER, tag=_tag(variable), aliases=(full,)),))
        for variable, short, full in zip(variables, short_names(paths), paths, strict=True)
    ]
    # what LoRA has frozen is not among them, and a rule may select it nonetheless
    adapted = [p for p in found if re.search(r"(^|/)lora_\w+_a$", p.name)]
    return [*found, *(_frozen_by_lora(parameter) for parameter in adapted)]


def refused(layer: Any, variable: Any) -> str:
    """Why a variable of this layer must not be constrained; empty if it may be."""
    if any(other.name == f"lora_{variable.name}_a" for other in layer._trainable_variables):
        return _LORA
    return _QUANTIZED if _is_quantized(layer, variable) else ""


def _is_quantized(layer: Any, variable: Any) -> bool:
    known = getattr(layer, "quantization_mode", None) is not None and rank(layer, variable.name) is not None
    return known and "int" in str(variable.dtype)


def _frozen_by_lora(parameter: Parameter) -> Parameter:
    use = parameter.uses[0]
    name, full = (re.sub(r"lora_(\w+)_a$", r"\1", spelling) for spelling in (use.name, use.aliases[0]))
    return Parameter((Use(name, _NO_LAYER, aliases=(full,)),), (), parameter.dtype, refused=_LORA)


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


def _parameter(variable: Any, uses: tuple[Use, ...], why: str = "") -> Parameter:
    return Parameter(uses, tuple(variable.shape), variable.dtype, refused=why, handle=variable)
