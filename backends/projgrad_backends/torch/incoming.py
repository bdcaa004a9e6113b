"""The axes of the weights that feed one unit, per layer type of PyTorch: the one table to extend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["incoming"]

Axes = tuple[int, ...]


def _all_but(axis: int) -> Callable[[nn.Module, torch.Tensor], Axes]:
    return lambda layer, weight: tuple(d for d in range(weight.ndim) if d != axis)


def _transposed(layer: nn.Module, weight: torch.Tensor) -> Axes | str:
    # stored as (in, out / groups, *kernel): with groups, the inputs of one output are only some of the rows
    if layer.groups != 1:
        return (
            "in a transposed convolution with groups, the weights of one unit are not whole slices of the array; "
            "give axes as numbers"
        )
    return tuple(d for d in range(weight.ndim) if d != 1)


_Rule = Callable[[nn.Module, torch.Tensor], Axes | str]
_WEIGHTS: list[tuple[type[nn.Module], str, _Rule]] = [
    (nn.Linear, "weight", _all_but(0)),
    (nn.Bilinear, "weight", _all_but(0)),
    (nn.modules.conv._ConvTransposeNd, "weight", _transposed),
    (nn.modules.conv._ConvNd, "weight", _all_but(0)),
    (nn.Embedding, "weight", _all_but(0)),
    (nn.EmbeddingBag, "weight", _all_but(0)),
    (nn.RNNBase, "weight_", _all_but(0)),
    (nn.RNNCellBase, "weight_", _all_but(0)),
    (nn.MultiheadAttention, "in_proj_weight", _all_but(0)),
    (nn.MultiheadAttention, "q_proj_weight", _all_but(0)),
    (nn.MultiheadAttention, "k_proj_weight", _all_but(0)),
    (nn.MultiheadAttention, "v_proj_weight", _all_but(0)),
]


# layers of libraries that may not be there, by the package and name of their class
_BY_NAME: dict[tuple[str, str, str], _Rule] = {
    ("transformers", "Conv1D", "weight"): _all_but(1),  # a linear layer of GPT-2, stored as (in, out)
}


def incoming(layer: nn.Module, attribute: str, weight: torch.Tensor) -> Axes | str:
    """The "incoming" axes of a layer's parameter, or the reason why it has none."""
    for kind, start, rule in _WEIGHTS:
        if isinstance(layer, kind) and (attribute.startswith(start) if start.endswith("_") else attribute == start):
            return rule(layer, weight)
    for known in type(layer).__mro__:
        named = _BY_NAME.get((known.__module__.partition(".")[0], known.__name__, attribute))
        if named is not None:
            return named(layer, weight)
    return (
        f'axis="incoming" is not known for {attribute!r} of {type(layer).__name__}: give axes as numbers (axis=0 for a '
        f"vector), or leave it free with a rule that maps it to None"
    )
