"""The base of all constraints: what follows from a set's `solve`."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from projgrad.axes import INCOMING, Axis, check_axis, numeric_axes
from projgrad.frozen import FrozenArray
from projgrad.moves import Move, Piecewise, cut, is_one
from projgrad.namespace import Array, Namespace, native
from projgrad.precision import precision
from projgrad.registry import from_dict, to_dict
from projgrad.schedule import Schedule, check_at_steps, is_step, make_at_steps, value_at
from projgrad.tangents import linear_part

if TYPE_CHECKING:
    from projgrad.tag import Tag

__all__ = ["Constraint"]


class Constraint(ABC):
    """A set of allowed values; `project` gives the nearest of them.

    A new set is a frozen dataclass that derives from this class, is registered with `projgrad.register`, and defines
    `solve`. Its fields are its parameters: they make the `repr`, equality, hash and `to_dict`. A field called `axis` or
    `rate` has the meaning it has everywhere in projgrad.
    """

    #: the axes of a group; () in a set that holds for every entry by itself
    axis: Axis = ()
    rate: float = 1.0
    #: complex arrays are accepted
    complex_valued: ClassVar[bool] = False
    #: for the methods of `a & b`, true for any values of the parameters: the set is convex
    convex: ClassVar[bool] = True
    #: it is a cone: what is in it stays so when scaled by a positive number
    cone: ClassVar[bool] = False
    #: it is affine: a plane, a line, ...
    affine: ClassVar[bool] = False
    #: what is in it stays so when entries get smaller or change sign; its projection keeps zeros
    solid: ClassVar[bool] = False
    #: a number, here or in a constraint inside, is a `projgrad.Schedule`
    scheduled: ClassVar[bool] = False
    #: numbers are arrays, which nothing can be asked about
    traced: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        # so that no set has to know of schedules: what looks at its numbers is asked about each of their values
        super().__init_subclass__(**options)
        for name, wrap in (("__post_init__", make_at_steps), ("check_shape", check_at_steps)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    @abstractmethod
    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        """The move from `x` to its nearest point in the set (with `rate` 1).

        Args:
            x: an array with at least one entry.
            xp: the functions to call on it.
            metric: a positive weight h per entry, of the shape of `x` and in the dtype of computation, for the point
                that minimises ``sum(h * (y - x)**2)``; None for equal weights. Only where the set is `in_metric`.
        """

    @property
    def has_tangent(self) -> bool:
        """Whether `tangent` is implemented."""
        return self.affine

    def tangent_at(self, x: Array, d: Array, xp: Namespace) -> Array:
        """`tangent` of a `d` in the dtype of computation, for a set that `has_tangent`; by default, an affine one."""
        return linear_part(lambda v: self.solve(v, xp).apply(v, xp), d, self.group_axes(len(x.shape)), xp)

    @property
    def in_metric(self) -> bool:
        """Whether the nearest point in a diagonal metric is implemented; for single entries, it is the same in all."""
        return self.axis == ()

    def check_metric(self, ndim: int | None = None) -> None:
        """Raise ValueError where the nearest point in a diagonal metric is not implemented, for so many dimensions."""
        if not self.in_metric:
            raise ValueError(
                f'{self}: its nearest point in a diagonal metric is not implemented; leave it at metric="euclidean"'
            )

    def check_tangent(self) -> None:
        """Raise ValueError where `tangent` is not implemented."""
        if not self.has_tangent:
            raise ValueError(
                f"{self}: its tangent directions are not implemented; they are for norms, spheres, bounds, simplices, "
                "affine sets and Orthogonal"
            )

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of a group in an array of `ndim` dimensions.

        Raises:
            ValueError: an axis does not exist, or is "incoming", which an array alone does not tell.
        """
        return numeric_axes(self.axis, ndim)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError when no array of this shape can be projected."""
        self.group_axes(len(shape))

    def check_dtype(self, dtype: Any) -> None:
        """Raise TypeError when no array of this dtype can be projected."""
        precision(dtype)
        if "complex" in str(dtype) and not self.complex_valued:
            raise TypeError(f"{type(self).__name__} is a set of real numbers; the dtype is {dtype}")

    @make_at_steps
    def __post_init__(self) -> None:
        if "axis" in self.__dataclass_fields__:  # type: ignore[attr-defined]
            object.__setattr__(self, "axis", check_axis(self.axis))
        self.check_rate()

    def check_rate(self) -> None:
        """Raise ValueError when the rate is not one."""
        if not (isinstance(self.rate, int | float) and 0 < self.rate <= 1):
            raise ValueError(f"{type(self).__name__}: rate={self.rate!r} must be a number above 0 and at most 1")

    def move(self, x: Array, xp: Namespace, metric: Array | None = None, *, step: Any = None) -> Move:
        """`solve`, relaxed by `rate`; the `step` is that of `project`."""
        decided = self._decided(x, step)
        cuts = decided.pieces(x, xp, metric)
        if cuts is None:
            move = decided.solve(x, xp, metric)
            return move if is_one(decided.rate) else move.relaxed(decided.rate)
        along, length = cuts
        moves = []
        for start in range(0, x.shape[along], length):
            here = cut(along, start, start + length)
            weights = None if metric is None else metric[here]
            moves.append((start, start + length, decided.move(x[here], xp, weights)))
        return Piecewise(along, tuple(moves))

    def pieces(self, x: Array, xp: Namespace, metric: Array | None) -> tuple[int, int] | None:
        """`Namespace.pieces` of an array whose groups are best projected in pieces; None for the whole at once."""
        return None

    def project(self, x: Any, *, metric: Any = None, step: Any = None) -> Any:
        """The point of the set nearest to `x`, or ``(1 - rate) * x + rate * P(x)`` where `rate` is below 1.

        Args:
            x: a floating-point array of any framework, or a variable that holds one.
            metric: a positive weight h per entry, an array that broadcasts to `x`, for the point y that minimises
                ``sum(h * (y - x)**2)``; None for equal weights. Within a group, weights below the largest by a factor
                of 1e25 (1e200 in double precision) count as such. It is held constant in differentiation.
            step: which step a `Schedule` is asked about; not needed where there is none.

        Returns:
            An array of the same framework, dtype, device and shape. Groups that are in the set, up to
            `projgrad.tolerance`, come back bit for bit.

        Raises:
            TypeError: `x` is not an array, or not floating-point; it is spread over processes (DTensor: see
                `projgrad.torch.project_`).
            ValueError: an axis does not exist in `x`, or is "incoming", which an array alone does not tell; there is a
                schedule and no step; the nearest point in a metric is not implemented, or the metric does not broadcast
                to `x` or, where it can be looked at, is not positive and finite.
        """
        x, xp = self._checked(x)
        h = None if metric is None else self._weights(metric, x, xp)
        return x if _is_empty(x) else self.move(x, xp, h, step=step).apply(x, xp)

    def tangent(self, x: Any, d: Any, *, step: Any = None) -> Any:
        """The direction nearest to `d` in which the point `x` of the set can move without leaving it, to first order.

        It is the projection of `d` onto the tangent cone of the set at `x`: onto the tangent plane of a sphere, say, or
        on the boundary of a ball, without the part that points outwards.

        Args:
            x: a point of the set, as for `project`.
            d: an array of the framework and shape of `x`.
            step: as in `project`.

        Returns:
            An array of the shape and dtype of `d`.

        Raises:
            TypeError: as for `project`; `d` is an array of another framework.
            ValueError: as for `project`; the shapes differ; no tangent directions are implemented for the set.

        Source: Rockafellar and Wets, Variational Analysis (1998), chapter 6.
        """
        x, xp = self._checked(x)
        d, own = native(d)
        if own is not xp:
            raise TypeError(f"the direction is a {type(d).__name__}, but the point a {type(x).__name__}")
        if tuple(d.shape) != tuple(x.shape):
            raise ValueError(f"the direction has the shape {tuple(d.shape)}, and the point {tuple(x.shape)}")
        if _is_empty(x):
            return d
        self.check_tangent()
        found = self._decided(x, step).tangent_at(x, xp.upcast(d), xp)
        return xp.astype(found, d.dtype)

    def __call__(self, x: Any) -> Any:
        """`project`, so that a constraint can stand wherever a function of the weights can."""
        x, xp = self._checked(x)
        return x if _is_empty(x) else xp.carried_out(x, self.move)

    def violation(self, x: Any, *, step: Any = None) -> Any:
        """The distance of every group of `x` from the set, as an array without the axes of the set.

        In a set that holds for every entry by itself, that has the shape of `x`. An empty group has the distance 0. The
        `step` is that of `project`.
        """
        x, xp = self._checked(x)
        if _is_empty(x):
            axes = self.group_axes(len(x.shape))
            kept = tuple(n for i, n in enumerate(x.shape) if i not in axes)
            return xp.zeros(kept, dtype=getattr(xp, precision(x.dtype).compute))
        return self._decided(x, step).solve(x, xp).distance(x, xp)

    def contains(self, x: Any, tol: float | None = None, *, step: Any = None) -> bool:
        """Whether every group of `x` is within the distance `tol` of the set. The `step` is that of `project`.

        By default, 1.5 times `projgrad.tolerance`: `project` leaves alone what is within the tolerance, and compiled,
        eager and sharded code may compute distances that differ by half of it.
        """
        x, xp = self._checked(x)
        if _is_empty(x):
            return True
        move = self._decided(x, step).solve(x, xp)
        return bool(xp.all(move.keep(x, xp, slack=1.5) if tol is None else move.distance(x, xp) <= tol))

    def relaxed(self, rate: float | Schedule) -> Self:
        """This constraint, going only the part `rate` of its own way at a time.

        Raises:
            TypeError: it is a set of your own without a field ``rate: float = 1.0``.
        """
        if "rate" not in (field.name for field in fields(self)):  # type: ignore[arg-type]
            raise TypeError(f"{type(self).__name__} has no field rate: float = 1.0, which relaxed() sets")
        return replace(self, rate=self.rate * rate)  # type: ignore[type-var]

    def every(self, steps: int) -> Tag:
        """This constraint with the option of `projgrad.Tag` that it is projected onto every so many steps only."""
        from projgrad.tag import Tag

        return Tag(self, every=steps)

    def at(self, step: Any, dtype: Any = "float32") -> Self:
        """This constraint after so many steps, with numbers in the place of schedules.

        Args:
            step: an int, or an array without dimensions, which may be traced.
            dtype: of the array to project. Where `step` is an array, so are the numbers, without dimensions and in the
                dtype that projgrad computes in for this one.
        """
        if not self.scheduled:
            return self
        values = {f.name: value_at(getattr(self, f.name), step, dtype) for f in fields(self)}  # type: ignore[arg-type]
        made = copy.copy(self)  # not made anew: the values are between ones that were checked, and it must compile
        for name, value in (values | {"scheduled": False, "traced": not is_step(step)}).items():
            object.__setattr__(made, name, value)
        return made

    def bind(self, shape: tuple[int, ...], incoming: tuple[int, ...] | str) -> Self:
        """This constraint for a parameter of the given shape, with its axes as numbers.

        Args:
            shape: of the parameter; with None for lengths that are not known yet, and not checked.
            incoming: its "incoming" axes, or the reason why it has none.

        Raises:
            ValueError: the axes do not exist, or the constraint does not fit the shape.
        """
        bound = self
        if self.axis == INCOMING:
            if isinstance(incoming, str):
                raise ValueError(incoming)
            bound = replace(self, axis=incoming)  # type: ignore[type-var]
        if bound.axis is not None and bound.axis != ():
            axes = numeric_axes(bound.axis, len(shape))
            bound = replace(bound, axis=axes[0] if len(axes) == 1 else axes)  # type: ignore[type-var]
        if None not in shape:
            bound.check_shape(shape)
        return bound

    def __and__(self, other: Constraint) -> Constraint:
        """What this constraint and the other one allow: see `projgrad.Intersection`."""
        from projgrad.intersection import intersection  # which needs this class

        return intersection(self, other) if isinstance(other, Constraint) else NotImplemented

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            infinite = isinstance(value, float) and math.isinf(value)
            # a default that bounds something is shown as well: who reads a plan wants to know the bound
            bounds = isinstance(value, float) and value != 0 and not infinite and name != "rate"
            if hasattr(value, "dtype") or bounds or value != field.default:
                shown.append(f"{name}=" + (f"float('{value}')" if infinite else repr(value)))
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """The constraint as plain JSON, for `projgrad.from_dict`."""
        return to_dict(self)

    # Keras saves a constraint that stands on one of its layers by these two, whether or not projgrad.keras is imported.

    def get_config(self) -> dict[str, Any]:
        """The fields as plain JSON, with a note for which Keras's own class of the same name refuses them."""
        from projgrad_backends.keras import registration  # noqa: F401  it lets Keras know the classes

        return {"projgrad": "import projgrad.keras before loading"} | self.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The constraint of these fields."""
        return cast(Self, from_dict({k: v for k, v in config.items() if k != "projgrad"}))

    def _decided(self, x: Array, step: Any) -> Self:
        if not self.scheduled:
            return self
        if step is None:
            raise ValueError(
                f"{self} changes with the step: say which one by step=, as in project(x, step=0), or give it to an "
                "optimizer wrapper, which counts the steps"
            )
        return self.at(step, x.dtype)

    def _weights(self, metric: Any, x: Array, xp: Namespace) -> Array:
        """The metric as an array of the shape of `x`, in the dtype of computation."""
        self.check_metric()
        if isinstance(metric, str):
            raise TypeError(f"metric={metric!r} is for the wrappers of optimizers; here it is an array of weights")
        like, shape = xp.upcast(x), tuple(x.shape)
        h, own = native(metric) if hasattr(metric, "dtype") else (metric, None)
        if own is not xp:
            h = xp.constant(FrozenArray(h), like)
        if xp.is_complex(h):
            raise ValueError("metric must be real")
        sides = zip(tuple(h.shape)[::-1], shape[::-1], strict=False)
        if len(h.shape) > len(shape) or any(n not in (1, m) for n, m in sides):
            raise ValueError(f"metric has the shape {tuple(h.shape)}, which does not broadcast to {shape}")
        h = xp.broadcast_to(xp.stop_gradient(h), shape)
        if xp.can_look(h) and 0 not in shape and not (bool(xp.min(h) > 0) and bool(xp.max(h) < math.inf)):  # nor NaN
            raise ValueError("metric must be positive and finite in every entry")
        return xp.astype(h, xp.real(like).dtype if xp.is_complex(like) else like.dtype)

    def _checked(self, given: Any) -> tuple[Array, Namespace]:
        x, xp = native(given)
        try:
            self.check_dtype(x.dtype)
            self.check_shape(tuple(x.shape))
        except (TypeError, ValueError) as error:
            path = getattr(given, "path", None)  # Keras hands a variable to the constraint on its layer
            if not isinstance(path, str):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path}, of shape {tuple(x.shape)}, cannot have {self}: {error}") from None
        return x, xp


def _is_empty(x: Array) -> bool:
    return 0 in tuple(x.shape)
