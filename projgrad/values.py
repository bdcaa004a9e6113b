"""The numbers and arrays that a constraint has as its parameters: checked when it is made, native when it is used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace

__all__ = [
    "check_bounds",
    "check_broadcast",
    "is_infinite",
    "native_group",
    "native_value",
    "set_array",
    "set_choice",
    "set_count",
    "set_flag",
    "set_number",
]

_LARGEST = math.nextafter(math.inf, 0)


def set_number(constraint: Any, name: str, *, least: float = -_LARGEST, most: float = _LARGEST, what: str = "") -> None:
    """Make the field `name` of a constraint a float.

    Args:
        constraint: the frozen dataclass that is being made.
        name: of the field.
        least, most: what it may be; infinite only where a bound is.
        what: what the number is, for the error ("a norm").

    Raises:
        TypeError: it is not a number.
        ValueError: it is NaN or out of range.
    """
    given: Any = getattr(constraint, name)
    kind = type(constraint).__name__
    if isinstance(given, str | bool) or not hasattr(given, "__float__"):
        raise TypeError(f"{kind}: {name}={given!r} is not a number")
    try:
        value = float(given)
    except OverflowError:
        value = math.inf if given > 0 else -math.inf
    if not least <= value <= most:
        limits = [f"at least {least:g}"] if least > -_LARGEST else []
        limits += [f"at most {most:g}"] if most < _LARGEST else []
        limits += ["finite"] if most == _LARGEST else []
        reason = f"is {what}, so it must be" if what else "must be"
        raise ValueError(f"{kind}: {name}={given!r} {reason} {' and '.join(limits)}")
    object.__setattr__(constraint, name, value)


def set_choice(constraint: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError when the field `name` of a constraint is none of `choices`."""
    given: Any = getattr(constraint, name)
    if given not in choices:
        kind = type(constraint).__name__
        raise ValueError(f"{kind}: {name}={given!r} is not known; it is one of {', '.join(map(repr, choices))}")


def set_count(constraint: Any, name: str, least: int = 0) -> None:
    """Make the field `name` of a constraint an int of at least `least`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below `least`.
    """
    given: Any = getattr(constraint, name)
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise TypeError(f"{type(constraint).__name__}: {name}={given!r} is not an int")
    if given.__index__() < least:
        raise ValueError(f"{type(constraint).__name__}: {name}={given!r} must be at least {least}")
    object.__setattr__(constraint, name, given.__index__())


def set_flag(constraint: Any, name: str) -> None:
    """Raise TypeError when the field `name` of a constraint is not a bool."""
    given: Any = getattr(constraint, name)
    if not isinstance(given, bool):
        raise TypeError(f"{type(constraint).__name__}: {name}={given!r} is not a bool")


def set_array(constraint: Any, name: str, *, finite: bool = True, ndim: int | None = None) -> None:
    """Make the field `name` of a constraint a float, or a `FrozenArray` where it has dimensions.

    Args:
        constraint: the frozen dataclass that is being made.
        name: of the field.
        finite: refuse infinities.
        ndim: how many dimensions it must have; None for any number.

    Raises:
        ValueError: it is not an array of real numbers, has a NaN, or an infinity where it must be finite.
    """
    kind = type(constraint).__name__
    try:
        values = FrozenArray(getattr(constraint, name))
    except ValueError as error:
        raise ValueError(f"{kind}: {name} is {error}") from None
    if np.any(np.isnan(values)):
        raise ValueError(f"{kind}: {name} has a NaN")
    if finite and not np.all(np.isfinite(values)):
        raise ValueError(f"{kind}: {name} must be finite")
    if ndim is not None and len(values.shape) != ndim:
        raise ValueError(f"{kind}: {name} must have {ndim} dimension{'s' * (ndim != 1)}, not {len(values.shape)}")
    object.__setattr__(constraint, name, values if values.shape else float(np.asarray(values)))


def check_bounds(constraint: Any) -> None:
    """Make the fields `lower` and `upper` floats or `FrozenArray`s.

    Raises:
        ValueError: they do not broadcast together, `lower` exceeds `upper`, or no finite number lies between them.
    """
    kind = type(constraint).__name__
    for name in ("lower", "upper"):
        set_array(constraint, name, finite=False)
    lower, upper = constraint.lower, constraint.upper
    try:
        below, above = np.broadcast_arrays(np.asarray(lower), np.asarray(upper))
    except ValueError:
        shapes = f"{np.shape(lower)} and {np.shape(upper)}"
        raise ValueError(f"{kind}: lower and upper have the shapes {shapes}, which do not broadcast together") from None
    if np.any((below > above) | (below == math.inf) | (above == -math.inf)):
        raise ValueError(f"{kind}: lower={lower} must not exceed upper={upper}, nor leave only infinity")


def check_broadcast(constraint: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError when the field `name` is an array that does not broadcast to `shape`."""
    value = getattr(constraint, name)
    own = value.shape if isinstance(value, FrozenArray) else ()
    sides = zip(own[::-1], shape[::-1], strict=False)
    if len(own) > len(shape) or any(n is not None and b not in (1, n) for b, n in sides):
        kind = type(constraint).__name__
        raise ValueError(f"{kind}: {name} has the shape {own}, which does not broadcast to {shape}")


def native_group(value: float | FrozenArray, v: Array, xp: Namespace) -> Array:
    """A value that `set_array` made, as an array of the dtype of `v` that broadcasts against its last axis."""
    found = native_value(value, v, xp)
    return found if isinstance(value, FrozenArray) else xp.zeros_like(v[..., :1]) + found


def is_infinite(value: Any) -> bool:
    """Whether a value is the number inf or -inf; of an array nothing is asked."""
    return isinstance(value, float) and abs(value) == math.inf  # math.isinf does not compile in PyTorch


def native_value(value: float | FrozenArray, x: Array, xp: Namespace) -> Any:
    """A value that `set_array` made, in the framework, dtype and device of `x`.

    A finite one stays finite in float16, where it may exceed the largest number; numbers stay Python floats, and the
    arrays that a schedule has put in their place stay arrays.
    """
    if isinstance(value, FrozenArray):
        return xp.constant(value, x)
    most = xp.largest(x.dtype)
    if not isinstance(value, float):
        return xp.astype(xp.where(value > most, most, xp.where(value < -most, -most, value)), x.dtype)
    return value if is_infinite(value) else min(max(value, -most), most)


def known(*values: Any) -> bool:
    """Whether these are numbers, and neither schedules nor traced."""
    return all(isinstance(value, float | int | FrozenArray) for value in values)
