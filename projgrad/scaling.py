"""By what an optimizer scales its steps, looked up by its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

__all__ = ["look_up"]

_T = TypeVar("_T")


def look_up(known: Mapping[type, _T | str | None], optimizer: type, door: str) -> _T | None:
    """What is known of a class of optimizers, or of the nearest one that it derives from; None if all are alike.

    Args:
        known: a text says why there is no diagonal metric.
        optimizer: the class.
        door: the module of projgrad that has `register_metric`.

    Raises:
        ValueError: nothing is known, or there is no metric.
    """
    for base in optimizer.__mro__:
        if base in known:
            found = known[base]
            if isinstance(found, str):
                raise ValueError(
                    f'{optimizer.__name__} has no metric to project in, as {found}: leave it at metric="euclidean"'
                )
            return found
    raise ValueError(
        f'metric="optimizer": it is not known by what {optimizer.__name__} divides its steps; say so by a function '
        f'decorated with projgrad.{door}.register_metric({optimizer.__name__}), or leave it at metric="euclidean"'
    )
