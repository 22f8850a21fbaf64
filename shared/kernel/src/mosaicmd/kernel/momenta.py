"""Momenta: their thermal distribution, and the kinetic quantities they give."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mosaicmd.kernel.systems import System

Array = jax.Array


def maxwell_boltzmann(
    key: Array, system: System, kT: float | Array, *, exact: bool = False, rotation: bool = True
) -> Array:
    """Momenta drawn at temperature ``kT`` and freed of their net drift.

    Removing the motion of the centre of mass leaves ``<K> = (3 N - 3) kT / 2``, for a
    single atom nothing. Masked atoms get zero.

    Args:
        key: typed PRNG key.
        system: one structure; its dtype is that of the momenta.
        kT: temperature, eV; 0 gives atoms at rest.
        exact: scale the momenta so that the kinetic energy is ``f kT / 2`` to rounding, with
            ``f`` degrees of freedom, instead of on average.
        rotation: ``False`` also removes the rotation about the centre of mass, of a cluster
            without periodic boundaries; this leaves ``f = 3 N - 6``, or ``3 N - 5`` for
            atoms on a line.

    Returns:
        Momenta, shape ``[n_atoms, 3]``, u Å/t.
    """
    dtype = system.positions.dtype
    masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
    normal = jax.random.normal(key, system.positions.shape, dtype)
    momenta = jnp.sqrt(masses * jnp.asarray(kT, dtype)) * normal
    momenta = momenta - masses * jnp.sum(momenta, axis=0, keepdims=True) / jnp.sum(masses)
    fixed = jnp.asarray(3, dtype)
    if not rotation:
        momenta, axes = _without_rotation(system, momenta)
        fixed = fixed + axes
    if exact:
        wanted = 0.5 * degrees_of_freedom(system, fixed) * jnp.asarray(kT, dtype)
        found = kinetic_energy(system, momenta)
        momenta = momenta * jnp.sqrt(wanted / jnp.where(found > 0.0, found, 1.0))
    return momenta


def _without_rotation(system: System, momenta: Array) -> tuple[Array, Array]:
    """Momenta less the rigid rotation about the centre of mass, and how many axes that has."""
    masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
    centre = jnp.sum(masses * system.positions, axis=0, keepdims=True) / jnp.sum(masses)
    arms = system.positions - centre
    weighted = jnp.sqrt(masses) * arms
    moments = jnp.matmul(weighted.T, weighted, precision="highest")
    inertia = jnp.trace(moments) * jnp.eye(3, dtype=moments.dtype) - moments
    values, axes = jnp.linalg.eigh(inertia)
    turns = values > 100.0 * jnp.finfo(values.dtype).eps * values[-1]
    angular = jnp.sum(jnp.cross(arms, momenta), axis=0)
    along = jnp.where(turns, jnp.matmul(axes.T, angular, precision="highest"), 0.0)
    rate = jnp.matmul(axes, along / jnp.where(turns, values, 1.0), precision="highest")
    return momenta - masses * jnp.cross(jnp.broadcast_to(rate, arms.shape), arms), jnp.sum(turns)


def kinetic_energy(system: System, momenta: Array) -> Array:
    """Kinetic energy of the atoms that are not padding, eV."""
    return 0.5 * jnp.sum(inverse_masses(system) * momenta**2)


def kinetic_tensor(system: System, momenta: Array) -> Array:
    """``sum_i p_i p_i^T / m_i``, shape ``[3, 3]``, eV; its trace is twice the kinetic energy."""
    return jnp.matmul((inverse_masses(system) * momenta).T, momenta, precision="highest")


def degrees_of_freedom(system: System, fixed: int | Array = 0) -> Array:
    """Three per atom that is not padding, less those ``fixed`` by conservation laws."""
    return (3 * jnp.sum(system.mask) - fixed).astype(system.positions.dtype)


def inverse_masses(system: System) -> Array:
    """``1 / m``, shape ``[n_atoms, 1]``, 1/u; zero for masked atoms, which so never move."""
    return jnp.where(system.mask, 1.0 / system.masses, 0.0)[:, None]
