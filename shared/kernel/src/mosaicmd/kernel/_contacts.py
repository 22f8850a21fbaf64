"""A look at the start of a run: atoms that overlap, forces that no time step survives."""

from __future__ import annotations

import numpy as np

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.integrators import MDState

LARGEST_JUMP = 1.0
"""The displacement by forces alone in one step that no start may have, Å."""


class ContactError(ValueError):
    """A structure that a run cannot start from."""


def check_contacts(md: MDState, graph: Graph, timestep: float, min_distance: float) -> None:
    """Raise a `ContactError` that names two atoms too close to begin with.

    Atoms overlap if they are closer than ``min_distance`` (Å), or if a force is not finite
    or would move its atom by more than :data:`LARGEST_JUMP` within one step.
    """
    system = md.system
    arrays = (
        *(system.positions, system.cell, system.masses, md.forces, md.energy),
        *(graph.senders, graph.receivers, graph.shifts, graph.mask),
    )
    hosted = [np.asarray(array) for array in arrays]
    if hosted[0].ndim == 2:
        _check_one(*hosted, timestep=timestep, min_distance=min_distance, where="")
        return
    for replica in range(len(hosted[0])):
        one = (array[replica] for array in hosted)
        where = f" of replica {replica}"
        _check_one(*one, timestep=timestep, min_distance=min_distance, where=where)


def _check_one(
    positions: np.ndarray,
    cell: np.ndarray,
    masses: np.ndarray,
    forces: np.ndarray,
    energy: np.ndarray,
    senders: np.ndarray,
    receivers: np.ndarray,
    shifts: np.ndarray,
    mask: np.ndarray,
    *,
    timestep: float,
    min_distance: float,
    where: str,
) -> None:
    senders, receivers = senders[mask], receivers[mask]
    vectors = positions[senders] - positions[receivers] + shifts[mask] @ cell
    distances = np.linalg.norm(vectors, axis=1)

    def pair(edge: int) -> str:
        return (
            f"atoms {receivers[edge]} and {senders[edge]}{where} are {distances[edge]:.3g} Å apart"
        )

    if len(distances) and distances.min() < min_distance:
        raise ContactError(
            f"{pair(int(distances.argmin()))} (allowed: {min_distance:g} Å), so the run cannot "
            "start; move one of them, check unit and cell, or lower `min_distance`"
        )
    sizes = np.linalg.norm(forces.astype(float), axis=1)
    jumps = 0.5 * timestep**2 * sizes / masses
    jumps = np.where(np.isfinite(jumps), jumps, np.inf)
    if np.isfinite(energy) and jumps.max() <= LARGEST_JUMP:
        return
    atom = int(jumps.argmax())
    own = np.where(receivers == atom, distances, np.inf)
    nearest = (
        pair(int(own.argmin()))
        if len(own) and np.isfinite(own.min())
        else f"atom {atom}{where} has no neighbor"
    )
    raise ContactError(
        f"the force on atom {atom}{where} is {sizes[atom]:.3g} eV/Å at an energy of "
        f"{float(energy):.6g} eV, so the run cannot start; {nearest}: relax the structure first, "
        "look for overlapping atoms, or check the parameters"
    )
