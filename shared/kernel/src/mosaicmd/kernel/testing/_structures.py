"""Random systems to test on, and their rearrangements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph, host_graph
from mosaicmd.kernel.systems import System, make_system

_CLEARANCE = 2e-4  # Å; more than any distance changes in a finite difference


def random_system(
    seed: int,
    *,
    n_atoms: int = 24,
    species: Sequence[int] = (1, 8),
    volume_per_atom: float = 20.0,
    min_distance: float = 1.8,
    pbc: bool | Sequence[bool] = True,
    charges: bool = False,
) -> System:
    """Random atoms in a random triclinic cell, in float64: no symmetry, and under stress.

    Args:
        seed: the same seed gives the same system.
        n_atoms: number of atoms.
        species: labels; each occurs if there are atoms enough.
        volume_per_atom: Å³.
        min_distance: between any two atoms or images, Å; at most about 0.85 times the cube
            root of ``volume_per_atom``.
        pbc: periodic directions; without any, the atoms stay where they are and the cell
            is dropped.
        charges: also give random charges that add up to zero.

    Raises:
        ValueError: if the atoms cannot be placed that far apart.
    """
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(0.9, 1.1, 3)) + np.tril(rng.uniform(-0.25, 0.25, (3, 3)), -1)
    cell *= np.cbrt(n_atoms * volume_per_atom / np.linalg.det(cell))
    images = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    shortest_vector = np.linalg.norm(images[images.any(axis=1)] @ cell, axis=1).min()
    positions = np.empty((0, 3))
    for _ in range(2000 * n_atoms):
        trial = rng.uniform(size=3) @ cell
        apart = (positions - trial)[:, None] + images @ cell
        nearest = np.linalg.norm(apart, axis=-1).min(initial=shortest_vector)
        if nearest >= min_distance:
            positions = np.vstack([positions, trial])
        if len(positions) == n_atoms:
            break
    else:
        raise ValueError(
            f"could not place {n_atoms} atoms {min_distance} Å apart in {volume_per_atom} Å³ "
            "each; reduce `min_distance` or enlarge `volume_per_atom`"
        )
    labels = np.concatenate([species, rng.choice(species, max(n_atoms - len(species), 0))])
    values = rng.normal(scale=0.5, size=n_atoms)
    periodic = np.broadcast_to(pbc, (3,))
    return make_system(
        positions,
        rng.permutation(labels[:n_atoms].astype(int)),
        cell=cell if periodic.any() else None,
        pbc=periodic.tolist(),
        masses=rng.uniform(1.0, 50.0, n_atoms),
        charges=values - values.mean() if charges else None,
        total_charge=0.0 if charges else None,
        dtype=jnp.float64,
    )


def random_orthogonal(rng: np.random.Generator, determinant: float = 1.0) -> np.ndarray:
    """A random rotation (``determinant`` 1) or rotoreflection (-1), shape ``[3, 3]``."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix) * determinant)


def in_rows(graph: Graph, n_atoms: int) -> Graph:
    """The same edges in rows of equal length per receiver, with masked edges in between.

    Raises:
        ValueError: if the graph has no ``reverse``.
    """
    if graph.reverse is None:
        raise ValueError("`graph` needs its `reverse`; build it with host_graph(..., reverse=True)")
    receivers = np.asarray(graph.receivers)
    first = np.searchsorted(receivers, np.arange(n_atoms))
    length = int(np.bincount(receivers, minlength=n_atoms).max()) + 1
    slot = receivers * length + np.arange(len(receivers)) - first[receivers]
    rows = np.repeat(np.arange(n_atoms, dtype=np.int32), length)
    reverse = np.arange(len(rows), dtype=np.int32)
    reverse[slot] = slot[np.asarray(graph.reverse)]

    def place(values: Any, fill: np.ndarray) -> Any:
        filled = fill.copy()
        filled[slot] = np.asarray(values)
        return jnp.asarray(filled)

    return Graph(
        senders=place(graph.senders, rows),
        receivers=jnp.asarray(rows),
        shifts=place(graph.shifts, np.zeros((len(rows), 3), np.int32)),
        mask=place(graph.mask, np.zeros(len(rows), bool)),
        overflow=graph.overflow,
        reverse=jnp.asarray(reverse),
        row_length=length,
    )


def repeat(system: System, repeats: np.ndarray, distance: float) -> System:
    """A supercell, or without periodic directions a copy ``distance`` Å behind the first."""
    n = int(np.prod(repeats))
    offsets = np.array(list(np.ndindex(*map(int, repeats))), float)
    if np.asarray(system.pbc).any():
        offsets = offsets @ np.asarray(system.cell)
    else:
        offsets *= np.ptp(np.asarray(system.positions), axis=0).max() + distance
    positions = np.asarray(system.positions)[None] + offsets[:, None]

    def tile(leaf: Any) -> Any:
        return None if leaf is None else np.tile(leaf, n)

    return system._replace(
        positions=positions.reshape(-1, 3),
        cell=system.cell * repeats[:, None],
        species=tile(system.species),
        masses=tile(system.masses),
        mask=tile(system.mask),
        charges=tile(system.charges),
        total_charge=None if system.total_charge is None else n * system.total_charge,
    )


def take(system: System, index: np.ndarray) -> System:
    """The atoms at ``index``, in that order."""
    return system._replace(
        positions=system.positions[index],
        species=system.species[index],
        masses=system.masses[index],
        mask=system.mask[index],
        charges=None if system.charges is None else system.charges[index],
    )


def clear_of_cutoff(system: System, cutoff: float) -> tuple[System, Graph]:
    """The system, scaled by next to nothing so that no pair stands at the cutoff, and its graph.

    Else finite differences would see atoms enter and leave a truncated potential.
    """
    best, widest = (system, host_graph(system, cutoff + 0.1)), -1.0
    for k in range(40):
        scale = 1.0 + 1e-4 * ((k + 1) // 2) * (-1.0) ** k
        trial = system._replace(positions=system.positions * scale, cell=system.cell * scale)
        graph = host_graph(trial, cutoff + 0.1)
        ends = (np.asarray(graph.senders), np.asarray(graph.receivers))
        vectors = trial.positions[ends[0]] - trial.positions[ends[1]]
        vectors = vectors + np.asarray(graph.shifts) @ trial.cell
        gap = np.abs(np.linalg.norm(vectors, axis=1) - cutoff).min(initial=np.inf)
        if gap > widest:
            best, widest = (trial, graph), gap
        if gap > _CLEARANCE:
            break
    return best


def probe_cluster(system: System, labels: Sequence[int], cutoff: float) -> System:
    """Centre, probe on the x axis, and two neighbors of the centre that never see the probe.

    Masses and charges are those of the first atom of ``system`` with the same label.
    """
    places = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-0.2, 0.55, 0.1], [-0.25, -0.2, 0.55]])
    species = np.asarray(system.species)
    like = [int(np.flatnonzero(species == label)[0]) for label in labels]
    charges = None if system.charges is None else np.asarray(system.charges)[like]
    return make_system(
        places * cutoff,
        np.asarray(labels),
        masses=np.asarray(system.masses)[like],
        charges=charges,
        total_charge=None if charges is None else float(charges.sum()),
        dtype=jnp.float64,
    )
