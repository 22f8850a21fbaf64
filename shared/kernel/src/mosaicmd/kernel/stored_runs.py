"""The directories of simulation runs, read as trajectories and exported to trajectory files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mosaicmd.kernel._frames import Atoms, Frames, PathLike, joined_frames
from mosaicmd.kernel.checkpoints import Checkpointer
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.tensors import unpack
from mosaicmd.kernel.trajectory import Trajectory
from mosaicmd.kernel.trajectory_files import TrajectoryWriter

if TYPE_CHECKING:
    import mdtraj

__all__ = ["export_run", "read_run"]


def read_run(directory: PathLike, *, replica: int | None = None) -> Trajectory:
    """The frames in the directory of a run, up to its last checkpoint.

    Args:
        directory: of ``Simulation.run(..., directory=...)``, finished or not.
        replica: which one of a run with replicas.

    Raises:
        ValueError: for a directory that is no run or has no frames yet, and for a replica
            that is missing or does not exist.
    """
    run = _Run(directory, replica)
    pieces = [run.frames(path) for path in run.paths()]
    if not pieces:
        raise ValueError(f"the run {directory} has no frames yet")
    pieces = [piece._replace(step=None) for piece in pieces]  # as `Simulation.run` returns it
    frames = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
    return joined_frames(frames, run.atoms, frames.positions.dtype)


def export_run(
    directory: PathLike,
    path: PathLike,
    *,
    topology: mdtraj.Topology | PathLike | None = None,
    replica: int | None = None,
) -> int:
    """Append the frames in the directory of a run that a file does not have yet.

    Works piece by piece in the memory of one, on runs that still go on, and may be killed
    and repeated: the file is that of a :class:`TrajectoryWriter`.

    Args:
        directory: of ``Simulation.run(..., directory=...)``.
        path: ends in .dcd, .xtc, .h5 or .traj.
        topology: for .h5, as for :func:`to_mdtraj`.
        replica: which one of a run with replicas.

    Returns:
        Number of frames added.

    Raises:
        ValueError: as :func:`read_run` and :class:`TrajectoryWriter`.
    """
    run = _Run(directory, replica)
    writer = TrajectoryWriter(path, run.atoms.system, topology=topology)
    added = 0
    for piece in run.paths():
        if writer.last_step is None or _step_of(piece) > writer.last_step:
            frames = run.frames(piece)
            assert frames.step is not None
            trajectory = joined_frames(
                frames._replace(step=None), run.atoms, frames.positions.dtype
            )
            added += writer.append(trajectory, frames.step)
    return added


class _Run:
    """What a run directory says, read by the names of its arrays."""

    def __init__(self, directory: PathLike, replica: int | None) -> None:
        self.path, self.replica = Path(directory), replica
        settings = self.path / "run.json"
        checkpointer = Checkpointer(self.path / "checkpoints")
        steps = checkpointer.steps()
        if not settings.is_file() or not steps:
            what = "has no checkpoint yet" if settings.is_file() else "is no run: no run.json"
            raise ValueError(f"{self.path} {what}")
        self.last = steps[-1]
        integrator = json.loads(settings.read_text(encoding="utf-8"))["integrator"]
        self.timestep = float(integrator["timestep"])
        stored, _ = unpack(checkpointer.path(self.last).read_bytes())
        arrays = {name.removesuffix(":weak"): array for name, array in stored.items()}
        replicas = len(arrays["md/energy"]) if arrays["md/energy"].ndim else None
        if (replicas is None) != (replica is None) or not 0 <= (replica or 0) < (replicas or 1):
            raise ValueError(
                f"{self.path} is a run of {replicas or 'one system without'} replicas, but "
                f"`replica` is {replica}"
            )
        fields = {
            name: arrays.get(f"md/system/{name}") for name in System._fields if name != "positions"
        }
        positions = arrays["md/system/positions"]
        mine: dict[str, Any] = {
            name: self._mine(value)
            for name, value in (fields | {"positions": positions}).items()
            if value is not None
        }
        kT, pressure = (
            None if (value := arrays.get(name)) is None else float(self._mine(value))
            for name in ("md/thermostat/kT", "md/barostat/pressure")
        )
        system = System(**mine)
        self.atoms = Atoms(system, None, math.nan if kT is None else kT, pressure)

    def paths(self) -> list[Path]:
        """Files of frames up to the checkpoint, in order."""
        found = sorted((self.path / "frames").glob("frames-*.safetensors"))
        return [path for path in found if _step_of(path) <= self.last]

    def frames(self, path: Path) -> Frames:
        """The frames of one file."""
        try:
            arrays, _ = unpack(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        arrays = {name.removesuffix(":weak"): array for name, array in arrays.items()}
        step = arrays.pop("step")
        if self.replica is not None:
            arrays = {name: array[:, self.replica] for name, array in arrays.items()}
        positions, cell = arrays.pop("positions"), arrays.pop("cell")
        momenta = arrays.pop("momenta", None)
        quantities = {name.removeprefix("quantities/"): value for name, value in arrays.items()}
        return Frames(positions, cell, quantities, momenta, step * self.timestep, step)

    def _mine(self, array: np.ndarray) -> np.ndarray:
        return array if self.replica is None else array[self.replica]


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("frames-"))
