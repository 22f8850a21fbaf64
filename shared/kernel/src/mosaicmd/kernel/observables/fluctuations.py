"""Response functions from fluctuations: heat capacities, compressibility, expansion.

Momenta are integrated out: what they add, ``kB / 2`` per degree of freedom, is exact and
without noise, and only configurations fluctuate. All are classical; where quanta matter see
:func:`mosaicmd.kernel.phonons.harmonic_thermodynamics`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.potentials import EnergyFn, total_energy
from mosaicmd.kernel.systems import System, volume

Array = jax.Array

_GAS_CONSTANT_J_MOL_K = 1e3 * units.KELVIN / units.KJ_PER_MOL


def heat_capacity(
    energy_fn: EnergyFn,
    *,
    cutoff: float,
    kT: float,
    pressure: float | None = None,
    atoms_per_molecule: int = 1,
    degrees_per_atom: float = 3.0,
    name: str | None = None,
) -> Observable:
    """Heat capacity, J/(mol K): of fixed volume, or of fixed ``pressure``.

    ``C = kB (f / 2 + var(X) / (kT)^2)`` with ``f`` degrees of freedom and ``X`` the potential
    energy, or ``U + P V`` at constant pressure. Divide by 8.314 for units of kB.

    Args:
        energy_fn: per-atom energy function; the parameters come with each evaluation.
        cutoff: radius of the neighbor list it needs, Å.
        kT: temperature of the frames, eV.
        pressure: of an isobaric run, eV/Å³; ``None``: the volume is fixed.
        atoms_per_molecule: 1 for the value per mole of atoms, 3 for water, ...
        degrees_per_atom: with thermal momentum: fewer than three with rigid molecules.
        name: by default ``heat_capacity_nvt_j_mol_k`` or ``heat_capacity_npt_j_mol_k``.

    Raises:
        ValueError: for a temperature or number that is not positive.

    References:
        Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), sec. 2.5.
    """
    name = name or f"heat_capacity_{'nvt' if pressure is None else 'npt'}_j_mol_k"
    require_positive(name, kT=kT, atoms_per_molecule=atoms_per_molecule)

    def per_frame(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        enthalpy = _enthalpy(
            energy_fn, params, system, require_graph(graph, name, cutoff), pressure
        )
        return jnp.stack([enthalpy, jnp.sum(system.mask).astype(enthalpy.dtype)])

    def combine(values: Array, weights: Array) -> Array:
        enthalpy, n_atoms = values[:, 0] / kT, weights @ values[:, 1]
        per_atom = 0.5 * degrees_per_atom + covariance(enthalpy, enthalpy, weights) / n_atoms
        return _GAS_CONSTANT_J_MOL_K * atoms_per_molecule * per_atom

    return Observable(
        name=name,
        unit="J/(mol K)",
        per_frame=per_frame,
        cutoff=cutoff,
        depends_on_params=True,
        combine=combine,
    )


def isothermal_compressibility(
    *, kT: float, name: str = "isothermal_compressibility_per_gpa"
) -> Observable:
    """Isothermal compressibility, 1/GPa, of an isobaric run: ``var(V) / (kT <V>)``.

    Args:
        kT: temperature of the frames, eV.
        name: key in ``Trajectory.quantities``.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    require_positive(name, kT=kT)

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        return volume(system)

    def combine(values: Array, weights: Array) -> Array:
        mean = weights @ values
        return covariance(values, values, weights) / (kT * mean) * units.GPA

    return Observable(name=name, unit="1/GPa", per_frame=per_frame, combine=combine)


def thermal_expansion(
    energy_fn: EnergyFn,
    *,
    cutoff: float,
    kT: float,
    pressure: float,
    name: str = "thermal_expansion_per_kelvin",
) -> Observable:
    """Volumetric thermal expansion, 1/K, of an isobaric run: ``cov(V, U + P V) / (kB T^2 <V>)``.

    Args:
        energy_fn: per-atom energy function; the parameters come with each evaluation.
        cutoff: radius of the neighbor list it needs, Å.
        kT: temperature of the frames, eV.
        pressure: that the barostat keeps, eV/Å³.
        name: key in ``Trajectory.quantities``.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    require_positive(name, kT=kT)

    def per_frame(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        enthalpy = _enthalpy(
            energy_fn, params, system, require_graph(graph, name, cutoff), pressure
        )
        return jnp.stack([volume(system).astype(enthalpy.dtype), enthalpy])

    def combine(values: Array, weights: Array) -> Array:
        both = covariance(values[:, 0], values[:, 1], weights)
        return both / (kT**2 * (weights @ values[:, 0])) * units.KELVIN

    return Observable(
        name=name,
        unit="1/K",
        per_frame=per_frame,
        cutoff=cutoff,
        depends_on_params=True,
        combine=combine,
    )


def covariance(x: Array, y: Array, weights: Array) -> Array:
    """Weighted covariance of two series over frames, in the widest float.

    Args:
        x: shape ``[n_frames]`` or ``[n_frames, n]``.
        y: likewise.
        weights: normalised, shape ``[n_frames]``.

    Returns:
        Shape ``[]``, or ``[n_x, n_y]`` of two series of vectors. No correction for having
        estimated the means: it is too small by about the share ``1 / n_eff``.
    """
    x, y = (jnp.asarray(series, weights.dtype) for series in (x, y))
    x, y = x - (weights @ x)[None], y - (weights @ y)[None]
    if x.ndim == 1:
        return weights @ (x * y)
    return jnp.matmul((weights[:, None] * x).T, y, precision="highest")


def _enthalpy(
    energy_fn: EnergyFn, params: object, system: System, graph: Graph, pressure: float | None
) -> Array:
    energy = total_energy(energy_fn, params, system, graph)
    return energy if pressure is None else energy + pressure * volume(system)


def require_graph(graph: Graph | None, name: str, cutoff: float) -> Graph:
    """The graph, or a ``ValueError`` that says which observable needs it."""
    if graph is None:
        raise ValueError(f"`{name}` needs a graph of radius {cutoff} Å, got None")
    return graph


def require_positive(observable: str, **settings: float) -> None:
    """Raise a ``ValueError`` for the first of an observable's settings that is not positive."""
    for name, value in settings.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` of `{observable}` must be positive, got {value!r}")
