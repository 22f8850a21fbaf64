"""Integrators of molecular dynamics, each split where the forces are evaluated.

One step is ``drift``, a force evaluation, ``kick``; the split leaves room for the
neighbor update between new positions and new forces. Everything stays in the dtype of
the system. ``drift`` and ``kick`` are free of control flow, so replicas are a ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.constraints import Constraints
from mosaicmd.kernel.momenta import (
    degrees_of_freedom,
    inverse_masses,
    kinetic_energy,
    maxwell_boltzmann,
)
from mosaicmd.kernel.potentials import Evaluation
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.thermostats import (
    NoseHooverChain,
    Thermostat,
    nose_hoover_chain,
    require_positive,
    stochastic_rescaling,
)

__all__ = [
    "Integrator",
    "LangevinBath",
    "MDState",
    "NoseHooverChain",
    "csvr",
    "langevin",
    "maxwell_boltzmann",
    "nose_hoover",
    "nve",
]

Array = jax.Array


class MDState(NamedTuple):
    """Everything that a step changes; with a leading axis on every leaf, replicas."""

    system: System  # positions unwrapped
    momenta: Array  # [n_atoms, 3], u Å/t
    forces: Array  # [n_atoms, 3], eV/Å, at the positions
    energy: Array  # [], eV, at the positions
    key: Array  # typed PRNG key
    thermostat: Any = ()
    barostat: Any = ()
    stress: Array | None = None  # [3, 3], eV/Å³, at the positions, where the integrator needs it


class Integrator(NamedTuple):
    """One way to propagate a system.

    ``drift`` leads up to the new positions, ``kick`` takes the energy, the forces and (with
    ``needs_stress``) the stress there and completes the step. ``init(key, system, momenta,
    kT)`` takes ``kT=None`` for the integrator's own; energy, forces and stress of its state
    are zero until the first evaluation (:func:`evaluated`). ``conserved`` is the quantity that
    exact dynamics would keep, eV, and ``None`` where there is none. ``fixed_degrees`` counts
    degrees of freedom without kinetic energy. ``settings`` tells this integrator from another.
    """

    init: Callable[[Array, System, Array, float | Array | None], MDState]
    drift: Callable[[MDState], MDState]
    kick: Callable[[MDState, Evaluation], MDState]
    conserved: Callable[[MDState], Array] | None
    timestep: float  # t
    kT: float | None  # eV; None: the energy is kept, not the temperature
    fixed_degrees: int
    settings: Mapping[str, Any]
    needs_stress: bool = False


class LangevinBath(NamedTuple):
    """State of the bath of :func:`langevin`."""

    kT: Array  # [], eV


def nve(
    timestep: float, *, fixed_degrees: int = 3, constraints: Constraints | None = None
) -> Integrator:
    """Constant energy by velocity Verlet.

    Args:
        timestep: t.
        fixed_degrees: 3 where the total momentum is conserved (every potential of the
            atoms' mutual distances); 0 in an external field. Constraints count by themselves.
        constraints: distances that stay what they are, by RATTLE.

    Raises:
        ValueError: for a time step that is not positive.

    References:
        Swope, Andersen, Berens & Wilson, J. Chem. Phys. 76, 637 (1982); Andersen, J. Comput.
        Phys. 52, 24 (1983).
    """
    require_positive(timestep=timestep)

    def init(key: Array, system: System, momenta: Array, kT: float | Array | None) -> MDState:
        del kT
        return _allowed(at_rest(key, system, momenta, ()), constraints)

    def drift(state: MDState) -> MDState:
        momenta = state.momenta + 0.5 * timestep * state.forces
        return _moved(state, momenta, timestep, constraints)

    def kick(state: MDState, evaluation: Evaluation) -> MDState:
        return _kicked(evaluated(state, evaluation), timestep, constraints)

    def conserved(state: MDState) -> Array:
        return state.energy + kinetic_energy(state.system, state.momenta)

    settings = {"integrator": "nve", "timestep": timestep, "fixed_degrees": fixed_degrees}
    settings |= _settings_of(constraints)
    fixed = fixed_degrees + _count(constraints)
    return Integrator(init, drift, kick, conserved, timestep, None, fixed, settings)


def langevin(
    timestep: float, friction: float, kT: float, *, constraints: Constraints | None = None
) -> Integrator:
    """Constant temperature by Langevin dynamics in the BAOAB splitting.

    Configurational averages carry an error of order ``timestep^2`` with a small
    prefactor (none for a harmonic well); the kinetic temperature reads low at large time
    steps although positions are sampled well.

    Args:
        timestep: t.
        friction: collision rate, 1/t.
        kT: temperature, eV.
        constraints: distances that stay what they are; each part of the splitting keeps them.

    Raises:
        ValueError: for a setting that is not positive.

    References:
        Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (2013); with constraints
        Proc. R. Soc. A 472, 20160138 (2016).
    """
    require_positive(timestep=timestep, friction=friction, kT=kT)
    decay = math.exp(-friction * timestep)
    spread = -math.expm1(-2.0 * friction * timestep)

    def init(key: Array, system: System, momenta: Array, kT_bath: float | Array | None) -> MDState:
        bath = LangevinBath(initial_temperature(kT_bath, kT, system))
        return _allowed(at_rest(key, system, momenta, bath), constraints)

    def drift(state: MDState) -> MDState:
        key, sub = jax.random.split(state.key)
        system, dtype = state.system, state.momenta.dtype
        momenta = state.momenta + 0.5 * timestep * state.forces  # B
        state = _moved(state, momenta, 0.5 * timestep, constraints)  # A
        masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
        noise = jax.random.normal(sub, state.momenta.shape, dtype)
        width = jnp.sqrt(spread * state.thermostat.kT * masses)
        momenta = decay * state.momenta + width * noise  # O
        return _moved(state, momenta, 0.5 * timestep, constraints)._replace(key=key)  # A

    def kick(state: MDState, evaluation: Evaluation) -> MDState:
        return _kicked(evaluated(state, evaluation), timestep, constraints)  # B

    settings = {"integrator": "langevin", "timestep": timestep, "friction": friction, "kT": kT}
    settings |= _settings_of(constraints)
    return Integrator(init, drift, kick, None, timestep, kT, _count(constraints), settings)


def nose_hoover(
    timestep: float,
    kT: float,
    relaxation_time: float,
    chain_length: int = 3,
    *,
    fixed_degrees: int = 3,
    constraints: Constraints | None = None,
) -> Integrator:
    """Constant temperature by a Nosé–Hoover chain, deterministic and time reversible.

    The chain acts for half a time step before and after velocity Verlet; see
    :func:`mosaicmd.kernel.thermostats.nose_hoover_chain`.

    Args:
        timestep: t.
        kT: temperature, eV.
        relaxation_time: ``tau``, t; a good choice is 50 to 200 time steps.
        chain_length: number of links.
        fixed_degrees: as in :func:`nve`.
        constraints: as in :func:`nve`.

    Raises:
        ValueError: for a setting that is not positive, or a relaxation time below ten
            time steps, at which the chain is not integrated well.

    References:
        Martyna, Tuckerman, Tobias & Klein, Mol. Phys. 87, 1117 (1996).
    """
    chain = nose_hoover_chain(timestep, relaxation_time, chain_length)
    return _thermostatted("nose_hoover", timestep, kT, chain, fixed_degrees, constraints)


def csvr(
    timestep: float,
    kT: float,
    relaxation_time: float,
    *,
    fixed_degrees: int = 3,
    constraints: Constraints | None = None,
) -> Integrator:
    """Constant temperature by canonical sampling through velocity rescaling.

    A stochastic thermostat that hardly disturbs diffusion and other dynamics: all momenta
    are multiplied by one random factor, for half a time step before and after velocity
    Verlet. ``conserved`` is the energy less the heat that the thermostat provided.

    Args:
        timestep: t.
        kT: temperature, eV.
        relaxation_time: in which the kinetic energy forgets, t; any choice samples the
            canonical ensemble, 50 to 500 time steps hardly change the dynamics.
        fixed_degrees: as in :func:`nve`.
        constraints: as in :func:`nve`.

    Raises:
        ValueError: for a setting that is not positive.

    References:
        Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101 (2007).
    """
    bath = stochastic_rescaling(timestep, relaxation_time)
    return _thermostatted("csvr", timestep, kT, bath, fixed_degrees, constraints)


def _thermostatted(
    name: str,
    timestep: float,
    kT: float,
    thermostat: Thermostat,
    fixed_degrees: int,
    constraints: Constraints | None,
) -> Integrator:
    """Velocity Verlet between two half steps of a thermostat that rescales momenta."""
    require_positive(kT=kT)
    fixed = fixed_degrees + _count(constraints)

    def init(key: Array, system: System, momenta: Array, kT_bath: float | Array | None) -> MDState:
        degrees = degrees_of_freedom(system, fixed)
        bath = thermostat.init(initial_temperature(kT_bath, kT, system), degrees)
        return _allowed(at_rest(key, system, momenta, bath), constraints)

    def drift(state: MDState) -> MDState:
        state = rescaled(thermostat, state)
        momenta = state.momenta + 0.5 * timestep * state.forces
        return _moved(state, momenta, timestep, constraints)

    def kick(state: MDState, evaluation: Evaluation) -> MDState:
        return rescaled(thermostat, _kicked(evaluated(state, evaluation), timestep, constraints))

    def conserved(state: MDState) -> Array:
        kinetic = kinetic_energy(state.system, state.momenta)
        return state.energy + kinetic + thermostat.energy(state.thermostat)

    settings = {"integrator": name, "timestep": timestep, "kT": kT}
    settings |= {**thermostat.settings, "fixed_degrees": fixed_degrees}
    settings |= _settings_of(constraints)
    return Integrator(init, drift, kick, conserved, timestep, kT, fixed, settings)


def rescaled(thermostat: Thermostat, state: MDState) -> MDState:
    """The state after half a time step of the thermostat of its atoms."""
    terms = inverse_masses(state.system) * state.momenta**2
    scale, key, bath = thermostat.rescale(state.key, state.thermostat, terms)
    return state._replace(momenta=scale * state.momenta, thermostat=bath, key=key)


def at_rest(
    key: Array, system: System, momenta: Array, thermostat: Any, barostat: Any = ()
) -> MDState:
    """The state before its first force evaluation; with a barostat it has room for a stress."""
    energy = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    momenta = jnp.where(system.mask[:, None], momenta, 0.0).astype(system.positions.dtype)
    stress = None if barostat == () else jnp.zeros_like(system.cell)
    return MDState(
        system, momenta, jnp.zeros_like(momenta), energy, key, thermostat, barostat, stress
    )


def evaluated(state: MDState, evaluation: Evaluation) -> MDState:
    """The state with energy, forces and stress at its positions."""
    forces = jnp.where(state.system.mask[:, None], evaluation.forces, 0.0)
    return state._replace(energy=evaluation.energy, forces=forces, stress=evaluation.stress)


def initial_temperature(kT: float | Array | None, default: float, system: System) -> Array:
    """The ``kT`` that a bath starts with, in the dtype of the system, eV."""
    return jnp.asarray(default if kT is None else kT, system.positions.dtype)


def _moved(state: MDState, momenta: Array, time: float, constraints: Constraints | None) -> MDState:
    """The state after free flight with new momenta, or flight along the constraints."""
    start = state.system
    positions = start.positions + time * inverse_masses(start) * momenta
    system = start._replace(positions=positions)
    if constraints is not None:
        system = constraints.positioned(system, start)
        masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
        momenta = momenta + masses * (system.positions - positions) / time
        momenta = constraints.tangent(system, momenta)
    return state._replace(system=system, momenta=momenta)


def _kicked(state: MDState, timestep: float, constraints: Constraints | None) -> MDState:
    """The state, its momenta half a time step further."""
    momenta = state.momenta + 0.5 * timestep * state.forces
    if constraints is not None:
        momenta = constraints.tangent(state.system, momenta)
    return state._replace(momenta=momenta)


def _allowed(state: MDState, constraints: Constraints | None) -> MDState:
    """The state with positions and momenta that obey the constraints."""
    if constraints is None:
        return state
    system = constraints.positioned(state.system, state.system)
    return state._replace(system=system, momenta=constraints.tangent(system, state.momenta))


def _count(constraints: Constraints | None) -> int:
    return 0 if constraints is None else constraints.count


def _settings_of(constraints: Constraints | None) -> dict[str, Any]:
    if constraints is None:
        return {}
    return {"constraints": {"count": constraints.count, "checksum": constraints.checksum}}
