"""Files of saved weights, read and written without the program that trained them. Nothing in them is run."""

from __future__ import annotations

import importlib
from pathlib import Path

from projgrad.files.weights_file import Stored as Stored
from projgrad.files.weights_file import WeightsFile as WeightsFile
from projgrad.storage import clipped, on_one_line, size_of

__all__ = ["ENDINGS", "Stored", "WeightsFile", "open_weights"]

_FORMATS = {  # the module and its class; imported when there is such a file
    ".safetensors": ("safetensors_format", "SafetensorsFile"),
    ".npz": ("npz_format", "NpzFile"),
    ".pt": ("torch_format", "TorchFile"),
    ".pth": ("torch_format", "TorchFile"),
    ".keras": ("keras_format", "KerasFile"),
}
ENDINGS = tuple(_FORMATS)


def open_weights(path: Path) -> WeightsFile:
    """The weights in a file, of the format that its name ends in.

    Raises:
        ImportError: the library of the format is not installed.
        OSError: the file cannot be read.
        ValueError: it is not of that format, damaged, or larger unpacked than such a file would be.
    """
    size_of(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: weights are in a file that ends in {', '.join(ENDINGS)}")
    module, kind = _FORMATS[path.suffix.lower()]
    file: WeightsFile = getattr(importlib.import_module(f"projgrad.files.{module}"), kind)(path)
    for name in file.stored:
        if on_one_line(name) != name:  # which would be shown, and could hide others
            raise ValueError(f"{path} has a name that cannot be shown: {clipped(on_one_line(name))}")
    return file
