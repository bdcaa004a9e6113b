"""What lets a run that is resumed from a checkpoint go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from projgrad.plan import PlanEntry
from projgrad_backends.torch.held import Position
from projgrad_backends.torch.sharded import any_nonzero, local_part

__all__ = ["Undo", "beside", "counts", "is_done", "only_initialises", "publish", "saved_steps"]

# beside the state, and in the first param group, since distributed checkpointing keeps nothing beside the two
_KEY = "projgrad"

Groups = list[dict[str, Any]]


def counts(entry: PlanEntry) -> bool:
    """Whether it matters which step it is, if only because projecting once more changes the parameter."""
    return entry.counts or not entry.settles


def is_done(entry: PlanEntry, steps: int) -> bool:
    """Whether projecting after so many steps changes nothing where that was done in the run that is resumed.

    Where it was not, the weights are not to be projected, or are only on their way.
    """
    return entry.due(steps) and entry.settles


def publish(groups: Groups, steps: int | None) -> None:
    """Let the param groups, and so the state dict, have the number of steps; None for nothing to count."""
    if steps is None:
        groups[0].pop(_KEY, None)
    else:
        groups[0].update(beside(steps))


def beside(steps: int) -> dict[str, Any]:
    """What a state dict has beside the state and the groups."""
    return {_KEY: {"step": steps}}


def saved_steps(groups: Groups, state_dict: Mapping[str, Any] | None = None) -> int | None:
    """The number of steps that is beside the groups in a state dict, or was loaded with them; None if there is none.

    Raises:
        ValueError: it is no such number.
    """
    for found in ((state_dict or {}).get(_KEY), groups[0].get(_KEY)):
        if isinstance(found, Mapping) and "step" in found:
            step = str(int(found["step"]) if isinstance(found["step"], Tensor) else found["step"])
            if not step.isdecimal():
                raise ValueError(
                    f"the state to load has {_KEY}={dict(found)}, where the step must be an int of at least 0"
                )
            return int(step)
    return None


def only_initialises(optimizer: Optimizer) -> bool:
    """Whether a step would only make the state, at rates and gradients of 0, as distributed checkpointing does.

    The gradients are looked at only where there is no state yet, and a rate that can be seen to be 0.
    """
    if optimizer.state or not all(_is_zero(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    gradients = (x.grad for group in optimizer.param_groups for x in group["params"])
    return not any(g is not None and (g.is_sparse or any_nonzero(g)) for g in gradients)


def _is_zero(rate: Any) -> bool:
    return (not isinstance(rate, Tensor) or rate.device.type == "cpu") and float(rate) == 0


class Undo:
    """What parameters were before they were projected as they were wrapped.

    Where the weights of a checkpoint were loaded before, and its state is loaded after, they should not have been
    projected once more. Kept on the CPU, for parameters that this changes.

    Args:
        groups: the param groups.
        positions: of the parameters in them.
    """

    def __init__(self, groups: Groups, positions: Iterable[Position]) -> None:
        held = {(g, i): groups[g]["params"][i] for g, i in positions}
        self._before = {at: _copy(x) for at, x in held.items() if not x.is_meta}
        self._after: dict[Position, Tensor] = {}

    def projected(self, groups: Groups) -> None:
        """Say that they are projected now."""
        now = {(g, i): _copy(groups[g]["params"][i]) for g, i in self._before}
        self._after = {at: x for at, x in now.items() if not torch.equal(x, self._before[at])}
        self._before = {at: self._before[at] for at in self._after}

    def __or__(self, other: Undo) -> Undo:
        both = Undo([], ())
        both._before, both._after = self._before | other._before, self._after | other._after
        return both

    @torch.no_grad()
    def take_back(self, groups: Groups) -> None:
        """Undo the projection of those that are as it left them."""
        for (g, i), after in self._after.items():
            x = local_part(groups[g]["params"][i])
            if x.shape == after.shape and torch.equal(x.cpu(), after):
                x.copy_(self._before[g, i])


@torch.no_grad()
def _copy(x: Tensor) -> Tensor:
    return local_part(x).to("cpu", copy=True)
