"""Files that others may have written: what is read of them is checked, and what is written appears at once or not."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["LIMIT", "near", "on_one_line", "parse_json", "read_text", "replacing", "size_of"]

LIMIT = 64 * 2**20  # bytes of rules or of a plan; as objects of Python they take many times that


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
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON: write "nan", "inf" or "-inf"')


def near(wanted: str, names: Iterable[str]) -> str:
    """The names that are most like the wanted one, for errors."""
    return ", ".join(difflib.get_close_matches(wanted, list(names), n=4, cutoff=0.0)) or "(none)"


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
    _refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    mode = 0o666 if like is None else 0o600
    descriptor = os.open(temporary, flags, mode)  # which the umask narrows
    try:
        with open(descriptor, "w+b") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if like is not None:
            temporary.chmod(stat.S_IMODE(like.stat().st_mode))
        _refuse_existing(path, overwrite)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists, and is not replaced unless that is asked for")
