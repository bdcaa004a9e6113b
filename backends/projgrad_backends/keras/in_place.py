"""Projecting variables in their own memory, as PyTorch allows, small ones that are alike together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from projgrad.plan import Plan, PlanEntry
from projgrad_backends.torch.grouped import Together
from projgrad_backends.torch.inplace import project_each

__all__ = ["InPlace"]


class InPlace:
    """A plan of variables as the wrapper for PyTorch has it, with positions as handles.

    Args:
        plan: of variables that have values.
    """

    def __init__(self, plan: Plan) -> None:
        self._variables = [variable for entry in plan for variable in entry.handles]
        self._entries: list[PlanEntry] = []
        for entry in plan:
            first = sum(len(e.handles) for e in self._entries)
            places = tuple((0, i) for i in range(first, first + len(entry.handles)))
            self._entries.append(replace(entry, handles=places))
        self._together = Together(self._entries, [{"params": [v.value for v in self._variables]}])

    def project(self, weights: Callable[[Sequence[Any]], list[Any]]) -> bool:
        """Project all variables, or none: in compiled code, and where they stand for other values now.

        Args:
            weights: of the entries of some variables in the metric of the optimizer.
        """
        tensors = [variable.value for variable in self._variables]
        if torch.compiler.is_compiling() or any(
            x is not v._value for x, v in zip(tensors, self._variables, strict=True)
        ):
            return False

        def locate(entries: Sequence[PlanEntry]) -> Any:
            for entry in entries:
                here = [i for _, i in entry.handles]
                h = weights([self._variables[i] for i in here]) if entry.in_metric else None
                yield [tensors[i] for i in here], entry, h

        left = self._together.project([{"params": tensors}], locate, None, lambda entry: True)
        project_each(locate(left))
        return True
