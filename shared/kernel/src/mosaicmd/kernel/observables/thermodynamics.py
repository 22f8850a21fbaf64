"""Instantaneous density, temperature and pressure."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.momenta import degrees_of_freedom, kinetic_energy, kinetic_tensor
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.potentials import EnergyFn, evaluate
from mosaicmd.kernel.systems import System, volume

Array = jax.Array


def density(*, name: str = "density_kg_m3") -> Observable:
    """Mass density, kg/m³; infinite without a cell."""

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        mass = jnp.sum(jnp.where(system.mask, system.masses, 0.0))
        return mass / volume(system) / units.KG_PER_M3

    return Observable(name=name, unit="kg/m³", per_frame=per_frame)


def number_density(species: int | None = None, *, name: str | None = None) -> Observable:
    """Atoms per volume, 1/Å³, of one species or all; infinite without a cell.

    Args:
        species: label to count; ``None``: all atoms.
        name: by default ``number_density``, or ``number_density_a`` for label a.
    """
    if name is None:
        name = "number_density" if species is None else f"number_density_{species}"

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        member = system.mask if species is None else system.mask & (system.species == species)
        return jnp.sum(member).astype(system.cell.dtype) / volume(system)

    return Observable(name=name, unit="1/Å³", per_frame=per_frame)


def temperature(*, fixed: int = 0, name: str = "temperature_kelvin") -> Observable:
    """Kinetic temperature, K; simulations record it under this name by themselves.

    Args:
        fixed: degrees of freedom without thermal motion, 3 where the dynamics conserves
            the momentum of the centre of mass.
        name: key in ``Trajectory.quantities``.
    """

    def per_frame(params: object, system: System, graph: object, momenta: Array | None) -> Array:
        momenta = _require(momenta, name)
        kT = 2.0 * kinetic_energy(system, momenta) / degrees_of_freedom(system, fixed)
        return kT / units.KELVIN

    return Observable(name=name, unit="K", per_frame=per_frame)


def pressure_tensor(
    energy_fn: EnergyFn,
    *,
    cutoff: float,
    kT: float | None = None,
    name: str = "pressure_tensor",
) -> Observable:
    """Pressure tensor, ``[3, 3]``, eV/Å³: kinetic part less the stress of the potential.

    Its mean is the pressure of the ensemble only where frames were drawn with the
    potential that is evaluated, or with weights towards it.

    Args:
        energy_fn: per-atom energy function; the parameters come with each evaluation.
        cutoff: radius of the neighbor list it needs, Å.
        kT: with it the kinetic part is the mean ``N kT / V`` of an unconstrained
            canonical ensemble, without noise and without need of momenta; ``None``: the
            instantaneous ``sum_i p_i p_i^T / (m_i V)``. For dynamics that conserves the
            momentum of the centre of mass, the latter averages to ``(N - 1) kT / V``.
        name: key in ``Trajectory.quantities``.
    """

    def per_frame(
        params: object, system: System, graph: Graph | None, momenta: Array | None
    ) -> Array:
        if graph is None:
            raise ValueError(f"`{name}` needs a graph of radius {cutoff} Å, got None")
        stress = evaluate(energy_fn, params, system, graph, stress=True).stress
        assert stress is not None
        if kT is None:
            kinetic = kinetic_tensor(system, _require(momenta, name))
        else:
            n_atoms = jnp.sum(system.mask).astype(stress.dtype)
            kinetic = n_atoms * jnp.asarray(kT, stress.dtype) * jnp.eye(3, dtype=stress.dtype)
        return kinetic / volume(system) - stress

    return Observable(
        name=name, unit="eV/Å³", per_frame=per_frame, cutoff=cutoff, depends_on_params=True
    )


def pressure(
    energy_fn: EnergyFn, *, cutoff: float, kT: float | None = None, name: str = "pressure"
) -> Observable:
    """Pressure, eV/Å³: a third of the trace of :func:`pressure_tensor`."""
    tensor = pressure_tensor(energy_fn, cutoff=cutoff, kT=kT, name=name)

    def per_frame(
        params: object, system: System, graph: Graph | None, momenta: Array | None
    ) -> Array:
        return jnp.trace(tensor.per_frame(params, system, graph, momenta)) / 3.0

    return Observable(
        name=name, unit="eV/Å³", per_frame=per_frame, cutoff=cutoff, depends_on_params=True
    )


def _require(momenta: Array | None, name: str) -> Array:
    if momenta is None:
        raise ValueError(
            f"`{name}` needs momenta, which these frames lack; record them with the trajectory"
            + (", or give `kT` for the ideal kinetic part" if "pressure" in name else "")
        )
    return momenta
