"""Projecting and checking parameters without an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from projgrad.plan import Plan
from projgrad.rules import Rules
from projgrad_backends.torch.inplace import project_all
from projgrad_backends.torch.parameters import of_model, of_tensor, resolved

__all__ = ["project_params", "violations"]

Params = nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def project_params(params: Params, rules: Rules | None = None, *, step: int | None = None) -> None:
    """Replace, in place, every constrained parameter by the nearest point of its set.

    Nearest in the Euclidean norm always, as without an optimizer there is no other metric.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.
        step: the number of steps made, for schedules, and to project only what is due then by the option `every`; None
            to project all.

    Raises:
        TypeError, ValueError: the rules do not fit, or have a schedule and there is no step; nothing is changed then.
    """
    due = (entry for entry in _constrained(params, rules) if step is None or entry.due(step))
    project_all(((entry.handles, entry, None) for entry in due), step)


@torch.no_grad()
def violations(params: Params, rules: Rules | None = None, *, step: int | None = None) -> dict[str, float]:
    """The largest distance of any group from its set, for every constrained parameter by name.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.
        step: the number of steps made, for schedules.

    Raises:
        TypeError, ValueError: the rules do not fit, or have a schedule and there is no step.
    """
    found = {entry.name: entry.violation(entry.handles, step) for entry in _constrained(params, rules)}
    return {name: float(distances.max()) if distances.numel() else 0.0 for name, distances in found.items()}


def _constrained(params: Params, rules: Rules | None) -> Plan:
    if isinstance(params, nn.Module):
        known = of_model(params)
    else:
        known = [of_tensor(tensor, name) for name, tensor in _named(params)]
    found = resolved(rules, known)
    if rules is None and not found:
        raise ValueError("nothing is tagged: give rules, or tag layers with constrain(layer, ...)")
    return found


def _named(params: Any) -> list[tuple[str, torch.Tensor]]:
    named = params.items() if isinstance(params, Mapping) else params
    pairs = [] if isinstance(named, torch.Tensor) else list(named)
    if not pairs or not all(
        isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], torch.Tensor) for p in pairs
    ):
        raise TypeError("give a torch.nn.Module, a mapping of names to tensors, or model.named_parameters()")
    return pairs
