"""Gradients, steps and momentum of a torch optimizer without the part that points out of the sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projgrad.plan import PlanEntry
from projgrad.tag import GRADIENT, UPDATE
from projgrad_backends.torch.sharded import is_sharded

__all__ = ["Tangents", "check_tangent"]

_MOMENTUM = ("exp_avg", "momentum_buffer")  # in the state of a parameter: sums of gradients


class Tangents:
    """What is done around a step for the entries of a plan that ask for it.

    Args:
        entries: these, with the positions of their parameters in the groups as handles.
        groups: the param groups.
        steps: the number of steps made before.

    Raises:
        ValueError: a parameter is sharded.
    """

    def __init__(self, entries: Sequence[PlanEntry], groups: list[dict[str, Any]], steps: int) -> None:
        self._held = [([groups[g]["params"][i] for g, i in entry.handles], entry) for entry in entries]
        self._steps = steps
        self._old: list[list[Tensor] | None] = []
        for tensors, entry in self._held:
            check_tangent(entry, tensors)  # they may have been sharded since

    @torch.no_grad()
    def gradients(self) -> None:
        """Make the gradients tangent."""
        for tensors, entry in self._held:
            gradients = [x.grad for x in tensors]
            if entry.tag.tangent == GRADIENT and all(g is not None for g in gradients):
                if any(g.layout != torch.strided for g in gradients if g is not None):
                    raise ValueError(f"{entry.name}: its gradient is sparse; tangent={GRADIENT!r} needs a dense one")
                self._descend(entry, tensors, gradients, self._steps)

    @torch.no_grad()
    def before(self) -> None:
        """Note where the parameters are whose step is to be made tangent."""
        self._old = [
            [x.clone() for x in tensors] if entry.tag.tangent == UPDATE else None for tensors, entry in self._held
        ]

    @torch.no_grad()
    def after(self) -> None:
        """Make the steps tangent."""
        for (tensors, entry), old in zip(self._held, self._old, strict=True):
            if old is None:
                continue
            made = [x - start for x, start in zip(tensors, old, strict=True)]
            for x, start, step in zip(tensors, old, entry.tangent(old, made, self._steps), strict=True):
                torch.add(start, step, out=x)

    @torch.no_grad()
    def momentum(self, state: Any, steps: int) -> None:
        """Make the momentum tangent where the parameters are after the step and the projection."""
        for tensors, entry in self._held:
            for name in _MOMENTUM:
                found = [state[x].get(name) if x in state else None for x in tensors]
                if all(isinstance(m, Tensor) and m.shape == x.shape for m, x in zip(found, tensors, strict=True)):
                    self._descend(entry, tensors, found, steps)

    def _descend(self, entry: PlanEntry, tensors: Sequence[Tensor], sums: list[Any], steps: int) -> None:
        """Make sums of gradients, which are subtracted, tangent in place."""
        for m, direction in zip(sums, entry.tangent(tensors, [-m for m in sums], steps), strict=True):
            m.copy_(-direction)


def check_tangent(entry: PlanEntry, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError where tangents are asked for and a parameter is sharded."""
    if entry.tag.tangent is not None and is_sharded(tensors):
        raise ValueError(f"{entry.name}: tangent={entry.tag.tangent!r} is not implemented for sharded parameters")
