"""Projecting and checking parameters without an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from projgrad.constraint import Constraint
from projgrad.rules import Parameter, Rules, resolve
from projgrad_backends.torch.inplace import project_all
from projgrad_backends.torch.parameters import of_model, of_tensor

__all__ = ["project_params", "violations"]

Params = nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def project_params(params: Params, rules: Rules | None = None) -> None:
    """Replace, in place, every constrained parameter by the nearest point of its set.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.

    Raises:
        TypeError, ValueError: the rules do not fit; nothing is changed then.
    """
    project_all((tensor, constraint) for _, tensor, constraint in _constrained(params, rules))


@torch.no_grad()
def violations(params: Params, rules: Rules | None = None) -> dict[str, float]:
    """The largest distance of any group from its set, for every constrained parameter by name.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.

    Raises:
        TypeError, ValueError: the rules do not fit.
    """
    found = list(_constrained(params, rules))
    return {
        name: float(constraint.violation(tensor).max()) if tensor.numel() else 0.0 for name, tensor, constraint in found
    }


def _constrained(params: Params, rules: Rules | None) -> Iterator[tuple[str, torch.Tensor, Constraint]]:
    known: list[tuple[Parameter, torch.Tensor]]
    if isinstance(params, nn.Module):
        known = of_model(params)
    else:
        known = [(of_tensor(tensor, name), tensor) for name, tensor in _named(params)]
    found = resolve(rules, [parameter for parameter, _ in known])
    if rules is None and not found:
        raise ValueError("nothing is tagged: give rules, or tag layers with constrain(layer, ...)")
    return ((known[n][0].name, known[n][1], constraint) for n, constraint in found.items())


def _named(params: Any) -> list[tuple[str, torch.Tensor]]:
    named = params.items() if isinstance(params, Mapping) else params
    pairs = [] if isinstance(named, torch.Tensor) else list(named)
    if not pairs or not all(
        isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], torch.Tensor) for p in pairs
    ):
        raise TypeError("give a torch.nn.Module, a mapping of names to tensors, or model.named_parameters()")
    return pairs
