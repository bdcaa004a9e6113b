"""Constraint classes and functions by name, and constraints as plain JSON and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from projgrad.frozen import FrozenArray

if TYPE_CHECKING:
    from projgrad.constraint import Constraint

__all__ = [
    "encode",
    "from_dict",
    "function_named",
    "is_function",
    "on_register",
    "register",
    "registered_classes",
    "to_dict",
]

_T = TypeVar("_T", bound=Callable[..., Any])
_registered: dict[str, Callable[..., Any]] = {}
_listeners: list[Callable[[str, Any], None]] = []


def register(name: str | None = None) -> Callable[[_T], _T]:
    """Name a constraint class, or a function of an array, so that `to_dict` and `from_dict` can save and load it.

    Args:
        name: how it is called in JSON; by default, the name of the class or function.

    Raises:
        ValueError: another class or function has that name.

    Examples:
        >>> @projgrad.register("lab.halves")
        ... def halves(x):
        ...     return (2 * x).round() / 2
        >>> projgrad.as_constraint(halves).to_dict()
        {'type': 'Function', 'function': 'lab.halves', 'rate': 1.0}
    """

    def add(thing: _T) -> _T:
        key = name or thing.__name__
        if isinstance(thing, type) and "__dataclass_fields__" not in thing.__dict__:
            raise TypeError(
                f"{thing.__name__} must be a dataclass, as its fields are what is saved: @dataclass(frozen=True)"
            )
        if isinstance(thing, type) and "type" in vars(thing)["__dataclass_fields__"]:
            raise TypeError(f'{thing.__name__} must not have a field "type", which is what JSON calls its name')
        known = _registered.get(key)
        if known is not None and (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
            raise ValueError(f"{key!r} is registered for {known!r}: register {thing!r} under another name")
        _registered[key] = thing
        for tell in _listeners:
            tell(key, thing)
        return thing

    if callable(name):
        raise TypeError("write @projgrad.register(), with the parentheses")
    return add


def on_register(tell: Callable[[str, Any], None]) -> None:
    """Call ``tell(name, thing)`` for all that is registered, now and from now on."""
    _listeners.append(tell)
    for name, thing in _registered.items():
        tell(name, thing)


def registered_classes() -> dict[str, type]:
    """The classes that are registered, by their names."""
    return {name: thing for name, thing in _registered.items() if isinstance(thing, type)}


def _name_of(thing: Any) -> str:
    for name, known in _registered.items():
        if known is thing:
            return name
    raise ValueError(f"{thing!r} has no name to save it by: decorate it with @projgrad.register(...)")


def is_function(name: str) -> bool:
    """Whether a function, and no class, is registered under a name."""
    return name in _registered and not isinstance(_registered[name], type)


def function_named(name: str) -> Callable[..., Any]:
    """The function that is registered under a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _registered:
        raise ValueError(f"no function is registered as {name!r}: import the module that registers it")
    return _registered[name]


def to_dict(constraint: Any) -> dict[str, Any]:
    """A constraint as plain JSON: its registered name as "type", and its fields."""
    saved: dict[str, Any] = {"type": _name_of(type(constraint))}
    for field in fields(constraint):
        saved[field.name] = encode(getattr(constraint, field.name))
    return saved


def from_dict(saved: dict[str, Any]) -> Constraint:
    """The constraint that `to_dict` saved.

    Raises:
        ValueError: the type is not registered, or a field is unknown or wrong.
    """
    if not isinstance(saved, dict) or "type" not in saved:
        raise ValueError(f"a saved constraint is a dict with a 'type', not {saved!r}")
    kind = _registered.get(saved["type"])
    if not isinstance(kind, type):
        known = sorted(registered_classes())
        raise ValueError(f"no constraint is registered as {saved['type']!r}; known are {', '.join(known)}")
    try:
        return kind(**{key: _decode(value) for key, value in saved.items() if key != "type"})
    except TypeError as error:
        raise ValueError(f"{saved['type']}: {error}") from None


def encode(value: Any) -> Any:
    """A value as plain JSON, which has no NaN and no infinities: they are "nan", "inf" and "-inf"."""
    if type(value) in _registered.values():
        return to_dict(value)
    if isinstance(value, FrozenArray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if callable(value):
        return _name_of(value)
    return value


def _decode(value: Any) -> Any:
    """A field of a constraint from its plain JSON."""
    if isinstance(value, dict) and "type" in value:
        return from_dict(value)
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    return float(value) if value in ("nan", "inf", "-inf") else value
