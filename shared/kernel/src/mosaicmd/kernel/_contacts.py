"""A look at the start of a run: atoms that overlap, forces that no time step survives."""

from __future__ import annotations

import numpy as np

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.integrators import MDState

LARGEST_JUMP = 1.0
"""The displacement by forces alone in one step that no start may have, Å."""


def check_contacts(md: MDState, graph: Graph, timestep: float, min_distance: float) -> None:
    """Raise a ``ValueError`` that names two atoms too close to begin with.

    Atoms overlap if they are closer than ``min_distance`` (Å), or if a force is not finite
    or would move its atom by more than :data:`LARGEST_JUMP` within one step.
    """
    positions = np.asarray(md.system.positions, float)
    if positions.ndim == 2:
        _check_one(md, graph, timestep, min_distance, index=(), where="")
        return
    for replica in range(len(positions)):
        where = f" of replica {replica}"
        _check_one(md, graph, timestep, min_distance, index=(replica,), where=where)


def _check_one(
    md: MDState,
    graph: Graph,
    timestep: float,
    min_distance: float,
    *,
    index: tuple[int, ...],
    where: str,
) -> None:
    system = md.system
    positions = np.asarray(system.positions[index], float)
    senders, receivers = np.asarray(graph.senders[index]), np.asarray(graph.receivers[index])
    shifts = np.asarray(graph.shifts[index], float) @ np.asarray(system.cell[index], float)
    vectors = positions[senders] - positions[receivers] + shifts
    distances = np.where(graph.mask[index], np.linalg.norm(vectors, axis=1), np.inf)

    def pair(edge: int) -> str:
        return (
            f"atoms {receivers[edge]} and {senders[edge]}{where} are {distances[edge]:.3g} Å apart"
        )

    if len(distances) and distances.min() < min_distance:
        raise ValueError(
            f"{pair(int(distances.argmin()))} (allowed: {min_distance:g} Å), so the run cannot "
            "start; move one of them, check unit and cell, or lower `min_distance`"
        )
    forces = np.asarray(md.forces[index], float)
    jumps = 0.5 * timestep**2 * np.linalg.norm(forces, axis=1) / np.asarray(system.masses[index])
    jumps = np.where(np.isfinite(jumps), jumps, np.inf)
    if np.isfinite(md.energy[index]) and jumps.max() <= LARGEST_JUMP:
        return
    atom = int(jumps.argmax())
    own = np.where(receivers == atom, distances, np.inf)
    nearest = (
        pair(int(own.argmin()))
        if len(own) and np.isfinite(own.min())
        else f"atom {atom}{where} has no neighbor"
    )
    size = np.linalg.norm(forces[atom])
    raise ValueError(
        f"the force on atom {atom}{where} is {size:.3g} eV/Å at an energy of "
        f"{float(md.energy[index]):.6g} eV, so the run cannot start; {nearest}: relax the "
        "structure first, look for overlapping atoms, or check the parameters"
    )
