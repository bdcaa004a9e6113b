"""What all formats of saved weights have in common: their parameters by name, and a copy with some replaced."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from projgrad.files.bfloat16 import BFLOAT16, widened
from projgrad.precision import precision

__all__ = ["Stored", "WeightsFile", "check_expansion", "described_dtype", "library", "sound"]

_FLOOR = 64 * 2**20  # bytes, up to which numbers may take any multiple of what is stored
_EXPANSION = 100


@dataclass(frozen=True)
class Stored:
    """One array of a file.

    Args:
        held: what is stored, as an array of NumPy or PyTorch; for bfloat16 in NumPy, which has none, the bits as
            uint16. None where it cannot be read as numbers.
        shape: the shape.
        dtype: of the numbers, by name.
        refused: why it must not be constrained; empty if it may be.
        aliases: other names that a pattern or a saved plan may know it by.
        tied: other names in the file for the same numbers.
        parameter: false for what is known to be none, such as a moving mean: no rule selects it.
    """

    held: Any
    shape: tuple[int, ...]
    dtype: str
    refused: str = ""
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    parameter: bool = True

    @property
    def widened(self) -> bool:
        """Whether `array` has more digits than what is stored."""
        return self.dtype == BFLOAT16 and self.held is not None and str(self.held.dtype) == "uint16"

    @property
    def array(self) -> Any:
        """The numbers; bfloat16 in NumPy as float32."""
        return widened(self.held) if self.widened else self.held


class WeightsFile(ABC):
    """A file of weights that has been read and checked.

    Args:
        path: its name.
    """

    #: whose names its parameters have, where the format tells
    framework: ClassVar[str | None] = None
    stored: dict[str, Stored]

    def __init__(self, path: Path) -> None:
        self.path, self._identity = path, _identity(path)

    def write(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        """Write a copy of the file, in which the arrays of these names are others, of the same shapes and dtypes.

        Raises:
            OSError: it cannot be written.
            ValueError: the file is another one than was read, as where a training run goes on.
        """
        self.copy(out, changed)
        if _identity(self.path) != self._identity:  # after all is read of it
            raise ValueError(f"{self.path} was replaced or written to since it was read")

    @abstractmethod
    def copy(self, out: BinaryIO, changed: Mapping[str, Any]) -> None:
        """`write`, of a file that stays as it was read."""


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def library(name: str, path: Path, extra: str) -> Any:
    """The library of a format.

    Raises:
        ImportError: it is not installed; with the extra of projgrad that has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'a {path.suffix} file needs {name}: pip install "projgrad[{extra}]"') from error


@contextmanager
def sound(path: Path, what: str) -> Iterator[None]:
    """While a file is read: what is wrong with it is a ValueError with its name; what a system refuses stays OSError.

    What the libraries of the formats raise for damaged files is not documented.
    """
    try:
        yield
    except OSError:
        raise
    except MemoryError:
        raise MemoryError(f"{path} does not fit into the memory") from None
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is no sound {what}: {reason or type(error).__name__}") from None


def described_dtype(name: str) -> str:
    """Why numbers of this dtype must not be constrained; empty if they may be."""
    try:
        precision(name)
    except TypeError as error:
        return str(error)
    return ""


def check_expansion(what: str, needed: int, stored: int) -> None:
    """Raise ValueError where numbers would take so much more memory than what is stored that it is an attack."""
    if needed > max(_FLOOR, _EXPANSION * stored):
        raise ValueError(
            f"{what} is to take {needed} bytes of memory, but {stored} are stored: over {_EXPANSION} times as many "
            "are not unpacked"
        )
