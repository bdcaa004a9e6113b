"""Parameters that are spread over processes (DTensor: FSDP2, tensor parallelism), as arrays in which groups are whole.

Where no axis of a group is sharded, that is the local part itself, and nothing is sent. Otherwise the parameter is
gathered along the mesh dimensions that cut groups; all processes project the same groups, and each keeps its own part.
So what a process sees decides nothing for the others, and all send the same messages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from projgrad.constraint import Constraint
from projgrad.slices import Slices

__all__ = ["Whole", "any_nonzero", "coupled_axes", "is_sharded", "local_part", "place_gradient", "reshard", "whole"]

_Sharded: Any = ()
if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard

    _Sharded = (DTensor,)


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether one of these is a DTensor."""
    return isinstance(tensors[0], _Sharded) or (len(tensors) > 1 and any(isinstance(x, _Sharded) for x in tensors))


def whole(x: Any) -> Tensor:
    """The tensor of all processes together."""
    return x.full_tensor() if isinstance(x, _Sharded) else x


def local_part(x: Any) -> Tensor:
    """What this process has of a tensor, in its memory."""
    return x.to_local() if isinstance(x, _Sharded) else x


def place_gradient(x: Any) -> None:
    """Put the gradient of a sharded parameter where the parameter is: it may be a sum that is yet to be taken."""
    if isinstance(x, _Sharded) and x.grad.placements != x.placements:
        x.grad = x.grad.redistribute(placements=x.placements)


def reshard(model: nn.Module) -> None:
    """Put the sharded parameters in their places, where FSDP2 has left whole ones there after a forward pass."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for layer in model.modules() if hasattr(fsdp, "FSDPModule") else ():
        if isinstance(layer, fsdp.FSDPModule):  # type: ignore[union-attr]
            layer.reshard()


def coupled_axes(constraint: Constraint, ndim: int) -> tuple[int, ...]:
    """The axes along which an array cannot be cut: those of a group, and all where the set says what holds where."""
    return tuple(range(ndim)) if _has_places(constraint) else constraint.group_axes(ndim)


def _has_places(value: Any) -> bool:
    """Whether there are slices in a constraint, or arrays, which belong to certain entries."""
    if isinstance(value, tuple):
        return any(_has_places(part) for part in value)
    if isinstance(value, Constraint):
        return isinstance(value, Slices) or _has_places(tuple(vars(value).values()))
    return len(getattr(value, "shape", ())) > 0


class Whole:
    """Some parameters, at least one of them sharded, as plain arrays in which every group of a constraint is whole.

    Args:
        tensors: the parameters of one set.
        constraint: the set.
        joint: it holds over all of them together, as one array.
        weights: of their entries in a metric, as in `projgrad_backends.torch.metric`.
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        constraint: Constraint,
        *,
        joint: bool = False,
        weights: Sequence[Tensor | None] | None = None,
    ) -> None:
        self._tensors = tensors
        self._gathered = [_gathered(x, constraint, joint) for x in tensors]
        #: of each parameter, the memory of the local part itself or a copy
        self.arrays = [local_part(y) for y in self._gathered]
        #: the parts of the weights that belong to them
        self.weights = weights and self.placed(weights)

    def placed(self, others: Sequence[Any]) -> list[Any]:
        """The parts of tensors of the same shapes that belong to `arrays`; None where one is None."""
        return [None if h is None else _placed(h, y) for h, y in zip(others, self._gathered, strict=True)]

    def parts(self, arrays: Sequence[Tensor], like: Sequence[Any]) -> list[Tensor]:
        """What this process has of new `arrays` in tensors that are placed as `like`."""
        return [_part(a, y, x) for a, y, x in zip(arrays, self._gathered, like, strict=True)]

    def write_back(self) -> None:
        """Copy into the parameters what `arrays` hold, where it is not their own memory."""
        for x, y in zip(self._tensors, self._gathered, strict=True):
            if y is not x:
                x.to_local().copy_(y.redistribute(placements=x.placements).to_local())

    def of_each(self, value: Tensor) -> Tensor:
        """The numbers that the processes have as one tensor, for which nothing is sent yet."""
        for y in self._gathered:
            if isinstance(y, _Sharded) and any(_cut(p) is not None for p in y.placements):
                return _of_each(value, y)
        return value


def any_nonzero(x: Tensor) -> bool:
    """Whether an entry is not 0, the same on all processes."""
    found = local_part(x).count_nonzero() > 0
    return bool(whole(_of_each(found, x)).amax() if isinstance(x, _Sharded) else found)


def _of_each(value: Tensor, like: Any) -> Tensor:
    mesh = like.device_mesh
    return DTensor.from_local(value.reshape(1), mesh, [Shard(0)] * mesh.ndim, run_check=False)


def _cut(placement: Any) -> int | None:
    """The dimension along which a placement cuts, in strides too; None where it does not."""
    return getattr(placement, "dim", None)


def _gathered(x: Any, constraint: Constraint, joint: bool) -> Any:
    if not isinstance(x, _Sharded):
        return x
    axes = tuple(range(x.ndim)) if joint else coupled_axes(constraint, x.ndim)
    placements = [Replicate() if _cut(p) in axes else p for p in x.placements]
    return x if placements == list(x.placements) else x.redistribute(placements=placements)


def _placed(h: Any, like: Any) -> Tensor:
    """What there is of `h` where there is `like`."""
    if not isinstance(like, _Sharded):
        return h
    mesh = like.device_mesh
    if not isinstance(h, _Sharded):
        h = DTensor.from_local(h, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return h.redistribute(placements=like.placements).to_local()


def _part(array: Tensor, gathered: Any, like: Any) -> Tensor:
    """What this process has where there is `like`, of an array that belongs to what was gathered."""
    if not isinstance(gathered, _Sharded):
        return array
    mesh, placements = gathered.device_mesh, gathered.placements
    shape, stride = gathered.shape, gathered.stride()
    made = DTensor.from_local(array, mesh, placements, run_check=False, shape=shape, stride=stride)
    return made.redistribute(placements=like.placements).to_local()
