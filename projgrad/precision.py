"""What a floating-point type can hold, and the one tolerance that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Precision", "precision", "tolerance"]


@dataclass(frozen=True)
class Precision:
    """How numbers of one dtype are stored, and in which dtype projgrad computes on them.

    `unit` is half the spacing just above 1 of the stored values, `compute_unit` that of the computation, and `tiny`
    the smallest value that every framework keeps (float32 subnormals are flushed to zero by some).
    """

    unit: float
    tiny: float
    compute: str
    compute_unit: float


_SINGLE = Precision(2.0**-24, 2.0**-126, "float32", 2.0**-24)
_DOUBLE = Precision(2.0**-53, 2.0**-1022, "float64", 2.0**-53)
_BY_NAME = {
    "float16": Precision(2.0**-11, 2.0**-24, "float32", 2.0**-24),
    "bfloat16": Precision(2.0**-8, 2.0**-126, "float32", 2.0**-24),
    "float32": _SINGLE,
    "float64": _DOUBLE,
    "complex64": _SINGLE,
    "complex128": _DOUBLE,
}


def precision(dtype: Any) -> Precision:
    """The `Precision` of a dtype of any framework, given as such or by its name.

    Raises:
        TypeError: the dtype is not floating-point.
    """
    kind = dtype.__name__ if isinstance(dtype, type) else getattr(dtype, "name", None)  # a class, as numpy.float32 is
    name = dtype if isinstance(dtype, str) else kind or str(dtype)
    found = _BY_NAME.get(name.rpartition(".")[2])
    if found is None:
        raise TypeError(f"projgrad projects floating-point arrays (float16, bfloat16, float32, float64), not {name}")
    return found


def tolerance(dtype: Any, size: int, radius: Any) -> Any:
    """How far a computed norm or sum may lie from `radius` and still count as equal to it.

    With u the unit of the stored values, v that of the computation and t the smallest value kept,

        tol = radius * (u + (ceil(log2(size)) + 8) * v) + sqrt(size) * t / 2

    which covers rounding the entries, a pairwise sum of `size` terms, and entries lost to underflow.

    Args:
        dtype: of the stored array.
        size: number of entries in a group.
        radius: the norm or total the set asks for, a number or an array.
    """
    p = precision(dtype)
    depth = math.ceil(math.log2(max(size, 1))) + 8
    return radius * (p.unit + depth * p.compute_unit) + math.sqrt(size) * p.tiny / 2
