"""What `torch.save` writes, read with ``weights_only=True``: tensors in dicts and lists, and no code."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

from projgrad.files.archive import open_archive
from projgrad.files.weights_file import Stored, WeightsFile, check_expansion, described_dtype, library, sound
from projgrad.storage import size_of

__all__ = ["TorchFile"]

_DEEPEST = 50
_MOST = 1_000_000  # keys and positions; a list may contain another one many times


class TorchFile(WeightsFile):
    """Names are the keys on the way to a tensor, joined by dots: those of a state dict, if that is what was saved."""

    framework = "torch"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        torch = library("torch", path, "torch")
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):  # CVE-2025-32434
            raise ImportError(
                f"before PyTorch 2.6, weights_only=True may run code of the file; this is {torch.__version__}"
            )
        with sound(path, "file of weights for weights_only=True"):
            with path.open("rb") as file:  # of a path, it would hide that it must not be read
                if not zipfile.is_zipfile(file):
                    raise ValueError("it is not what torch.save writes since PyTorch 1.6")
            open_archive(path).close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    self._whole = torch.load(path, map_location="cpu", weights_only=True)
                except UnpicklingError:  # whose words are advice to load it with its code
                    raise ValueError("damaged, or more than tensors in dicts and lists: save a state_dict()") from None
            self.stored = _named(torch, self._whole, size_of(path))

    def copy(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        import torch

        for name, x in changed.items():  # in place, so that tied weights stay tied
            self.stored[name].held.copy_(x)
        torch.save(self._whole, out)


def _named(torch: Any, whole: Any, size: int) -> dict[str, Stored]:
    names: dict[Any, list[str]] = {}
    tensors: dict[Any, Any] = {}
    seen: set[str] = set()
    for name, tensor in _tensors(torch, whole, "", 0, iter(range(_MOST))):
        if name in seen:
            raise ValueError(f"there are two tensors called {name!r}")
        seen.add(name)
        dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if dense and tensor.numel() else name
        names.setdefault(same, []).append(name)
        tensors[same] = tensor.detach() if dense else None, tensor
    shared = _shared({names[same][0]: tensor for same, (tensor, _) in tensors.items() if tensor is not None})
    found: dict[str, Stored] = {}
    needed = 0
    for same, (first, *others) in names.items():
        tensor, given = tensors[same]
        dtype = str(given.dtype).removeprefix("torch.")
        why = described_dtype(dtype) if tensor is not None else f"it is {given.layout}, quantized or on no device"
        if tensor is not None:
            needed += tensor.numel() * tensor.element_size()
            check_expansion("the whole", needed, size)
            if not why and _overlaps(tensor):
                why = "several of its entries are one number in memory"
            if not why and first in shared:
                why = f"it shares memory with {shared[first]}, which would change too: save one of them as a copy"
        found[first] = Stored(tensor, tuple(given.shape), dtype, why, tied=tuple(others))
    return found


def _overlaps(tensor: Any) -> bool:
    """Whether entries share memory, as after `expand`."""
    end = 1
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1:
            if stride < end:
                return True
            end = stride * (n - 1) + end
    return False


def _shared(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names of the tensors whose first to last byte are among those of another one, with the name of that."""
    places = []
    for name, tensor in tensors.items():
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel():
            places.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size(), name))
    found: dict[str, str] = {}
    end, longest = 0, ""  # of those before
    for start, stop, name in sorted(places):
        if start < end:
            found[name] = longest
            found.setdefault(longest, name)
        if stop > end:
            end, longest = stop, name
    return found


def _tensors(torch: Any, value: Any, name: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST or next(left, None) is None:
        raise ValueError("it is nested too deep, or has too many parts")
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value
        return
    numbered = isinstance(value, list | tuple)
    parts = enumerate(value) if numbered else value.items() if isinstance(value, Mapping) else ()
    for key, part in parts:
        yield from _tensors(torch, part, f"{name}.{key}" if name else str(key), depth + 1, left)
