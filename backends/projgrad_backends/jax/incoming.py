"""The axes of the weights that feed one unit, per layer type of equinox and flax: the one table to extend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["by_layer", "by_name"]

Axes = tuple[int, ...]
_Rule = Callable[[Any], Axes | str]

_NUMBERS = "give axes as numbers (axis=0 for a vector), or leave it free with a rule that maps it to None"

# Axes are counted from the end, so that they also hold for a stack of layers (vmapped, scanned).


def _axes(*axes: int) -> _Rule:
    return lambda layer: axes


def _equinox_conv(layer: Any) -> Axes:
    return tuple(range(-1 - layer.num_spatial_dims, 0))  # (out, in / groups, *kernel)


def _equinox_transposed(layer: Any) -> Axes | str:
    if layer.groups != 1:
        return f'axis="incoming" is not defined for a transposed convolution with groups: {_NUMBERS}'
    return _equinox_conv(layer)


def _flax_conv(layer: Any) -> Axes:
    return tuple(range(-2 - len(layer.kernel_size), -1))  # (*kernel, in / groups, out)


def _flax_transposed(layer: Any) -> Axes:
    spatial = tuple(range(-2 - len(layer.kernel_size), -2))
    return (*spatial, -1 if layer.transpose_kernel else -2)


def _flax_general(layer: Any) -> Axes:
    inputs, outputs = len(layer.axis), len(layer.out_features)
    return tuple(range(-inputs - outputs, -outputs))  # (*batch, *in, *out)


def _flax_einsum(layer: Any) -> Axes | str:
    equation = (layer.einsum_str or "").replace(" ", "")
    operands, _, result = equation.partition("->")
    kernel = operands.partition(",")[2]
    summed = tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter not in result)
    if not summed or "." in kernel:
        return f'axis="incoming" cannot be read from the equation {layer.einsum_str!r}: {_NUMBERS}'
    return summed


_LAYERS: dict[str, dict[str, _Rule]] = {
    "equinox.Linear": {"weight": _axes(-1)},
    "equinox.Conv": {"weight": _equinox_conv},
    "equinox.ConvTranspose": {"weight": _equinox_transposed},
    "equinox.Embedding": {"weight": _axes(-1)},
    "equinox.GRUCell": {"weight_ih": _axes(-1), "weight_hh": _axes(-1)},
    "equinox.LSTMCell": {"weight_ih": _axes(-1), "weight_hh": _axes(-1)},
    "flax.Linear": {"kernel": _axes(-2)},
    "flax.LinearGeneral": {"kernel": _flax_general},
    "flax.Einsum": {"kernel": _flax_einsum},
    "flax.Conv": {"kernel": _flax_conv},
    "flax.ConvTranspose": {"kernel": _flax_transposed},
    "flax.Embed": {"embedding": _axes(-1)},
}


def by_layer(layer: Any, attribute: str, ndim: int) -> Axes | str:
    """The "incoming" axes of a layer's parameter with `ndim` dimensions, or the reason why it has none."""
    for kind in type(layer).__mro__:
        rules = _LAYERS.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}", {})
        if attribute in rules:
            axes = rules[attribute](layer)
            return axes if isinstance(axes, str) else tuple(a + ndim for a in axes)
    return f'axis="incoming" is not known for {attribute!r} of {type(layer).__name__}: {_NUMBERS}'


# (name of the layer, name, rank) -> axes, in a flax tree where these leave no doubt. A kernel of four dimensions may
# also be a DenseGeneral's, a transposed convolution's or a stack of kernels, so its layer must be called a convolution.
_NAMES: list[tuple[str, str, int, Axes]] = [
    (r"(?!.*(transpose|einsum|general|local|attention)).*", "kernel", 2, (0,)),
    (r"conv(2d)?_?\d*", "kernel", 4, (0, 1, 2)),
    (r"conv(3d)?_?\d*", "kernel", 5, (0, 1, 2, 3)),
    (r".*", "embedding", 2, (1,)),
]


def by_name(name: str, ndim: int) -> Axes | str:
    """The "incoming" axes of a flax parameter of which only name and rank are known, or the reason why it has none."""
    path, _, last = name.rpartition("/")
    layer = path.rpartition("/")[2].lower()
    for pattern, parameter, rank, axes in _NAMES:
        # words of doubt count anywhere on the path, a convolution's name only for the layer itself
        if (parameter, rank) == (last, ndim) and re.fullmatch(pattern, path.lower() if rank == 2 else layer):
            return axes
    if last in ("kernel", "embedding"):
        return (
            f'axis="incoming" is ambiguous for a {last} of {ndim} dimensions where the layer is not known: give axes '
            f"as numbers, or pass model= (an nnx.Module)"
        )
    return f'axis="incoming" is not known for {last!r}: {_NUMBERS}'
