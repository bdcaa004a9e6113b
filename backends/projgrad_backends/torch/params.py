"""Projecting and checking parameters without an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from projgrad.audit import check_inside
from projgrad.plan import Plan, PlanEntry
from projgrad.rules import Parameter, Rules
from projgrad_backends.torch.inplace import project_all
from projgrad_backends.torch.parameters import of_model, of_tensor, resolved
from projgrad_backends.torch.sharded import Whole, is_sharded, whole

__all__ = ["Params", "audit", "known_in", "project_params", "violations"]

Params = nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def project_params(params: Params, rules: Rules | None = None, *, step: int | None = None) -> None:
    """Replace, in place, every constrained parameter by the nearest point of its set.

    Nearest in the Euclidean norm always, as without an optimizer there is no other metric. Where parameters are
    sharded, call it in all processes.

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

    Where parameters are sharded, call it in all processes; the numbers are the same in all.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.
        step: the number of steps made, for schedules.

    Raises:
        TypeError, ValueError: the rules do not fit, or have a schedule and there is no step.
    """
    return {entry.name: float(_violation(entry, step)) for entry in _constrained(params, rules)}


@torch.no_grad()
def audit(params: Params, rules: Rules | None = None, *, step: int | None = None, tol: float | None = None) -> None:
    """Raise an error that names the parameters outside of their sets, as after averaging or loading there may be some.

    Where parameters are sharded, call it in all processes: they are gathered.

    Args:
        params: a module, a mapping of names to tensors (such as a state dict), or named parameters.
        rules: as in `ProjectedOptimizer`; None for the tags of `constrain`.
        step: the number of steps made, for schedules.
        tol: the distance from the set that is allowed; None for 1.5 times `projgrad.tolerance`.

    Raises:
        TypeError: the rules do not fit.
        ValueError: a parameter is outside or NaN; the rules do not fit, or have a schedule and there is no step.
    """
    held = ((entry, [whole(x) for x in entry.handles]) for entry in _constrained(params, rules))
    check_inside(held, step, tol)


def _violation(entry: PlanEntry, step: int | None) -> torch.Tensor:
    part = None
    tensors: Sequence[torch.Tensor] = entry.handles
    if is_sharded(tensors):
        part = Whole(tensors, entry.constraint, joint=entry.layout is not None)
        tensors = part.arrays
    distances = entry.violation(tensors, step)
    largest = distances.max() if distances.numel() else distances.new_zeros(())
    return largest if part is None else whole(part.of_each(largest)).amax()


def _constrained(params: Params, rules: Rules | None) -> Plan:
    found = resolved(rules, known_in(params))
    if rules is None and not found:
        raise ValueError("nothing is tagged: give rules, or tag layers with constrain(layer, ...)")
    return found


def known_in(params: Params) -> list[Parameter]:
    """Every parameter, once.

    Raises:
        TypeError: it is not a module, a mapping, or named parameters.
    """
    if isinstance(params, nn.Module):
        return of_model(params)
    return [of_tensor(tensor, name) for name, tensor in _named(params)]


def _named(params: Any) -> list[tuple[str, torch.Tensor]]:
    named = params.items() if isinstance(params, Mapping) else params
    pairs = [] if isinstance(named, torch.Tensor) else list(named)
    if not pairs or not all(
        isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], torch.Tensor) for p in pairs
    ):
        raise TypeError("give a torch.nn.Module, a mapping of names to tensors, or model.named_parameters()")
    return pairs
