"""Files of saved weights, read and written without the program that trained them. Nothing in them is run."""

from __future__ import annotations

from pathlib import Path

from projgrad.files.weights_file import Stored as Stored
from projgrad.files.weights_file import WeightsFile as WeightsFile
from projgrad.storage import on_one_line, size_of

__all__ = ["ENDINGS", "Stored", "WeightsFile", "open_weights"]

ENDINGS = (".safetensors", ".npz", ".pt", ".pth", ".keras")


def open_weights(path: Path) -> WeightsFile:
    """The weights in a file, of the format that its name ends in.

    Raises:
        ImportError: the library of the format is not installed.
        OSError: the file cannot be read.
        ValueError: it is not of that format, damaged, or larger unpacked than such a file would be.
    """
    size_of(path)
    file = _opened(path)
    for name in file.stored:
        if on_one_line(name) != name:  # which would be shown, and could hide others
            raise ValueError(f"{path} has a name that cannot be shown: {on_one_line(name)}")
    return file


def _opened(path: Path) -> WeightsFile:
    match path.suffix.lower():
        case ".safetensors":
            from projgrad.files.safetensors_format import SafetensorsFile

            return SafetensorsFile(path)
        case ".npz":
            from projgrad.files.npz_format import NpzFile

            return NpzFile(path)
        case ".pt" | ".pth":
            from projgrad.files.torch_format import TorchFile

            return TorchFile(path)
        case ".keras":
            from projgrad.files.keras_format import KerasFile

            return KerasFile(path)
    raise ValueError(f"{path}: weights are in a file that ends in {', '.join(ENDINGS)}")
