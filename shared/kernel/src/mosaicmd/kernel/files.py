"""Writes that happen completely or not at all, and that say so when a disk is full.

A file is written beside its target under a temporary name, flushed to the disk, and then
renamed; a crash at any moment leaves either the old content or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h


class DiskFullError(OSError):
    """There was no room for a file; what stood in its place before is untouched."""


def atomic_write_bytes(path: PathLike, data: bytes) -> Path:
    """Replace the content of a file by ``data``, or leave it as it was.

    Args:
        path: the file; its folder must exist. A symbolic link is followed.
        data: the new content.

    Returns:
        The path written.

    Raises:
        DiskFullError: naming the file, the room it needs and the room there is.
        OSError: if the folder is missing or cannot be written.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary_sibling(path)
    with explain_full_disk(path, len(data)):
        try:
            _write_new_file(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def atomic_write_text(path: PathLike, text: str) -> Path:
    """:func:`atomic_write_bytes` of UTF-8 text."""
    return atomic_write_bytes(path, text.encode())


def atomic_write_json(path: PathLike, value: Any) -> Path:
    """:func:`atomic_write_bytes` of indented JSON; numpy and JAX values become lists or numbers.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have, and for anything that
            is no JSON value.
    """
    return atomic_write_text(path, to_json(value, str(path)) + "\n")


def to_json(value: Any, name: str) -> str:
    """Strict, indented JSON of a value that an error calls ``name``.

    Raises:
        ValueError: for NaN, infinity, and types that JSON does not have.
    """
    try:
        return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} cannot be stored as JSON: {error}; store null or a string instead"
        ) from error


def atomic_write_directory(
    path: PathLike, files: Mapping[str, bytes], *, overwrite: bool = False
) -> Path:
    """Create a directory with these files, or replace it as a whole.

    Where the system can exchange two directories in one step (Linux), there is no moment
    without a complete directory at ``path``; elsewhere the old one stands for that moment
    as ``.NAME.previous`` beside it.

    Args:
        path: the directory; its parent must exist.
        files: content by file name.
        overwrite: replace a directory that holds these files and no others.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false, or if it holds
            files that are not among ``files``.
        DiskFullError: as :func:`atomic_write_bytes`.
    """
    path = Path(os.path.realpath(path))
    _check_replaceable(path, files, overwrite)
    temporary = _temporary_sibling(path)
    with explain_full_disk(path, sum(map(len, files.values()))):
        try:
            temporary.mkdir()
            for name, data in files.items():
                _write_new_file(temporary / name, data)
            _sync_folder(temporary)
            if not path.exists():
                os.rename(temporary, path)
            elif not _exchange(temporary, path):
                _replace_in_two_steps(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)
    return path


def _check_replaceable(path: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another directory")
    if not overwrite:
        raise FileExistsError(f"{path} exists; give overwrite=True to replace it")
    if foreign := sorted(set(os.listdir(path)) - set(files)):
        raise FileExistsError(
            f"{path} holds other files too ({', '.join(foreign[:5])}), which replacing it would "
            "delete; move them or choose another directory"
        )


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _write_new_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power failure, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    names = os.fsencode(one), os.fsencode(other)
    return (
        rename is not None
        and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    )


def _replace_in_two_steps(new: Path, path: Path) -> None:
    previous = path.with_name(f".{path.name}.previous")
    os.rename(path, previous)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(previous, path)
        raise
    shutil.rmtree(previous)


@contextlib.contextmanager
def explain_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Turns the errors of a full disk into one `DiskFullError` that names file and room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(path.parent).free
        reason = "the file size limit is reached" if error.errno == errno.EFBIG else "disk full"
        state = "the previous one is intact" if path.exists() else "nothing was left behind"
        raise DiskFullError(
            error.errno,
            f"{reason}: writing {path} needs {needed} bytes and {free} are free in "
            f"{path.parent}; {state}. Free some space and repeat",
        ) from error


def _plain(value: Any) -> Any:
    """Numpy and JAX scalars and arrays as Python numbers and lists; paths as strings."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")
