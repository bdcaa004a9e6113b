"""Zip archives from anywhere: nothing is extracted, and nothing unpacked that is much larger than the archive."""

from __future__ import annotations

import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from projgrad.files.weights_file import check_expansion
from projgrad.storage import size_of

__all__ = ["check_archive", "copy_archive", "member", "open_archive"]

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, OverflowError)
_MOST = 200_000  # members


def open_archive(path: Path) -> zipfile.ZipFile:
    """The archive, after `check_archive`; to be closed."""
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise ValueError(f"it is no zip archive, or damaged: {error}") from None
    try:
        check_archive(archive, size_of(path))
    except BaseException:
        archive.close()
        raise
    return archive


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError where names are there twice, or the members are much larger than an archive of this size.

    All members count together, since some may share what is stored. Of the ways to compress, only deflation is known
    to unpack no more at a time than it is asked for.
    """
    members = archive.infolist()
    if len(members) > _MOST:
        raise ValueError(f"it has {len(members)} members, and more than {_MOST} are not read")
    names = {info.filename for info in members}
    if len(names) < len(members):
        raise ValueError("a member is there twice")
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename!r} is neither stored as it is nor deflated")
    check_expansion("the whole", sum(info.file_size for info in members), size)


def member(archive: zipfile.ZipFile, name: str, most: int = sys.maxsize) -> bytes:
    """The bytes of a member.

    Raises:
        ValueError: there is none, it has more than `most` bytes, or is damaged or encrypted.
    """
    try:
        info = archive.getinfo(name)
        if info.file_size > most:
            raise ValueError(f"{name!r} has {info.file_size} bytes, and more than {most} are not read")
        check_expansion(repr(name), info.file_size, info.compress_size)
        with archive.open(info) as file:
            return file.read(info.file_size)  # and no more, whatever is there
    except KeyError:
        raise ValueError(f"it has no {name!r}") from None
    except _DAMAGE as error:
        raise ValueError(f"{name!r} is damaged: {error}") from None


def copy_archive(source: Path, out: BinaryIO, changed: Mapping[str, Callable[[BinaryIO], object]]) -> None:
    """Write a copy of an archive, in which the members of these names are what the functions write."""
    with open_archive(source) as archive, zipfile.ZipFile(out, "w") as copy:
        for info in archive.infolist():
            new = zipfile.ZipInfo(info.filename, info.date_time)
            new.compress_type, new.external_attr = info.compress_type, info.external_attr
            with copy.open(new, "w", force_zip64=True) as target:
                if info.filename in changed:
                    changed[info.filename](target)  # type: ignore[arg-type]  # which is typed as a file to read, too
                    continue
                try:
                    with archive.open(info) as original:
                        shutil.copyfileobj(original, target)
                except _DAMAGE as error:
                    with suppress(ValueError):
                        target.close()
                    raise ValueError(f"{source}: {info.filename!r} is damaged: {error}") from None
