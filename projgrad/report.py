"""What can be seen of constrained parameters: one row each, as a table, a dict or numbers for a logger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projgrad.boundary import on_boundary
from projgrad.constraint import Constraint
from projgrad.moves import cut
from projgrad.namespace import Array, Namespace, native
from projgrad.plan import PlanEntry
from projgrad.precision import precision
from projgrad.registry import encode
from projgrad.slices import Slices

__all__ = ["Report", "Row", "make_report", "on_host", "parts_of"]


@dataclass(frozen=True)
class Row:
    """What there is to see of one parameter, or of several in one set.

    Args:
        name: the name.
        shape: the shape.
        constraint: the set and its options; None where nothing is constrained.
        groups: how many groups there are: entries in a set of single entries, one in all where nothing is constrained.
        on_boundary: the share of the groups that lie on the boundary of the set, or outside. In a convex set without
            interior it is the relative boundary: a simplex has those with a zero, a plane has none. In other sets
            without interior, such as spheres, it is 1.
        violation: the largest distance of a group from the set.
        before: the same before the last projection; None where that is not recorded.
        moved: how far that projection moved the parameter, as an l2 distance; None where that is not recorded.
        norms: the smallest and the largest l2 norm of a group.
        finite: there is no NaN and no infinity.
    """

    name: str
    shape: tuple[int, ...]
    constraint: str | None
    groups: int
    on_boundary: float | None
    violation: float | None
    before: float | None
    moved: float | None
    norms: tuple[float, float]
    finite: bool


class Report(tuple[Row, ...]):
    """The rows of all parameters, in order; prints as a table."""

    __slots__ = ()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The fields of every row by its name, as plain JSON; NaN and infinities are "nan", "inf" and "-inf"."""
        rows = {row.name: asdict(row) for row in self}
        return {name: {key: encode(value) for key, value in row.items() if key != "name"} for name, row in rows.items()}

    def scalars(self) -> dict[str, float]:
        """The numbers as "name/field", for loggers; the norms are "norm_min" and "norm_max"."""
        return {f"{row.name}/{field}": value for row in self for field, value in _numbers(row)}

    def __repr__(self) -> str:
        if not self:
            return "Report: there is no parameter"
        shown = [_HEADS, *(_cells(row) for row in self)]
        shown = [line for line in zip(*shown, strict=True) if any(line[1:]) or line[0] in _ALWAYS]  # by columns
        widths = [max(map(len, column)) for column in shown]
        lines = [
            "  ".join(
                cell.rjust(width) if column[0] in _RIGHT else cell.ljust(width)
                for cell, width, column in zip(line, widths, shown, strict=True)
            )
            for line in zip(*shown, strict=True)
        ]
        return "\n".join(line.rstrip() for line in lines)


_HEADS = ("parameter", "shape", "groups", "on boundary", "violation", "before", "moved", "norms", "", "constraint")
_RIGHT = ("groups", "on boundary", "violation", "before", "moved")
_ALWAYS = ("parameter", "shape", "groups", "norms", "constraint")


def _cells(row: Row) -> tuple[str, ...]:
    low, high = (_short(norm) for norm in row.norms)
    return (
        row.name,
        str(row.shape),
        "" if row.constraint is None else str(row.groups),
        "" if row.on_boundary is None else f"{100 * row.on_boundary:.0f} %",
        _short(row.violation),
        _short(row.before),
        _short(row.moved),
        low if low == high else f"{low} to {high}",
        "" if row.finite else "NOT FINITE",
        row.constraint or "-",
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name in ("on_boundary", "violation", "before", "moved"):
        value = getattr(row, name)
        if value is not None:
            yield name, value
    yield from zip(("norm_min", "norm_max"), row.norms, strict=True)
    yield "finite", float(row.finite)


def make_report(
    held: Iterable[tuple[PlanEntry | str, Sequence[Any]]],
    step: Any = None,
    recorded: Mapping[str, tuple[Any, Any]] | None = None,
) -> Report:
    """The report of some parameters.

    All is computed where the arrays are; the numbers come to the host together.

    Args:
        held: in the order of the rows, entries of a plan with their parameters, and for what is not constrained the
            name with a parameter. Arrays are looked at one after the other, and not kept.
        step: the number of steps made, for schedules.
        recorded: by the name of an entry, the largest violation before the last projection and the distance moved, as
            numbers or as arrays without dimensions.

    Raises:
        TypeError, ValueError: as `Constraint.violation`.
    """
    kept: list[Array] = []  # arrays without dimensions, as many for each row
    rows: list[tuple[str, tuple[int, ...], str | None, int, Sequence[Any]]] = []
    for entry, arrays in held:
        if isinstance(entry, str):
            x, xp = native(arrays[0])
            rows.append((entry, tuple(x.shape), None, 1, ()))
            kept += _measured(None, _floating(x, xp), xp, step)
        else:
            x, xp = native(entry.gather(arrays))
            past = (recorded or {}).get(entry.name, ())
            groups = sum(_groups(part, tuple(piece.shape)) for part, piece in parts_of(entry.constraint, x))
            rows.append((entry.name, entry.shape, str(entry.shown), groups, past))
            kept += _measured(entry.constraint, x, xp, step)
        kept += rows[-1][-1]
    values = iter(on_host(kept))
    return Report(_row(*row, values) for row in rows)


def _row(
    name: str, shape: tuple[int, ...], constraint: str | None, groups: int, past: Sequence[Any], values: Iterator[float]
) -> Row:
    finite, low, high = (next(values) for _ in range(3))
    on, violation = (None, None) if constraint is None else (next(values) / max(groups, 1), next(values))
    before, moved = (next(values), next(values)) if past else (None, None)
    return Row(name, shape, constraint, groups, on, violation, before, moved, (low, high), finite == 1)


def _measured(constraint: Constraint | None, x: Array, xp: Namespace, step: Any) -> list[Array]:
    """Whether `x` is finite, the smallest and largest norm, how many groups are on the boundary, and the violation."""
    x = xp.stop_gradient(x)
    none = xp.reshape(x, (-1,))[:0]
    like = xp.upcast(xp.real(none) if xp.is_complex(x) else none)
    if 0 in tuple(x.shape):
        zero = xp.zeros((), dtype=like.dtype)
        return [zero + 1, zero, zero, *([zero, zero] if constraint is not None else [])]
    lows, highs, on, far = [], [], [], []
    for part, piece in [(None, x)] if constraint is None else parts_of(constraint, x):
        axes = tuple(range(len(x.shape))) if part is None else part.group_axes(len(x.shape))
        norms = xp.times(*xp.norm(piece, axes))
        lows.append(xp.min(norms))
        highs.append(xp.max(norms))
        if part is not None:
            now = part if step is None else part.at(step, piece.dtype)
            far.append(xp.max(now.violation(piece)))
            on.append(xp.sum(xp.astype(on_boundary(now, piece, xp), like.dtype)))
    measured = [xp.astype(xp.all(xp.isfinite(x)), like.dtype), xp.min(xp.stack(lows)), xp.max(xp.stack(highs))]
    return measured + ([xp.sum(xp.stack(on)), xp.max(xp.stack(far))] if far else [])


def _floating(x: Array, xp: Namespace) -> Array:
    """`x`, in float32 where projgrad does not know its numbers."""
    try:
        precision(x.dtype)
    except TypeError:
        return xp.astype(x, xp.float32)
    return x


def parts_of(constraint: Constraint, x: Array) -> Iterator[tuple[Constraint, Array]]:
    """The constraint with what it is for: of `Slices`, those of all slices that are constrained."""
    if not isinstance(constraint, Slices):
        yield constraint, x
        return
    for start, stop, part in constraint.ranges(tuple(x.shape)):
        if part is not None:
            yield from parts_of(part, x[cut(constraint.along % len(x.shape), start, stop)])


def _groups(constraint: Constraint, shape: tuple[int, ...]) -> int:
    axes = constraint.group_axes(len(shape))
    return math.prod(n for d, n in enumerate(shape) if d not in axes)


def on_host(values: Sequence[Any]) -> list[float]:
    """Numbers, some of them arrays without dimensions: one transfer for all of a dtype and device."""
    found = [0.0 if hasattr(value, "dtype") else float(value) for value in values]
    together: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        if hasattr(value, "dtype"):
            together.setdefault((str(value.dtype), str(getattr(value, "device", "cpu"))), []).append(i)
    for places in together.values():
        arrays = [native(values[i]) for i in places]
        xp = arrays[0][1]
        for i, number in zip(places, xp.host(xp.stack([x for x, _ in arrays])), strict=True):
            found[i] = float(number)
    return found
