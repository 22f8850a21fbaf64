"""Where frames come from: `Sampler`, and the one that runs molecular dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mosaicmd.kernel.integrators import maxwell_boltzmann
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
    """Where :func:`dynamics_sampler` goes on."""

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
) -> Sampler:
    """Sampler by molecular dynamics; each simulation starts where the last one ended.

    Args:
        simulation: with a thermostat at the temperature of ``state_point``.
        system: start structure.
        state_point: recorded with the frames.
        n_equilibration: steps discarded after every change of the parameters.
        n_production: steps sampled, one frame every ``simulation.every``.
        key: typed PRNG key for momenta and noise.

    Raises:
        ValueError: if a number of steps is no multiple of ``simulation.every``.
    """
    for name, steps in (("n_equilibration", n_equilibration), ("n_production", n_production)):
        if steps % simulation.every or steps < 0:
            raise ValueError(
                f"`{name}` must be a multiple of every={simulation.every}, got {steps}"
            )

    def init() -> DynamicsState:
        key_momenta, key_run = jax.random.split(key)
        momenta = maxwell_boltzmann(key_momenta, system, state_point.kT)
        return DynamicsState(system.positions, system.cell, momenta, jax.random.key_data(key_run))

    def sample(params: Params, state: DynamicsState) -> tuple[DynamicsState, Trajectory]:
        key_now, key_next = jax.random.split(jax.random.wrap_key_data(state.key))
        start = system._replace(positions=state.positions, cell=state.cell)
        run = simulation.start(key_now, params, start, momenta=state.momenta)
        if n_equilibration:
            run, _ = simulation.run(params, run, n_equilibration, progress=False)
        run, trajectory = simulation.run(params, run, n_production, progress=False)
        end = run.md
        state = DynamicsState(
            end.system.positions, end.system.cell, end.momenta, jax.random.key_data(key_next)
        )
        return state, trajectory._replace(state_point=state_point)

    return Sampler(init, sample, system, state_point, n_production // simulation.every)
