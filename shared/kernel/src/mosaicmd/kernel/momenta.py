"""Momenta: their thermal distribution, and the kinetic quantities they give."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mosaicmd.kernel.systems import System

Array = jax.Array


def maxwell_boltzmann(key: Array, system: System, kT: float | Array) -> Array:
    """Momenta drawn at temperature ``kT`` and freed of their net drift.

    Removing the motion of the centre of mass leaves ``<K> = (3 N - 3) kT / 2``, for a
    single atom nothing. Masked atoms get zero.

    Args:
        key: typed PRNG key.
        system: one structure; its dtype is that of the momenta.
        kT: temperature, eV; 0 gives atoms at rest.

    Returns:
        Momenta, shape ``[n_atoms, 3]``, u Å/t.
    """
    dtype = system.positions.dtype
    masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
    normal = jax.random.normal(key, system.positions.shape, dtype)
    momenta = jnp.sqrt(masses * jnp.asarray(kT, dtype)) * normal
    drift = jnp.sum(momenta, axis=0, keepdims=True) / jnp.sum(masses)
    return momenta - masses * drift


def kinetic_energy(system: System, momenta: Array) -> Array:
    """Kinetic energy of the atoms that are not padding, eV."""
    return 0.5 * jnp.sum(inverse_masses(system) * momenta**2)


def kinetic_tensor(system: System, momenta: Array) -> Array:
    """``sum_i p_i p_i^T / m_i``, shape ``[3, 3]``, eV; its trace is twice the kinetic energy."""
    return jnp.matmul((inverse_masses(system) * momenta).T, momenta, precision="highest")


def degrees_of_freedom(system: System, fixed: int = 0) -> Array:
    """Three per atom that is not padding, less those ``fixed`` by conservation laws."""
    return (3 * jnp.sum(system.mask) - fixed).astype(system.positions.dtype)


def inverse_masses(system: System) -> Array:
    """``1 / m``, shape ``[n_atoms, 1]``, 1/u; zero for masked atoms, which so never move."""
    return jnp.where(system.mask, 1.0 / system.masses, 0.0)[:, None]
