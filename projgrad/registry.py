"""Constraints by name: plain JSON and back, users' own constraints, and bare functions as constraints."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from projgrad.axes import numeric_axes
from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.moves import Replace
from projgrad.namespace import Array, Namespace, native

__all__ = ["Function", "as_constraint", "decode", "from_dict", "register", "registered", "tell_keras", "to_dict"]

_T = TypeVar("_T", bound=Callable[..., Any])
_registered: dict[str, Callable[..., Any]] = {}


def register(name: str | None = None) -> Callable[[_T], _T]:
    """Name a constraint class, or a function of an array, so that `to_dict` and `from_dict` can save and load it.

    Args:
        name: how it is called in JSON; by default, the name of the class or function.

    Raises:
        ValueError: another class or function has that name.

    Example:
        >>> @projgrad.register("lab.halves")
        ... def halves(x):
        ...     return (2 * x).round() / 2
        >>> projgrad.as_constraint(halves).to_dict()
        {'type': 'Function', 'function': 'lab.halves'}
    """

    def add(thing: _T) -> _T:
        key = name or thing.__name__
        if isinstance(thing, type) and "__dataclass_fields__" not in thing.__dict__:
            raise TypeError(
                f"{thing.__name__} must be a dataclass, as its fields are what is saved: @dataclass(frozen=True)"
            )
        known = _registered.get(key)
        if known is not None and (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
            raise ValueError(f"{key!r} is registered for {known!r}: register {thing!r} under another name")
        _registered[key] = thing
        tell_keras(thing)
        return thing

    if callable(name):
        raise TypeError("write @projgrad.register(), with the parentheses")
    return add


def tell_keras(thing: Any) -> None:
    """Make a registered constraint class known to Keras, if that is imported; it would load its own by that name."""
    if sys.modules.get("keras") is not None:
        from projgrad_backends.keras.registration import announce

        announce(_name_of(thing), thing)


def registered() -> list[Callable[..., Any]]:
    """All classes and functions that are registered."""
    return list(_registered.values())


def _name_of(thing: Any) -> str:
    for name, known in _registered.items():
        if known is thing:
            return name
    raise ValueError(f"{thing!r} has no name to save it by: decorate it with @projgrad.register(...)")


def to_dict(constraint: Constraint) -> dict[str, Any]:
    """A constraint as plain JSON: its registered name as "type", and its fields."""
    saved: dict[str, Any] = {"type": _name_of(type(constraint))}
    for field in fields(constraint):  # type: ignore[arg-type]
        saved[field.name] = _encode(getattr(constraint, field.name))
    return saved


def from_dict(saved: dict[str, Any]) -> Constraint:
    """The constraint that `to_dict` saved.

    Raises:
        ValueError: the type is not registered, or a field is unknown or wrong.
    """
    if not isinstance(saved, dict) or "type" not in saved:
        raise ValueError(f"a saved constraint is a dict with a 'type', not {saved!r}")
    kind = _registered.get(saved["type"])
    if not (isinstance(kind, type) and issubclass(kind, Constraint)):
        known = sorted(k for k, v in _registered.items() if isinstance(v, type))
        raise ValueError(f"no constraint is registered as {saved['type']!r}; known are {', '.join(known)}")
    try:
        return kind(**{key: decode(value) for key, value in saved.items() if key != "type"})
    except TypeError as error:
        raise ValueError(f"{saved['type']}: {error}") from None


def _encode(value: Any) -> Any:
    if isinstance(value, Constraint):
        return to_dict(value)
    if isinstance(value, FrozenArray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if callable(value):
        return _name_of(value)
    return value


def decode(value: Any) -> Any:
    """A field of a constraint from its plain JSON."""
    if isinstance(value, dict) and "type" in value:
        return from_dict(value)
    if isinstance(value, list):
        return [decode(v) for v in value]
    return float(value) if value in ("inf", "-inf") else value


@register()
@dataclass(frozen=True)
class Function(Constraint):
    """A function of the array in the place of a projection: a Keras constraint, or one of `optax.projections`.

    The function must return an array of the framework, shape and kind that it is given; what it returns is taken as the
    nearest point. The whole array is one group.

    Args:
        function: the function, or the name under which it is registered.

    Raises:
        ValueError: no function is registered under that name.
    """

    function: Callable[[Any], Any]
    axis = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.function, str):
            if self.function not in _registered:
                raise ValueError(f"no function is registered as {self.function!r}: import the module that registers it")
            object.__setattr__(self, "function", _registered[self.function])

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Replace:
        y, _ = native(self.function(x))
        if tuple(y.shape) != tuple(x.shape):
            raise ValueError(f"{self.function!r} returned the shape {tuple(y.shape)} for {tuple(x.shape)}")
        return Replace(y, numeric_axes(self.axis, len(x.shape)))


def as_constraint(thing: Any) -> Constraint:
    """`thing` itself where it is a constraint, and a bare function of the weights wrapped as one.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(thing, Constraint):
        return thing
    if isinstance(thing, type) and issubclass(thing, Constraint):
        raise TypeError(f"{thing.__name__} is a class: write {thing.__name__}(...)")
    if callable(thing):
        return Function(thing)
    raise TypeError(f"{thing!r} is neither a constraint nor a function of the weights")
