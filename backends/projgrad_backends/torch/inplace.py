"""Carrying out a move in the memory of a parameter.

The array is read and written in parts that fit in the cache, so no new array of the parameter's size is made. On the
CPU the few numbers per group are looked at, to skip what changes nothing; on other devices, and while compiling,
looking would wait for the device, so the plain path is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from projgrad.constraint import Constraint
from projgrad.function import as_constraint
from projgrad.moves import Clip, Move, Piecewise, Relaxed, Scale
from projgrad.plan import PlanEntry
from projgrad_backends.torch.held import refuse_opaque
from projgrad_backends.torch.namespace import xp as plain
from projgrad_backends.torch.norms import WIDE, parts, scale_, xp
from projgrad_backends.torch.sharded import Whole, is_sharded

__all__ = ["Located", "Record", "carry_out", "find_move", "has_numbers", "project_", "project_all", "project_each"]

# what holds for some tensors, with the weights of their entries where it holds in a metric
Located = tuple[Sequence[torch.Tensor], PlanEntry, Sequence[torch.Tensor | None] | None]

# by the name of an entry, the largest violation before the last projection, and how far it moved each parameter
Record = dict[str, tuple[torch.Tensor, list[torch.Tensor]]]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PER_BOUND = 16  # bounds are few when there are so many entries to each

Find = Callable[[Constraint, torch.Tensor, torch.Tensor | None, Any], Move]  # as `find_move`


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


def find_move(constraint: Constraint, x: torch.Tensor, metric: torch.Tensor | None, step: Any) -> Move:
    """The move from `x` to the nearest point, for `carry_out`."""
    # in a metric there are arrays of the parameter's size anyway, and norms in float64 would widen them
    return constraint.move(x, xp if metric is None else plain, metric, step=step)


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
def project_each(
    located: Iterable[Located], step: int | None = None, record: Record | None = None, find: Find = find_move
) -> None:
    """Project one after the other in place, which needs the least memory, and note in `record` what that did."""
    if record is None:
        for move in _moves(located, step, find):
            _write(move)
        return
    for tensors, entry, weights in located:
        old = [x.clone() for x in tensors]
        for move in _moves([(tensors, entry, weights)], step, find):
            before = _largest(move, step)
            _write(move)
            # of a sharded parameter, what is computed here is for the processes to reduce when it is asked for
            moved = [torch.linalg.vector_norm(xp.upcast(y.sub_(x))) for x, y in zip(tensors, old, strict=True)]
            record[entry.name] = before, moved


_Planned = tuple[Sequence[torch.Tensor], PlanEntry, torch.Tensor, Move | None, Whole | None]


def _moves(located: Iterable[Located], step: int | None, find: Find = find_move) -> Iterator[_Planned]:
    for tensors, entry, weights in located:
        whole, move = None, None
        if is_sharded(tensors):
            whole = Whole(tensors, entry.constraint, joint=entry.layout is not None, weights=weights)
            tensors, weights = whole.arrays, whole.weights
        x = tensors[0] if entry.layout is None else entry.gather(tensors)
        if x.numel():
            metric = None if weights is None else entry.gather_metric(weights)
            move = find(entry.constraint, x, metric, step)
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
    elif isinstance(move, Clip) and has_numbers(move):
        away = x.clamp(move.lower, move.upper).sub_(x)  # quicker
    elif entry.in_metric:  # where a move goes farther
        away = entry.constraint.violation(x, step=step)
    else:
        away = move.distance(x, xp)
    largest = away.abs().max().to(torch.float64 if x.dtype in WIDE else torch.float32)
    return largest if whole is None else whole.of_each(largest)


def carry_out(x: torch.Tensor, move: Move) -> None:
    """Write the nearest point that a move leads to into `x`."""
    if isinstance(move, Scale):
        scale_(x, move)
    elif isinstance(move, Clip) and has_numbers(move):
        x.clamp_(move.lower, move.upper)
    elif isinstance(move, Piecewise):
        for piece, part in move.pieces(x):
            if part is not None:
                carry_out(piece, part)
    else:
        _copy_(x, move)


def has_numbers(move: Clip) -> bool:
    """Whether the bounds are numbers, or none, rather than arrays."""
    return not (isinstance(move.lower, torch.Tensor) or isinstance(move.upper, torch.Tensor))


def _copy_(x: torch.Tensor, move: Move) -> None:
    """Write a clip part by part, and any other move at once."""
    clip = move.move if isinstance(move, Relaxed) else move
    if not isinstance(clip, Clip):
        x.copy_(move.apply(x, xp))
        return
    given = [b for b in (clip.lower, clip.upper) if b is not None]
    # made on the device, as to copy a number there would wait for it
    bounds = [b.to(x.dtype) if isinstance(b, torch.Tensor) else x.new_full((), b) for b in given]
    # clamp_ is quicker than comparing, but where a bound is 0 and an entry is -0, it may write 0
    quick = clip is move and xp.can_look(x)
    if quick and all(_PER_BOUND * b.numel() <= x.numel() and bool(b.all()) for b in bounds):
        x.clamp_(*_both(clip, bounds))
        return
    for part, *limits in parts(x, *bounds):
        lower, upper = _both(clip, limits)
        if quick and not _has_minus_zero(part):
            part.clamp_(lower, upper)
            continue
        of_part: Any = Clip(lower, upper)
        if isinstance(move, Relaxed):
            of_part = of_part.relaxed(move.rate)
        part.copy_(of_part.apply(part, xp))


def _both(clip: Clip, bounds: Sequence[Any]) -> tuple[Any, Any]:
    """The lower and the upper bound, of those that there are."""
    return (None if clip.lower is None else bounds[0]), (None if clip.upper is None else bounds[-1])


def _has_minus_zero(x: torch.Tensor) -> bool:
    bits = _BITS[x.element_size()]
    return x.view(bits).min().item() == torch.iinfo(bits).min
