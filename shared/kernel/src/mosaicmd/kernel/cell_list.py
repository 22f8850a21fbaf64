"""Neighbor search by cells, in lattices of any shape: linear in the number of atoms."""

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


def search_cells(
    system: System, radius: float, pbc: Periodic, images: Triple, grid: Triple, capacity: int
) -> Candidates:
    """Candidates of every atom: the members of the cells around its own.

    Cells divide the lattice vectors (a periodic direction) or the range of the atoms (another)
    into equal parts, and are at least ``radius`` high; so any lattice will do. Offsets of cells
    that leave the box on one side name the image they enter on the other, and each cell and
    image is a block of its own: boxes of one or two cells need no exception.

    Args:
        system: one structure.
        radius: Å.
        pbc: periodic directions.
        images: as for :func:`mosaicmd.kernel.all_pairs.search_all_pairs`; used in directions of
            a single cell.
        grid: number of cells per direction.
        capacity: atoms per cell.
    """
    n_atoms = system.n_atoms
    geometry = geometry_of(system, radius, pbc)
    reach = cell_reach(pbc, images, grid)
    offsets = mirrored_offsets(reach)
    n_blocks, n_cells = len(offsets), int(np.prod(grid))

    divisions = jnp.asarray(grid, geometry.cell.dtype)
    least = geometry.reach / geometry.heights
    width = jnp.where(np.array(pbc), 1.0 / divisions, jnp.maximum(least, geometry.span / divisions))
    place = jnp.where(geometry.valid[:, None], jnp.floor(geometry.inside / width[None, :]), 0.0)
    place = jnp.clip(place.astype(jnp.int32), 0, np.array([grid], np.int32) - 1)
    cells = _flat_index(place.astype(jnp.uint32), grid)
    cells = jnp.where(geometry.valid, cells, n_cells)

    # From here on atoms follow each other cell by cell: neighbors are near in memory too.
    cells, order = jax.lax.sort((cells, jnp.arange(n_atoms, dtype=jnp.uint32)), num_keys=1)
    inside, wraps, valid, place = (
        take(values, order)
        for values in (geometry.inside, geometry.wraps.astype(jnp.int32), geometry.valid, place)
    )
    members, cells, slots, fullest = _members(cells, n_cells, capacity)

    # Coordinates are relative to the centre of the atom's own cell; a block adds one vector.
    centre = (place.astype(width.dtype) + 0.5) * width[None, :]
    senders, receivers = far_apart(geometry.in_units(inside - centre), valid)
    steps = geometry.in_units(jnp.asarray(offsets, width.dtype) * width[None, :])
    padding = -n_blocks * capacity % BITS
    steps = jnp.pad(jnp.repeat(steps, capacity, axis=0), ((0, padding), (0, 0)))
    candidates = members[_cells_around(grid, pbc, offsets)].reshape(n_cells + 1, -1)
    candidates = jnp.pad(candidates, ((0, 0), (0, padding)), constant_values=n_atoms)
    x, y, z = (
        (take(senders[:, k], candidates) + steps[None, :, k])[:, None, :]
        - take(receivers[:, k], members)[:, :, None]
        for k in range(3)
    )
    own = jnp.arange(capacity, dtype=jnp.uint32)[None, :, None] + (n_blocks // 2) * capacity
    words = geometry.words_in_range(x, y, z, own)
    words = take(words.reshape((n_cells + 1) * capacity, -1), cells * capacity + slots)

    def resolve(rows: Array, blocks: Array, slots: Array) -> tuple[Array, list[Array]]:
        index = take(cells, rows)[:, None] * candidates.shape[1] + blocks * capacity + slots
        senders = take(candidates.reshape(-1), index)
        extended = jnp.pad(wraps, ((0, 1), (0, 0)))
        shifts = [jnp.zeros(blocks.shape, jnp.int32)] * 3
        for k in np.flatnonzero(pbc):
            image = take(jnp.asarray(offsets[:, k], jnp.int32), blocks)
            if grid[k] > 1:
                unfolded = take(place[:, k], rows)[:, None] + image
                image = (unfolded >= grid[k]).astype(jnp.int32) - (unfolded < 0)
            shifts[k] = image + take(wraps[:, k], rows)[:, None] - take(extended[:, k], senders)
        return senders, shifts

    covered = np.where(np.array(pbc), np.array(reach) / np.array(grid), np.inf)
    return Candidates(
        words=words,
        slots=slots,
        block_size=capacity,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=geometry.exceeds(covered) | (fullest > capacity),
        order=order,
    )


def cell_reach(pbc: Periodic, images: Triple, grid: Triple) -> Triple:
    """How many cells a search looks to either side, per direction.

    That is one where there are several cells, and the number of images where there is one.
    """
    x, y, z = (
        max(1, m) if periodic else int(g > 1)
        for periodic, m, g in zip(pbc, images, grid, strict=True)
    )
    return x, y, z


def _members(cells: Array, n_cells: int, capacity: int) -> tuple[Array, Array, Array, Array]:
    """Who is in which cell.

    Args:
        cells: the cell of each atom, uint32, ascending; ``n_cells`` for none.
        n_cells: number of cells, beside one more that stays empty.
        capacity: atoms per cell; more are left out.

    Returns:
        The atoms of each cell, shape ``[n_cells + 1, capacity]``, ``n_atoms`` where there is
        none; the cell and the slot of each atom, shape ``[n_atoms]``, the first slot of the
        empty cell for those left out; and the number of atoms in the fullest cell.
    """
    n_atoms = cells.shape[0]
    first = jnp.searchsorted(cells, jnp.arange(n_cells + 1, dtype=jnp.uint32)).astype(jnp.uint32)
    count = jnp.diff(first, append=first[-1])
    slot = jnp.arange(capacity, dtype=jnp.uint32)[None, :]
    members = jnp.where(slot < count[:, None], first[:, None] + slot, n_atoms)
    slot = jnp.arange(n_atoms, dtype=jnp.uint32) - take(first, cells)
    kept = (cells < n_cells) & (slot < capacity)
    return members, jnp.where(kept, cells, n_cells), jnp.where(kept, slot, 0), jnp.max(count)


def _cells_around(grid: Triple, pbc: Periodic, offsets: np.ndarray) -> Array:
    """For each cell and offset the cell there, shape ``[n_cells + 1, n_offsets]``.

    Where there is none, and around the empty cell that comes last, it is the empty cell.
    """
    n_cells = int(np.prod(grid))
    index = jnp.arange(n_cells + 1, dtype=jnp.uint32)
    place = [index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]]
    # Counted from an image far on the negative side: unsigned numbers are cheaper to divide.
    farthest = int(np.abs(offsets).max(initial=0))
    counts = np.array([[grid]], np.uint32)
    start = jnp.stack(place, axis=-1)[:, None, :] + farthest * counts
    unfolded = start + jnp.asarray(offsets[None, :, :].astype(np.uint32))
    outside = jnp.any((unfolded // counts != farthest) & ~np.array([[pbc]]), axis=-1)
    outside = outside | (index == n_cells)[:, None]
    return jnp.where(outside, n_cells, _flat_index(unfolded % counts, grid))


def _flat_index(place: Array, grid: Triple) -> Array:
    return (place[..., 0] * grid[1] + place[..., 1]) * grid[2] + place[..., 2]
