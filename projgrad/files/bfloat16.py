"""bfloat16 in NumPy, which has none: float32 with the upper half of its bits."""

from __future__ import annotations

import numpy as np

__all__ = ["BFLOAT16", "rounded", "widened"]

BFLOAT16 = "bfloat16"


def widened(bits: np.ndarray) -> np.ndarray:
    """The numbers whose bits are those of a uint16 array, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest numbers, as a uint16 array: of two, of the even one; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    upper = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), (bits >> 16).astype(np.uint16) | np.uint16(0x40), upper).reshape(x.shape)
