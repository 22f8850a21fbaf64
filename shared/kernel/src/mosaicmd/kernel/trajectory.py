"""`Trajectory`: frames sampled at a state point, and maps over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.systems import System

Array = jax.Array


class StatePoint(NamedTuple):
    """The thermodynamic state that frames belong to."""

    kT: float | Array  # eV
    pressure: float | Array | None = None  # eV/Å³; None: fixed cell

    @property
    def beta(self) -> float | Array:
        """Inverse temperature, 1/eV."""
        return 1.0 / self.kT


class Trajectory(NamedTuple):
    """Frames of one system.

    Only positions, cell and momenta differ between frames: ``systems`` has a leading
    axis on ``positions`` and ``cell`` alone; its other leaves are shared.
    ``quantities`` holds per-frame arrays (leading axis ``n_frames``), among them
    ``energy`` (eV, of the potential that drove the run).
    """

    systems: System
    quantities: dict[str, Any]
    state_point: StatePoint
    momenta: Array | None = None  # [n_frames, n_atoms, 3], u Å/t
    time: Array | None = None  # [n_frames], t

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.systems.positions.shape[0]

    def frame(self, index: int) -> System:
        """One frame as a `System`."""
        systems = self.systems
        return systems._replace(positions=systems.positions[index], cell=systems.cell[index])

    def skip(self, n_frames: int) -> Trajectory:
        """Without its first frames, those of equilibration."""
        frames = (self.systems.positions, self.systems.cell, self.quantities, self.momenta)
        positions, cell, quantities, momenta, time = jax.tree.map(
            lambda leaf: leaf[n_frames:], (*frames, self.time)
        )
        systems = self.systems._replace(positions=positions, cell=cell)
        return Trajectory(systems, quantities, self.state_point, momenta, time)


_ATOMS_AT_ONCE = 16_384


def map_frames(
    function: Callable[..., Any],
    trajectory: Trajectory,
    *extras: Any,
    batch_size: int | None = None,
) -> Any:
    """``function(system, *extras[frame])`` over all frames, results stacked.

    Args:
        function: takes one `System` and one slice of every extra.
        trajectory: the frames.
        extras: pytrees with a leading frame axis, for example stacked graphs.
        batch_size: frames evaluated at once. By default one on a CPU, where that is the
            fastest, and about 16 000 atoms on accelerators, which one small frame would not
            keep busy.
    """
    systems = trajectory.systems
    if batch_size is None:
        n_atoms = systems.positions.shape[-2]
        batch_size = 1 if jax.default_backend() == "cpu" else max(1, _ATOMS_AT_ONCE // n_atoms)

    def one(frame: tuple) -> Any:
        positions, cell, *rest = frame
        return function(systems._replace(positions=positions, cell=cell), *rest)

    frames = (systems.positions, systems.cell, *extras)
    return jax.lax.map(one, frames, batch_size=None if batch_size == 1 else batch_size)


def concatenate(trajectories: list[Trajectory]) -> Trajectory:
    """Frames of several pieces of one run, in order.

    Raises:
        ValueError: for an empty list.
    """
    if not trajectories:
        raise ValueError("`concatenate` needs at least one trajectory")
    first = trajectories[0]
    pieces = [
        (t.systems.positions, t.systems.cell, t.quantities, t.momenta, t.time) for t in trajectories
    ]
    positions, cell, quantities, momenta, time = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), *pieces
    )
    systems = first.systems._replace(positions=positions, cell=cell)
    return Trajectory(systems, quantities, first.state_point, momenta, time)
