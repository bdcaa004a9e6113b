"""Files that others may have written: what is read of them is checked, and what is written appears at once or not."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

__all__ = [
    "LIMIT",
    "are_sizes",
    "clipped",
    "near",
    "on_one_line",
    "parse_json",
    "read_text",
    "replacing",
    "short",
    "size_of",
]

LIMIT = 64 * 2**20  # bytes of rules or of a plan; as objects of Python they take many times that
_COMPARED, _SHOWN = 2000, 100  # names that an error compares, and characters of each that it shows


def size_of(path: Path) -> int:
    """The size of a regular file in bytes; a pipe, a device or a folder is none.

    Raises:
        OSError: there is no such file.
        ValueError: it is something else.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a file")
    return found.st_size


def read_text(path: Path) -> str:
    """The text of a file of rules, or of a plan.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
    """
    if (size := size_of(path)) > LIMIT:
        raise ValueError(f"{path} has {size} bytes, and more than {LIMIT} are not read")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """What JSON says, if every name stands in it once.

    Raises:
        ValueError: it is not JSON, has a name twice, a NaN or an infinity, or is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{short(name)} is there twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON: write "nan", "inf" or "-inf"')


def near(wanted: str, names: Iterable[str]) -> str:
    """The names that are most like the wanted one, for errors; of very many, among the first."""
    compared = [name[:_SHOWN] for name in islice(names, _COMPARED)]
    return ", ".join(difflib.get_close_matches(wanted[:_SHOWN], compared, n=4, cutoff=0.0)) or "(none)"


def clipped(text: str) -> str:
    """The start of a text, for errors."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def short(value: Any) -> str:
    """The start of what it looks like in Python, for errors."""
    return clipped(repr(value))


def are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def on_one_line(text: str) -> str:
    """The text without what could move the cursor of a terminal, or look like another line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def replacing(path: Path, *, overwrite: bool, like: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when all is written; after an error there is none, and the old one stays.

    A link of that name is replaced itself, and what it leads to stays.

    Args:
        path: its name.
        overwrite: replace a file of that name.
        like: a file with the permissions that it is to have; None for those of any new file.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
        OSError: it cannot be written.
    """
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    temporary = path.with_name(f".projgrad.{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    mode = 0o666 if like is None else 0o600
    try:
        descriptor = os.open(temporary, flags, mode)  # which the umask narrows
    except OSError as error:
        error.filename = str(path)  # and not that of the temporary file
        raise
    try:
        with open(descriptor, "w+b") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if like is not None:
            temporary.chmod(stat.S_IMODE(like.stat().st_mode))
        if not overwrite:
            try:
                os.link(temporary, path)  # unlike replacing, this fails where a file has appeared
                return
            except FileExistsError:
                raise _exists(path) from None
            except OSError:  # where there are no links
                if os.path.lexists(path):
                    raise _exists(path) from None
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists, and is not replaced unless that is asked for (--overwrite, or --in-place)")
