"""Which atoms lie within range of which: all pairs, or cells, as one bit per candidate.

Either search gives every atom the same number of *candidates*, in blocks of equal size, and
packs "within range" into 32-bit words. Blocks come in mirror images: if atom ``j`` stands
in slot ``s`` of block ``o`` of atom ``i``, then ``i`` stands in its own slot of block
``n_blocks - 1 - o`` of atom ``j``. So the opposite of every edge is known without a search
(:mod:`mosaicmd.kernel.rows`).

Coordinates are rounded to a small unit, so that squared distances are whole numbers that
float32 holds exactly: a pair looks the same from either end. The range is widened by what
the rounding can do: a list may hold a pair that is too long by a hair, and never lacks one.
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
ROUNDING = 2e-3
"""Upper bound of the relative widening of the range, for boxes of any usual size."""

_UNITS = 3800.0  # per range; squared distances of interest stay below 2**24
_ROUNDED = 5.0  # units by which a distance of rounded coordinates may be off
_BEYOND = 1.0e15  # units: where atoms that are not there are looked for in vain


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a search found."""

    words: Array  # [n_atoms, n_words], uint32; bit c of a row: candidate c is within range
    slots: Array  # [n_atoms], uint32, the slot of each atom in any block that holds it
    block_size: int
    n_blocks: int
    resolve: Callable[[Array, Array], tuple[Array, list[Array]]]
    """From blocks and slots ``[n_atoms, k]`` to atoms and the three components of shifts."""
    missing: Array  # [], bool: the search is not as far as the range, or a cell is full


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Fractional coordinates and what the searches need of the cell."""

    fractional: Array  # [n_atoms, 3], of the positions as they are
    wraps: Array  # [n_atoms, 3], whole cells to subtract; 0 in open directions
    inside: Array  # [n_atoms, 3], fractional coordinates in the cell, or above the least
    cell: Array  # [3, 3], Å
    heights: Array  # [3], Å
    valid: Array  # [n_atoms], bool: neither padding nor NaN
    span: Array  # [3], range of fractional coordinates: 1 where periodic
    reach: Array  # [], Å: the range, widened by rounding
    unit: float  # Å

    def in_units(self, fractional: Array) -> Array:
        """Cartesian coordinates ``[..., 3]`` as whole numbers of the unit, float32."""
        cartesian = jnp.matmul(fractional, self.cell, precision="highest")
        return jnp.round(cartesian / self.unit).astype(jnp.float32)

    def words_in_range(self, differences: list[Array], own: Array) -> Array:
        """Words of bits that say whether vectors with these components are in range.

        Args:
            differences: three arrays ``[..., n_candidates]``, units.
            own: the candidate that is the atom itself, shape ``[..., 1]``; its bit is 0.
        """
        x, y, z = differences
        square = jnp.square(x) + jnp.square(y) + jnp.square(z)
        in_range = square <= jnp.square(self.reach.astype(jnp.float32) / self.unit)
        index = jnp.arange(square.shape[-1], dtype=jnp.uint32)
        return _pack(in_range & (index.reshape((1,) * (own.ndim - 1) + (-1,)) != own))

    def exceeds(self, covered: np.ndarray) -> Array:
        """Whether the range exceeds ``covered`` cell heights, shape ``[3]``, in a direction."""
        limited = np.isfinite(covered)
        limits = self.heights * jnp.asarray(np.where(limited, covered, 1.0), self.heights.dtype)
        return jnp.any(limited & (self.reach > limits))


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
    offsets = _offsets(images)
    n_blocks = len(offsets)
    index = np.arange(-(-n_blocks * n_atoms // BITS) * BITS)
    atom = jnp.asarray(np.where(index < n_blocks * n_atoms, index % n_atoms, n_atoms), jnp.uint32)
    block = jnp.asarray(np.minimum(index // n_atoms, n_blocks - 1), jnp.uint32)
    own = jnp.arange(n_atoms, dtype=jnp.uint32)

    here = geometry.in_units(geometry.inside)
    steps = geometry.in_units(jnp.asarray(offsets, geometry.cell.dtype))
    senders, receivers = _tables(here, geometry.valid)
    differences = [
        (_rows(senders[:, x], atom) + _rows(steps[:, x], block))[None, :] - receivers[:-1, x, None]
        for x in range(3)
    ]
    lattice = geometry.in_units(jnp.eye(3, dtype=geometry.cell.dtype))
    fraction = jnp.pad(geometry.inside.astype(jnp.float32), ((0, 1), (0, 0)))
    for k in np.flatnonzero(nearest):
        image = jnp.round(_rows(fraction[:, k], atom)[None, :] - fraction[:-1, k, None])
        differences = [d - image * lattice[k, x] for x, d in enumerate(differences)]
    words = geometry.words_in_range(differences, own[:, None] + (n_blocks // 2) * n_atoms)

    def resolve(blocks: Array, slots: Array) -> tuple[Array, list[Array]]:
        shifts = [jnp.zeros(blocks.shape, jnp.int32)] * 3
        for k in np.flatnonzero(pbc):
            ours, theirs = geometry.fractional[:, k, None], _rows(geometry.fractional[:, k], slots)
            if nearest[k]:
                shift = jnp.round(ours - theirs)
            else:
                image = _rows(jnp.asarray(offsets[:, k], ours.dtype), blocks)
                shift = image + jnp.floor(ours) - jnp.floor(theirs)
            shifts[k] = shift.astype(jnp.int32)
        return slots, shifts

    return Candidates(
        words=words,
        slots=own,
        block_size=n_atoms,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=geometry.exceeds(
            np.where(explicit, np.array(images), np.where(nearest, 0.5, np.inf))
        ),
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
    reach = cell_reach(pbc, images, grid)
    offsets = _offsets(reach)
    n_blocks, n_cells = len(offsets), int(np.prod(grid))

    divisions = jnp.asarray(grid, geometry.cell.dtype)
    least = geometry.reach / geometry.heights
    width = jnp.where(np.array(pbc), 1.0 / divisions, jnp.maximum(least, geometry.span / divisions))
    place = jnp.where(geometry.valid[:, None], jnp.floor(geometry.inside / width[None, :]), 0.0)
    place = jnp.clip(place.astype(jnp.int32), 0, np.array([grid], np.int32) - 1)
    flat = jnp.where(geometry.valid, _flat_index(place.astype(jnp.uint32), grid), n_cells)
    members, flat, slots, fullest = _members(flat, n_cells, capacity)

    # Coordinates are relative to the centre of the atom's own cell; a block adds one vector.
    centre = (place.astype(width.dtype) + 0.5) * width[None, :]
    relative = geometry.in_units(geometry.inside - centre)
    steps = geometry.in_units(jnp.asarray(offsets, width.dtype) * width[None, :])
    candidates = members[_cells_around(grid, pbc, offsets)].reshape(n_cells + 1, -1)
    padding = -n_blocks * capacity % BITS
    candidates = jnp.pad(candidates, ((0, 0), (0, padding)), constant_values=n_atoms)
    steps = jnp.pad(jnp.repeat(steps, capacity, axis=0), ((0, padding), (0, 0)))
    senders, receivers = _tables(relative, geometry.valid)
    differences = [
        (_rows(senders[:, x], candidates) + steps[None, :, x])[:, None, :]
        - _rows(receivers[:, x], members)[:, :, None]
        for x in range(3)
    ]
    own = jnp.arange(capacity, dtype=jnp.uint32)[None, :, None] + (n_blocks // 2) * capacity
    words = geometry.words_in_range(differences, own)
    words = _rows(words.reshape((n_cells + 1) * capacity, -1), flat * capacity + slots)

    def resolve(blocks: Array, slots: Array) -> tuple[Array, list[Array]]:
        width = candidates.shape[1]
        index = flat[:, None] * width + blocks * capacity + slots
        atoms = _rows(candidates.reshape(-1), index)
        wraps = jnp.pad(geometry.wraps.astype(jnp.int32), ((0, 1), (0, 0)))
        shifts = [jnp.zeros(blocks.shape, jnp.int32)] * 3
        for k in np.flatnonzero(pbc):
            image = _rows(jnp.asarray(offsets[:, k], jnp.int32), blocks)
            if grid[k] > 1:
                unfolded = place[:, k, None] + image
                image = (unfolded >= grid[k]).astype(jnp.int32) - (unfolded < 0)
            shifts[k] = image + wraps[:-1, k, None] - _rows(wraps[:, k], atoms)
        return atoms, shifts

    covered = np.where(np.array(pbc), np.array(reach) / np.array(grid), np.inf)
    return Candidates(
        words=words,
        slots=slots,
        block_size=capacity,
        n_blocks=n_blocks,
        resolve=resolve,
        missing=geometry.exceeds(covered) | (fullest > capacity),
    )


def cell_reach(pbc: Periodic, images: Triple, grid: Triple) -> Triple:
    """How many cells a search looks to either side, per direction."""
    x, y, z = (
        max(1, m) if periodic else int(g > 1)
        for periodic, m, g in zip(pbc, images, grid, strict=True)
    )
    return x, y, z


def inverse(cell: Array) -> Array:
    """The inverse of a cell, shape ``[3, 3]``, 1/Å, without a call to LAPACK."""
    a, b, c = cell
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return columns / jnp.dot(a, columns[:, 0], precision="highest")


def _geometry(system: System, radius: float, pbc: Periodic) -> _Geometry:
    positions, periodic = system.positions, np.array(pbc)
    empty = jnp.all(system.cell == 0.0)
    cell = jnp.where(empty, jnp.eye(3, dtype=system.cell.dtype), system.cell)
    # A matrix product is an operation of its own, and no product is followed by a sum on the
    # way from it to whole numbers: these are the same in whatever code they are fused into.
    fractional = jnp.matmul(positions, inverse(cell), precision="highest")
    valid = system.mask & jnp.all(jnp.isfinite(fractional), axis=-1)
    low = jnp.min(jnp.where(valid[:, None], fractional, jnp.inf), axis=0, initial=jnp.inf)
    low = jnp.where(periodic | ~jnp.isfinite(low), 0.0, low)
    wraps = jnp.where(periodic[None, :], jnp.floor(fractional), 0.0)
    inside = jnp.where(valid[:, None], fractional - wraps - low[None, :], 0.0)
    span = jnp.where(periodic, 1.0, jnp.max(inside, axis=0, initial=0.0))
    extent = jnp.sum(span * jnp.linalg.norm(cell, axis=-1))
    farthest = jnp.max(jnp.where(valid[:, None], jnp.abs(positions), 0.0), initial=0.0)
    unit = radius / _UNITS
    rounding = (
        _ROUNDED * unit
        + 8.0 * float(jnp.finfo(jnp.float32).eps) * extent
        + 8.0 * float(jnp.finfo(positions.dtype).eps) * farthest
    )
    return _Geometry(
        fractional=fractional,
        wraps=wraps,
        inside=inside,
        cell=cell,
        heights=cell_heights(cell),
        valid=valid,
        span=span,
        reach=radius + rounding,
        unit=unit,
    )


def _offsets(reach: Triple) -> np.ndarray:
    """Every offset from ``-reach`` to ``reach``, shape ``[n, 3]``, mirrored about the middle."""
    return np.array(list(itertools.product(*(range(-m, m + 1) for m in reach))))


def _tables(coordinates: Array, valid: Array) -> tuple[Array, Array]:
    """Coordinates ``[n_atoms + 1, 3]`` of senders and of receivers.

    Atoms that are not there, of which ``n_atoms`` is one, are far from everything.
    """
    padding = ((0, 1), (0, 0))
    return (
        jnp.pad(jnp.where(valid[:, None], coordinates, _BEYOND), padding, constant_values=_BEYOND),
        jnp.pad(
            jnp.where(valid[:, None], coordinates, -_BEYOND), padding, constant_values=-_BEYOND
        ),
    )


def _members(flat: Array, n_cells: int, capacity: int) -> tuple[Array, Array, Array, Array]:
    """Who is in which cell, in the order of the atoms.

    Args:
        flat: the cell of each atom, uint32; ``n_cells`` for none.
        n_cells: number of cells, beside one more that stays empty.
        capacity: atoms per cell; more are left out.

    Returns:
        The atoms of each cell, shape ``[n_cells + 1, capacity]``, ``n_atoms`` where there is
        none; the cell and the slot of each atom, shape ``[n_atoms]``, the first slot of the
        empty cell for those left out; and the number of atoms in the fullest cell.
    """
    n_atoms = flat.shape[0]
    indices = jnp.arange(n_atoms, dtype=jnp.uint32)
    ordered, order = jax.lax.sort((flat, indices), num_keys=1, is_stable=True)
    first = jnp.searchsorted(ordered, jnp.arange(n_cells + 1, dtype=jnp.uint32))
    slot = indices - _rows(first.astype(jnp.uint32), ordered)
    kept = (ordered < n_cells) & (slot < capacity)
    target = jnp.where(kept, ordered * capacity + slot, n_cells * capacity)
    members = jnp.full((n_cells + 1) * capacity, n_atoms, jnp.uint32)
    members = members.at[target].set(jnp.where(kept, order, n_atoms))
    target = jnp.zeros(n_atoms, jnp.uint32).at[order].set(target, unique_indices=True)
    fullest = jnp.max(jnp.where(ordered < n_cells, slot + 1, 0), initial=0)
    members = members.reshape(n_cells + 1, capacity)
    return members, target // capacity, target % capacity, fullest


def _cells_around(grid: Triple, pbc: Periodic, offsets: np.ndarray) -> Array:
    """For each cell and offset the cell there, shape ``[n_cells + 1, n_offsets]``.

    Where there is none, and around the empty cell that comes last, it is the empty cell.
    """
    n_cells = int(np.prod(grid))
    index = jnp.arange(n_cells + 1, dtype=jnp.uint32)
    cells = [index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]]
    # Counted from an image far on the negative side: unsigned numbers are cheaper to divide.
    farthest = int(np.abs(offsets).max(initial=0))
    counts = np.array([[grid]], np.uint32)
    start = jnp.stack(cells, axis=-1)[:, None, :] + farthest * counts
    unfolded = start + jnp.asarray(offsets[None, :, :].astype(np.uint32))
    outside = jnp.any((unfolded // counts != farthest) & ~np.array([[pbc]]), axis=-1)
    outside = outside | (index == n_cells)[:, None]
    return jnp.where(outside, n_cells, _flat_index(unfolded % counts, grid))


def _flat_index(cells: Array, grid: Triple) -> Array:
    return (cells[..., 0] * grid[1] + cells[..., 1]) * grid[2] + cells[..., 2]


def _pack(bits: Array) -> Array:
    """Bits ``[..., 32 n]`` to words ``[..., n]``."""
    lanes = bits.reshape(*bits.shape[:-1], -1, BITS)
    powers = np.left_shift(np.uint32(1), np.arange(BITS, dtype=np.uint32))
    powers = powers.reshape((1,) * (lanes.ndim - 1) + (BITS,))
    return jnp.sum(jnp.where(lanes, powers, np.uint32(0)), axis=-1, dtype=jnp.uint32)


def _rows(values: Array, index: Array) -> Array:
    """``values[index]`` for unsigned indices that are known to lie within."""
    return values.at[index].get(mode="promise_in_bounds")
