"""The lattice that a Coulomb sum runs over, and the coordinates in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.systems import System

Array = jax.Array


class Lattice(NamedTuple):
    """A cell, its reciprocal, and its volume; all differentiable in the cell."""

    cell: Array  # [3, 3], Å, rows are lattice vectors
    reciprocal: Array  # [3, 3], 1/Å, rows b with a_i . b_j = delta_ij (no 2 pi)
    volume: Array  # [], Å³


def lattice_of(system: System, slab_height: float | None = None) -> Lattice:
    """The lattice of a system periodic in three directions, or that of a slab.

    For a slab the third vector is normal to the first two and ``slab_height`` long; the third
    row of ``system.cell`` is not looked at.

    Args:
        system: one structure.
        slab_height: Å; ``None`` for three periodic directions.
    """
    a, b, c = system.cell
    if slab_height is not None:
        normal = jnp.cross(a, b)
        c = slab_height * normal / jnp.linalg.norm(normal)
    cell = jnp.stack([a, b, c])
    normals = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    signed_volume = jnp.dot(a, normals[0])
    return Lattice(cell, normals / signed_volume, jnp.abs(signed_volume))


def fractional_coordinates(positions: Array, lattice: Lattice) -> Array:
    """Coordinates along the lattice vectors, ``[n, 3] -> [n, 3]``, not wrapped."""
    return jnp.matmul(positions, lattice.reciprocal.T, precision="highest")


def nearest_images(vectors: Array, system: System, n_periodic: int) -> Array:
    """The vectors, moved by lattice vectors to the shortest equivalent ones, ``[n, 3]``, Å.

    Right for results shorter than half the least cell height, as bonds are.

    Args:
        vectors: shape ``[n, 3]``, Å.
        system: whose cell it is.
        n_periodic: how many of the first directions are periodic, 0, 2 or 3.
    """
    if n_periodic == 0:
        return vectors
    lattice = lattice_of(system, 1.0 if n_periodic == 2 else None)
    images = jnp.round(fractional_coordinates(vectors, lattice))[:, :n_periodic]
    shifts = jnp.matmul(images, lattice.cell[:n_periodic], precision="highest")
    return vectors - shifts
