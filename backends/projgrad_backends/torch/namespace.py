"""The Array API functions of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import array_api_compat.torch
import numpy as np
import torch
from torch._higher_order_ops.while_loop import while_loop
from torch.autograd import forward_ad

from projgrad.frozen import FrozenArray
from projgrad.moves import Scale
from projgrad.namespace import EagerNamespace

__all__ = ["xp"]

_SINGLE_FROM = {torch.float16, torch.bfloat16}
_LONG = 128  # rounds
_SQUARE = 192  # rows of a block
_MANY = 2**12  # entries, for which the calls themselves no longer matter
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_plain(first: torch.Tensor, *others: Any, many: int = _MANY) -> bool:
    """Whether these are many entries on a CPU that nothing traces, transforms or differentiates."""
    if first.numel() < many or first.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    tensors = [x for x in (first, *others) if isinstance(x, torch.Tensor)]
    if len({x.dtype for x in tensors[1:]}) > 1 or any(type(x) not in _PLAIN or x.is_neg() for x in tensors):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def _is_shared(x: torch.Tensor) -> bool:
    """Whether PyTorch shares the groups of `x` among so many threads that it finds the largest entries before NumPy.

    NumPy does not share them, but takes a third to a half of the time of one thread.
    """
    return not torch.compiler.is_compiling() and torch.get_num_threads() > 2 and x.numel() > x.shape[-1]


def _numbers(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of many entries as numbers; PyTorch converts bools one by one."""
    return mask.view(torch.uint8).to(dtype)


def _folded(pick: Callable[..., torch.Tensor], x: torch.Tensor, axis: Any) -> torch.Tensor:
    """`x` at a quarter of its length along `axis`, with the same maxima or minima: compiled code takes one by one."""
    if not torch.compiler.is_compiling() or x.requires_grad or not isinstance(axis, int) or x.shape[axis] % 32:
        return x
    a, b, c, d = x.chunk(4, axis)
    return pick(pick(a, b), pick(c, d))


def _as_numbers(x: torch.Tensor, axis: Any) -> bool:
    """Whether `all` and `any` are quicker on numbers, as compiled code turns each bool into 64 bits."""
    return torch.compiler.is_compiling() and x.dtype == torch.bool and axis not in (None, ()) and x.numel() > 0


class TorchNamespace(EagerNamespace):
    """array-api-compat's functions, with what is quicker or differentiable in PyTorch."""

    _rounds = 0  # of all loops

    def upcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() if x.dtype in _SINGLE_FROM else x

    def is_complex(self, x: torch.Tensor) -> bool:
        return x.is_complex()

    def host(self, x: torch.Tensor) -> np.ndarray:
        return x.detach().cpu().numpy()

    def on_host(self, function: Callable[..., np.ndarray | None], *arrays: torch.Tensor) -> torch.Tensor | None:
        # nor with a mode that watches what is called
        if not self.can_look(arrays[0]) or not _is_plain(*arrays, many=0) or torch._C._len_torch_dispatch_stack():
            return None
        made = function(*(x.detach().numpy() for x in arrays))
        return None if made is None else torch.from_numpy(made)

    def carried_out(self, x: torch.Tensor, find: Callable[..., Any]) -> torch.Tensor:
        if not _is_plain(x, many=0) or x.is_complex() or torch._C._len_torch_dispatch_stack():
            return super().carried_out(x, find)
        from projgrad_backends.torch.inplace import carry_out  # which needs this module
        from projgrad_backends.torch.norms import scaled
        from projgrad_backends.torch.norms import xp as in_place

        x = x.detach()
        move = find(x, in_place)
        if isinstance(move, Scale):
            return scaled(x, move)
        y = x.clone()  # in place, it takes fewer passes and calls
        carry_out(y, move)
        return y

    def once(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.requires_grad:
            return x
        return x.as_strided(x.shape, x.stride())  # for which the compiler wants it in memory

    def stop_gradient(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def graft(self, value: torch.Tensor, derivative: torch.Tensor) -> torch.Tensor:
        if not self.may_differentiate(derivative):
            return value
        return value.detach() - (derivative.detach() - derivative)  # -0 - 0 is -0

    def with_derivative(self, value: torch.Tensor, x: torch.Tensor, derivative: Callable[..., Any]) -> torch.Tensor:
        if not self.may_differentiate(x):
            return value
        return self.graft(value, derivative(x - x.detach()))

    def can_look(self, x: torch.Tensor) -> bool:
        return x.device.type == "cpu" and not torch.compiler.is_compiling()

    def skips(self, x: torch.Tensor) -> bool:
        return self.can_look(x) and type(x) in _PLAIN and not torch._C._are_functorch_transforms_active()

    def may_differentiate(self, x: torch.Tensor) -> bool:
        return (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0

    # PyTorch branches on every entry here, which takes up to twenty times as long on a CPU

    def where(self, condition: torch.Tensor, x: Any, y: Any) -> torch.Tensor:
        like = x if isinstance(x, torch.Tensor) else y
        if not _is_plain(condition, x, y) or getattr(like, "dtype", None) not in _BITS:
            return self.module.where(condition, x, y)
        bits = _BITS[like.dtype]
        mask = _numbers(condition, bits).neg_()  # all bits or none
        if isinstance(y, float) and y == 0 and math.copysign(1.0, y) > 0 and isinstance(x, torch.Tensor):
            return (x.view(bits) & mask).view(like.dtype)
        x, y = (torch.as_tensor(v, dtype=like.dtype).view(bits) for v in (x, y))
        return (x ^ y).bitwise_and(mask).bitwise_xor(y).view(like.dtype)

    def astype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _numbers(x, dtype) if x.dtype == torch.bool and _is_plain(x) else x.to(dtype)

    def positive(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def support(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x) if _is_plain(x) else super().support(x)

    def isfinite(self, x: torch.Tensor) -> torch.Tensor:
        quick = torch.compiler.is_compiling() or _is_plain(x)
        return x.abs() < math.inf if quick and not x.is_complex() else torch.isfinite(x)

    def all_finite(self, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        if axes and _is_plain(x) and not x.is_complex():
            return x.abs().amax(axes, keepdim=True) < math.inf  # which is NaN where one is
        return super().all_finite(x, axes)

    def all(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        if _as_numbers(x, axis):
            return self.min(x.float(), axis=axis, keepdims=keepdims) > 0
        if not _is_plain(x) or x.dtype != torch.bool or axis == ():
            return self.module.all(x, axis=axis, keepdims=keepdims)
        return x.view(torch.uint8).amin(() if axis is None else axis, keepdim=keepdims).bool()

    def any(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        if _as_numbers(x, axis):
            return self.max(x.float(), axis=axis, keepdims=keepdims) > 0
        if not _is_plain(x) or x.dtype != torch.bool or axis == ():
            return self.module.any(x, axis=axis, keepdims=keepdims)
        return x.view(torch.uint8).amax(() if axis is None else axis, keepdim=keepdims).bool()

    def max(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return self.module.max(_folded(torch.maximum, x, axis), axis=axis, keepdims=keepdims)

    def min(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return self.module.min(_folded(torch.minimum, x, axis), axis=axis, keepdims=keepdims)

    def iterate(self, step: Callable[..., Any], state: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():
            # none may share its memory, nor change its layout
            start = (torch.tensor(0), *(x.clone(memory_format=torch.contiguous_format) for x in state))
            return while_loop(
                lambda i, go, *_: go.any() & (i < most),
                lambda i, *s: (i + 1, *(x.contiguous() for x in step(*s))),
                start,
            )[1:]
        first = last = self._rounds
        for _ in range(most):
            # in a long loop, waiting for a device now and then costs less than all of its rounds, and those within it
            if self.can_look(state[0]) or (self._rounds - first >= _LONG and self._rounds - last >= _LONG // 2):
                last = self._rounds
                if not bool(state[0].any()):
                    break
            state = step(*state)
            self._rounds += 1
        return state

    def either(self, ok: torch.Tensor, quick: Callable[[], Any], slow: Callable[[], Any]) -> Any:
        if type(ok) not in _PLAIN or torch._C._are_functorch_transforms_active():
            return slow()
        return super().either(ok, quick, slow)

    def sign(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.isnan(), x, torch.sign(x))  # the other one writes through a mask, which stops the device

    def order_statistic(self, x: torch.Tensor, index: int) -> torch.Tensor:
        x = x.detach()
        return self.selected(x, index) if _is_shared(x) else super().order_statistic(x, index)

    def highest(self, x: torch.Tensor, count: int) -> torch.Tensor:
        x = x.detach()
        return self.top(x, count) if _is_shared(x) else super().highest(x, count)

    def top(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return torch.topk(x, count, sorted=False).values

    def solve(self, matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # the other one looks, which stops the device and a compiled loop
        return torch.linalg.solve_ex(matrix, right)[0]

    def is_below(self, x: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        # in blocks, which is quicker, and stops at the first that has no factor
        side = x[..., :0]  # of the factor, the rows that are left
        for i in range(0, x.shape[-1], _SQUARE):
            part = x[..., i:, i : i + _SQUARE]
            part = part + side @ side[..., :_SQUARE, :].mT if i else part
            a = -part[..., :_SQUARE, :]
            a.diagonal(dim1=-2, dim2=-1).add_(bound[..., 0])
            factor, info = torch.linalg.cholesky_ex(a)
            if bool(info.any()):
                return bound.new_zeros(bound.shape, dtype=torch.bool)
            more = torch.linalg.solve_triangular(factor.mT, part[..., _SQUARE:, :], upper=True, left=False)
            side = torch.cat([side[..., _SQUARE:, :], more], -1)
        return bound.new_ones(bound.shape, dtype=torch.bool)

    def constant(self, value: FrozenArray, like: torch.Tensor) -> torch.Tensor:
        return _constant(value, like.dtype, like.device)[0]

    def accurate_sum(self, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        if not axes:
            return x
        if torch.compiler.is_compiling():  # compiled sums run along the axis one by one
            return super().accurate_sum(x, axes)
        return torch.sum(x, axes, keepdim=True)  # torch adds in a cascade


_constants: WeakKeyDictionary[FrozenArray, dict[Any, tuple[torch.Tensor]]] = WeakKeyDictionary()


@torch.compiler.assume_constant_result
def _constant(value: FrozenArray, dtype: torch.dtype, device: Any) -> tuple[torch.Tensor]:
    # kept on the device, so that a step copies nothing to it; in a tuple, as torch.compile gives all tensors that one
    # function returns the same name, and then fails
    copies = _constants.setdefault(value, {})
    if (dtype, device) in copies:
        return copies[dtype, device]
    made = (torch.as_tensor(xp.finite(value, dtype), dtype=dtype, device=device),)
    if type(made[0]) is torch.Tensor:  # not what a tracing mode makes
        copies[dtype, device] = made
    return made


xp = TorchNamespace(array_api_compat.torch)
