"""The safetensors format: a JSON header with the place of every array, then their bytes. It needs no library.

Source: https://github.com/huggingface/safetensors, the section "Format" of its README.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from projgrad.files.bfloat16 import BFLOAT16, rounded
from projgrad.files.weights_file import Stored, WeightsFile, described_dtype, sound
from projgrad.storage import are_sizes, parse_json, short, size_of

__all__ = ["SafetensorsFile"]

_MOST = 32 * 2**20  # bytes of a header, enough for 100,000 arrays; it takes many times that as objects of Python
_LONGEST = 32  # characters of a dtype
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


class SafetensorsFile(WeightsFile):
    """Its arrays are views of the file, which are read as they are used."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with sound(path, "safetensors file"):
            self.stored, self._places = _read(path)

    def copy(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        with self.path.open("rb") as source:
            shutil.copyfileobj(source, out)
        for name, array in changed.items():
            start, dtype = self._places[name]
            out.seek(start)
            numbers = rounded(array) if self.stored[name].widened else array
            out.write(np.asarray(numbers, dtype).tobytes())
        out.seek(0, 2)


def _read(path: Path) -> tuple[dict[str, Stored], dict[str, tuple[int, str]]]:
    """The arrays, and where each starts and of which dtype it is."""
    size = size_of(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it is cut off: it has {size} bytes, and its header is to have {length}")
        if length > _MOST:
            raise ValueError(f"its header has {length} bytes, and more than {_MOST} are not read")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table of arrays")
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, (begin, stop)) in sorted(found.items(), key=lambda item: item[1][2]):
        if begin != end:
            raise ValueError(f"{short(name)} starts at byte {begin}, and what is before it ends at {end}")
        end = stop
    if start + end != size:
        raise ValueError(f"it has {size} bytes, and its arrays end at {start + end}: it is cut off, or has more")
    places = {name: (start + begin, _NUMPY.get(kind, "")) for name, (kind, _, (begin, _)) in found.items()}
    whole = np.asarray(np.memmap(path, np.uint8, "r"))  # one for all, as each holds an open file
    return {name: _stored(whole[start:][slice(*found[name][2])], *found[name][:2]) for name in header}, places


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """The dtype, shape, first byte and end of an array."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{short(name)} has not exactly a dtype, a shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or len(kind) > _LONGEST or not are_sizes(shape) or len(shape) > 64:
        raise ValueError(f"{short(name)} has an impossible dtype or shape")
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{short(name)} has impossible data_offsets")
    begin, end = offsets
    if kind in _NUMPY and math.prod(shape) * np.dtype(_NUMPY[kind]).itemsize != end - begin:
        raise ValueError(f"{short(name)}, {kind} of shape {tuple(shape)}, does not take {end - begin} bytes")
    return kind, tuple(shape), (begin, end)


def _stored(data: np.ndarray, kind: str, shape: tuple[int, ...]) -> Stored:
    if kind not in _NUMPY:
        return Stored(None, shape, kind, described_dtype(kind) or f"safetensors has no dtype {kind}")
    array = data.view(_NUMPY[kind]).reshape(shape)  # NumPy computes with what is not aligned, too
    if kind == "BF16":
        return Stored(array, shape, BFLOAT16)
    return Stored(array, shape, array.dtype.name, described_dtype(array.dtype.name))
