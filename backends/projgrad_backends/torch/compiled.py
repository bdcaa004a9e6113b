"""Nearest points found by compiled code, with what torch does by itself where there is no compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from projgrad.constraint import Constraint
from projgrad.moves import Assign, Move
from projgrad.namespace import native
from projgrad.sets.box import Bounded
from projgrad.sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from projgrad.stack import is_hashable
from projgrad_backends.torch.inplace import find_move
from projgrad_backends.torch.namespace import xp

__all__ = ["Compiled"]

_Function = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class Compiled:
    """What finds moves by `torch.compile`, once for every set and every shape, dtype and device.

    Bounds and norms in the Euclidean metric are left to `find_move`, which reads and writes no more than it must. A
    copy compiles anew.
    """

    def __init__(self) -> None:
        self._functions: dict[Any, _Function | None] = {}
        self._warned = False

    def __reduce__(self) -> Any:
        return Compiled, ()

    def __call__(self, constraint: Constraint, x: Tensor, metric: Tensor | None, step: Any) -> Move:
        """The move from `x` to the nearest point; the arguments are those of `find_move`."""
        quick = isinstance(constraint, Bounded | MaxNorm | MinMaxNorm | UnitNorm) and metric is None
        if quick or torch.compiler.is_compiling() or not is_hashable(constraint):
            return find_move(constraint, x, metric, step)
        key = (constraint, tuple(x.shape), x.dtype, x.device, metric is None)
        try:
            if key not in self._functions:
                self._functions[key] = _compiled(constraint)
            function = self._functions[key]
            if function is not None:
                # an array, or there would be code for each step; one that `native` knows, or there would be once more
                count = native(torch.full((), step, device=x.device))[0] if constraint.scheduled else None
                return Assign(function(x.detach(), metric, count))
        except Exception as error:  # anything may go wrong in a compiler
            self._functions[key] = None
            if not self._warned:
                self._warned = True
                first = next(iter(str(error).splitlines()), "")
                warnings.warn(
                    f"compile=True: {constraint} for the shape {tuple(x.shape)} cannot be compiled, and neither may "
                    f"others; what cannot is projected without. {type(error).__name__}: {first}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return find_move(constraint, x, metric, step)


def _compiled(constraint: Constraint) -> _Function:
    def nearest(x: Tensor, metric: Tensor | None, step: Tensor | None) -> Tensor:
        return constraint.move(x, xp, metric, step=step).apply(x, xp)

    # torch keeps some versions for each piece of Python code, and compiles no more: so each set gets a piece of its own
    own = FunctionType(nearest.__code__.replace(), nearest.__globals__, closure=nearest.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
