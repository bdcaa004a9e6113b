"""Small parameters that are alike, projected together: with few calls rather than some for each of them.

They are copied into one array, of 2 MB at most in float32, in which the set sees only more groups. On a CPU, groups
that are scaled are scaled in the parameters themselves, and where none is, nothing is written. Numbers that bound
entries need no such array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from projgrad.constraint import Constraint
from projgrad.moves import Clip, Scale
from projgrad.plan import PlanEntry
from projgrad.sets.box import Bounded
from projgrad.stack import is_hashable, stacked
from projgrad_backends.torch.inplace import Find, Located, carry_out, find_move, has_numbers
from projgrad_backends.torch.norms import scale_

__all__ = ["Together"]

_LARGE = 2**16  # entries of a parameter, from which on the calls no longer matter
_STACK = 2**19  # entries of a stack
_PLAIN = {Tensor, torch.nn.Parameter}


class Together:
    """Which parameters of a plan are projected together.

    Args:
        entries: of the plan.
        groups: the param groups.
    """

    def __init__(self, entries: Iterable[PlanEntry], groups: Sequence[dict[str, Any]]) -> None:
        alike: dict[Any, list[PlanEntry]] = {}
        self._alone: list[PlanEntry] = []
        for entry in entries:
            key = _key(entry, groups)
            (self._alone if key is None else alike.setdefault(key, [])).append(entry)
        self._stacks: list[Stack] = []
        for found in alike.values():
            constraint = stacked(found[0].constraint, len(found[0].shape)) if len(found) > 1 else None
            many = len(found) if constraint is None else _STACK // math.prod(found[0].shape)
            for start in range(0, len(found), many):
                here = found[start : start + many]
                if constraint is None or len(here) == 1:
                    self._alone += here
                else:
                    self._stacks.append(Stack(here, constraint))

    def project(
        self,
        groups: Sequence[dict[str, Any]],
        locate: Callable[[Sequence[PlanEntry]], Iterator[Located]],
        step: int | None,
        due: Callable[[PlanEntry], bool],
        find: Find = find_move,
    ) -> list[PlanEntry]:
        """Project in place what can be projected together.

        Args:
            groups: the param groups.
            locate: tells what there is of entries now.
            step: the number of steps made.
            due: whether an entry is to be projected.
            find: what finds a move.

        Returns:
            The entries that are left to project.
        """
        left = [entry for entry in self._alone if due(entry)]
        held = [group["params"] for group in groups]
        for stack in self._stacks:
            if due(stack.entries[0]):
                tensors = [held[g][i] for g, i in stack.positions]
                weights = [h for *_, (h,) in locate(stack.entries)] if stack.weighted else [None]  # type: ignore[misc]
                if not stack.project(tensors, weights, step, find):
                    left += stack.entries
        return left


def _key(entry: PlanEntry, groups: Sequence[dict[str, Any]]) -> Any:
    """What the parameters of a stack have in common; None for one that is in no stack."""
    g, i = entry.handles[0]
    x = groups[g]["params"][i]
    if entry.layout is not None or type(x) not in _PLAIN or x.layout != torch.strided:
        return None
    if not x.ndim or not 0 < x.numel() <= _LARGE:  # a number has no axis that could become another
        return None
    key = entry.tag, tuple(x.shape), x.dtype, x.device, g if entry.in_metric else None
    return key if is_hashable(key) else None


class Stack:
    """Several parameters of the same shape, kept in the same set.

    Args:
        entries: of the plan, one per parameter.
        constraint: of the stack that the parameters make.
    """

    def __init__(self, entries: Sequence[PlanEntry], constraint: Constraint) -> None:
        self.entries = list(entries)
        self.constraint = constraint
        self.positions = [entry.handles[0] for entry in entries]
        self.weighted = entries[0].in_metric and constraint.axis != ()
        self._factors: Tensor | None = None
        self._each: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def project(self, tensors: list[Tensor], weights: Sequence[Tensor | None], step: int | None, find: Find) -> bool:
        """Project the parameters in place, or none: where they are not alike any more, or one of them fails."""
        unlike = len({x.dtype for x in tensors}) > 1 or not {type(x) for x in tensors} <= _PLAIN
        if unlike or len({type(h) for h in weights}) > 1:
            return False
        if isinstance(self.constraint, Bounded):
            move = find(self.constraint, tensors[0], None, step)
            if isinstance(move, Clip) and has_numbers(move):  # the same for all
                _clamp_(tensors, move)
                return True
        try:
            x = torch.stack(tensors)
            metric = None if weights[0] is None else torch.stack(weights)  # type: ignore[arg-type]
            move = find(self.constraint, x, metric, step)
        except RuntimeError:  # of other shapes or devices, or without a nearest point: each by itself says it better
            return False
        if isinstance(move, Scale):
            multiply = self._multiplier(tensors)
            written = scale_(x, move, multiply) or multiply is None
        else:
            carry_out(x, move)
            written = True
        if written:
            torch._foreach_copy_(tensors, x.unbind())
        return True

    def _multiplier(self, tensors: Sequence[Tensor]) -> Callable[[Tensor, Tensor], None] | None:
        """What multiplies the parameters, rather than the stack of them, by a factor per group."""

        def multiply(_: Tensor, factor: Tensor) -> None:
            if self._factors is None or self._factors.shape != factor.shape or self._factors.dtype != factor.dtype:
                self._factors = torch.empty_like(factor)
                self._each = self._factors.unbind()  # kept: making the views takes as long as the multiplication
            self._factors.copy_(factor)
            changed = (factor != 1).flatten(1).any(1).tolist()
            torch._foreach_mul_(list(compress(tensors, changed)), list(compress(self._each, changed)))

        return None if tensors[0].is_complex() else multiply


def _clamp_(tensors: list[Tensor], move: Clip) -> None:
    if move.lower is not None:
        torch._foreach_clamp_min_(tensors, move.lower)
    if move.upper is not None:
        torch._foreach_clamp_max_(tensors, move.upper)
