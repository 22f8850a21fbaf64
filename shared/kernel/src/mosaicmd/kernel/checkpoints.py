"""Checkpoints of a run: any pytree, exact to the bit, and never only one damaged copy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mosaicmd.kernel.files import atomic_write_bytes
from mosaicmd.kernel.pytrees import from_arrays, to_arrays
from mosaicmd.kernel.tensors import pack, unpack

Pytree = Any

_NAME = re.compile(r"step-(\d{12})\.safetensors")


class CheckpointError(ValueError):
    """Checkpoints that do not fit the run, or none of which can be read."""


class Checkpoint(NamedTuple):
    """What :meth:`Checkpointer.restore` returns."""

    step: int
    state: Pytree
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpointer:
    """The checkpoints of one run in one directory.

    Each is a safetensors file with a checksum over all that it holds, written atomically;
    the newest ``keep`` stay.
    """

    directory: str | os.PathLike[str]
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"`keep` must be at least 1, got {self.keep}")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in increasing order."""
        directory = Path(self.directory)
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def path(self, step: int) -> Path:
        """The file of one step."""
        return Path(self.directory) / f"step-{step:012d}.safetensors"

    def save(self, step: int, state: Pytree, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint, then delete those beyond the newest ``keep``.

        Args:
            step: not before the newest checkpoint of the directory.
            state: arrays, PRNG keys and Python numbers in any pytree.
            metadata: any JSON; NaN and infinity are allowed here.

        Raises:
            CheckpointError: if a later step has a checkpoint already: another run's.
            DiskFullError: if there is no room; earlier checkpoints stay as they were.
            ValueError: for a leaf that is no array, naming its path.
        """
        latest = max(self.steps(), default=step)
        if latest > step:
            raise CheckpointError(
                f"{self.directory} holds a checkpoint of step {latest}, later than step {step}; "
                "restore it first, or give a new run an empty directory"
            )
        arrays = to_arrays(state)
        text = json.dumps(dict(metadata or {}))
        header = {"step": str(step), "metadata": text, "sha256": _digest(step, text, arrays)}
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        path = atomic_write_bytes(self.path(step), pack(arrays, header))
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        for interrupted in Path(self.directory).glob(".step-*.tmp"):
            interrupted.unlink()
        return path

    def restore(self, template: Pytree) -> Checkpoint | None:
        """The newest checkpoint that is whole, or ``None`` if there is none at all.

        A damaged one is passed over with a warning that names it, and set aside under the
        ending ``.damaged``.

        Args:
            template: a state of the same structure, shapes and dtypes (see
                :func:`mosaicmd.kernel.pytrees.from_arrays`).

        Raises:
            CheckpointError: if the checkpoint belongs to another kind of state, or if
                every checkpoint is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                arrays, metadata = _read(path, step)
            except ValueError as error:
                warnings.warn(
                    f"checkpoint {path} of step {step} is damaged ({error}); "
                    "falling back to the one before",
                    stacklevel=2,
                )
                damaged.append(path)
                continue
            for one in damaged:
                with contextlib.suppress(OSError):  # a folder that can only be read
                    one.rename(one.with_suffix(".damaged"))
            try:
                return Checkpoint(step, from_arrays(template, arrays), metadata)
            except ValueError as error:
                raise CheckpointError(
                    f"checkpoint {path} belongs to another kind of run: {error}; run with the "
                    "settings that wrote it, or start in an empty directory"
                ) from error
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged "
                f"({', '.join(path.name for path in damaged)}); delete them to start anew"
            )
        return None


def _read(path: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Content of one file, or a ``ValueError`` if it is not what was written."""
    arrays, header = unpack(path.read_bytes())
    text = header.get("metadata", "")
    if header.get("sha256") != _digest(step, text, arrays):
        raise ValueError("its checksum does not match its content")
    return arrays, json.loads(text)


def _digest(step: int, text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the step, the metadata, and names, dtypes, shapes and bits of the arrays."""
    digest = hashlib.sha256(json.dumps([step, text]).encode())
    for name, array in sorted(arrays.items()):
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(json.dumps([name, str(little.dtype), little.shape]).encode())
        digest.update(little.tobytes())
    return digest.hexdigest()
