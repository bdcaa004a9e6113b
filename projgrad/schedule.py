"""Numbers that change with the step of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from projgrad.namespace import native
from projgrad.precision import precision
from projgrad.registry import register

__all__ = ["Schedule", "check_at_steps", "is_step", "is_traced", "make_at_steps", "steps_in", "value_at"]


if TYPE_CHECKING:  # it may stand wherever a number may
    _Number = float
else:
    _Number = object


@register()
@dataclass(frozen=True, repr=False)
class Schedule(_Number):
    """A number that is linear in the step between the given ones, and constant before the first and after the last.

    It may stand for any number of any constraint but a count, `rate` included, which is checked at every given step.

    Args:
        points: a mapping of steps to numbers, such as ``{0: 3.0, 1000: 1.0}``.

    Raises:
        TypeError: a step is not an int, or a value not a number.
        ValueError: there is no step, the steps are negative or do not increase, or a value is not finite.

    Examples:
        >>> projgrad.Schedule({0: 3.0, 1000: 1.0}).at(500)
        2.0
    """

    points: Any

    def __post_init__(self) -> None:
        given = self.points.items() if isinstance(self.points, Mapping) else self.points
        try:
            pairs = [(step, value) for step, value in given]
        except (TypeError, ValueError):
            raise TypeError(f"Schedule: {self.points!r} is not a mapping of steps to numbers") from None
        for step, value in pairs:
            if not is_step(step):
                raise TypeError(f"Schedule: the step {step!r} is not an int")
            if isinstance(value, str | bool) or not hasattr(value, "__float__"):
                raise TypeError(f"Schedule: {value!r}, at step {step}, is not a number")
            if not math.isfinite(value):
                raise ValueError(f"Schedule: {value!r}, at step {step}, must be finite")
        steps = [int(step) for step, _ in pairs]
        if not steps or steps[0] < 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"Schedule: the steps {steps} must be one or more, from 0 on, and increase")
        object.__setattr__(self, "points", tuple((int(step), float(value)) for step, value in pairs))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps at which a value is given."""
        return tuple(step for step, _ in self.points)

    def at(self, step: Any, dtype: Any = "float32") -> Any:
        """The value after so many steps.

        Args:
            step: an int, or an array without dimensions, which may be traced.
            dtype: of the array it will be used with.

        Returns:
            A float for an int; for an array, one in the dtype that projgrad computes in for `dtype`.
        """
        if is_step(step):
            return self._number(int(step))
        step, xp = native(step)
        kind = getattr(xp, precision(dtype).compute)

        def constant(value: float) -> Any:  # like `step`, and so on its device
            return xp.astype(step * 0, kind) + value

        found = constant(self.points[0][1])
        for (start, low), (end, high) in pairwise(self.points):
            part = xp.astype(step - start, kind) / (end - start)
            found = xp.where(step >= start, low + (high - low) * part, found)
        return xp.where(step >= self.points[-1][0], constant(self.points[-1][1]), found)

    def _number(self, step: int) -> float:
        found = self.points[0][1]
        for (start, low), (end, high) in pairwise(self.points):
            if step >= start:
                found = low + (high - low) * ((step - start) / (end - start))
        return self.points[-1][1] if step >= self.points[-1][0] else found

    def __mul__(self, factor: Any) -> Schedule:
        if not isinstance(factor, int | float):
            return NotImplemented
        return Schedule([(step, value * factor) for step, value in self.points])

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"Schedule({dict(self.points)!r})"


def is_step(step: Any) -> bool:
    """Whether this is a step as a plain number, rather than an array."""
    return isinstance(step, int | np.integer) and not isinstance(step, bool)


def value_at(value: Any, step: Any, dtype: Any) -> Any:
    """A field of a constraint after so many steps: a schedule, or constraints with some inside, become plain."""
    if isinstance(value, tuple):
        return tuple(value_at(part, step, dtype) for part in value)
    return value.at(step, dtype) if isinstance(value, Schedule) or getattr(value, "scheduled", False) else value


def make_at_steps(post_init: Callable[[Any], None]) -> Callable[[Any], None]:
    """A `__post_init__` that is done for the numbers at each step of the schedules among the fields of a constraint.

    It sees numbers only, which for a traced number, as `optax.inject_hyperparams` gives, is a stand-in. Its errors say
    at which step; what it makes of the other fields is kept.
    """

    @wraps(post_init)
    def make(self: Any) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        schedules = {name: value for name, value in given.items() if isinstance(value, Schedule)}
        unknown = [name for name, value in given.items() if is_traced(value)]
        if not schedules and not unknown:
            post_init(self)
        steps = {step for schedule in schedules.values() for step in schedule.steps}
        for step in sorted(steps) or ([0] if unknown else []):
            try:
                plain = _made(self, given | {name: schedule.at(step) for name, schedule in schedules.items()}, unknown)
            except (TypeError, ValueError) as error:
                at = f" (at step {step} of its schedule)" if schedules else ""
                raise type(error)(f"{error}{at}") from None
            for name, value in vars(plain).items():
                if name not in schedules and name not in unknown:
                    object.__setattr__(self, name, value)
        scheduled = bool(steps_in(tuple(vars(self).values())))
        if scheduled != self.scheduled:
            object.__setattr__(self, "scheduled", scheduled)
        if unknown or _has_traced(tuple(vars(self).values())):
            object.__setattr__(self, "traced", True)

    return make


def is_traced(value: Any) -> bool:
    """Whether this is a number that only compiled code will know."""
    return getattr(value, "shape", None) == () and not (lookup := native(value))[1].can_look(lookup[0])


def _has_traced(value: Any) -> bool:
    return any(map(_has_traced, value)) if isinstance(value, tuple) else getattr(value, "traced", False)


def _made(constraint: Any, given: dict[str, Any], unknown: list[str]) -> Any:
    """The constraint with these fields, and stand-ins for the unknown ones: their defaults, or what is beside them."""
    beside = [value for name, value in given.items() if name not in unknown]
    first: Exception | None = None
    for numbers in product(*([_default(constraint, name), *beside] for name in unknown)):
        stand_ins = dict(zip(unknown, numbers, strict=True))
        try:
            return replace(constraint, **given | stand_ins)
        except (TypeError, ValueError) as error:
            stood = "".join(f" (with {value} for {name}, which is traced)" for name, value in stand_ins.items())
            first = first or type(error)(f"{error}{stood}")
    assert first is not None
    raise first


def _default(constraint: Any, name: str) -> float:
    default = next(f.default for f in fields(constraint) if f.name == name)
    return default if isinstance(default, float) else 1.0


def check_at_steps(check_shape: Callable[..., None]) -> Callable[..., None]:
    """A `check_shape` that is done for the numbers at each step of the schedules in a constraint."""

    @wraps(check_shape)
    def check(self: Any, shape: tuple[int, ...]) -> None:
        if self.traced:
            self.group_axes(len(shape))
        elif self.scheduled:
            for step in sorted(steps_in(tuple(vars(self).values()))):
                self.at(step).check_shape(shape)
        else:
            check_shape(self, shape)

    return check


def steps_in(value: Any) -> set[int]:
    """The steps of all schedules in a field of a constraint."""
    if isinstance(value, Schedule):
        return set(value.steps)
    if isinstance(value, tuple):
        return {step for part in value for step in steps_in(part)}
    return steps_in(tuple(vars(value).values())) if getattr(value, "scheduled", False) else set()
