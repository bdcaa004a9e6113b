"""Bare functions of the weights as constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from projgrad.axes import numeric_axes
from projgrad.constraint import Constraint
from projgrad.moves import Replace
from projgrad.namespace import Array, Namespace, native
from projgrad.registry import function_named, register

__all__ = ["Function", "as_constraint"]


@register()
@dataclass(frozen=True)
class Function(Constraint):
    """A function of the array in the place of a projection: a Keras constraint, or one of `optax.projections`.

    The function must return an array of the framework, shape and kind that it is given; what it returns is taken as the
    nearest point. The whole array is one group.

    Args:
        function: the function, or the name under which it is registered.
        rate: 1 for what it returns; below 1 for ``(1 - rate) * x + rate * function(x)``.

    Raises:
        ValueError: no function is registered under that name, or `rate` is outside (0, 1].
    """

    convex = False

    function: Callable[[Any], Any]
    rate: float = 1.0
    axis = None
    complex_valued = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.function, str):
            object.__setattr__(self, "function", function_named(self.function))

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Replace:
        made = self.function(x)
        try:
            y, _ = native(made)
        except TypeError:
            raise TypeError(f"{self.function!r} returned {type(made).__name__}, not an array") from None
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
