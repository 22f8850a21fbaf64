"""Where frames come from: `Sampler`, and the one that runs molecular dynamics."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mosaicmd.kernel.integrators import maxwell_boltzmann
from mosaicmd.kernel.pytrees import to_arrays
from mosaicmd.kernel.replicas import joined_replicas, replica_map, replicated
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

Array = jax.Array
Params = Any


class Sampler(NamedTuple):
    """Draws frames from the ensemble of given parameters.

    ``init() -> state`` and ``sample(params, state) -> (state, trajectory)``; every call
    returns ``n_frames`` frames of ``system`` at ``state_point``. The state is a pytree of
    arrays with fixed shapes, so that it can be checkpointed.
    """

    init: Callable[[], Any]
    sample: Callable[[Params, Any], tuple[Any, Trajectory]]
    system: System
    state_point: StatePoint
    n_frames: int


class DynamicsState(NamedTuple):
    """Where :func:`dynamics_sampler` goes on; with replicas, arrays lead with them."""

    positions: Array  # [n_atoms, 3], Å
    cell: Array  # [3, 3], Å
    momenta: Array  # [n_atoms, 3], u Å/t
    key: Array  # PRNG key data


def dynamics_sampler(
    simulation: Simulation,
    system: System,
    state_point: StatePoint,
    *,
    n_equilibration: int,
    n_production: int,
    key: Array,
    replicas: int | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> Sampler:
    """Sampler by molecular dynamics; each simulation starts where the last one ended.

    An accelerator computes several small systems in about the time of one, so there the same
    number of frames comes sooner from ``replicas``, which start with momenta of their own.

    Args:
        simulation: with a thermostat, which is set to the temperature of ``state_point``; so
            one simulation, compiled once, serves state points of several temperatures.
        system: start structure.
        state_point: recorded with the frames.
        n_equilibration: steps discarded after every change of the parameters.
        n_production: steps sampled of each replica, one frame every ``simulation.every``.
        key: typed PRNG key for momenta and noise.
        replicas: number of copies that run at once; their frames follow one another, replica
            by replica.
        directory: a folder of its own for the simulation under way, so that one that is
            killed goes on where it was; ``None`` begins it anew.
        progress: show that of each simulation on stderr; ``None``: of long ones.

    Raises:
        ValueError: if a number of steps is no multiple of ``simulation.every``, or for a number
            of replicas below 1.
    """
    for name, steps in (("n_equilibration", n_equilibration), ("n_production", n_production)):
        if steps % simulation.every or steps < 0:
            raise ValueError(
                f"`{name}` must be a multiple of every={simulation.every}, got {steps}"
            )

    copies, count = replicated(system, replicas)

    def init() -> DynamicsState:
        key_momenta, key_run = jax.random.split(key)
        keys = key_momenta if count is None else jax.random.split(key_momenta, count)
        draw = replica_map(copies)(lambda k, s: maxwell_boltzmann(k, s, state_point.kT))
        momenta = draw(keys, copies)
        return DynamicsState(copies.positions, copies.cell, momenta, jax.random.key_data(key_run))

    def sample(params: Params, state: DynamicsState) -> tuple[DynamicsState, Trajectory]:
        key_now, key_next = jax.random.split(jax.random.wrap_key_data(state.key))
        start = copies._replace(positions=state.positions, cell=state.cell)
        run = simulation.start(key_now, params, start, momenta=state.momenta, kT=state_point.kT)
        first = second = None
        if directory is not None:
            folder = _folder(Path(directory), params, state)
            first, second = folder / "equilibration", folder / "production"
        if n_equilibration:
            run, _ = simulation.run(
                params, run, n_equilibration, progress=progress, directory=first
            )
        run, trajectory = simulation.run(
            params, run, n_production, progress=progress, directory=second
        )
        end = run.md
        state = DynamicsState(
            end.system.positions, end.system.cell, end.momenta, jax.random.key_data(key_next)
        )
        if count is not None:
            trajectory = joined_replicas(trajectory)
        return state, trajectory._replace(state_point=state_point)

    n_frames = (count or 1) * (n_production // simulation.every)
    return Sampler(init, sample, system, state_point, n_frames)


def _folder(directory: Path, params: Params, state: DynamicsState) -> Path:
    """The folder of a simulation, after what it starts from; those of others are removed."""
    digest = hashlib.sha256()
    for name, array in to_arrays((params, state)).items():
        digest.update(name.encode() + array.tobytes())
    folder = directory / f"simulation-{digest.hexdigest()[:16]}"
    for other in directory.glob("simulation-*"):
        if other != folder:
            shutil.rmtree(other)
    return folder
