"""Gradients, steps and momentum of a torch optimizer without the part that points out of the sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projgrad.plan import PlanEntry
from projgrad.tag import GRADIENT, UPDATE
from projgrad_backends.torch.sharded import Whole, is_sharded, local_part, place_gradient

__all__ = ["Tangents"]

_MOMENTUM = ("exp_avg", "momentum_buffer")  # in the state of a parameter: sums of gradients


class Tangents:
    """What is done around a step for the entries of a plan that ask for it.

    Args:
        entries: these, with the positions of their parameters in the groups as handles.
        groups: the param groups.
        steps: the number of steps made before.
    """

    def __init__(self, entries: Sequence[PlanEntry], groups: list[dict[str, Any]], steps: int) -> None:
        self._held = [([groups[g]["params"][i] for g, i in entry.handles], entry) for entry in entries]
        self._steps = steps
        self._old: list[list[Tensor] | None] = []

    @torch.no_grad()
    def gradients(self) -> None:
        """Make the gradients tangent."""
        for tensors, entry in self._held:
            if entry.tag.tangent != GRADIENT or any(x.grad is None for x in tensors):
                continue
            if any(x.grad.layout != torch.strided for x in tensors if x.grad is not None):
                raise ValueError(f"{entry.name}: its gradient is sparse; tangent={GRADIENT!r} needs a dense one")
            for x in tensors:
                place_gradient(x)
            self._descend(entry, tensors, [x.grad for x in tensors], self._steps)

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
            for x, start, step in zip(tensors, old, _tangent(entry, old, made, self._steps), strict=True):
                torch.add(local_part(start), step, out=local_part(x))

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
        for m, direction in zip(sums, _tangent(entry, tensors, [-m for m in sums], steps), strict=True):
            local_part(m).copy_(-direction)


def _tangent(entry: PlanEntry, points: Sequence[Tensor], directions: Sequence[Tensor], steps: int) -> list[Tensor]:
    """`PlanEntry.tangent`; of sharded parameters, the parts that this process has."""
    if not is_sharded(points):
        return entry.tangent(points, directions, steps)
    whole = Whole(points, entry.constraint, joint=entry.layout is not None)
    return whole.parts(entry.tangent(whole.arrays, whole.placed(directions), steps), directions)
