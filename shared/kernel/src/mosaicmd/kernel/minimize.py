"""Energy minimisation of positions and, on request, the cell, by FIRE."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.neighbors import NeighborList, Neighbors, grow, neighbor_list
from mosaicmd.kernel.potentials import EnergyFn, Evaluation, Params, evaluate
from mosaicmd.kernel.systems import System, strained, volume

Array = jax.Array
CellMotion = Literal["isotropic", "flexible"]

_FIRST_STEP, _LONGEST_STEP = 0.1, 2.0  # pseudo-time, Å / sqrt(eV)
_LONGEST_MOVE = 0.1  # Å per step, of any atom; of the cell, per atom and atomic distance
_PATIENCE = 5  # steps downhill before time steps grow
_GROW, _SHRINK = 1.1, 0.5
_FIRST_MIXING, _LESS_MIXING = 0.1, 0.99


class Minimum(NamedTuple):
    """What :func:`minimize` returns."""

    system: System
    energy: Array  # [], eV
    forces: Array  # [n_atoms, 3], eV/Å
    stress: Array | None  # [3, 3], eV/Å³; None for a fixed cell
    max_force: Array  # [], eV/Å, of the worst atom
    max_stress: Array  # [], eV/Å³, largest entry of `stress + pressure`; 0 for a fixed cell
    n_steps: int


class ConvergenceError(RuntimeError):
    """A minimisation that ran out of steps.

    Attributes:
        minimum: where it stands; a start for going on.
    """

    def __init__(self, message: str, minimum: Minimum) -> None:
        super().__init__(message)
        self.minimum = minimum


class _State(NamedTuple):
    """Of a descent; ``fresh`` where neighbors and forces are yet to be found."""

    system: System
    neighbors: Neighbors
    found: Evaluation
    fresh: Array  # [], bool
    velocity: Array  # [n_atoms, 3], Å per pseudo-time
    cell_velocity: Array  # [3, 3], the same, of the scaled strain
    step: Array  # [], pseudo-time
    mixing: Array  # []
    downhill: Array  # [], int32, steps since the last one uphill
    n_steps: Array  # [], int32, evaluations


class _Limits(NamedTuple):
    pressure: Array
    max_force: Array
    max_stress: Array
    max_steps: Array


def minimize(
    energy_fn: EnergyFn,
    params: Params,
    system: System,
    *,
    cutoff: float,
    cell: CellMotion | None = None,
    pressure: float = 0.0,
    max_force: float = 1e-3,
    max_stress: float = 1e-5,
    max_steps: int = 2000,
    skin: float = 1.0,
) -> Minimum:
    """Relax a structure to a nearby minimum of ``E + pressure * V``.

    The cell deforms symmetrically, so that it does not turn, and carries the atoms along.
    Its strain counts ``sqrt(N) (V / N)^(1/3)`` per unit, which makes cells and atoms about
    equally stiff, for any number of atoms.

    Args:
        energy_fn: per-atom energies.
        params: its parameters.
        system: one structure; masked atoms stay where they are.
        cutoff: of the energy function, Å.
        cell: ``None`` keeps it; ``"isotropic"`` keeps its shape; ``"flexible"`` relaxes all
            lengths and angles.
        pressure: external, eV/Å³; with a cell that moves.
        max_force: the longest force that is small enough, eV/Å.
        max_stress: the largest entry of ``stress + pressure`` (its trace for an isotropic
            cell) that is small enough, eV/Å³; the default is 16 bar.
        max_steps: evaluations before an error.
        skin: of the neighbor list, Å.

    Raises:
        ValueError: for settings out of range, or a moving cell that is not periodic.
        ConvergenceError: after ``max_steps``, or where the energy is not finite.

    References:
        Bitzek, Koskinen, Gähler, Moseler & Gumbsch, Phys. Rev. Lett. 97, 170201 (2006).
    """
    for name, value in (("max_force", max_force), ("max_stress", max_stress)):
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be positive and finite, got {value!r}")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}")
    if cell not in (None, "isotropic", "flexible"):
        raise ValueError(f'`cell` must be None, "isotropic" or "flexible", got {cell!r}')
    if cell is not None and not np.all(system.pbc):
        raise ValueError(
            f"`cell` is {cell!r}, but `pbc` is {np.asarray(system.pbc).tolist()}; only a cell "
            "that is periodic in three directions can relax"
        )
    if pressure != 0.0 and cell is None:
        raise ValueError(f"`pressure` {pressure!r} has no effect on a fixed cell; give `cell`")
    plan = neighbor_list(system, cutoff, skin=skin)
    limits = _Limits(*map(jnp.asarray, (pressure, max_force, max_stress, max_steps)))
    state = _begin(system, plan, cell)
    while True:
        state = _descend(energy_fn, plan, cell, params, state, limits)
        if not np.any(state.neighbors.graph.overflow):
            break
        while np.any(state.neighbors.graph.overflow):
            plan = grow(plan, state.neighbors)
            state = state._replace(neighbors=_build(plan, state.system), fresh=jnp.array(True))
    force, stress = _residuals(state, cell, limits)
    energy, forces, tensor = state.found
    minimum = Minimum(state.system, energy, forces, tensor, force, stress, int(state.n_steps))
    if not (force <= max_force and stress <= max_stress):
        raise ConvergenceError(
            f"after {minimum.n_steps} of `max_steps` {max_steps} steps the largest force is "
            f"{float(force):.3g} eV/Å (`max_force` {max_force:g}) and the largest stress "
            f"{float(stress):.3g} eV/Å³ (`max_stress` {max_stress:g}) at an energy of "
            f"{float(minimum.energy):.6g} eV; go on from `error.minimum.system`, raise the "
            "limits, or look for atoms that overlap",
            minimum,
        )
    return minimum


_build = jax.jit(NeighborList.build, static_argnums=0)


def _begin(system: System, plan: NeighborList, cell: CellMotion | None) -> _State:
    dtype = system.positions.dtype
    rest, still = jnp.zeros_like(system.positions), jnp.zeros((3, 3), dtype)
    energy = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    return _State(
        system=system,
        neighbors=_build(plan, system),
        found=Evaluation(energy, rest, None if cell is None else still),
        fresh=jnp.array(True),
        velocity=rest,
        cell_velocity=still,
        step=jnp.asarray(_FIRST_STEP, dtype),
        mixing=jnp.asarray(_FIRST_MIXING, dtype),
        downhill=jnp.int32(0),
        n_steps=jnp.int32(0),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _descend(
    energy_fn: EnergyFn,
    plan: NeighborList,
    cell: CellMotion | None,
    params: Params,
    state: _State,
    limits: _Limits,
) -> _State:
    """Steps of FIRE until forces and stress are small, or something is in the way."""

    def going(state: _State) -> Array:
        force, stress = _residuals(state, cell, limits)
        done = (force <= limits.max_force) & (stress <= limits.max_stress)
        able = (state.n_steps < limits.max_steps) & jnp.isfinite(state.found.energy)
        return (state.fresh | (~done & able)) & ~state.neighbors.graph.overflow

    def advance(state: _State) -> _State:
        moved = _moved(state, cell, limits.pressure)
        state = jax.tree.map(lambda old, new: jnp.where(state.fresh, old, new), state, moved)
        neighbors = plan.update(state.neighbors, state.system)
        stress = cell is not None
        found = evaluate(energy_fn, params, state.system, neighbors.graph, stress=stress)
        forces = jnp.where(state.system.mask[:, None], found.forces, 0.0)
        return state._replace(
            neighbors=neighbors,
            found=found._replace(forces=forces),
            fresh=jnp.array(False),
            n_steps=state.n_steps + 1,
        )

    return jax.lax.while_loop(going, advance, state)


def _moved(state: _State, cell: CellMotion | None, pressure: Array) -> _State:
    """One step of FIRE, by symplectic Euler with unit masses, from the forces found."""
    system, force = state.system, state.found.forces
    dtype = force.dtype
    n_atoms = jnp.sum(system.mask).astype(dtype)
    root, spacing = jnp.sqrt(n_atoms), jnp.cbrt(volume(system) / n_atoms)
    cell_force = jnp.zeros((3, 3), dtype)
    if cell is not None:
        imbalance = _imbalance(state.found, cell, pressure)
        cell_force = -volume(system) / (root * spacing) * imbalance

    def dot(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
        return jnp.sum(one[0] * other[0]) + jnp.sum(one[1] * other[1])

    forces, velocities = (force, cell_force), (state.velocity, state.cell_velocity)
    downhill = dot(forces, velocities) > 0.0
    norm = jnp.sqrt(dot(forces, forces))
    turn = jnp.sqrt(dot(velocities, velocities)) / jnp.where(norm > 0.0, norm, 1.0)
    steady = state.downhill > _PATIENCE
    longer = jnp.minimum(_GROW * state.step, _LONGEST_STEP)
    step = jnp.where(downhill, jnp.where(steady, longer, state.step), _SHRINK * state.step)
    velocity, cell_velocity = (
        jnp.where(downhill, (1.0 - state.mixing) * v + state.mixing * turn * f, 0.0) + step * f
        for v, f in zip(velocities, forces, strict=True)
    )
    path, cell_path = step * velocity, step * cell_velocity
    longest = jnp.sqrt(jnp.max(jnp.sum(path**2, axis=-1)))
    longest = jnp.maximum(longest, jnp.sqrt(jnp.sum(cell_path**2)) / root)
    cap = jnp.minimum(1.0, _LONGEST_MOVE / jnp.where(longest > 0.0, longest, 1.0))
    if cell is not None:
        system = strained(system, cap * cell_path / (root * spacing))
    return state._replace(
        system=system._replace(positions=system.positions + cap * path),
        velocity=velocity,
        cell_velocity=cell_velocity,
        step=step,
        mixing=jnp.where(
            downhill,
            jnp.where(steady, _LESS_MIXING * state.mixing, state.mixing),
            jnp.asarray(_FIRST_MIXING, dtype),
        ),
        downhill=jnp.where(downhill, state.downhill + 1, 0),
    )


def _imbalance(found: Evaluation, cell: CellMotion, pressure: Array) -> Array:
    """``stress + pressure``, or what of it an isotropic cell can follow, ``[3, 3]``."""
    assert found.stress is not None
    unit = jnp.eye(3, dtype=found.stress.dtype)
    stress = found.stress + pressure.astype(unit.dtype) * unit
    return stress if cell == "flexible" else jnp.trace(stress) / 3.0 * unit


def _residuals(state: _State, cell: CellMotion | None, limits: _Limits) -> tuple[Array, Array]:
    force = jnp.sqrt(jnp.max(jnp.sum(state.found.forces**2, axis=-1)))
    if cell is None:
        return force, jnp.zeros_like(force)
    return force, jnp.max(jnp.abs(_imbalance(state.found, cell, limits.pressure)))
