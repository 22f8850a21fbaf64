"""What the neighbor searches share: candidates as bits, and coordinates in whole numbers.

A search gives every atom the same number of *candidates*, in blocks of equal size, and packs
"within range" into 32-bit words. Blocks come in mirror images: if atom ``j`` stands in slot
``s`` of block ``o`` of atom ``i``, then ``i`` stands in its own slot of block
``n_blocks - 1 - o`` of atom ``j``. So the opposite of every edge is known without looking for
it (:mod:`mosaicmd.kernel.rows`).

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
"""Bits per word."""

ROUNDING = 2e-3
"""Upper bound of the relative widening of the range, for boxes of any usual size."""

_UNITS = 3800.0  # per range; squared distances of interest stay below 2**24
_ROUNDED = 5.0  # units by which a distance of rounded coordinates may be off
_BEYOND = 1.0e15  # units: where atoms that are not there are looked for in vain


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a search found, in rows that follow ``order``."""

    words: Array  # [n_atoms, n_words], uint32; bit c of a row: candidate c is within range
    slots: Array  # [n_atoms], uint32, the slot of each row's atom in any block that holds it
    block_size: int
    n_blocks: int
    resolve: Callable[[Array, Array, Array], tuple[Array, list[Array]]]
    """Rows ``[m]``, blocks and slots ``[m, k]`` to rows ``[m, k]`` and components of shifts."""
    missing: Array  # [], bool: the search is not as far as the range, or a cell is full
    order: Array | None = None  # [n_atoms], uint32, the atom of each row; ``None``: its own


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Fractional coordinates and what a search needs of the cell."""

    fractional: Array  # [n_atoms, 3], of the positions as they are
    wraps: Array  # [n_atoms, 3], whole cells to subtract; 0 in open directions
    inside: Array  # [n_atoms, 3], fractional coordinates in the cell, or above the least
    cell: Array  # [3, 3], Å, the unit matrix if there is none
    heights: Array  # [3], Å
    valid: Array  # [n_atoms], bool: neither padding nor NaN
    span: Array  # [3], range of fractional coordinates: 1 where periodic
    reach: Array  # [], Å: the range, widened by rounding
    unit: float  # Å

    def in_units(self, fractional: Array) -> Array:
        """Cartesian coordinates ``[..., 3]`` as whole numbers of the unit, float32."""
        cartesian = jnp.matmul(fractional, self.cell, precision="highest")
        return jnp.round(cartesian / self.unit).astype(jnp.float32)

    def words_in_range(self, x: Array, y: Array, z: Array, own: Array) -> Array:
        """Words of bits that say whether vectors ``[..., n_candidates]`` are in range.

        Args:
            x: first components, units.
            y: second components.
            z: third components.
            own: the candidate that is the atom itself, shape ``[..., 1]``; its bit is 0.
        """
        square = jnp.square(x) + jnp.square(y) + jnp.square(z)
        in_range = square <= jnp.square(self.reach.astype(jnp.float32) / self.unit)
        index = jnp.arange(square.shape[-1], dtype=jnp.uint32)
        in_range = in_range & (index.reshape((1,) * (own.ndim - 1) + (-1,)) != own)
        lanes = in_range.reshape(*in_range.shape[:-1], -1, BITS)
        powers = np.left_shift(np.uint32(1), np.arange(BITS, dtype=np.uint32))
        powers = powers.reshape((1,) * (lanes.ndim - 1) + (BITS,))
        return jnp.sum(jnp.where(lanes, powers, np.uint32(0)), axis=-1, dtype=jnp.uint32)

    def exceeds(self, covered: np.ndarray) -> Array:
        """Whether the range exceeds ``covered`` cell heights, shape ``[3]``, in a direction."""
        limited = np.isfinite(covered)
        limits = self.heights * jnp.asarray(np.where(limited, covered, 1.0), self.heights.dtype)
        return jnp.any(limited & (self.reach > limits))


def geometry_of(system: System, radius: float, pbc: Periodic) -> Geometry:
    """`Geometry` of one system for a search within ``radius``, Å."""
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
    return Geometry(
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


def inverse(cell: Array) -> Array:
    """The inverse of a cell, shape ``[3, 3]``, 1/Å, without a call to LAPACK."""
    a, b, c = cell
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return columns / jnp.dot(a, columns[:, 0], precision="highest")


def mirrored_offsets(reach: Triple) -> np.ndarray:
    """Every offset from ``-reach`` to ``reach``, shape ``[n, 3]``, mirrored about the middle."""
    return np.array(list(itertools.product(*(range(-m, m + 1) for m in reach))))


def far_apart(coordinates: Array, valid: Array) -> tuple[Array, Array]:
    """Coordinates ``[n_atoms + 1, 3]`` of senders, and of receivers.

    Atoms that are not there, of which ``n_atoms`` is one, are far from everything.
    """
    places = []
    for beyond in (_BEYOND, -_BEYOND):
        place = jnp.where(valid[:, None], coordinates, beyond)
        places.append(jnp.pad(place, ((0, 1), (0, 0)), constant_values=beyond))
    return places[0], places[1]


def take(values: Array, index: Array) -> Array:
    """``values[index]`` along the first axis for indices that are known to lie within."""
    return values.at[index].get(mode="promise_in_bounds")
