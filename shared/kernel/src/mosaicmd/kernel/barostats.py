"""Constant pressure: atoms and cell move together, isotropically or with every freedom of shape.

The equations of motion, with momenta ``p``, rows of the cell ``h`` and the symmetric strain
rate ``G`` of the cell, so that it does not turn, are

    ``r' = p / m + G r``,  ``h' = h G``,  ``p' = F - G p``,
    ``W G' = V (P_int - P) + c kT``,  ``P_int = (sum p p^T / m) / V - stress``,

with a thermostat on the momenta and another on ``G``. They keep

    ``K + U + P V + W tr(G^2) / 2 - c kT ln V``  (and what the thermostats took).

Without their thermostats they leave the volume of phase space unchanged, so the stationary
density follows from this energy alone; ``c`` is chosen such that the positions and the cell
have exactly the isothermal-isobaric distribution, for any number of atoms: the density
``V^N exp(-(P V + U) / kT)`` in the volume, and for the shape the one in the first reference.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.integrators import (
    Integrator,
    MDState,
    at_rest,
    evaluated,
    initial_temperature,
    rescaled,
)
from mosaicmd.kernel.momenta import (
    degrees_of_freedom,
    inverse_masses,
    kinetic_energy,
    kinetic_tensor,
)
from mosaicmd.kernel.potentials import Evaluation
from mosaicmd.kernel.systems import System, volume
from mosaicmd.kernel.thermostats import nose_hoover_chain, require_positive, stochastic_rescaling

Array = jax.Array
CellMotion = Literal["isotropic", "orthorhombic", "flexible"]

_CELL_DEGREES = {"isotropic": 1, "orthorhombic": 3, "flexible": 6}
_FIXED = 3
"""Degrees of freedom of the centre of mass, whose momentum is conserved."""


class Barostat(NamedTuple):
    """State of the cell's motion in :func:`npt`."""

    pressure: Array  # [], eV/Å³, external
    mass: Array  # [], eV t²
    strain_rate: Array  # [3, 3], 1/t, symmetric
    thermostat: Any  # of the strain rate


def npt(
    timestep: float,
    kT: float,
    pressure: float,
    *,
    relaxation_time: float,
    barostat_time: float,
    cell: CellMotion = "isotropic",
    thermostat: Literal["csvr", "nose_hoover"] = "csvr",
) -> Integrator:
    """Constant temperature and pressure.

    Time reversible with the Nosé–Hoover chain; the conserved quantity fluctuates with the
    square of the time step with either thermostat. The momentum of the centre of mass is
    conserved.

    ``"isotropic"`` scales the cell and keeps its shape: the choice for liquids.
    ``"orthorhombic"`` scales the three Cartesian axes independently and keeps the angles of
    an orthorhombic cell. ``"flexible"`` changes all six lengths and angles: the choice for
    crystals; the cell of a liquid, which resists no shear, would wander off to any shape.

    The instantaneous pressure averages to ``pressure`` up to terms of order ``kT / V``.
    Unwrapped positions follow the cell, about the origin.

    Args:
        timestep: t.
        kT: temperature, eV.
        pressure: eV/Å³.
        relaxation_time: of the thermostat of the atoms, t; a good choice is 50 to 200 time
            steps. The thermostat of the cell has ``barostat_time``.
        barostat_time: period of the cell's motion, about, t; a good choice is 5 to 10 times
            the relaxation time.
        cell: how the cell moves.
        thermostat: stochastic velocity rescaling, which reaches equilibrium from anywhere,
            or the deterministic chain.

    Raises:
        ValueError: for a setting out of range.

    References:
        Martyna, Tobias & Klein, J. Chem. Phys. 101, 4177 (1994); Tuckerman, Alejandre,
        López-Rendón, Jochim & Martyna, J. Phys. A 39, 5629 (2006); Bussi, Zykova-Timan &
        Parrinello, J. Chem. Phys. 130, 074101 (2009).
    """
    require_positive(
        timestep=timestep, kT=kT, relaxation_time=relaxation_time, barostat_time=barostat_time
    )
    if not abs(pressure) < float("inf"):
        raise ValueError(f"`pressure` must be finite (eV/Å³), got {pressure!r}")
    if cell not in _CELL_DEGREES:
        raise ValueError(f"`cell` must be one of {sorted(_CELL_DEGREES)}, got {cell!r}")
    baths = {"csvr": stochastic_rescaling, "nose_hoover": nose_hoover_chain}
    if thermostat not in baths:
        raise ValueError(f"`thermostat` must be one of {sorted(baths)}, got {thermostat!r}")
    if barostat_time < 10.0 * timestep:
        raise ValueError(
            f"`barostat_time` {barostat_time!r} must be at least ten time steps "
            f"({10.0 * timestep!r}), else the motion of the cell is not integrated well"
        )
    of_atoms = baths[thermostat](timestep, relaxation_time)
    of_cell = baths[thermostat](timestep, barostat_time)
    extra = 1.0 + _FIXED / 3.0  # c of the equations of motion

    def init(key: Array, system: System, momenta: Array, kT_bath: float | Array | None) -> MDState:
        temperature = initial_temperature(kT_bath, kT, system)
        degrees = degrees_of_freedom(system, _FIXED)
        barostat = Barostat(
            pressure=jnp.asarray(pressure, temperature.dtype),
            mass=(degrees + 3.0) / 3.0 * temperature * barostat_time**2,
            strain_rate=jnp.zeros((3, 3), temperature.dtype),
            thermostat=of_cell.init(
                temperature, jnp.asarray(_CELL_DEGREES[cell], temperature.dtype)
            ),
        )
        return at_rest(key, system, momenta, of_atoms.init(temperature, degrees), barostat)

    def thermalised(state: MDState) -> MDState:
        state = rescaled(of_atoms, state)
        barostat = state.barostat
        terms = barostat.mass * barostat.strain_rate**2
        scale, key, bath = of_cell.rescale(state.key, barostat.thermostat, terms)
        barostat = barostat._replace(strain_rate=scale * barostat.strain_rate, thermostat=bath)
        return state._replace(barostat=barostat, key=key)

    def pushed(state: MDState) -> MDState:
        """Half a time step of the strain rate under the imbalance of pressures."""
        barostat, system, unit = state.barostat, state.system, jnp.eye(3, dtype=state.momenta.dtype)
        external = volume(system) * (state.stress + barostat.pressure * unit)
        internal = kinetic_tensor(system, state.momenta)
        force = internal - external + extra * state.thermostat.kT * unit
        rate = barostat.strain_rate + 0.5 * timestep / barostat.mass * _allowed(force, cell)
        return state._replace(barostat=barostat._replace(strain_rate=rate))

    def drift(state: MDState) -> MDState:
        state = _kicked(pushed(thermalised(state)), timestep)
        system, rate = state.system, state.barostat.strain_rate
        growth, mean_growth = _exponential(timestep * rate)
        path = timestep * inverse_masses(system) * state.momenta
        system = system._replace(
            positions=_times(system.positions, growth) + _times(path, mean_growth),
            cell=_times(system.cell, growth),
        )
        return state._replace(system=system)

    def kick(state: MDState, evaluation: Evaluation) -> MDState:
        return thermalised(pushed(_kicked(evaluated(state, evaluation), timestep)))

    def conserved(state: MDState) -> Array:
        barostat, size = state.barostat, volume(state.system)
        of_the_cell = (
            barostat.pressure * size
            + 0.5 * barostat.mass * jnp.sum(barostat.strain_rate**2)
            - extra * state.thermostat.kT * jnp.log(size)
        )
        kinetic = kinetic_energy(state.system, state.momenta)
        baths = of_atoms.energy(state.thermostat) + of_cell.energy(barostat.thermostat)
        return state.energy + kinetic + of_the_cell + baths

    settings = {
        "integrator": "npt",
        "timestep": timestep,
        "kT": kT,
        "pressure": pressure,
        "cell": cell,
        "thermostat": thermostat,
        **of_atoms.settings,
        "barostat_time": barostat_time,
    }
    return Integrator(
        init, drift, kick, conserved, timestep, kT, _FIXED, settings, needs_stress=True
    )


def _kicked(state: MDState, timestep: float) -> MDState:
    """Half a time step of ``p' = F - G p``."""
    decay, mean_decay = _exponential(-0.5 * timestep * state.barostat.strain_rate)
    gained = 0.5 * timestep * state.forces
    return state._replace(momenta=_times(state.momenta, decay) + _times(gained, mean_decay))


def _allowed(force: Array, cell: CellMotion) -> Array:
    """The part of a tensor, symmetric but for rounding, that moves the cell."""
    if cell == "flexible":
        return 0.5 * (force + force.T)
    diagonal = jnp.diagonal(force)
    if cell == "isotropic":
        diagonal = jnp.broadcast_to(jnp.mean(diagonal), (3,))
    return jnp.diag(diagonal)


def _exponential(generator: Array) -> tuple[Array, Array]:
    """``exp(A)`` and its mean ``int_0^1 exp(s A) ds``, ``[3, 3]``.

    By Taylor's series, which for the strain of one time step (at most about 0.01) is exact to
    rounding, and costs no eigenvalue solver.
    """
    unit = jnp.eye(3, dtype=generator.dtype)
    mean = unit
    for order in range(9, 1, -1):
        mean = unit + _times(generator, mean) / order
    return unit + _times(generator, mean), mean


def _times(vectors: Array, matrix: Array) -> Array:
    return jnp.matmul(vectors, matrix, precision="highest")
