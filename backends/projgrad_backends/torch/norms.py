"""Norms of groups, and scaling groups to other norms, without new arrays of the array's size.

On the CPU, norms of float32 numbers are taken in float32, with sums that are short or pairwise; where squares overflow
or underflow, and on other devices, they are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import array_api_compat.torch
import torch

from projgrad.axes import group_size
from projgrad.moves import Scale
from projgrad.precision import precision, tolerance
from projgrad_backends.torch.namespace import TorchNamespace

__all__ = ["WIDE", "InPlaceNamespace", "parts", "scale_", "scaled", "xp"]

WIDE = (torch.float64, torch.complex128)
_HALF = (torch.float16, torch.bfloat16)
_WHOLE = 2**12  # entries, for which two parts would cost more than the memory is worth
_PART = 2**17  # entries that fit in the cache with some arrays like them
_BLOCK = 2**20  # entries that are still in a larger cache when they are multiplied
_RUN = 256  # entries of a row whose squares `vector_norm` adds, in a few sums that go side by side
_ADDED = 32  # parts that are added one after the other
_PICKED = 0.25  # the share of the groups up to which it is quicker to pick these out
_LEAST, _MOST = 2.0**-40, 2.0**50  # norms between which no square matters that underflows, and none overflows

Multiply = Callable[[torch.Tensor, torch.Tensor], None]


class InPlaceNamespace(TorchNamespace):
    """The namespace of a projection in place: norms without temporaries."""

    in_place = True

    def norm(self, x: torch.Tensor, axes: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
        # in float64 and as one factor, where the squares of float32 numbers neither overflow nor underflow
        axes = tuple(a % x.ndim for a in axes)
        if not self.can_look(x):
            if x.dtype in WIDE or not axes:
                return super().norm(x, axes)
            norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=_accumulator(x))
        else:
            norm = _norms(x, axes, group_size(x.shape, axes)).double()
            odd = ~((norm > _LEAST) & (norm < _MOST))
            if not bool(odd.any()):
                return 1.0, norm
            if x.dtype in WIDE:
                return super().norm(x, axes)
            last = tuple(range(-len(axes), 0))
            groups = x.movedim(axes, last)[odd.squeeze(axes)].flatten(1) if axes else x[odd][:, None]
            norm[odd] = torch.linalg.vector_norm(groups, dim=1, dtype=_accumulator(x)).to(norm.dtype)
        norm = torch.where(norm < precision(x.dtype).tiny, 0.0, norm)  # as Namespace.norm
        return 1.0, torch.where(norm.isfinite(), norm, torch.nan)


xp = InPlaceNamespace(array_api_compat.torch)


def _accumulator(x: torch.Tensor) -> torch.dtype:
    real = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.complex128 if x.is_complex() else real


def parts(
    x: torch.Tensor, *others: torch.Tensor, size: int = _PART, least: int | None = None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of `x` along one dimension, each with the views that belong to it of `others`, which broadcast.

    Args:
        x: a tensor.
        others: tensors that broadcast to `x`.
        size: how many entries a part has, about.
        least: how many parts to make; None for so many that a part in float32 or float64 is small beside all of `x`.
    """
    if x.numel() <= _WHOLE:
        yield x, *others
        return
    count = max(-(-x.numel() // size), least or max(2, 16 // x.element_size()))
    dim = _outermost(x, count)
    for start, length in _cuts(x.shape[dim], count):
        views = [x.narrow(dim, start, length)]
        for other in others:
            axis = dim - x.ndim
            whole = -axis > other.ndim or other.shape[axis] == 1
            views.append(other if whole else other.narrow(axis, start, length))
        yield tuple(views)


def _outermost(x: torch.Tensor, count: int) -> int:
    """The dimension whose cuts leave the longest pieces of memory, among those that can be cut so often."""
    long = [d for d in range(x.ndim) if x.shape[d] >= count]
    if long:
        return max(long, key=x.stride)
    return max(range(x.ndim), key=lambda d: x.shape[d])


def _cuts(length: int, count: int) -> Iterator[tuple[int, int]]:
    """Where to start, and how long to go on, for about so many parts."""
    step = max(1, length // count)
    return ((start, min(step, length - start)) for start in range(0, length, step))


# -- reducing ------------------------------------------------------------------------------------------------------


def _norms(x: torch.Tensor, axes: tuple[int, ...], size: int) -> torch.Tensor:
    """The norm of every group, with length 1 in `axes`, in float32 or float64: right between `_LEAST` and `_MOST`."""
    if x.is_complex():
        return _norms(torch.view_as_real(x), (*axes, x.ndim), 2 * size).squeeze(-1)
    if not axes:
        return _wide(x).abs()
    if not x.is_contiguous():
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        if order != list(range(x.ndim)):  # a transposed matrix, for one
            moved = _norms(x.permute(order), tuple(sorted(order.index(a) for a in axes)), size)
            return moved.permute([order.index(d) for d in range(x.ndim)])
    rows = _are_rows(x, axes)
    if rows and (x.dtype not in _HALF or x.numel() <= _WHOLE):
        return _norms_of_rows(_wide(x), axes, size)
    return _norms_in_parts(x, axes, size, rows)


def _are_rows(x: torch.Tensor, axes: tuple[int, ...]) -> bool:
    """Whether the entries of a group follow one another in memory."""
    first = x.ndim - len(axes)
    return axes[0] == first and (x.is_contiguous() or x[(0,) * first].is_contiguous())


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in _HALF else x


def _norms_of_rows(x: torch.Tensor, axes: tuple[int, ...], size: int) -> torch.Tensor:
    # vector_norm adds one by one, in as many sums as numbers fit in a register: not along a long row at once
    if size <= _RUN:
        return torch.linalg.vector_norm(x, 2, axes, True)
    rows = x if len(axes) == 1 else x.flatten(axes[0])
    while rows.shape[-1] > _RUN:
        runs, rest = torch.linalg.vector_norm(rows.unfold(-1, _RUN, _RUN), 2, -1), rows.shape[-1] % _RUN
        if rest:
            runs = torch.cat([runs, torch.linalg.vector_norm(rows[..., -rest:], 2, -1, True)], -1)
        rows = runs
    norms = torch.linalg.vector_norm(rows, 2, -1, True)
    return norms if len(axes) == 1 else norms.view(_shape(x, axes))


def _norms_in_parts(x: torch.Tensor, axes: tuple[int, ...], size: int, rows: bool) -> torch.Tensor:
    """The same where the entries of a group lie apart, or need another dtype."""
    if x.numel() <= _WHOLE:
        x = _wide(x)
        return (x * x).sum(axes, keepdim=True).sqrt_()
    norms = torch.empty(_shape(x, axes), dtype=torch.float64 if x.dtype in WIDE else torch.float32)
    sums: list[torch.Tensor] = []
    squares, left = None, 0
    for part, of_part in parts(x, norms, size=2 * _PART, least=None if x.dtype in _HALF else 2):
        part = _wide(part)
        if of_part is not norms:
            here = _norms_of_rows(part, axes, size) if rows else (part * part).sum(axes, keepdim=True).sqrt_()
            of_part.copy_(here)
        # every part has entries of the same groups: they are added part to part, and in torch's cascade within a part
        elif squares is not None and left and part.shape == squares.shape:
            squares.addcmul_(part, part)
            left -= 1
        else:
            if squares is not None:
                sums.append(squares.sum(axes, keepdim=True))
            squares, left = part * part, _ADDED
    if squares is None:
        return norms
    total = squares.sum(axes, keepdim=True)
    return (torch.stack([*sums, total]).sum(0) if sums else total).sqrt_()


def _shape(x: torch.Tensor, axes: tuple[int, ...]) -> list[int]:
    return [1 if d in axes else n for d, n in enumerate(x.shape)]


# -- scaling -------------------------------------------------------------------------------------------------------


def scale_(x: torch.Tensor, move: Scale, multiply: Multiply | None = None) -> bool:
    """Write what a scaling of the groups leads to into `x`, and tell whether that may have been into all of it.

    Where it is given and a factor per group is all there is to it, call `multiply` with `x` and that instead.
    """
    limits = _limits_of(x, move) if move.m is None and xp.can_look(x) else None
    if limits is None:
        _scale_any_(x, move.measured(x, xp))
        return True
    count = x.numel() // _BLOCK
    if multiply is not None or count < 2 or (dim := _outermost(x, count)) in move.axes:
        return _scale_block_(x, move, *limits, multiply)
    start, step = 0, max(1, x.shape[dim] // count)
    length = step
    while start < x.shape[dim]:
        written = _scale_block_(x.narrow(dim, start, min(length, x.shape[dim] - start)), move, *limits)
        start += length
        length = step if written else 2 * length  # what is not written need not be in the cache
    return True


def _limits_of(x: torch.Tensor, move: Scale) -> tuple[float, float] | None:
    if all(number is None or isinstance(number, float | int) for number in (move.low, move.high, move.rate)):
        return _limits(x.dtype, move.size, move.low, move.high)
    return None


@lru_cache(maxsize=256)
def _limits(dtype: torch.dtype, size: int, low: float | None, high: float) -> tuple[float, float] | None:
    """What norms to keep; None where a bound is so far away from 1 that other norms than ordinary ones matter."""
    if high > _LEAST and (low is None or _LEAST < low < _MOST):
        return -1.0 if low is None else low - tolerance(dtype, size, low), high + tolerance(dtype, size, high)
    return None


def scaled(x: torch.Tensor, move: Scale) -> torch.Tensor:
    """What a scaling of the groups of a real array leads to, in a new one."""
    limits = _limits_of(x, move) if move.m is None and xp.can_look(x) and x.dtype not in _HALF else None
    found = None if limits is None else _factors(x, move, *limits)
    if found is None:
        y = x.clone()
        scale_(y, move)
        return y
    return x * found[0] if found else x.clone()


def _scale_block_(x: torch.Tensor, move: Scale, below: float, above: float, multiply: Multiply | None = None) -> bool:
    """`scale_` of what is read once and multiplied while it is in the cache."""
    found = _factors(x, move, below, above)
    if found is None:
        _scale_any_(x, move.measured(x, xp))
        return True
    if not found:
        return False
    if multiply is not None:
        multiply(x, found[0])
        return False
    return _multiply_(x, found[0], found[1], move.axes)


def _factors(x: torch.Tensor, move: Scale, below: float, above: float) -> Any:
    """A factor per group, and which groups are kept; () where all are, and None where a norm is NaN or far from 1."""
    norm = _norms(x, move.axes, move.size)
    least, most = (1.0, norm.max().item()) if move.low is None else (edge.item() for edge in norm.aminmax())
    if not (least > _LEAST and most < _MOST):
        return None
    if below <= least and most <= above:
        return ()
    kept = norm <= above if move.low is None else norm.clamp(below, above) == norm
    to = norm.clamp(move.low, move.high)
    if move.rate != 1:
        to = norm.lerp(to, move.rate)
    return to.div_(norm).masked_fill_(kept, 1.0), kept


def _multiply_(x: torch.Tensor, factor: torch.Tensor, kept: torch.Tensor, axes: tuple[int, ...]) -> bool:
    """Multiply by a factor per group, with one rounding. Where nearly all are 1, only the others, and return False."""
    if x.is_complex() and factor.shape[-1] > 1 and x.stride(-1) == 1:
        x, factor = torch.view_as_real(x).flatten(-2), factor.repeat_interleave(2, -1)
    elif x.is_complex():
        x, factor, axes = torch.view_as_real(x), factor.unsqueeze(-1), (*axes, x.ndim)
    groups = factor.numel()
    if x.numel() > _PART and (1 - _PICKED) * groups <= kept.sum().item() and x.is_contiguous() and _are_rows(x, axes):
        rows, factor = x.view(groups, -1), factor.view(groups, 1)
        for some in (~kept).flatten().nonzero().flatten().split(-(-_PART // rows.shape[1])):
            rows.index_copy_(0, some, _wide(rows[some]).mul_(factor[some]).to(x.dtype))
        return False
    if x.dtype not in _HALF:
        x.mul_(factor)
    else:
        for part, of_part in parts(x, factor):
            part.copy_(part.to(of_part.dtype).mul_(of_part))
    return True


def _scale_any_(x: torch.Tensor, move: Scale) -> None:
    """The same for any norms, which are known, on any device."""
    look, kept = xp.can_look(x), move.keep(x, xp)
    if look and bool(kept.all()):
        return
    m, s, fill = move.factors(x, xp, kept)
    if x.is_complex():  # by parts: complex division would square what it divides by
        x, m, s = torch.view_as_real(x), _with_axis(m), _with_axis(s)
        if fill is not None:
            x[..., 0].add_(fill)  # to groups of zeros, which are then what they should be
            s, fill = torch.where(_with_axis(fill) != 0, 1.0, s), None
    factor = s / m
    if x.dtype in WIDE:
        x.div_(m).mul_(s)
    elif not look:
        x.mul_(factor)  # in float64, rounded once
    elif x.dtype in _HALF:
        _multiply_(x, factor, kept, move.axes)
    elif bool(((factor > 1e-30) & (factor < 1e30) | (s == 0)).all()):
        x.mul_(factor.float())
    else:  # a factor that float32 cannot hold, or with few digits
        root = factor.sqrt().float()
        x.mul_(root).mul_(root)
    if fill is not None and not (look and not bool(fill.any())):
        x.add_(fill.to(x.dtype))


def _with_axis(factor: Any) -> Any:
    return factor.unsqueeze(-1) if isinstance(factor, torch.Tensor) else factor
