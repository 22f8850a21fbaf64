"""Which atoms lie within range of which: all pairs, or cells, as one bit per candidate.

Either search gives every atom the same number of *candidates*, in blocks of equal size, and
packs "within range" into 32-bit words. Blocks come in mirror images: if atom ``j`` stands
in slot ``s`` of block ``o`` of atom ``i``, then ``i`` stands in its own slot of block
``n_blocks - 1 - o`` of atom ``j``. So the opposite of every edge is known without a search
(:mod:`mosaicmd.kernel.rows`).

Distances are computed in float32 whatever the system's precision, from coordinates taken
relative to a nearby point, and the range is widened by the rounding this can cause: a list may
hold a pair that is too long by a hair, and never lacks one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.systems import System, cell_heights

Array = jax.Array
Triple = tuple[int, int, int]
Periodic = tuple[bool, bool, bool]

BITS = 32
_BEYOND = 1.0e6  # Å, from a bin to the atoms that are not there


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a search found."""

    words: Array  # [n_atoms, n_words], uint32; bit c of a row: candidate c is within range
    slots: Array  # [n_atoms], int32, the slot of each atom in any block that holds it
    block_size: int
    n_blocks: int
    resolve: Callable[[Array], tuple[Array, Array]]
    """Candidates ``[n_atoms, k]`` to their atoms ``[n_atoms, k]`` and shifts ``[..., 3]``."""
    missing: Array  # [], bool: the search is not as far as the range, or a cell is full


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Fractional coordinates and what the searches need of the cell."""

    fractional: Array  # [n_atoms, 3], of the positions as they are
    cell: Array  # [3, 3], Å
    heights: Array  # [3], Å
    valid: Array  # [n_atoms], bool: neither padding nor NaN
    low: Array  # [3], least fractional coordinate: 0 where periodic
    span: Array  # [3], range of fractional coordinates: 1 where periodic
    reach: Array  # [], Å: the range, widened by rounding


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
    geometry = _geometry(system, radius, pbc)
    nearest = np.array([p and m == 0 for p, m in zip(pbc, images, strict=True)])
    explicit = np.array([m > 0 for m in images])
    offsets = np.array(list(itertools.product(*(range(-m, m + 1) for m in images))))
    n_blocks = len(offsets)

    wraps = jnp.where(np.array([pbc]), jnp.floor(geometry.fractional), 0.0)
    wrapped = (geometry.fractional - wraps - geometry.low[None, :]).astype(jnp.float32)
    cell = geometry.cell.astype(jnp.float32)
    shifted = wrapped.T[:, None, :] + jnp.asarray(offsets.T[:, :, None], jnp.float32)
    valid = jnp.broadcast_to(geometry.valid, (n_blocks, n_atoms)).reshape(-1)
    padding = -valid.size % BITS
    senders = jnp.pad(shifted.reshape(3, -1), ((0, 0), (0, padding)))
    difference = [senders[k][None, :] - wrapped[:, k][:, None] for k in range(3)]
    difference = [
        d - jnp.round(d) if is_nearest else d
        for d, is_nearest in zip(difference, nearest, strict=True)
    ]
    distance = sum(jnp.square(sum(difference[k] * cell[k, x] for k in range(3))) for x in range(3))
    words = _pack(distance <= jnp.square(geometry.reach))
    words = words & _pack(jnp.pad(valid, (0, padding)))[None, :]
    words = jnp.where(geometry.valid[:, None], words, 0)
    own = jnp.arange(n_atoms, dtype=jnp.int32)
    words = _clear(words, (n_blocks // 2) * n_atoms + own)

    def resolve(candidates: Array) -> tuple[Array, Array]:
        atoms = candidates % n_atoms
        theirs, ours = geometry.fractional[atoms], geometry.fractional[:, None, :]
        shifts = jnp.where(nearest[None, None, :], jnp.round(ours - theirs), 0.0)
        if explicit.any():
            image = jnp.asarray(offsets, theirs.dtype)[candidates // n_atoms]
            unwrapped = image + jnp.floor(ours) - jnp.floor(theirs)
            shifts = jnp.where(explicit[None, None, :], unwrapped, shifts)
        return atoms, shifts.astype(jnp.int32)

    covered = np.where(explicit, np.array(images), np.where(nearest, 0.5, np.inf))
    return Candidates(
        words=words,
        slots=own,
        block_size=n_atoms,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=_does_not_cover(geometry, covered),
    )


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
        images: as for :func:`search_all_pairs`; used in directions of a single cell.
        grid: number of cells per direction.
        capacity: atoms per cell.
    """
    n_atoms = system.n_atoms
    geometry = _geometry(system, radius, pbc)
    periodic, counts = np.array(pbc), np.array(grid)
    reach = cell_reach(pbc, images, grid)
    offsets = np.array(list(itertools.product(*(range(-m, m + 1) for m in reach))))
    n_blocks, n_cells = len(offsets), int(np.prod(counts))

    # No product is followed by a sum on the way to these integers, so they cannot depend on
    # which of their uses the compiler fuses them into.
    wraps = jnp.where(periodic[None, :], jnp.floor(geometry.fractional), 0.0)
    inside = geometry.fractional - wraps - geometry.low[None, :]
    least = geometry.reach / geometry.heights
    width = jnp.where(periodic, 1.0 / counts, jnp.maximum(least, geometry.span / counts))
    place = jnp.where(geometry.valid[:, None], jnp.floor(inside / width[None, :]), 0.0)
    place = jnp.clip(place.astype(jnp.int32), 0, counts[None, :].astype(np.int32) - 1)
    flat = jnp.where(geometry.valid, _flat_index(place, grid), n_cells)

    # The members of each cell, in the order of their indices.
    indices = jnp.arange(n_atoms, dtype=jnp.int32)
    sorted_flat, order = jax.lax.sort((flat, indices), num_keys=1, is_stable=True)
    first = jnp.searchsorted(sorted_flat, jnp.arange(n_cells + 1, dtype=jnp.int32))
    rank = indices - first[jnp.minimum(sorted_flat, n_cells)].astype(jnp.int32)
    kept = (sorted_flat < n_cells) & (rank < capacity)
    members = jnp.full(n_cells * capacity, n_atoms, jnp.int32)
    target = jnp.where(kept, sorted_flat * capacity + rank, n_cells * capacity)
    members = members.at[target].set(order, mode="drop", unique_indices=True)
    members = members.reshape(n_cells, capacity)
    slots = jnp.zeros(n_atoms, jnp.int32).at[order].set(rank, unique_indices=True)
    fullest = jnp.max(jnp.where(sorted_flat < n_cells, rank + 1, 0), initial=0)

    # Coordinates relative to the centre of the atom's own cell; a block adds one vector.
    centred = inside - (place.astype(inside.dtype) + 0.5) * width[None, :]
    relative = jnp.matmul(centred, geometry.cell, precision="highest").astype(jnp.float32)
    relative = jnp.pad(relative, ((0, 1), (0, 0)), constant_values=_BEYOND)
    steps = jnp.asarray(offsets, width.dtype) * width[None, :]
    steps = jnp.matmul(steps, geometry.cell, precision="highest").astype(jnp.float32)
    around, outside = _cells_around(grid, pbc, offsets)
    senders = jnp.where(outside[:, :, None], n_atoms, members[around])
    padding = -n_blocks * capacity % BITS
    receivers_at = [relative[:, k][members] for k in range(3)]
    senders_at = [relative[:, k][senders] + steps[None, :, k, None] for k in range(3)]
    senders_at = [
        jnp.pad(x.reshape(n_cells, -1), ((0, 0), (0, padding)), constant_values=_BEYOND)
        for x in senders_at
    ]
    distance = sum(
        jnp.square(s[:, None, :] - r[:, :, None])
        for s, r in zip(senders_at, receivers_at, strict=True)
    )
    words = _pack(distance <= jnp.square(geometry.reach))
    listed = geometry.valid & (slots < capacity)
    own = jnp.where(listed, flat * capacity + slots, 0)
    words = words.reshape(n_cells * capacity, -1)[own]
    words = jnp.where(listed[:, None], words, 0)
    words = _clear(words, (n_blocks // 2) * capacity + slots)

    def resolve(candidates: Array) -> tuple[Array, Array]:
        offset = jnp.asarray(offsets, jnp.int32)[candidates // capacity]
        cells, image = _enter(place[:, None, :] + offset, grid)
        atoms = members.reshape(-1)[_flat_index(cells, grid) * capacity + candidates % capacity]
        atoms = jnp.minimum(atoms, n_atoms - 1)
        whole = wraps.astype(jnp.int32)
        shifts = jnp.where(periodic[None, None, :], image, 0) + whole[:, None, :] - whole[atoms]
        return atoms, shifts

    covered = np.where(periodic, np.array(reach) / counts, np.inf)
    return Candidates(
        words=words,
        slots=slots,
        block_size=capacity,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=_does_not_cover(geometry, covered) | (fullest > capacity),
    )


def cell_reach(pbc: Periodic, images: Triple, grid: Triple) -> Triple:
    """How many cells a search looks to either side, per direction."""
    x, y, z = (
        max(1, m) if periodic else int(g > 1)
        for periodic, m, g in zip(pbc, images, grid, strict=True)
    )
    return x, y, z


def _geometry(system: System, radius: float, pbc: Periodic) -> _Geometry:
    positions, periodic = system.positions, np.array(pbc)
    empty = jnp.all(system.cell == 0.0)
    cell = jnp.where(empty, jnp.eye(3, dtype=system.cell.dtype), system.cell)
    # A matrix product is an operation of its own: what is rounded down from it has one value.
    fractional = jnp.matmul(positions, inverse(cell), precision="highest")
    valid = system.mask & jnp.all(jnp.isfinite(fractional), axis=-1)
    known = jnp.where(valid[:, None], fractional, 0.0)
    low = jnp.min(jnp.where(valid[:, None], fractional, jnp.inf), axis=0)
    low = jnp.where(periodic | ~jnp.isfinite(low), 0.0, low)
    span = jnp.where(periodic, 1.0, jnp.max(known - low[None, :], axis=0, initial=0.0))
    span = jnp.maximum(span, 0.0)
    extent = jnp.sum(span * jnp.linalg.norm(cell, axis=-1))
    farthest = jnp.max(jnp.where(valid[:, None], jnp.abs(positions), 0.0), initial=0.0)
    rounding = 8.0 * (
        jnp.finfo(jnp.float32).eps * (radius + extent) + jnp.finfo(positions.dtype).eps * farthest
    )
    return _Geometry(
        fractional=fractional,
        cell=cell,
        heights=cell_heights(cell),
        valid=valid,
        low=low,
        span=span,
        reach=(radius + rounding).astype(jnp.float32),
    )


def inverse(cell: Array) -> Array:
    """The inverse of a cell, shape ``[3, 3]``, 1/Å, without a call to LAPACK."""
    a, b, c = cell
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return columns / jnp.dot(a, columns[:, 0], precision="highest")


def _does_not_cover(geometry: _Geometry, covered: np.ndarray) -> Array:
    """Whether the range exceeds ``covered`` cell heights in some direction."""
    finite = np.isfinite(covered)
    heights = jnp.where(finite, geometry.heights * np.where(finite, covered, 1.0), jnp.inf)
    return jnp.any(geometry.reach > heights)


def _pack(bits: Array) -> Array:
    """Bits ``[..., 32 n]`` to words ``[..., n]``."""
    lanes = bits.reshape(*bits.shape[:-1], -1, BITS)
    powers = np.left_shift(np.uint32(1), np.arange(BITS, dtype=np.uint32))
    powers = powers.reshape((1,) * (lanes.ndim - 1) + (BITS,))
    return jnp.sum(jnp.where(lanes, powers, np.uint32(0)), axis=-1, dtype=jnp.uint32)


def _clear(words: Array, bit: Array) -> Array:
    """Words ``[n_atoms, n_words]`` with one ``bit`` of each row set to zero."""
    column = jnp.arange(words.shape[1], dtype=jnp.int32)
    one = jnp.left_shift(jnp.uint32(1), (bit % BITS).astype(jnp.uint32))
    hit = column[None, :] == (bit // BITS)[:, None]
    return jnp.where(hit, words & ~one[:, None], words)


def _cells_around(grid: Triple, pbc: Periodic, offsets: np.ndarray) -> tuple[Array, Array]:
    """For each cell and offset: the flat index of that cell, and whether there is none."""
    cells = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in grid), indexing="ij"), axis=-1
    ).reshape(-1, 1, 3)
    entered, image = _enter(cells + jnp.asarray(offsets[None, :, :], jnp.int32), grid)
    outside = jnp.any((image != 0) & ~np.array(pbc)[None, None, :], axis=-1)
    return _flat_index(entered, grid), outside


def _enter(cells: Array, grid: Triple) -> tuple[Array, Array]:
    """Cells ``[..., 3]`` that may lie outside the box: which they are inside, in which image."""
    counts = np.array(grid, np.int32).reshape((1,) * (cells.ndim - 1) + (3,))
    image = jnp.floor_divide(cells, counts)
    return cells - image * counts, image


def _flat_index(cells: Array, grid: Triple) -> Array:
    return (cells[..., 0] * grid[1] + cells[..., 1]) * grid[2] + cells[..., 2]
