"""Neighbor lists on the device, for dynamics: planned on the host, built inside ``jit``.

A :class:`NeighborList` is a plan: sizes that a compiled program depends on. Its ``build`` and
``update`` are pure functions from a `System` to :class:`Neighbors`. When something does not fit
the plan, ``graph.overflow`` is true and stays true: whatever was computed since is to be
discarded and repeated with the larger plan of :func:`grow`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.all_pairs import search_all_pairs
from mosaicmd.kernel.candidates import Candidates, Periodic, Triple, inverse
from mosaicmd.kernel.cell_list import search_cells
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.neighbor_plan import (
    Frames,
    Search,
    count_longest_row,
    covers,
    frames_of,
    plan_search,
    refit_capacity,
)
from mosaicmd.kernel.rows import neighbor_rows
from mosaicmd.kernel.systems import System

Array = jax.Array

_ROOM_AFTER_OVERFLOW = 1.03
"""A box that shrank below what the plan covers may shrink this much more."""


class Neighbors(NamedTuple):
    """A graph, and the system as it was when the graph was built.

    For a batch every leaf has a leading replica axis.
    """

    graph: Graph
    positions: Array  # [n_atoms, 3], Å
    cell: Array  # [3, 3], Å
    mask: Array  # [n_atoms], bool
    longest_row: Array  # [], int32, neighbors found for the atom that has most


@dataclasses.dataclass(frozen=True)
class NeighborList:
    """The plan of a neighbor list: what must be known before compiling.

    It holds no arrays and can be hashed, so it may be a static argument or part of a closure.
    Made by :func:`neighbor_list`, enlarged by :func:`grow`.

    Attributes:
        cutoff: Å.
        skin: what is listed beyond the cutoff, Å; half of it is the way an atom may go before
            the list is built again.
        row_length: neighbors per atom.
        pbc: periodic directions.
        images: periodic images searched to either side per direction; 0 where the nearest
            image is the only one in range.
        grid: cells per direction; ``None`` compares all pairs.
        cell_capacity: atoms per cell of the grid.
    """

    cutoff: float
    skin: float
    row_length: int
    pbc: Periodic
    images: Triple
    grid: Triple | None = None
    cell_capacity: int | None = None

    @property
    def radius(self) -> float:
        """Range of the list when it is built, ``cutoff + skin``, Å."""
        return self.cutoff + self.skin

    def build(self, system: System) -> Neighbors:
        """List all pairs within :attr:`radius`; works under ``jit`` and ``vmap``.

        Rows of ``row_length`` edges follow the order of the atoms. Shifts belong to the
        positions as they are, inside the cell or not. Masked atoms, and atoms whose position
        is not finite, have no neighbors.

        Args:
            system: one system, or a batch with a leading axis on its positions (its other
                leaves may be shared).
        """
        system = jax.lax.stop_gradient(system)
        if _is_batch(system):
            return jax.vmap(self.build, in_axes=(_batch_axes(system),))(system)
        found = self._search(system)
        rows, longest_row = neighbor_rows(found, self.row_length)
        n_atoms = system.n_atoms
        own = jnp.arange(n_atoms, dtype=jnp.int32)[:, None]
        other_directions = jnp.any(system.pbc != jnp.array(self.pbc))
        graph = Graph(
            senders=rows.senders.reshape(-1),
            receivers=jnp.broadcast_to(own, (n_atoms, self.row_length)).reshape(-1),
            shifts=rows.shifts.reshape(-1, 3),
            mask=rows.mask.reshape(-1),
            overflow=found.missing | (longest_row > self.row_length) | other_directions,
            reverse=rows.reverse.reshape(-1),
            row_length=self.row_length,
        )
        return Neighbors(graph, system.positions, system.cell, system.mask, longest_row)

    def update(self, neighbors: Neighbors, system: System) -> Neighbors:
        """The list for the present positions: call it before every use.

        The list is built again once an atom may have come within the cutoff unlisted: when the
        farthest moved atom went half the skin since the last build, where what all atoms did
        together with the cell does not count, and the deformation of the cell shortens the
        skin. In a batch each replica is looked at and built by itself, so that none depends on
        the company it has, and none costs the others a build. After an overflow nothing is
        built any more, and ``neighbors`` shows what :func:`grow` has to provide.

        Args:
            neighbors: from :meth:`build` or :meth:`update`.
            system: the same atoms, later; one system or a batch, as ``neighbors``.
        """
        system = jax.lax.stop_gradient(system)
        neighbors = jax.lax.stop_gradient(neighbors)
        if not _is_batch(system):
            stale = self._is_stale(neighbors, system)
            return jax.lax.cond(stale, lambda _: self.build(system), lambda old: old, neighbors)
        stale = jax.vmap(self._is_stale, in_axes=(0, _batch_axes(system)))(neighbors, system)
        order = jnp.argsort(~stale)

        def rebuild(i: Array, neighbors: Neighbors) -> Neighbors:
            k = order[i]
            return jax.tree.map(
                lambda every, new: every.at[k].set(new), neighbors, self.build(_member(system, k))
            )

        return jax.lax.fori_loop(0, jnp.sum(stale), rebuild, neighbors)

    def _search(self, system: System) -> Candidates:
        if self.grid is None or self.cell_capacity is None:
            return search_all_pairs(system, self.radius, self.pbc, self.images)
        return search_cells(
            system, self.radius, self.pbc, self.images, self.grid, self.cell_capacity
        )

    def _is_stale(self, neighbors: Neighbors, system: System) -> Array:
        """Whether a pair within the cutoff may be missing from the list.

        With the deformation ``F = 1 + G`` of the cell, a pair at distance ``d`` is now at
        ``d F`` plus the difference of two displacements ``u``, so at least at
        ``d (1 - |G|) - 2 max|u|``.
        """
        before = neighbors.cell
        empty = jnp.all(before == 0.0)
        invertible = jnp.where(empty, jnp.eye(3, dtype=before.dtype), before)
        strain = jnp.matmul(inverse(invertible), system.cell - before, precision="highest")
        carried = jnp.matmul(neighbors.positions, strain, precision="highest")
        moved = system.positions - neighbors.positions - carried
        allowed = 0.5 * (self.skin - jnp.linalg.norm(strain) * self.radius)
        too_far = jnp.sum(jnp.square(moved), axis=-1) > jnp.square(allowed)
        stale = jnp.any(too_far & system.mask) | (allowed < 0.0)
        return stale & ~neighbors.graph.overflow


def neighbor_list(
    system: System, cutoff: float, *, skin: float = 1.0, headroom: float = 1.2
) -> NeighborList:
    """Plan a neighbor list from one system, or from a batch of replicas, by counting.

    Args:
        system: concrete arrays, like those to come; may be a batch.
        cutoff: Å; may exceed the cell.
        skin: Å; a larger one means fewer builds and more pairs per step.
        headroom: how many times the neighbors (and atoms per cell) counted now will fit.

    Raises:
        ValueError: for settings out of range, positions that are not finite, or a batch with
            different periodic directions.
    """
    if not (math.isfinite(cutoff) and cutoff > 0.0):
        raise ValueError(f"`cutoff` must be positive (Å), got {cutoff!r}")
    if not (math.isfinite(skin) and skin >= 0.0):
        raise ValueError(f"`skin` must not be negative (Å), got {skin!r}")
    if not headroom >= 1.0:
        raise ValueError(f"`headroom` must be at least 1, got {headroom!r}")
    frames = frames_of(system.positions, system.cell, system.mask, system.pbc)
    radius = float(cutoff + skin)
    search = plan_search(frames, radius, headroom=headroom)
    return NeighborList(
        cutoff=float(cutoff),
        skin=float(skin),
        row_length=_row_length(frames, search, headroom * count_longest_row(frames, radius)),
        pbc=frames.pbc,
        images=search.images,
        grid=search.grid,
        cell_capacity=search.cell_capacity,
    )


def grow(
    plan: NeighborList, overflowed: Neighbors | System, *, headroom: float = 1.25
) -> NeighborList:
    """A plan at least as large, that has room for what did not fit.

    Args:
        plan: the plan that was too small.
        overflowed: best the neighbors that say so, which know what was needed; or a system,
            then rows and cells become larger even if this system fits.
        headroom: sizes relative to what is needed, more than 1.

    Raises:
        ValueError: for a cell or a system that is not finite, for ``headroom`` of 1 or less,
            or if the neighbors overflowed because the periodic directions are not the plan's.
    """
    if not headroom > 1.0:
        raise ValueError(f"`headroom` must exceed 1, got {headroom!r}")
    if isinstance(overflowed, Neighbors):
        finite = np.isfinite(np.asarray(overflowed.positions)).all(axis=-1)
        mask, pbc = np.asarray(overflowed.mask) & finite, np.array(plan.pbc)
        frames = frames_of(overflowed.positions, overflowed.cell, mask, pbc)
        needed = int(np.max(np.asarray(overflowed.longest_row)))
    else:
        frames = frames_of(overflowed.positions, overflowed.cell, overflowed.mask, overflowed.pbc)
        needed = max(plan.row_length, count_longest_row(frames, plan.radius))
    search = Search(plan.images, plan.grid, plan.cell_capacity)
    if frames.pbc != plan.pbc or not covers(search, frames, plan.radius):
        search = plan_search(frames, plan.radius, headroom=headroom, room=_ROOM_AFTER_OVERFLOW)
    search = refit_capacity(search, frames, plan.radius, headroom)
    rows = plan.row_length
    if needed > rows or isinstance(overflowed, System):
        rows = max(rows, _row_length(frames, search, headroom * needed))
    larger = _with_search(dataclasses.replace(plan, row_length=rows, pbc=frames.pbc), search)
    if larger != plan or isinstance(overflowed, System) or not _any(overflowed.graph.overflow):
        return larger
    # By the numbers it fits: either a hair is missing, or the plan is for something else.
    search = plan_search(frames, plan.radius, headroom=headroom, room=_ROOM_AFTER_OVERFLOW)
    larger = _with_search(plan, search)
    if larger == plan:
        raise ValueError(
            f"the neighbors fit their plan but were built for a system whose `pbc` is not "
            f"{plan.pbc}; plan anew with `neighbor_list(system, ...)`"
        )
    return larger


def _with_search(plan: NeighborList, search: Search) -> NeighborList:
    return dataclasses.replace(
        plan, images=search.images, grid=search.grid, cell_capacity=search.cell_capacity
    )


def _any(flags: Array) -> bool:
    return bool(np.any(np.asarray(flags)))


def _row_length(frames: Frames, search: Search, wanted: float) -> int:
    """``wanted`` in multiples of four, but no more than there can be."""
    n_images = math.prod(2 * m + 1 for m in search.images)
    return max(1, min(-(-math.ceil(wanted) // 4) * 4, frames.n_atoms * n_images - 1))


def _is_batch(system: System) -> bool:
    return system.positions.ndim == 3


def _batch_axes(system: System) -> Any:
    """For ``vmap``: 0 for the leaves with a replica axis, ``None`` for those shared."""
    ndim = {"positions": 2, "cell": 2, "species": 1, "masses": 1, "mask": 1, "pbc": 1}
    ndim |= {"charges": 1, "total_charge": 0}
    axes: dict[str, Any] = {
        name: None if leaf is None or leaf.ndim == ndim[name] else 0
        for name, leaf in system._asdict().items()
    }
    return System(**axes)


def _member(system: System, k: Array) -> System:
    """One system of a batch."""
    leaves: dict[str, Any] = {
        name: leaf if axis is None else leaf[k]
        for (name, leaf), axis in zip(system._asdict().items(), _batch_axes(system), strict=True)
    }
    return System(**leaves)
