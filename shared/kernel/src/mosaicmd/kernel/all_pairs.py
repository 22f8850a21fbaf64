"""Neighbor search by comparing all pairs: the faster way up to about two thousand atoms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.candidates import (
    BITS,
    Candidates,
    Periodic,
    Triple,
    far_apart,
    geometry_of,
    mirrored_offsets,
    take,
)
from mosaicmd.kernel.systems import System

Array = jax.Array


def search_all_pairs(system: System, radius: float, pbc: Periodic, images: Triple) -> Candidates:
    """Candidates of every atom: all atoms, in every image searched.

    Args:
        system: one structure.
        radius: Å.
        pbc: periodic directions.
        images: per direction, 0 for the nearest image only, which is right while ``radius``
            is less than half the cell height; ``m > 0`` for those from ``-m`` to ``m`` of
            the atoms wrapped into the cell, right while it is less than ``m`` heights.
    """
    n_atoms = system.n_atoms
    geometry = geometry_of(system, radius, pbc)
    nearest = np.array([p and m == 0 for p, m in zip(pbc, images, strict=True)])
    offsets = mirrored_offsets(images)
    n_blocks = len(offsets)
    index = np.arange(-(-n_blocks * n_atoms // BITS) * BITS)
    atom = jnp.asarray(np.where(index < n_blocks * n_atoms, index % n_atoms, n_atoms), jnp.uint32)
    block = jnp.asarray(np.minimum(index // n_atoms, n_blocks - 1), jnp.uint32)
    own = jnp.arange(n_atoms, dtype=jnp.uint32)

    steps = geometry.in_units(jnp.asarray(offsets, geometry.cell.dtype))
    senders, receivers = far_apart(geometry.in_units(geometry.inside), geometry.valid)
    x, y, z = (
        (take(senders[:, k], atom) + take(steps[:, k], block))[None, :] - receivers[:-1, k, None]
        for k in range(3)
    )
    lattice = geometry.in_units(jnp.eye(3, dtype=geometry.cell.dtype))
    fraction = jnp.pad(geometry.inside.astype(jnp.float32), ((0, 1), (0, 0)))
    for k in np.flatnonzero(nearest):
        image = jnp.round(take(fraction[:, k], atom)[None, :] - fraction[:-1, k, None])
        x, y, z = (d - image * lattice[k, i] for i, d in enumerate((x, y, z)))
    words = geometry.words_in_range(x, y, z, own[:, None] + (n_blocks // 2) * n_atoms)

    def resolve(rows: Array, blocks: Array, slots: Array) -> tuple[Array, list[Array]]:
        shifts = [jnp.zeros(blocks.shape, jnp.int32)] * 3
        for k in np.flatnonzero(pbc):
            ours = take(geometry.fractional[:, k], rows)[:, None]
            theirs = take(geometry.fractional[:, k], slots)
            if nearest[k]:
                shift = jnp.round(ours - theirs)
            else:
                image = take(jnp.asarray(offsets[:, k], ours.dtype), blocks)
                shift = image + jnp.floor(ours) - jnp.floor(theirs)
            shifts[k] = shift.astype(jnp.int32)
        return slots, shifts

    covered = np.where(nearest, 0.5, np.where(np.array(pbc), np.array(images), np.inf))
    return Candidates(
        words=words,
        slots=own,
        block_size=n_atoms,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=geometry.exceeds(covered),
    )
