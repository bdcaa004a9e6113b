"""NumPy's archives of arrays. Arrays of Python objects, which are pickles, are refused."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from projgrad.files.archive import copy_archive, member, open_archive
from projgrad.files.weights_file import Stored, WeightsFile, described_dtype, sound

__all__ = ["NpzFile"]

_ENDING = ".npy"
_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


class NpzFile(WeightsFile):
    """Names are those of the members, without .npy."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stored = {}
        with sound(path, ".npz file"), open_archive(path) as archive:
            for name in archive.namelist():
                if name.endswith(_ENDING):
                    self.stored[name.removesuffix(_ENDING)] = _stored(name, member(archive, name))

    def copy(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        copy_archive(
            self.path, out, {name + _ENDING: partial(_write, self._like(name, x)) for name, x in changed.items()}
        )

    def _like(self, name: str, x: Any) -> np.ndarray:
        old = self.stored[name].array
        return np.asarray(x, old.dtype, order="F" if old.flags.f_contiguous and not old.flags.c_contiguous else "C")


def _write(x: np.ndarray, target: BinaryIO) -> None:
    npy.write_array(target, x, allow_pickle=False)


def _stored(name: str, data: bytes) -> Stored:
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(file)](file)
    except Exception as error:  # it is parsed as Python, which may fail in many ways
        raise ValueError(f"{name!r} has no header of an array: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which are a pickle, and nothing is unpickled")
    held = len(data) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{name!r} is to have the shape {shape} of {dtype}, but {held} bytes")
    if dtype.kind not in "?biufc":
        return Stored(None, shape, str(dtype), described_dtype(str(dtype)))
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell()).reshape(shape, order="F" if fortran else "C")
    return Stored(array, shape, dtype.name, described_dtype(dtype.name))
