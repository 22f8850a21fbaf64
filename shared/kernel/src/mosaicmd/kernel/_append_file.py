"""A file that grows by whole transactions, whatever format is written into it.

Beside the file lies a small journal that says how many of its bytes count. A transaction
writes new bytes past that end at once, but keeps what would overwrite counted bytes (the
frame count of a DCD header, the index of an HDF5 file) in memory. It is committed when a
new journal, which holds these patches, replaces the old one; only then are they applied.
A kill at any moment leaves a journal from which the next opening restores the state after
the last commit: it applies the patches again and cuts off the rest.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosaicmd.kernel.files import atomic_write_bytes, explain_full_disk


class AppendFile:
    """One such file and its journal; nothing stays open between transactions."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file and restore what was committed, or begin it.

        Args:
            path: its folder must exist.

        Raises:
            FileExistsError: if there is a file that has no journal.
            ValueError: if the journal cannot be read, or the file lost committed bytes.
        """
        self.path = Path(path)
        self.journal = self.path.with_name(self.path.name + ".journal")
        self.record: dict[str, Any] = {}
        """What was said at the last commit."""
        self.discarded = 0
        """Bytes of an interrupted transaction that were cut off on opening."""
        self.size = 0
        """Bytes that count."""
        if self.journal.exists():
            self._restore()
        elif self.path.exists():
            raise FileExistsError(
                f"{self.path} exists and is not under construction (it has no "
                f"{self.journal.name}); choose another name or delete it"
            )
        else:
            self._write_journal(0, {}, [])
            self.path.touch()

    @contextlib.contextmanager
    def transaction(self, record: dict[str, Any]) -> Iterator[Overlay]:
        """A stream to read and write through; leaving without an error commits.

        Args:
            record: JSON to keep in the journal; what it holds on leaving counts.
        """
        with explain_full_disk(self.path, 0), open(self.path, "r+b", buffering=0) as file:
            file.truncate(self.size)
            stream = Overlay(file, self.size)
            yield stream
            os.fsync(file.fileno())
            self._write_journal(stream.size, record, stream.patches)
            _apply(file, stream.size, stream.patches)
        self.size, self.record = stream.size, record

    def _restore(self) -> None:
        try:
            journal = json.loads(self.journal.read_text(encoding="utf-8"))
            size, record = int(journal["size"]), dict(journal["record"])
            patches = [(int(at), base64.b64decode(data)) for at, data in journal["patches"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.journal} cannot be read: {error}; delete it and {self.path} to start anew"
            ) from error
        # A kill may have come between the first journal and the file.
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            raise ValueError(
                f"{self.path} has {found} bytes, but {size} were written; delete it and "
                f"{self.journal} to start anew"
            )
        with open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0) as file:
            _apply(file, size, patches)
        self.size, self.record, self.discarded = size, record, found - size

    def _write_journal(
        self, size: int, record: dict[str, Any], patches: list[tuple[int, bytes]]
    ) -> None:
        encoded = [[at, base64.b64encode(data).decode()] for at, data in patches]
        journal = {"size": size, "record": record, "patches": encoded}
        atomic_write_bytes(self.journal, json.dumps(journal).encode())


class Overlay(io.RawIOBase):
    """A file as it would be with ``patches`` applied to its first ``counted`` bytes."""

    def __init__(self, file: io.RawIOBase | io.FileIO, counted: int) -> None:
        super().__init__()
        self.size = counted
        self.patches: list[tuple[int, bytes]] = []
        self._file, self._counted, self._at = file, counted, 0

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Do nothing: libraries close what they were lent."""

    def tell(self) -> int:
        """Where the next byte is read or written."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another byte."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = int(start + offset)  # of numpy too
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Set the size; new bytes are zero."""
        self.size = self._at if size is None else int(size)
        if self.size >= self._counted:
            self._file.truncate(self.size)
        return self.size

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, with less than it holds at the end of the file."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self.size - self._at))
        self._file.seek(self._at)
        found = bytearray(self._file.read(length) or b"").ljust(length, b"\0")
        for at, data in self.patches:
            first, last = max(at, self._at), min(at + len(data), self._at + length)
            if first < last:
                found[first - self._at : last - self._at] = data[first - at : last - at]
        view[:length] = found
        self._at += length
        return length

    def write(self, data: Any) -> int:
        """Write behind the counted bytes, and remember what belongs among them."""
        data = memoryview(data).cast("B").tobytes()
        inside = max(0, min(len(data), self._counted - self._at))
        if inside:
            self.patches.append((self._at, data[:inside]))
        if inside < len(data):
            self._file.seek(self._at + inside)
            self._file.write(data[inside:])
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)


def _apply(file: io.RawIOBase | io.FileIO, size: int, patches: list[tuple[int, bytes]]) -> None:
    for at, data in patches:
        file.seek(at)
        file.write(data)
    file.truncate(size)
    os.fsync(file.fileno())
