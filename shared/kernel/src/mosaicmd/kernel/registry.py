"""Public data sets by name: where they come from, under which licence, and a checked copy.

A file is looked for in the folder ``$MOSAICMD_DATA``, then in the user's cache, then on
the network where a direct address is known; it is used only if its SHA-256 is right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path

from mosaicmd.kernel._suggest import suggest

_VARIABLE = "MOSAICMD_DATA"


class DataSetError(RuntimeError):
    """A data set that cannot be had; the message says which file to put where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """One file of the registry; ``name`` is also its path inside a data folder."""

    name: str
    title: str
    units: str
    source: str  # repository@commit and citation
    licence: str
    bytes: int
    sha256: str
    url: str | None  # of the very same bytes; None if the file was converted
    n: int | None = None  # structures, frames or rows


def datasets() -> dict[str, DataSet]:
    """Every data set of the registry, by name."""
    text = files("mosaicmd.kernel").joinpath("datasets.json").read_text(encoding="utf-8")
    return {name: DataSet(name=name, **entry) for name, entry in json.loads(text).items()}


def fetch(name: str) -> Path:
    """Path of a data set on this machine, downloaded if need be and possible.

    Args:
        name: as in :func:`datasets`, for example ``"experimental/water_OO_RDF.csv"``.

    Raises:
        DataSetError: for an unknown name, a copy whose checksum is wrong, or a file that
            is neither here nor to be had; it says which file to put where.
    """
    known = datasets()
    if name not in known:
        raise DataSetError(
            f"data set {name!r} is unknown{suggest(name, known)}; "
            "`mosaicmd.kernel.registry.datasets()` lists all names"
        )
    entry = known[name]
    if folder := os.environ.get(_VARIABLE):
        path = Path(folder) / name
        if path.is_file():
            _check(path, entry, f"replace it, or unset {_VARIABLE}")
            return path
    cache = cache_folder()
    path = cache / name
    if path.is_file():
        _check(path, entry, "delete it to fetch it again")
        return path
    reason = "it was converted from its source, so there is no address to fetch it from"
    if entry.url is not None:
        reason = _download(entry.url, entry.sha256, path)
    if not reason:
        return path
    raise DataSetError(
        f"data set {name} ({entry.title}) is not on this machine and cannot be fetched: {reason}. "
        f"Put the file of {entry.bytes} bytes with SHA-256 {entry.sha256} at {path}, or at {name} "
        f"inside the folder named by {_VARIABLE} (now {os.environ.get(_VARIABLE) or 'not set'}). "
        f"Source: {entry.source}; licence: {entry.licence}"
        + (f"; address: {entry.url}" if entry.url else "")
    )


def cache_folder() -> Path:
    """The folder of downloaded data sets of this user."""
    try:
        import pooch
    except ImportError:
        return Path.home() / ".cache" / "mosaicmd"  # what pooch would say on Linux
    return Path(pooch.os_cache("mosaicmd"))


def _download(url: str, sha256: str, path: Path) -> str:
    """Fetch a file to ``path``; returns why that failed, or an empty string."""
    try:
        import pooch
    except ImportError:
        return "pooch is not installed (pip install 'mosaicmd-kernel[data]')"
    try:
        pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # requests raises OSError, a wrong hash ValueError
        return f"{url} failed with {type(error).__name__}: {error}"
    return ""


def _check(path: Path, entry: DataSet, remedy: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.sha256:
        raise DataSetError(
            f"{path} is not the registered data set {entry.name}: its SHA-256 is {found} "
            f"({path.stat().st_size} bytes), expected {entry.sha256} ({entry.bytes}); {remedy}"
        )
