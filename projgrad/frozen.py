"""Arrays as parameters of a constraint: read-only, hashable, comparable, and shown as nested lists."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["FrozenArray"]

_SHOWN = 100  # entries; the repr of a larger array is a summary


class FrozenArray:
    """A float64 array that cannot change.

    Args:
        values: a real array, or nested lists; "inf" and "-inf" stand for infinities.

    Raises:
        ValueError: it is not a rectangular array of real numbers.
    """

    def __init__(self, values: Any) -> None:
        if hasattr(values, "detach"):  # torch converts neither parameters nor bfloat16 by itself
            values = values.detach().cpu().double().numpy()
        try:
            if values is None:  # which NumPy takes for NaN
                raise TypeError("None")
            self._values = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not an array of real numbers: {error}") from None
        self._values += 0.0  # -0 becomes 0, which is equal to it and must have the same hash
        self._values.flags.writeable = False
        self._hash = hash((self._values.shape, self._values.tobytes()))

    def __reduce__(self) -> Any:  # a copy is read-only too, and another process hashes bytes in its own way
        return FrozenArray, (np.array(self._values),)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._values.astype(dtype) if dtype or copy else self._values

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._values.shape

    def tolist(self) -> Any:
        """The entries as nested lists."""
        return self._values.tolist()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, FrozenArray) and np.array_equal(self._values, other._values))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        if self._values.size > _SHOWN:
            return f"<array of shape {self.shape}>"
        return repr(self.tolist()).replace("inf", "float('inf')")
