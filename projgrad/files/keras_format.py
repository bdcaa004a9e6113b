"""The .keras format: a zip archive with the model's configuration, which is only read, and its weights in HDF5."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from projgrad.files.archive import copy_archive, member, open_archive
from projgrad.files.bfloat16 import BFLOAT16, rounded
from projgrad.files.keras_names import STATISTICS, Layers
from projgrad.files.weights_file import Stored, WeightsFile, check_expansion, described_dtype, library, sound
from projgrad.storage import LIMIT, parse_json

__all__ = ["KerasFile"]

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_OF_OPTIMIZER = "optimizer"
_VARIABLES = "vars"
_DEEPEST = 50


class KerasFile(WeightsFile):
    """Names are ``layer/kernel``, with the names of the layers around it before them.

    The file has the names of layers, but only numbers for their weights. For layers of Keras, names follow from the
    class and its options; in a layer of another class they are ``layer/0``, ``layer/1``, ...
    """

    framework = "keras"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        h5py = library("h5py", path, "files")
        with sound(path, ".keras file"):
            with open_archive(path) as archive:
                self._data = member(archive, _WEIGHTS)
                layers = Layers(parse_json(member(archive, _CONFIG, most=LIMIT)))
            try:
                with h5py.File(io.BytesIO(self._data), "r") as file:
                    found = list(_Reader(h5py, layers, len(self._data)).datasets(file, (), "", 0))
            except OSError as error:  # which HDF5 raises for what is in memory
                raise ValueError(f"its weights are damaged: {error}") from None
            self._at = {name: at for name, at, _ in found}
            self.stored = {name: stored for name, _, stored in found}
            if len(self.stored) < len(found):
                raise ValueError("two of its weights have the same name")

    def copy(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        import h5py

        data = io.BytesIO(self._data)
        with h5py.File(data, "r+") as file:
            for name, x in changed.items():
                dataset = file[self._at[name]]
                numbers = rounded(x).view(dataset.dtype) if self.stored[name].widened else x
                dataset[...] = numbers
        copy_archive(self.path, out, {_WEIGHTS: lambda target: target.write(data.getvalue())})


class _Reader:
    """Walks through what is in the file, nothing twice, and follows no link out of it."""

    def __init__(self, h5py: Any, layers: Layers, size: int) -> None:
        self._h5py, self._layers, self._size = h5py, layers, size
        self._seen: set[Any] = set()
        self._needed = 0

    def datasets(self, group: Any, around: tuple[str, ...], key: str, depth: int) -> Iterator[tuple[str, str, Stored]]:
        """Names, places and arrays of the group and of those in it."""
        if depth > _DEEPEST:
            raise ValueError(f"{group.name} is nested too deep")
        held = self._child(group, _VARIABLES, self._h5py.Group) if _VARIABLES in group else None
        if held is not None and depth > 0:
            label = held.attrs.get("name")
            around = (*around, label if isinstance(label, str) else key)
        layer = self._layers.found(around[-1] if around else "", key, held is not None and depth > 0)
        if held is not None and not (around and self._layers.is_state(key)):
            numbers = sorted(held, key=lambda n: (len(n), n))
            names = self._layers.variables(layer, len(numbers))
            for i, number in enumerate(numbers):
                dataset = self._child(held, number, self._h5py.Dataset)
                path = (*around, names[i] if names else number)
                aliases = tuple("/".join(path[j:]) for j in range(1, len(path) - 1))
                stored = self._stored(dataset, aliases)
                statistic = bool(names) and names[i] in STATISTICS
                yield "/".join(path), dataset.name, replace(stored, parameter=not statistic)
        for name in group:
            if name != _VARIABLES and not (depth == 0 and name == _OF_OPTIMIZER):
                with self._layers.inside(layer):
                    yield from self.datasets(self._child(group, name, self._h5py.Group), around, name, depth + 1)

    def _child(self, group: Any, name: str, kind: Any) -> Any:
        if group.get(name, getclass=True, getlink=True) is not self._h5py.HardLink:
            raise ValueError(f"{group.name}/{name} is a link to somewhere else")
        child = group[name]
        if not isinstance(child, kind):
            raise ValueError(f"{group.name}/{name} is no {kind.__name__.lower()}")
        at = self._h5py.h5o.get_info(child.id).addr
        if at in self._seen:
            raise ValueError(f"{group.name}/{name} is there twice")
        self._seen.add(at)
        return child

    def _stored(self, dataset: Any, aliases: tuple[str, ...]) -> Stored:
        dtype, shape = dataset.dtype, dataset.shape
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name} is stored in another file")
        if dataset.id.get_create_plist().get_nfilters():  # HDF5 unpacks a chunk to its end, however large it is to be
            raise ValueError(f"{dataset.name} is compressed, which Keras does not do")
        if shape is None:
            return Stored(None, (), str(dtype), "it has no numbers", aliases)
        needed = max(math.prod(shape), math.prod(dataset.chunks or ())) * dtype.itemsize  # a chunk is unpacked whole
        self._needed += needed
        check_expansion(dataset.name, needed, dataset.id.get_storage_size())
        check_expansion("the whole", self._needed, self._size)
        if dataset.attrs.get("dtype") == BFLOAT16 and dtype.itemsize == 2:
            bits = np.ascontiguousarray(dataset[()]).view("<u2").reshape(shape)
            return Stored(bits, shape, BFLOAT16, "", aliases)
        if dtype.kind not in "biufc":
            return Stored(None, shape, str(dtype), described_dtype(str(dtype)), aliases)
        return Stored(np.asarray(dataset[()]), shape, dtype.name, described_dtype(dtype.name), aliases)
