"""How far and how finely a neighbor list must search: counted on the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mosaicmd.kernel.candidates import ROUNDING, Periodic, Triple
from mosaicmd.kernel.cell_list import cell_reach

CELL_ROOM = 1.05
"""Cells are planned this much higher than the range, so that a box may shrink a little."""

_CELL_OVERHEAD = 1.5
"""Cost of comparing two atoms of a cell list relative to comparing two of all pairs."""


class Frames(NamedTuple):
    """One or several configurations of the same atoms, as NumPy arrays."""

    positions: np.ndarray  # [n_frames, n_atoms, 3], Å
    cells: np.ndarray  # [n_frames, 3, 3], Å, the unit matrix where there is none
    mask: np.ndarray  # [n_frames, n_atoms], bool
    pbc: Periodic

    @property
    def n_atoms(self) -> int:
        """Number of atom slots, padding included."""
        return self.positions.shape[1]

    @property
    def heights(self) -> np.ndarray:
        """Least distance between opposite faces, shape ``[3]``, Å."""
        inverses = np.linalg.inv(self.cells)
        return (1.0 / np.linalg.norm(inverses, axis=1)).min(axis=0)


class Search(NamedTuple):
    """The part of a plan that says where to look."""

    images: Triple
    grid: Triple | None
    cell_capacity: int | None


def frames_of(positions: ArrayLike, cell: ArrayLike, mask: ArrayLike, pbc: ArrayLike) -> Frames:
    """`Frames` from the leaves of a system or of a batch.

    Raises:
        ValueError: for positions or cells that are not finite, or different periodic
            directions.
    """
    xyz = np.asarray(positions, float)
    xyz = xyz.reshape(-1, *xyz.shape[-2:])
    n_frames, n_atoms, _ = xyz.shape
    cells = np.asarray(cell, float).reshape(-1, 3, 3)
    cells = np.broadcast_to(cells, (n_frames, 3, 3)).copy()
    real = np.broadcast_to(np.asarray(mask, bool).reshape(-1, n_atoms), (n_frames, n_atoms))
    directions = np.unique(np.asarray(pbc, bool).reshape(-1, 3), axis=0)
    if len(directions) > 1:
        raise ValueError(
            f"`pbc` differs between the systems of a batch: {directions.tolist()}; "
            "plan a neighbor list for each kind"
        )
    if not np.isfinite(cells).all():
        raise ValueError("`cell` has a value that is not finite: no neighbor list fits it")
    bad = np.argwhere(real & ~np.isfinite(xyz).all(axis=-1))
    if len(bad):
        frame, atom = bad[0]
        raise ValueError(
            f"`positions` of atom {atom} (system {frame}) are not finite: "
            f"{xyz[frame, atom].tolist()}"
        )
    cells[(cells == 0.0).all(axis=(1, 2))] = np.eye(3)
    x, y, z = directions[0].tolist()
    return Frames(xyz, cells, real, (x, y, z))


def count_longest_row(frames: Frames, radius: float) -> int:
    """Neighbors within ``radius`` of the atom that has most, over all frames."""
    import vesin

    calculator = vesin.NeighborList(cutoff=radius * (1.0 + ROUNDING), full_list=True)
    longest = 0
    for positions, cell, mask in zip(frames.positions, frames.cells, frames.mask, strict=True):
        if not mask.any():
            continue
        (receivers,) = calculator.compute(
            points=positions[mask], box=cell, periodic=np.array(frames.pbc), quantities="i"
        )
        counts = np.bincount(receivers.astype(np.int64), minlength=1)
        longest = max(longest, int(counts.max()))
    return longest


def covers(search: Search, frames: Frames, radius: float) -> bool:
    """Whether a search looks at least ``radius`` far in the cells of these frames."""
    heights = frames.heights
    for k in range(3):
        if not frames.pbc[k]:
            continue
        if search.grid is not None:
            reach = cell_reach(frames.pbc, search.images, search.grid)[k]
            limit = heights[k] * reach / search.grid[k]
        else:
            limit = heights[k] * (search.images[k] or 0.5)
        if radius * (1.0 + ROUNDING) > limit:
            return False
    return True


def plan_search(frames: Frames, radius: float, *, headroom: float, room: float = 1.0) -> Search:
    """The cheaper of comparing all pairs and comparing the members of nearby cells.

    Args:
        frames: what was counted.
        radius: Å.
        headroom: capacity of a cell relative to the fullest one counted.
        room: heights are taken as this much smaller when choosing images.
    """
    heights = frames.heights
    tight = radius * room * (1.0 + ROUNDING)
    x, y, z = (
        0 if not periodic or tight < 0.5 * height else math.floor(tight / height) + 1
        for periodic, height in zip(frames.pbc, heights, strict=True)
    )
    images = (x, y, z)
    grid = _grid(frames, radius * CELL_ROOM)
    capacity = _capacity(frames, radius, grid, headroom)
    n_blocks = math.prod(2 * m + 1 for m in cell_reach(frames.pbc, images, grid))
    cells_cost = math.prod(grid) * capacity**2 * n_blocks * _CELL_OVERHEAD
    pairs_cost = frames.n_atoms**2 * math.prod(2 * m + 1 for m in images)
    if pairs_cost <= cells_cost:
        return Search(images, None, None)
    return Search(images, grid, capacity)


def refit_capacity(search: Search, frames: Frames, radius: float, headroom: float) -> Search:
    """The same search with room in its cells for these frames."""
    if search.grid is None or search.cell_capacity is None:
        return search
    capacity = _capacity(frames, radius, search.grid, headroom)
    return search._replace(cell_capacity=max(capacity, search.cell_capacity))


def _grid(frames: Frames, height: float) -> Triple:
    """Cells per direction, each at least ``height`` high, and not many more than atoms."""
    lengths = frames.heights.copy()
    for k in range(3):
        if not frames.pbc[k]:
            spans = [np.ptp(f[m, k]) if m.any() else 0.0 for f, m in _fractional(frames)]
            lengths[k] *= max(spans)
    counts = [max(1, math.floor(length / height)) for length in lengths]
    while math.prod(counts) > max(64, 4 * frames.n_atoms):
        widest = counts.index(max(counts))
        counts[widest] = -(-counts[widest] // 2)
    x, y, z = counts
    return x, y, z


def _capacity(frames: Frames, radius: float, grid: Triple, headroom: float) -> int:
    counts, periodic = np.array(grid), np.array(frames.pbc)
    fullest = 1
    for (fractional, mask), cell in zip(_fractional(frames), frames.cells, strict=True):
        if not mask.any():
            continue
        inside = fractional[mask]
        least = radius * (1.0 + ROUNDING) * np.linalg.norm(np.linalg.inv(cell), axis=0)
        low = np.where(periodic, 0.0, inside.min(axis=0))
        inside = inside - np.where(periodic, np.floor(inside), low)
        width = np.where(periodic, 1.0 / counts, np.maximum(least, inside.max(axis=0) / counts))
        place = np.clip(np.floor(inside / width).astype(np.int64), 0, counts - 1)
        fullest = max(fullest, int(np.bincount(np.ravel_multi_index(place.T, grid)).max()))
    return min(frames.n_atoms, math.ceil(headroom * fullest))


def _fractional(frames: Frames) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (positions @ np.linalg.inv(cell), mask)
        for positions, cell, mask in zip(frames.positions, frames.cells, frames.mask, strict=True)
    ]
