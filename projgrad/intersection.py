"""What several constraints allow together: `a & b`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np

from projgrad.axes import INCOMING, Axis
from projgrad.composition.dual_root import norm_of, point
from projgrad.composition.method import Found, Method
from projgrad.composition.parts import Undecided, bounds_of, entrywise
from projgrad.composition.rules import choose
from projgrad.constraint import Constraint
from projgrad.coupled import Coupled, normalised
from projgrad.moves import Assign, Move, Replace, are_close, is_one
from projgrad.namespace import Array, Namespace, native
from projgrad.registry import register
from projgrad.schedule import steps_in

__all__ = ["Intersection", "intersection"]

_TRIED = 1_000_000  # entries that are projected to see, when tagging, whether the sets have a point in common


@register()
@dataclass(frozen=True, repr=False, eq=False, init=False)
class Intersection(Constraint):
    """The intersection ``{x : x in a and x in b and ...}``, which is written ``a & b & ...``.

    Convex where all sets are. Exact: by the closed form or the root of one function that fits the sets, see `method`.
    To a tolerance: by splitting, for convex sets without one. Cost: that of the sets, times the evaluations.

    A group is the smallest one that contains a group of each set: for the rows of one and the columns of the other, the
    whole matrix. The order of the sets does not matter, nor does it matter if one is there twice.

    The methods, of which the first one that fits is taken:

    - ``"one set"``, ``"entry by entry"``, ``"sum and box"``, ``"monotone and box"``, ``"linear conditions"``: the
      intersection has a projection of its own.
    - ``"cone, then ball"``: any closed convex cone, and a ball with the center 0.
    - ``"affine set and norm"``: sums, masks, symmetric matrices, ... with a ball or sphere.
    - ``"orthant and sphere"``, ``"sphere and box"``, ``"ball and box"``: signs or bounds of entries with a norm. For a
      sphere, the bounds must be of one sign or opposite, and equal where they do not fix an entry. Other bounds are
      possible by this name; then it is an error where the legal signs of a group's entries do not reach the norm.
    - ``"orthant, then the other"``: signs or zeros with an l1 ball, a cardinality, ...
    - ``"dual root"``: any convex set with one linear condition or one ball.
    - ``"admm"``: convex sets. It stops where a bound of the error, ``sqrt(gap + ||x - y|| eps)``, is at most
      ``sqrt(tolerance ||x|| ||y||)``, a part of 1e-3 in float32 and of 4e-8 in float64 where x and the point y are of a
      size, with y in all sets up to the tolerance; the true error is mostly far below. Its derivative is that of the
      last 30 rounds.
    - ``"alternating"``: by name only; one projection after the other, also for sets that are not convex. The result
      is a point of all sets, if it gets there, but not the nearest one.

    In a metric: by the methods with bounds, with a root, or with a set that is the intersection; ``"admm"`` and others
    are refused when tagging. Signs with a sphere are exact, too. For a sphere with other bounds, the point is known
    where the multiplier of the norm is at least -min h; where it is not, and where no digits are left of a root, the
    Euclidean nearest point is taken.

    Where the root or the algorithm does not converge, as for sets that have no point in common, it is an error if the
    numbers can be looked at; otherwise, as in compiled code, `residual` tells.

    Args:
        parts: the sets. An intersection among them counts as its sets.
        method: how the nearest point is found, one of the names above; None for the first that fits.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``, for all sets together.

    Raises:
        TypeError: a part is not a constraint.
        ValueError: there is no part; the intersection is empty, as far as that can be told; a part has a rate; no
            method fits (a set is not convex), or the one that is asked for does not; or `rate` is outside (0, 1].

    Examples:
        >>> pg.UnitNorm(axis=0) & pg.Box(0.0, 0.05)
        Intersection(UnitNorm(axis=0), Box(lower=0.0, upper=0.05), method='sphere and box')

    Source: see `projgrad.composition`.
    """

    sets: tuple[Constraint, ...]
    method: str | None
    rate: float

    def __init__(
        self,
        *parts: Constraint,
        sets: Sequence[Constraint] = (),
        method: str | None = None,
        rate: float = 1.0,
    ) -> None:
        for name, value in (("sets", (*parts, *sets)), ("method", method), ("rate", rate)):
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sets", tuple(_flat(self.sets)))
        if not self.sets:
            raise ValueError("Intersection: there is no set to intersect")
        for step in sorted(steps_in(self.sets)):
            Intersection(*(part.at(step) for part in self.sets), method=self.method)
        object.__setattr__(self, "_method", self._chosen(None))
        object.__setattr__(self, "_weighted", self._chosen_in_metric(None))

    def _chosen(self, ndim: int | None) -> Method | None:
        try:
            return choose(self.sets, self.method, ndim)
        except Undecided:
            return None

    def _chosen_in_metric(self, ndim: int | None) -> Method | None:
        try:
            return choose(self.sets, self.method, ndim, in_metric=True)
        except (Undecided, ValueError):  # or there is none
            return None

    def _for(self, ndim: int, metric: Any = None) -> Method:
        method: Method | None
        if metric is None:
            method = self._method or self._chosen(ndim)  # type: ignore[attr-defined]
        else:
            method = self._weighted or self._chosen_in_metric(ndim)  # type: ignore[attr-defined]
        if method is None:
            raise ValueError(
                f'{self}: its nearest point in a diagonal metric is not implemented; leave it at metric="euclidean"'
            )
        return method

    @property
    def in_metric(self) -> bool:
        """Whether the nearest point in a metric is known; true where that depends on the number of dimensions."""
        return self._weighted is not None or self._method is None  # type: ignore[attr-defined]

    def check_metric(self, ndim: int | None = None) -> None:
        super().check_metric(ndim)
        if ndim is not None and not self.scheduled:
            self._for(ndim, metric=True)

    @property
    def chosen(self) -> str | None:
        """The name of the method; None where that depends on the number of dimensions of the array."""
        method: Method | None = self._method  # type: ignore[attr-defined]
        return self.method if method is None else method.name

    @property
    def roots(self) -> int:
        """How many roots are found, one within the other."""
        return 0 if self._method is None else self._method.roots  # type: ignore[attr-defined]

    @property
    def axis(self) -> Axis:  # type: ignore[override]
        axes = {part.axis for part in self.sets if not entrywise(part)}
        if len(axes) <= 1:
            return axes.pop() if axes else ()
        return INCOMING if INCOMING in axes else None

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        return tuple(sorted({d for part in self.sets for d in part.group_axes(ndim)}))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        for part in self.sets:
            part.check_shape(shape)
        self._check(shape, tagging=False)

    def _check(self, shape: tuple[int, ...], *, tagging: bool) -> None:
        if 0 not in shape:
            method = self._for(len(shape))
            if method.alone is not None:
                method.alone.check_shape(shape)
            else:
                method.check(shape, tagging)

    def check_dtype(self, dtype: Any) -> None:
        for part in self.sets:
            part.check_dtype(dtype)
        super().check_dtype(dtype)

    def bind(self, shape: tuple[int, ...], incoming: tuple[int, ...] | str) -> Self:
        bound = type(self)(*(part.bind(shape, incoming) for part in self.sets), method=self.method, rate=self.rate)
        if None not in shape:
            bound.check_shape(shape)
            if not (bound.scheduled or bound.traced):
                bound._check(shape, tagging=True)
                bound._refuse_empty(shape)
        return bound

    def _refuse_empty(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where no point of the sets is found from zeros, for groups that are not too large."""
        method, axes = self._for(len(shape)), self.group_axes(len(shape))
        alike = self._alike()
        tried = tuple(n if d in axes or not alike else min(n, 1) for d, n in enumerate(shape))
        if self.method is not None or method.nearest is None or not axes or not 0 < math.prod(tried) <= _TRIED:
            return
        x, xp = native(np.zeros(tried))
        failed = self._found(x, xp, method, axes).failed
        if failed is not None and bool(xp.any(failed)):
            raise ValueError(f"{self}: no point of all sets is found; it seems that they have none in common")

    def at(self, step: Any, dtype: Any = "float32") -> Self:
        made = Constraint.at(self, step, dtype)
        if made is not self:  # other numbers
            object.__setattr__(made, "_method", None)
            object.__setattr__(made, "_weighted", None)
        return made

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        method = self._for(len(x.shape), metric)
        if method.alone is not None:
            return method.alone.solve(x, xp, metric)
        axes = self.group_axes(len(x.shape))
        if not axes:
            y = x
            for part in self.sets:
                y = part.solve(y, xp).apply(y, xp)
            return Assign(y)
        holds, kept = self._holds(x, xp, method, axes), None
        if metric is not None:
            kept = are_close(x, self._off(x, xp, axes), axes, xp, method.accuracy, holds)
            if xp.can_look(kept) and not xp.may_differentiate(x) and bool(xp.all(kept)):
                return Replace(xp.upcast(x), axes, kept=kept)
        y, error, failed = self._found(x, xp, method, axes, metric)
        if failed is not None and xp.can_look(failed) and bool(xp.any(failed)):
            worst = float(xp.max(xp.where(failed, error, 0.0)))
            raise RuntimeError(
                f"{self}: no nearest point is found for shape {tuple(x.shape)}; the residual is {worst:.3g}. "
                "Either the sets have no point in common, or they meet at so small an angle that it takes more steps "
                "than are allowed: loosen one of them, or say method='alternating' for any point of them"
            )
        return Replace(y, axes, method.accuracy, holds, kept)

    def pieces(self, x: Array, xp: Namespace, metric: Array | None) -> tuple[int, int] | None:
        axes, alone = self.group_axes(len(x.shape)), self._for(len(x.shape), metric).alone
        if alone is not None:
            return alone.pieces(x, xp, metric)
        return xp.pieces(x, axes) if axes and self._alike() else None

    def _alike(self) -> bool:
        """Whether the same holds for all groups."""
        return all(isinstance(b, float) for part in self.sets if entrywise(part) for b in bounds_of(part) or ())

    def _off(self, x: Array, xp: Namespace, axes: tuple[int, ...]) -> Array:
        """The largest distance of every group from one of the sets, NaN for a group that is not finite."""
        v = xp.stop_gradient(xp.upcast(x))
        finite = xp.all_finite(v, axes)
        v = xp.where(finite, v, 0.0)
        off = reduce(xp.maximum, (norm_of(v - xp.upcast(point(part, v, xp)), xp, axes) for part in self.sets))
        return xp.where(finite, off, float("nan"))

    def _found(
        self, x: Array, xp: Namespace, method: Method, axes: tuple[int, ...], metric: Array | None = None
    ) -> Found:
        """The nearest point of every group, NaN for a group that is not finite."""
        v = xp.upcast(x)
        finite = xp.all_finite(v, axes)
        v = xp.where(finite, v, 0.0)
        if metric is None:
            assert method.nearest is not None
            y, error, failed = method.nearest(v, xp, axes)
        else:
            assert method.weighted is not None
            y, error, failed = method.weighted(v, normalised(metric, axes, xp), xp, axes)
        nan = float("nan")
        return Found(
            xp.where(finite, y, nan),
            None if error is None else xp.where(finite, error, nan),
            None if failed is None else failed & finite,
        )

    def _holds(self, x: Array, xp: Namespace, method: Method, axes: tuple[int, ...]) -> Array | None:
        """Whether every group of `x` has what must hold exactly; by methods that only get near, the bounds alone."""
        held, exact = None, method.roots < math.inf
        for part in self.sets:
            here = None
            if entrywise(part):
                here = part.solve(x, xp).keep(x, xp)
            elif isinstance(part, Coupled) and exact:
                here = part.holds_in(x, xp)
            if here is not None:
                here = xp.all(here, axis=axes, keepdims=True)
                held = here if held is None else held & here
        return held

    def residual(self, x: Any) -> Any:
        """How far the computed nearest point of every group may be off: from the true one, or at least from the sets.

        For an exact method, only the latter. The shape is that of `violation`.
        """
        x, xp = self._checked(x)
        method, axes = self._for(len(x.shape)), self.group_axes(len(x.shape))
        if method.nearest is None or not axes:
            y, error = xp.upcast(self.solve(x, xp).apply(x, xp)), None
        else:
            y, error, _ = self._found(x, xp, method, axes)
        far = self._off(y, xp, axes)
        error = far if error is None else xp.maximum(error, far)
        return xp.squeeze(error, axis=axes)

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return all(part.convex for part in self.sets)

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return all(part.cone for part in self.sets)

    @property
    def affine(self) -> bool:  # type: ignore[override]
        return all(part.affine for part in self.sets)

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return all(part.solid for part in self.sets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intersection):
            return NotImplemented
        return (frozenset(self.sets), self.chosen, self.rate) == (frozenset(other.sets), other.chosen, other.rate)

    def __hash__(self) -> int:
        return hash((frozenset(self.sets), self.chosen, self.rate))

    def __repr__(self) -> str:
        shown = [repr(part) for part in self.sets]
        shown += [f"method={self.chosen!r}"] if self.chosen is not None else []
        shown += [f"rate={self.rate!r}"] if not is_one(self.rate) else []
        return f"{type(self).__name__}({', '.join(shown)})"


def intersection(*parts: Constraint) -> Constraint:
    """The intersection of constraints, which is the constraint itself where there is but one."""
    made = Intersection(*parts)
    return made.sets[0] if len(made.sets) == 1 else made


def _flat(parts: Sequence[Any]) -> list[Constraint]:
    """The sets, those of intersections among them, each once."""
    flat: list[Constraint] = []
    for part in parts:
        if not isinstance(part, Constraint):
            raise TypeError(f"Intersection: {part!r} is not a constraint: wrap a function by projgrad.as_constraint()")
        if not is_one(part.rate):
            raise ValueError(f"Intersection: {part} has a rate of its own: relax the whole, as in (a & b).relaxed(0.5)")
        for one in part.sets if isinstance(part, Intersection) else (part,):
            if one not in flat:
                flat.append(one)
    return flat
