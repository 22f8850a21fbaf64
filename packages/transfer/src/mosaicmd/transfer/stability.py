"""How long dynamics of a potential stay sane: time to the first unphysical event, over replicas."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph, edge_components
from mosaicmd.kernel.integrators import Integrator, MDState, evaluated
from mosaicmd.kernel.momenta import degrees_of_freedom, kinetic_energy, maxwell_boltzmann
from mosaicmd.kernel.neighbors import NeighborList, Neighbors, neighbor_list
from mosaicmd.kernel.potentials import EnergyFn, Params, evaluate
from mosaicmd.kernel.replicas import replica_loop
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import KELVIN

Array = jax.Array

SKIN = 0.5
"""Of neighbor lists, Å: hot atoms need short lists more than rare builds."""


class Sanity(NamedTuple):
    """What must hold after every step; besides, energies and momenta are finite."""

    min_distance: float  # Å, of any two atoms
    max_temperature_kelvin: float  # of all atoms
    crowding: float = 1.5  # times the most neighbors that an atom has at the start


class Lasting(NamedTuple):
    """How long replicas lasted.

    ``steps`` is the number of sane steps before the first event, or all of them where
    ``failed`` is false: such a time is censored, the event would come later.
    """

    steps: np.ndarray  # [replicas], int
    failed: np.ndarray  # [replicas], bool
    positions: np.ndarray  # [replicas, n_frames, n_atoms, 3], Å, unwrapped
    n_frames: np.ndarray  # [replicas], int, sane frames; those after them are zero


def lasting(
    energy_fn: EnergyFn,
    integrator: Integrator,
    sanity: Sanity,
    *,
    cutoff: float,
    n_steps: int,
    every: int,
) -> Callable[[Params, System, Array], Lasting]:
    """A function ``(params, systems, key)``: dynamics of replicas until they become unphysical.

    ``systems`` are a batch, one start for each replica; momenta and noise follow from the key.
    No replica depends on another: each ends by itself, and what is left of it costs nothing
    where replicas run one after the other, as on CPUs. Calls that differ in parameters,
    positions and keys share one program as long as atoms have as many neighbors at most.

    Args:
        energy_fn: per-atom energies.
        integrator: with a temperature, at which momenta are drawn.
        sanity: what is unphysical.
        cutoff: of ``energy_fn``, Å.
        n_steps: at most; a multiple of ``every``.
        every: steps between the frames that are kept.

    Raises:
        ValueError: for settings out of range, or an integrator that has no temperature or a
            barostat; from the function, for systems that are no batch.
    """
    if every < 1 or n_steps < every or n_steps % every:
        raise ValueError(f"`n_steps` {n_steps} must be a positive multiple of `every` {every}")
    kT = integrator.kT
    if kT is None or integrator.needs_stress:
        raise ValueError("`integrator` needs a thermostat and no barostat")
    for name, value in sanity._asdict().items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be positive and finite, got {value!r}")
    if sanity.crowding < 1.0:
        raise ValueError(f"`crowding` must be at least 1, got {sanity.crowding!r}")
    run = _program(energy_fn, integrator, kT, sanity, n_steps // every, every)

    def of(params: Params, systems: System, key: Array) -> Lasting:
        if systems.positions.ndim != 3:
            raise ValueError(
                f"`systems` must be a batch of replicas, got positions {systems.positions.shape}"
            )
        plan = neighbor_list(systems, cutoff, skin=SKIN, headroom=sanity.crowding)
        keys = jax.random.split(key, systems.positions.shape[0])
        steps, failed, positions = map(np.asarray, run(plan, params, systems, keys))
        return Lasting(steps, failed, positions, steps // every)

    return of


def _program(
    energy_fn: EnergyFn,
    integrator: Integrator,
    kT: float,
    sanity: Sanity,
    n_frames: int,
    every: int,
) -> Any:
    """``(plan, params, systems, keys) -> (steps, failed, positions)``, compiled."""

    def sane(md: MDState, graph: Graph) -> Array:
        x, y, z = edge_components(md.system, graph)
        square = jnp.min(x**2 + y**2 + z**2)
        degrees = degrees_of_freedom(md.system, integrator.fixed_degrees)
        cool = (
            2.0 * kinetic_energy(md.system, md.momenta)
            <= degrees * sanity.max_temperature_kelvin * KELVIN
        )
        return (square >= sanity.min_distance**2) & cool & jnp.isfinite(md.energy) & ~graph.overflow

    def one(plan: NeighborList, params: Params, system: System, key: Array) -> tuple:
        draw, noise = jax.random.split(key)
        momenta = maxwell_boltzmann(draw, system, kT)
        neighbors = plan.build(system)
        md = integrator.init(noise, system, momenta, None)
        md = evaluated(md, evaluate(energy_fn, params, system, neighbors.graph))

        def step(carry: tuple[Array, MDState, Neighbors, Array]) -> tuple:
            done, md, neighbors, _ = carry
            moved = integrator.drift(md)
            neighbors = plan.update(neighbors, moved.system)
            found = evaluate(energy_fn, params, moved.system, neighbors.graph)
            md = integrator.kick(moved, found)
            well = sane(md, neighbors.graph)
            return done + well.astype(jnp.int32), md, neighbors, well

        def frame(carry: tuple) -> tuple:
            index, done, md, neighbors, well, frames = carry
            done, md, neighbors, well = jax.lax.while_loop(
                lambda c: (c[0] < (index + 1) * every) & c[3], step, (done, md, neighbors, well)
            )
            row = jnp.where(well, md.system.positions, 0.0)
            frames = jax.lax.dynamic_update_index_in_dim(frames, row, index, 0)
            return index + 1, done, md, neighbors, well, frames

        zero = jnp.int32(0)
        well = sane(md, neighbors.graph)
        frames = jnp.zeros((n_frames, *system.positions.shape), system.positions.dtype)
        _, done, _, _, well, frames = jax.lax.while_loop(
            lambda c: (c[0] < n_frames) & c[4], frame, (zero, zero, md, neighbors, well, frames)
        )
        return done, ~well, frames

    def run(plan: NeighborList, params: Params, systems: System, keys: Array) -> tuple:
        return replica_loop(systems)(functools.partial(one, plan, params))(systems, keys)

    return jax.jit(run, static_argnums=0)
