"""The directory of a run: what it is, its frames, and where it stands.

``run.json`` tells this run from another one, ``frames/`` has one file per chunk, and
``checkpoints/`` the complete state at the end of the newest chunks. Frames are written
before the checkpoint that counts them, so a kill at any moment costs one chunk at most.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mosaicmd.kernel.checkpoints import Checkpointer, CheckpointError
from mosaicmd.kernel.files import atomic_write_bytes, atomic_write_json
from mosaicmd.kernel.pytrees import from_arrays, to_arrays
from mosaicmd.kernel.tensors import pack, unpack

Pytree = Any

ENERGY_TOLERANCE = 1.0e-4
"""Relative difference of the initial energy that other hardware may make."""

_FRAMES = re.compile(r"frames-(\d{12})\.safetensors")


class RunDirectory:
    """Files of one run; see the module."""

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        """Open the directory of a run, or make it.

        Args:
            path: made if missing.
            identity: nested mapping of JSON values; what makes it the same run.

        Raises:
            ValueError: if the directory belongs to another run, naming what differs, or
                holds something that is no run.
        """
        self.path = Path(path)
        self.checkpointer = Checkpointer(self.path / "checkpoints")
        settings = self.path / "run.json"
        identity = json.loads(json.dumps(identity))
        if settings.exists():
            try:
                found = json.loads(settings.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{settings} cannot be read: {error}") from error
            if differences := list(_differences(found, identity)):
                raise ValueError(
                    f"{self.path} belongs to another run: {'; '.join(differences)}. Give each "
                    "run its own directory, and one also to the run that this one starts from"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and has no run.json; choose another directory"
            )
        else:
            (self.path / "frames").mkdir(parents=True, exist_ok=True)
            atomic_write_json(settings, identity)
        (self.path / "frames").mkdir(exist_ok=True)

    def save_frames(self, step: int, frames: Pytree) -> None:
        """Write the frames of a chunk that ends at ``step``."""
        atomic_write_bytes(self._frames_path(step), pack(to_arrays(frames)))

    def save_state(self, step: int, state: Pytree, metadata: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step``, after the frames up to it."""
        self.checkpointer.save(step, state, metadata)

    def newest(self) -> tuple[str, int] | None:
        """Path and step of the newest checkpoint."""
        steps = self.checkpointer.steps()
        return (str(self.checkpointer.path(steps[-1])), steps[-1]) if steps else None

    def restore(self, template: Callable[[Mapping[str, Any]], Pytree]) -> Pytree | None:
        """The newest state that is whole, or ``None`` if the run is new.

        Args:
            template: from the metadata of a checkpoint to a state of the same shapes.

        Raises:
            CheckpointError: if there are checkpoints and none can be used.
        """
        problem: CheckpointError | None = None
        for metadata in self._all_metadata():
            try:
                restored = self.checkpointer.restore(template(metadata))
            except CheckpointError as error:
                problem = error
                continue
            return None if restored is None else restored.state
        if problem is None and self.checkpointer.steps():
            problem = CheckpointError(
                f"every checkpoint in {self.checkpointer.directory} is damaged; delete "
                f"{self.path} to start anew"
            )
        if problem is not None:
            raise problem
        return None

    def load_frames(self, step: int, template: Pytree) -> list[Pytree]:
        """The frames of every chunk up to ``step``; later ones are deleted.

        Args:
            step: of the restored state.
            template: shapes and dtypes of frames; the leading axis may have any length.

        Raises:
            ValueError: if a file is missing or damaged.
        """
        pieces = []
        for path in sorted((self.path / "frames").iterdir()):
            match = _FRAMES.fullmatch(path.name)
            if match is None or int(match[1]) > step:
                path.unlink()
                continue
            try:
                arrays, _ = unpack(path.read_bytes())
                pieces.append(from_arrays(_with_length(template, arrays), arrays))
            except ValueError as error:
                raise ValueError(
                    f"{path} cannot be read: {error}; delete {self.path} to start anew"
                ) from error
        return pieces

    def _frames_path(self, step: int) -> Path:
        return self.path / "frames" / f"frames-{step:012d}.safetensors"

    def _all_metadata(self) -> Iterator[Mapping[str, Any]]:
        """Metadata of every readable checkpoint, from the newest on."""
        for step in reversed(self.checkpointer.steps()):
            try:
                _, header = unpack(self.checkpointer.path(step).read_bytes())
                yield json.loads(header["metadata"])
            except (ValueError, KeyError):
                continue


def fingerprint(tree: Pytree) -> dict[str, str]:
    """A short checksum of every leaf, by its path."""
    return {
        name.removesuffix(":weak"): "sha256:"
        + hashlib.sha256(str(array.dtype).encode() + array.tobytes()).hexdigest()[:16]
        for name, array in to_arrays(tree).items()
    }


def _with_length(template: Pytree, arrays: Mapping[str, np.ndarray]) -> Pytree:
    """The template with its leading axis as long as that of the stored arrays."""
    n_frames = len(next(iter(arrays.values())))
    return jax.tree.map(lambda leaf: np.zeros((n_frames, *leaf.shape[1:]), leaf.dtype), template)


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(
                found.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
    elif name == "start.energy" and _close(found, wanted):
        return
    elif found != wanted:
        values = f"is {found!r} there and {wanted!r} here"
        yield f"`{name}` {'differs' if _is_checksum(found, wanted) else values}"


def _is_checksum(*values: Any) -> bool:
    return all(isinstance(value, str) and value.startswith("sha256:") for value in values)


def _close(found: Any, wanted: Any) -> bool:
    """Whether two energies, or lists of them, agree but for rounding."""
    if isinstance(found, str) or isinstance(wanted, str):
        return found == wanted
    pairs = zip(np.ravel(found), np.ravel(wanted), strict=False)
    return np.shape(found) == np.shape(wanted) and all(
        math.isclose(one, other, rel_tol=ENERGY_TOLERANCE, abs_tol=ENERGY_TOLERANCE)
        for one, other in pairs
    )
