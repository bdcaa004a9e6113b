"""Which weights feed one unit, layer by layer: the axes that "incoming" stands for.

To add a layer, add a line to `_TABLE`: for each of its parameters, a function of the layer that gives the number of
dimensions and the axes. Neither needs the layer to be built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

__all__ = ["incoming", "rank"]

Axes = tuple[int, ...] | str
_BIAS = "a bias has no incoming weights: give the axes as numbers, e.g. axis=0, or leave it free by a None rule"


def incoming(layer: Any, attribute: str) -> Axes:
    """The axes of the weights that feed one unit of `layer`, or the reason why there are none.

    Args:
        layer: a Keras layer, built or not.
        attribute: the name of one of its parameters, such as "kernel".
    """
    found = _look_up(layer, attribute)
    if found is not None:
        return found[1]
    if "bias" in attribute:
        return _BIAS
    return (
        f'"incoming" is not known for {attribute} of {type(layer).__name__}: give the axes as numbers, e.g. axis=0, '
        "or leave it free by a None rule"
    )


def rank(layer: Any, attribute: str) -> int | None:
    """The number of dimensions of that parameter, known before the layer is built; None if it is not."""
    found = _look_up(layer, attribute)
    return None if found is None else found[0]


def _look_up(layer: Any, attribute: str) -> tuple[int, Axes] | None:
    for kind in type(layer).__mro__:
        if attribute in _TABLE.get(kind, {}):
            return _TABLE[kind][attribute](layer)
    return None


def _spatial(layer: Any) -> int:
    return getattr(layer, "cell", layer).rank


def _first(layer: Any) -> tuple[int, Axes]:
    return 2, (0,)


def _rows(layer: Any) -> tuple[int, Axes]:
    return 2, (1,)


def _vector(layer: Any) -> tuple[int, Axes]:
    return 1, _BIAS


def _all_but_last(layer: Any) -> tuple[int, Axes]:
    n = _spatial(layer)
    return n + 2, tuple(range(n + 1))


def _transposed(layer: Any) -> tuple[int, Axes]:
    n = _spatial(layer)  # the kernel is (..., out, in)
    return n + 2, (*range(n), n + 1)


def _depthwise(layer: Any) -> tuple[int, Axes]:
    n = _spatial(layer)  # one unit is one (channel, multiplier)
    return n + 2, tuple(range(n))


def _gru_bias(layer: Any) -> tuple[int, Axes]:
    return (2 if layer.reset_after else 1), _BIAS


def _einsum(layer: Any) -> tuple[int, Axes]:
    inputs, output = layer.equation.replace(" ", "").split("->")
    kernel = inputs.split(",")[1]
    axes = tuple(i for i, label in enumerate(kernel) if label not in output)
    return len(kernel), axes or f"{layer.equation!r} contracts no axis of the kernel: give the axes as numbers"


def _einsum_bias(layer: Any) -> tuple[int, Axes]:
    # the bias has the output's axes from the first of `bias_axes` on
    output = layer.equation.replace(" ", "").split("->")[1]
    return len(output) - min(output.index(label) for label in layer.bias_axes or output[-1]), _BIAS


_Row = dict[str, Callable[[Any], tuple[int, Axes]]]
_DENSE: _Row = {"kernel": _first, "bias": _vector}
_CONV: _Row = {"kernel": _all_but_last, "bias": _vector}
_CONV_TRANSPOSE: _Row = {"kernel": _transposed, "bias": _vector}
_DEPTHWISE: _Row = {"kernel": _depthwise, "bias": _vector}
_SEPARABLE: _Row = {"depthwise_kernel": _depthwise, "pointwise_kernel": _all_but_last, "bias": _vector}
_RECURRENT: _Row = {"kernel": _first, "recurrent_kernel": _first, "bias": _vector}
_GRU: _Row = {**_RECURRENT, "bias": _gru_bias}
_CONV_RECURRENT: _Row = {"kernel": _all_but_last, "recurrent_kernel": _all_but_last, "bias": _vector}

# MultiHeadAttention, GroupQueryAttention and Bidirectional hold their weights in layers of these kinds
_TABLE: dict[type, _Row] = {
    layers.Dense: _DENSE,
    layers.EinsumDense: {"kernel": _einsum, "bias": _einsum_bias},
    layers.Embedding: {"embeddings": _rows},
    layers.Conv1D: _CONV,
    layers.Conv2D: _CONV,
    layers.Conv3D: _CONV,
    layers.Conv1DTranspose: _CONV_TRANSPOSE,
    layers.Conv2DTranspose: _CONV_TRANSPOSE,
    layers.Conv3DTranspose: _CONV_TRANSPOSE,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.SeparableConv1D: _SEPARABLE,
    layers.SeparableConv2D: _SEPARABLE,
    layers.SimpleRNN: _RECURRENT,
    layers.SimpleRNNCell: _RECURRENT,
    layers.LSTM: _RECURRENT,
    layers.LSTMCell: _RECURRENT,
    layers.GRU: _GRU,
    layers.GRUCell: _GRU,
    layers.ConvLSTM1D: _CONV_RECURRENT,
    layers.ConvLSTM2D: _CONV_RECURRENT,
    layers.ConvLSTM3D: _CONV_RECURRENT,
}
if hasattr(keras.layers, "ReversibleEmbedding"):
    _TABLE[layers.ReversibleEmbedding] = {"embeddings": _rows, "reverse_embeddings": _first}
