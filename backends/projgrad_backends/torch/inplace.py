"""Carrying out a move in the memory of a parameter.

The array is read and written in parts that fit in the cache, so no new array of the parameter's size is made. On the
CPU the few numbers per group are looked at, to skip what changes nothing; on other devices, and while compiling,
looking would wait for the device, so the plain path is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import array_api_compat.torch
import torch

from projgrad.constraint import Constraint
from projgrad.function import as_constraint
from projgrad.moves import Clip, Move, Piecewise, Relaxed, Scale
from projgrad.plan import PlanEntry
from projgrad.precision import precision
from projgrad_backends.torch.held import refuse_opaque
from projgrad_backends.torch.namespace import TorchNamespace
from projgrad_backends.torch.namespace import xp as plain
from projgrad_backends.torch.sharded import Whole, is_sharded

__all__ = ["Located", "Record", "carry_out", "project_", "project_all", "project_each"]

# what holds for some tensors, with the weights of their entries where it holds in a metric
Located = tuple[Sequence[torch.Tensor], PlanEntry, Sequence[torch.Tensor | None] | None]

# by the name of an entry, the largest violation before the last projection, and how far it moved each parameter
Record = dict[str, tuple[torch.Tensor, list[torch.Tensor]]]

_PART = 2**17  # entries
_SMALL = 2**12  # entries, for which two parts would cost more than the memory is worth
_WIDE = (torch.float64, torch.complex128)


@torch.no_grad()
def project_(x: torch.Tensor, constraint: Constraint | Callable[[Any], Any]) -> torch.Tensor:
    """Replace the values of `x` by the nearest point of the set, in the Euclidean norm, and return `x`.

    Where `x` is sharded (DTensor), call it in all processes.

    Raises:
        TypeError, ValueError: as `Constraint.project`; `x` is not changed then.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"project_() takes a torch tensor, not {type(x).__name__}")
    checked = as_constraint(constraint)
    checked.check_dtype(x.dtype)
    checked.check_shape(tuple(x.shape))
    whole = Whole([x], checked) if is_sharded([x]) else None
    array = x if whole is None else whole.arrays[0]
    if array.numel():
        carry_out(array, checked.move(array, xp))
    if whole is not None:
        whole.write_back()
    return x


@torch.no_grad()
def project_all(located: Iterable[Located], step: int | None = None) -> None:
    """Project all in place, or, where a function fails, none."""
    located = list(located)
    try:
        if any(is_sharded(tensors) for tensors, _, _ in located):  # whole, all together may not fit in the memory
            for _ in _moves(located, step):
                pass
            project_each(located, step)
        else:
            for move in list(_moves(located, step)):
                _write(move)
    except NotImplementedError as error:
        refuse_opaque(located, error)
        raise


@torch.no_grad()
def project_each(located: Iterable[Located], step: int | None = None, record: Record | None = None) -> None:
    """Project one after the other in place, which needs the least memory, and note in `record` what that did."""
    if record is None:
        for move in _moves(located, step):
            _write(move)
        return
    for tensors, entry, weights in located:
        old = [x.clone() for x in tensors]
        for move in _moves([(tensors, entry, weights)], step):
            before = _largest(move, step)
            _write(move)
            # of a sharded parameter, what is computed here is for the processes to reduce when it is asked for
            moved = [torch.linalg.vector_norm(xp.upcast(y.sub_(x))) for x, y in zip(tensors, old, strict=True)]
            record[entry.name] = before, moved


_Planned = tuple[Sequence[torch.Tensor], PlanEntry, torch.Tensor, Move | None, Whole | None]


def _moves(located: Iterable[Located], step: int | None) -> Iterator[_Planned]:
    for tensors, entry, weights in located:
        whole, move = None, None
        if is_sharded(tensors):
            whole = Whole(tensors, entry.constraint, joint=entry.layout is not None, weights=weights)
            tensors, weights = whole.arrays, whole.weights
        x = tensors[0] if entry.layout is None else entry.gather(tensors)
        if x.numel():
            metric = None if weights is None else entry.gather_metric(weights)
            # in a metric there are arrays of the parameter's size anyway, and norms in float64 would widen them
            move = entry.constraint.move(x, xp if metric is None else plain, metric, step=step)
        yield tensors, entry, x, move, whole


def _write(planned: _Planned) -> None:
    tensors, entry, x, move, whole = planned
    if move is None:
        return
    carry_out(x, move)
    if entry.layout is not None:  # then `x` is a copy
        for tensor, part in zip(tensors, entry.scatter(x), strict=True):
            tensor.copy_(part)
    if whole is not None:
        whole.write_back()


def _largest(planned: _Planned, step: int | None) -> torch.Tensor:
    """The largest distance of a group from its set."""
    _, entry, x, move, whole = planned
    if move is None:
        away = x.new_zeros(1)
    elif isinstance(move, Clip) and _has_numbers(move):
        away = x.clamp(move.lower, move.upper).sub_(x)  # quicker
    elif entry.in_metric:  # where a move goes farther
        away = entry.constraint.violation(x, step=step)
    else:
        away = move.distance(x, xp)
    largest = away.abs().max().to(torch.float64 if x.dtype in _WIDE else torch.float32)
    return largest if whole is None else whole.of_each(largest)


def carry_out(x: torch.Tensor, move: Move) -> None:
    """Write the nearest point that a move leads to into `x`."""
    if isinstance(move, Scale):
        _scale_(x, move)
    elif isinstance(move, Clip) and _has_numbers(move):
        x.clamp_(move.lower, move.upper)
    elif isinstance(move, Piecewise):
        for piece, part in move.pieces(x):
            if part is not None:
                carry_out(piece, part)
    else:
        _copy_(x, move)


def _has_numbers(move: Clip) -> bool:
    """Whether the bounds are numbers, or none, rather than arrays."""
    return not any(isinstance(b, torch.Tensor) for b in (move.lower, move.upper))


def _parts(x: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of `x` along its longest dimension, each with the views that belong to it of `others`, which broadcast."""
    if x.numel() <= _SMALL:
        yield x, *others
        return
    dim = max(range(x.ndim), key=lambda d: x.shape[d])
    least = max(2, 16 // x.element_size())  # so that a part in float32 or float64 is small beside all of `x`
    step = max(1, min(_PART * x.shape[dim] // x.numel(), -(-x.shape[dim] // least)))
    for start in range(0, x.shape[dim], step):
        length = min(step, x.shape[dim] - start)
        views = [x.narrow(dim, start, length)]
        for other in others:
            axis = dim - x.ndim
            whole = -axis > other.ndim or other.shape[axis] == 1
            views.append(other if whole else other.narrow(axis, start, length))
        yield tuple(views)


class InPlaceNamespace(TorchNamespace):
    """The namespace of a projection in place: norms without temporaries."""

    def norm(self, x: torch.Tensor, axes: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
        # in float64 and as one factor, where the squares of float32 numbers neither overflow nor underflow
        axes = tuple(a % x.ndim for a in axes)
        if not self.can_look(x):
            if x.dtype in _WIDE or not axes:
                return super().norm(x, axes)
            norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=_accumulator(x))
        else:
            total = _sum_of_squares(x, axes, torch.float64 if x.dtype in _WIDE else torch.float32)
            odd = ~((total > 2.0**-100) & (total < 2.0**100))
            norm = total.double().sqrt()
            if not bool(odd.any()):
                return 1.0, norm
            if x.dtype in _WIDE:
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


def _sum_of_squares(x: torch.Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if x.numel() <= _SMALL:
        return _sum_of_part(x, axes, dtype)
    total = torch.zeros([1 if d in axes else n for d, n in enumerate(x.shape)], dtype=dtype)
    sums: list[torch.Tensor] = []
    for part, of_part in _parts(x, total):
        here = _sum_of_part(part, axes, dtype)
        if of_part is total:
            sums.append(here)  # every part adds to the same groups: add pairwise, not one by one
        else:
            of_part.copy_(here)
    return torch.stack(sums).sum(0) if sums else total


def _sum_of_part(x: torch.Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    squares = torch.view_as_real(x).to(dtype).square().sum(-1) if x.is_complex() else x.to(dtype).square()
    return squares.sum(axes, keepdim=True) if axes else squares


def _scale_(x: torch.Tensor, move: Scale) -> None:
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
    if x.dtype in _WIDE:
        x.div_(m).mul_(s)
    elif not look:
        x.mul_(factor)  # in float64, rounded once
    elif x.dtype in (torch.float16, torch.bfloat16):
        for part, of_part in _parts(x, factor):
            part.copy_(part.to(of_part.dtype).mul_(of_part))
    elif bool(((factor > 1e-30) & (factor < 1e30) | (s == 0)).all()):
        x.mul_(factor.float())
    else:  # a factor that float32 cannot hold, or with few digits
        root = factor.sqrt().float()
        x.mul_(root).mul_(root)
    if fill is not None and not (look and not bool(fill.any())):
        x.add_(fill.to(x.dtype))


def _with_axis(factor: Any) -> Any:
    return factor.unsqueeze(-1) if isinstance(factor, torch.Tensor) else factor


def _copy_(x: torch.Tensor, move: Move) -> None:
    """Write a clip part by part, and any other move at once."""
    clip = move.move if isinstance(move, Relaxed) else move
    if not isinstance(clip, Clip):
        x.copy_(move.apply(x, xp))
        return
    bounds = [torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (clip.lower, clip.upper) if b is not None]
    for part, *limits in _parts(x, *bounds):
        of_part: Any = Clip(limits.pop(0) if clip.lower is not None else None, limits[0] if limits else None)
        if isinstance(move, Relaxed):
            of_part = of_part.relaxed(move.rate)
        part.copy_(of_part.apply(part, xp))
