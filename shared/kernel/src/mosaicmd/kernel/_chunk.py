"""The compiled part of a run: steps up to a frame, frames up to a chunk.

A step holds the integrator, the neighbor check and the forces, and nothing else: both
loops end at once when a neighbor list overflows or a system explodes, so that the state
which comes back is the one to look at. A chunk of no frames evaluates the forces where the
atoms are, in the same program, so that the potential is differentiated and compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.integrators import Integrator, MDState, evaluated
from mosaicmd.kernel.momenta import degrees_of_freedom, kinetic_energy
from mosaicmd.kernel.potentials import EnergyFn, Evaluation, Params, evaluate
from mosaicmd.kernel.replicas import replica_loop, replica_map
from mosaicmd.kernel.systems import System, volume
from mosaicmd.kernel.units import KELVIN

Array = jax.Array
Observe = Callable[[Params, System, Graph, Array], dict[str, Array]]
"""``(params, system, graph, momenta) -> {name: value}`` of one frame of one system."""


class Chunk(NamedTuple):
    """What a chunk returns."""

    md: MDState
    neighbors: Any
    frames: dict[str, Any]  # leading axis of the chunk's capacity; the first `n_frames` count
    n_frames: Array  # [], int32, completed frames
    n_steps: Array  # [], int32, steps done, those of an incomplete frame included
    healthy: Array  # [], bool: no explosion


def make_chunk(
    energy_fn: EnergyFn,
    integrator: Integrator,
    observe: Observe | None,
    *,
    every: int,
    capacity: int,
    store_momenta: bool,
) -> Callable[..., Chunk]:
    """The function ``(plan, params, md, neighbors, n_frames, kT_limit) -> Chunk``.

    ``n_frames`` is a traced number up to ``capacity``, so any length of run is the same
    program; 0 leaves the atoms where they are and fills in energy, forces and stress. A
    system is healthy while its kinetic temperature is below ``kT_limit`` (shape ``[]`` or
    ``[replicas]``) and its energy is finite.
    """

    def chunk(
        plan: Any, params: Params, md: MDState, neighbors: Any, n_frames: Array, kT_limit: Array
    ) -> Chunk:
        over_replicas, one_by_one = replica_map(md.system), replica_loop(md.system)
        drift, kick = over_replicas(integrator.drift), over_replicas(integrator.kick)
        refreshed = over_replicas(evaluated)
        kinetic = over_replicas(kinetic_energy)
        degrees = over_replicas(lambda s: degrees_of_freedom(s, integrator.fixed_degrees))
        limit = 0.5 * degrees(md.system) * kT_limit
        moving = n_frames > 0
        n_steps = jnp.where(moving, every, 1)

        def evaluation(system: System, graph: Graph) -> Evaluation:
            return evaluate(energy_fn, params, system, graph, stress=integrator.needs_stress)

        def alive(neighbors: Any, healthy: Array) -> Array:
            return healthy & ~jnp.any(neighbors.graph.overflow)

        def step(carry: tuple) -> tuple:
            n_done, md, neighbors, _ = carry
            md = _select(moving, drift(md), md)
            neighbors = plan.update(neighbors, md.system)
            found = one_by_one(evaluation)(md.system, neighbors.graph)
            md = _select(moving, kick(md, found), refreshed(md, found))
            finite = jnp.isfinite(md.energy)
            healthy = jnp.all((kinetic(md.system, md.momenta) <= limit) & finite)
            return n_done + 1, md, neighbors, healthy

        def record(md: MDState, neighbors: Any) -> dict[str, Any]:
            return one_by_one(
                lambda md, graph: _frame(integrator, observe, params, md, graph, store_momenta)
            )(md, neighbors.graph)

        def frame(carry: tuple) -> tuple:
            i, n_total, md, neighbors, healthy, frames = carry
            n_done, md, neighbors, healthy = jax.lax.while_loop(
                lambda c: (c[0] < n_steps) & alive(c[2], c[3]),
                step,
                (jnp.int32(0), md, neighbors, healthy),
            )
            frames = jax.tree.map(
                lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, i, 0),
                frames,
                record(md, neighbors),
            )
            complete = alive(neighbors, healthy).astype(jnp.int32)
            return i + complete, n_total + n_done, md, neighbors, healthy, frames

        one = jax.eval_shape(record, md, neighbors)
        empty = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), one)
        zero = jnp.int32(0)
        i, n_total, md, neighbors, healthy, frames = jax.lax.while_loop(
            lambda c: (c[0] < jnp.maximum(n_frames, 1)) & alive(c[3], c[4]),
            frame,
            (zero, zero, md, neighbors, jnp.array(True), empty),
        )
        return Chunk(md, neighbors, frames, i, n_total, healthy)

    return chunk


def _select(condition: Array, one: MDState, other: MDState) -> MDState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _frame(
    integrator: Integrator,
    observe: Observe | None,
    params: Params,
    md: MDState,
    graph: Graph,
    store_momenta: bool,
) -> dict[str, Any]:
    kinetic = kinetic_energy(md.system, md.momenta)
    degrees = degrees_of_freedom(md.system, integrator.fixed_degrees)
    quantities = {
        "energy": md.energy,
        "kinetic_energy": kinetic,
        "temperature_kelvin": 2.0 * kinetic / (degrees * KELVIN),
    }
    if md.stress is not None:
        quantities["volume"] = volume(md.system)
    if integrator.conserved is not None:
        quantities["conserved_energy"] = integrator.conserved(md)
    if observe is not None:
        observed = observe(params, md.system, graph, md.momenta)
        if taken := sorted(set(observed) & set(quantities)):
            raise ValueError(f"`observe` returns {taken}, names that every run fills itself")
        quantities |= observed
    row = {
        "positions": md.system.positions,
        "cell": md.system.cell,
        "quantities": quantities,
    }
    return row | ({"momenta": md.momenta} if store_momenta else {})
