"""Trajectories in files of other programs: DCD, XTC, HDF5 and ASE, whole or as they grow.

======  ======================================  =========================================
ending  keeps                                   precision
======  ======================================  =========================================
.dcd    positions, cell, time                   float32 in Å: exact for float32 runs
.xtc    positions, cell, time, step             0.01 Å; below ten atoms float32 in nm
.h5     all of a `Trajectory`, topology         float32 in nm (6e-8), quantities exact
.traj   all of a `Trajectory`                   float64: exact
======  ======================================  =========================================

DCD, XTC and HDF5 files imply cells whose first vector lies along x and whose second lies
in the xy plane; other frames are turned, with their momenta, as they are written.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from mosaicmd.kernel import units
from mosaicmd.kernel._append_file import AppendFile, Overlay
from mosaicmd.kernel._frame_formats import FORMATS, FileFormat
from mosaicmd.kernel._frames import (
    Atoms,
    Frames,
    PathLike,
    cells,
    few,
    joined_frames,
    lengths_and_angles,
    require,
    split_frames,
    standard_orientation,
    step_spacing,
    system_of_elements,
)
from mosaicmd.kernel.files import explain_full_disk
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import Trajectory

if TYPE_CHECKING:
    import mdtraj

__all__ = [
    "TrajectoryWriter",
    "from_mdtraj",
    "read_trajectory",
    "to_mdtraj",
    "write_trajectory",
]


def to_mdtraj(
    trajectory: Trajectory, topology: mdtraj.Topology | PathLike | None = None
) -> mdtraj.Trajectory:
    """``mdtraj.Trajectory`` (nm, ps, float32) of positions, cells and times, without padding.

    Args:
        trajectory: of one system; cells are turned as in files.
        topology: with residues and bonds, or a file that mdtraj reads one from; by
            default a single residue of atoms named by their elements. A label that is no
            element becomes a virtual site.

    Raises:
        ValueError: for a trajectory of replicas, or a topology of another size.
        ImportError: if mdtraj is missing.
    """
    frames, atoms = split_frames(trajectory, None, topology)
    frames = standard_orientation(frames)
    made = require("mdtraj").Trajectory(
        np.asarray(frames.positions / units.NANOMETER, np.float32),
        atoms.topology,
        time=None if frames.time is None else frames.time / units.PICOSECOND,
    )
    if frames.cell is not None:
        lengths, angles = lengths_and_angles(frames.cell)
        made.unitcell_lengths = np.asarray(lengths / units.NANOMETER, np.float32)
        made.unitcell_angles = np.asarray(angles, np.float32)
    return made


def from_mdtraj(
    trajectory: mdtraj.Trajectory,
    *,
    system: System | None = None,
    kT: float = math.nan,
    pressure: float | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> Trajectory:
    """`Trajectory` (Å, t) of what mdtraj has read; periodic if it has unit cells.

    Args:
        trajectory: of mdtraj; positions should not be wrapped if displacements matter.
        system: says what the atoms are; by default the elements of the topology.
        kT: of the state point, eV.
        pressure: of the state point, eV/Å³.
        dtype: of positions and cell; by default JAX's default.

    Raises:
        ValueError: for atoms without an element, or no topology, where there is no
            ``system``, or one of another size.
    """
    lengths, angles = trajectory.unitcell_lengths, trajectory.unitcell_angles
    cell = None
    if lengths is not None and angles is not None:
        cell = cells(lengths.astype(float) * units.NANOMETER, angles)
    frames = Frames(
        np.asarray(trajectory.xyz, float) * units.NANOMETER,
        cell,
        {},
        time=np.asarray(trajectory.time, float) * units.PICOSECOND,
    )
    if system is None:
        if trajectory.topology is None:
            raise ValueError("`trajectory` has no topology; give `system`")
        system = system_of_elements(trajectory.topology, cell is not None)
    return joined_frames(frames, Atoms(system, None, kT, pressure), dtype)


def write_trajectory(
    path: PathLike,
    trajectory: Trajectory,
    topology: mdtraj.Topology | PathLike | None = None,
    *,
    steps: np.ndarray | None = None,
) -> Path:
    """Write all frames to a file, replacing it as a whole or not at all.

    Args:
        path: ends in .dcd, .xtc, .h5 or .traj; see the module for what each keeps.
        trajectory: of one system; see :func:`mosaicmd.kernel.simulation.split_replicas`.
        topology: for .h5, as for :func:`to_mdtraj`.
        steps: numbers of the frames, equally spaced, ``[n_frames]``; by default 0, 1, ...

    Raises:
        ValueError: for an unknown ending, replicas, or a topology of another size.
        ImportError: if the library for the format is missing.
        DiskFullError: if there is no room.
    """
    path = Path(path)
    file_format = _format_of(path)
    given = np.arange(trajectory.n_frames) if steps is None else steps
    frames, atoms = split_frames(trajectory, given, topology)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with explain_full_disk(path, 0), open(temporary, "x+b", buffering=0) as file:
            file_format.append(Overlay(file, 0), 0, frames, atoms)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_trajectory(
    path: PathLike,
    topology: System | mdtraj.Topology | PathLike | None = None,
    *,
    kT: float | None = None,
    pressure: float | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> Trajectory:
    """The frames of a .dcd, .xtc, .h5 or .traj file.

    The step numbers of the frames, where the file has them, are in ``quantities["step"]``.

    Args:
        path: the file.
        topology: what the atoms are; needed for .dcd and .xtc. A `System` gives labels,
            masses and periodic directions (its positions do not matter), a topology of
            mdtraj, or a file that has one, the elements.
        kT: of the state point, eV; by default what the file says, else nan.
        pressure: of the state point, eV/Å³; by default what the file says.
        dtype: of floating-point arrays; by default JAX's default.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: for an unknown ending, a file that is damaged or empty, or a topology
            that is missing or of another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"trajectory file {path} does not exist")
    file_format = _format_of(path)
    try:
        frames, atoms = file_format.read(path)
        n_frames = len(frames.positions)
    except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is damaged or empty: {type(error).__name__}: {error}") from error
    if n_frames == 0:
        raise ValueError(f"{path} has no frames")
    if topology is not None:
        if isinstance(topology, System):
            system = topology
        else:
            system = system_of_elements(topology, frames.cell is not None)
        atoms = Atoms(system, None, math.nan, None) if atoms is None else atoms
        atoms = atoms._replace(system=system)
    if atoms is None:
        raise ValueError(
            f"{path} does not say what its atoms are; give a System or topology as `topology`"
        )
    return joined_frames(
        frames,
        atoms._replace(
            kT=atoms.kT if kT is None else kT,
            pressure=atoms.pressure if pressure is None else pressure,
        ),
        dtype,
    )


class TrajectoryWriter:
    """A trajectory file that grows by pieces, survives a kill at any moment, and resumes.

    A piece is in the file as a whole or not at all. A small journal beside the file
    (``NAME.journal``) says up to where it counts; opening the writer again discards, with
    a warning, what a killed one has left behind. Frames have step numbers, equally
    spaced: those that are in the file already are passed over, so that a run which
    resumes from an older checkpoint can hand in its frames again, and a gap is an error::

        writer = TrajectoryWriter("run.xtc", system)
        while writer.last_step is None or writer.last_step < end:
            state, piece = simulation.run(params, state, 1000)
            writer.append(piece, state.step - 1000 + every * np.arange(1, piece.n_frames + 1))

    Nothing stays open between pieces. The finished file needs the journal no more.
    """

    def __init__(
        self,
        path: PathLike,
        system: System,
        *,
        topology: mdtraj.Topology | PathLike | None = None,
    ) -> None:
        """Begin a file, or go on with it.

        Args:
            path: ends in .dcd, .xtc, .h5 or .traj.
            system: what the atoms are; its positions do not matter.
            topology: for .h5, as for :func:`to_mdtraj`.

        Raises:
            FileExistsError: if there is such a file, but it was not begun by a writer.
            ValueError: for an unknown ending, or if the file was begun with other atoms.
        """
        self.path = Path(path)
        self._format = _format_of(self.path)
        self._system = jax.tree.map(np.asarray, system)
        self._topology = topology
        self._file = AppendFile(self.path)
        keep = self._system.mask
        atoms = [self._system.species[keep], self._system.pbc]
        identity = hashlib.sha256(b"|".join(a.tobytes() for a in atoms)).hexdigest()[:16]
        stored = self._file.record.get("atoms", identity)
        if stored != identity:
            raise ValueError(
                f"{self.path} was begun with other atoms or boundaries; choose another name"
            )
        self._identity = identity
        if self._file.discarded:
            ends = "has no frames yet" if self.last_step is None else f"ends at {self.last_step}"
            warnings.warn(
                f"{self.path}: a piece that was being written when its writer was killed is "
                f"discarded ({self._file.discarded} bytes); the file {ends}",
                stacklevel=2,
            )

    @property
    def n_frames(self) -> int:
        """Number of frames in the file."""
        return int(self._file.record.get("n_frames", 0))

    @property
    def last_step(self) -> int | None:
        """Step of the last frame in the file."""
        return self._file.record.get("last_step")

    def append(self, trajectory: Trajectory, steps: np.ndarray) -> int:
        """Add the frames that the file does not have yet, all or none of them.

        Args:
            trajectory: frames of the writer's system.
            steps: their numbers, ``[n_frames]``, equally spaced.

        Returns:
            How many were added.

        Raises:
            ValueError: for steps that leave a gap or do not fit the spacing in the file,
                and for frames of other atoms or with other quantities.
            DiskFullError: if there is no room; the file stays as it was.
        """
        steps = np.asarray(steps)
        record = dict(self._file.record)
        every = step_spacing(steps, trajectory.n_frames)
        last, known = record.get("last_step"), record.get("every")
        if last is not None:
            new = steps > last
            gap = int(steps[new][0]) - last if new.any() else None
            if known is None:
                known = gap if every is None else every
            fits = gap in (None, known) and every in (None, known)
            if not fits or (steps[-1] - last) % (known or 1):
                raise ValueError(
                    f"{self.path} ends at step {last} and has a frame every {known} steps, but "
                    f"`steps` are {few(steps)}; hand in the frames that follow"
                )
        else:
            new = np.ones(len(steps), bool)
            known = every
        if not new.any():
            return 0
        frames, atoms = split_frames(trajectory, steps, self._topology)
        if not np.array_equal(atoms.system.species, self._system.species[self._system.mask]):
            raise ValueError(f"`trajectory` has other atoms than {self.path}")
        frames = _selected(frames, new)
        contents = _contents(frames)
        if record.setdefault("contents", contents) != contents:
            raise ValueError(
                f"`trajectory` has {contents}, but the frames of {self.path} have "
                f"{record['contents']}"
            )
        n_before = self.n_frames
        record |= {
            "atoms": self._identity,
            "n_frames": n_before + int(new.sum()),
            "last_step": int(steps[-1]),
            "every": known,
        }
        with self._file.transaction(record) as stream:
            self._format.append(stream, n_before, frames, atoms)
        return int(new.sum())


def _selected(frames: Frames, keep: np.ndarray) -> Frames:
    return jax.tree.map(lambda leaf: leaf[keep], frames)


def _contents(frames: Frames) -> list[str]:
    fields = [name for name in ("cell", "momenta", "time") if getattr(frames, name) is not None]
    return fields + sorted(frames.quantities)


def _format_of(path: Path) -> FileFormat:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    return FORMATS[suffix]
