r"""Forces on the sites of a coarse model from forces on atoms: basic and optimal linear maps.

Sites are atoms. A map ``F_I = sum_i B_Ii f_i`` has the mean force of the sites as its
conditional average if ``B_Ii`` is 1 where atom ``i`` is site ``I``, 0 where it is another
site, and the same for all atoms of a group that constraints hold together (whose constraint
forces, which a trajectory does not record, then cancel). Whatever else ``B`` holds is free: it
changes the noise of the mapped forces and nothing else.

References:
    Ciccotti, Kapral & Vanden-Eijnden, ChemPhysChem 6, 1809 (2005); Noid et al., J. Chem. Phys.
    128, 244114 (2008); Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023): optimal maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pairs = Sequence[tuple[int, int]]


def basic_force_map(sites: Sequence[int], n_atoms: int, constraints: Pairs = ()) -> np.ndarray:
    """Each site gets the forces of its own group: itself and all that is constrained to it.

    Args:
        sites: atoms that are sites.
        n_atoms: number of atoms.
        constraints: pairs of atoms whose distance is fixed.

    Returns:
        ``[n_sites, n_atoms]``, of 0 and 1.

    Raises:
        ValueError: for atoms that do not exist, sites that occur twice, and two sites that
            constraints hold together: no map has their mean force.
    """
    groups, owners = _groups(sites, n_atoms, constraints)
    return (owners[:, None] == groups[None, :]).astype(float)


def optimal_force_map(
    forces: np.ndarray,
    sites: Sequence[int],
    constraints: Pairs = (),
    *,
    ridge: float = 0.0,
) -> np.ndarray:
    """The map of least mean square mapped force, that is of least noise.

    Groups without a site are free to be added to every site; their coefficients solve a
    linear least-squares problem over all frames and directions. Without such groups the map
    is that of :func:`basic_force_map`. All that is not in ``forces`` can be one more "atom":
    as all forces add up to zero, its force is minus their sum.

    Args:
        forces: ``[n_frames, n_atoms, 3]``, any unit, without constraint forces.
        sites: as in :func:`basic_force_map`.
        constraints: likewise.
        ridge: is added to the mean square forces of free groups, in this share of their mean.

    Returns:
        ``[n_sites, n_atoms]``.

    Raises:
        ValueError: as :func:`basic_force_map`, and for forces of another shape.
    """
    forces = np.asarray(forces, float)
    if forces.ndim != 3 or forces.shape[2] != 3 or not len(forces):
        raise ValueError(f"`forces` must have shape [n_frames, n_atoms, 3], got {forces.shape}")
    if ridge < 0.0:
        raise ValueError(f"`ridge` must not be negative, got {ridge!r}")
    groups, owners = _groups(sites, forces.shape[1], constraints)
    names = np.unique(groups)
    total = np.stack([forces[:, groups == name].sum(axis=1) for name in names], axis=1)
    square = np.einsum("fgx,fhx->gh", total, total) / (3 * len(forces))
    own = np.searchsorted(names, owners)
    free = np.setdiff1d(np.arange(len(names)), own)
    by_group = np.zeros((len(own), len(names)))
    by_group[np.arange(len(own)), own] = 1.0
    if len(free):
        matrix = square[np.ix_(free, free)]
        matrix = matrix + ridge * np.trace(matrix) / len(free) * np.eye(len(free))
        coefficients = np.linalg.lstsq(matrix, -square[np.ix_(free, own)], rcond=None)[0]
        by_group[:, free] = coefficients.T
    return by_group[:, np.searchsorted(names, groups)]


def aggregate_forces(force_map: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Mapped forces, ``[n_sites, n_atoms], [n_frames, n_atoms, 3] -> [n_frames, n_sites, 3]``."""
    return np.einsum("sa,fax->fsx", force_map, forces)


def _groups(
    sites: Sequence[int], n_atoms: int, constraints: Pairs
) -> tuple[np.ndarray, np.ndarray]:
    """The group of every atom, named by its lowest atom, and those of the sites."""
    pairs = np.asarray(list(constraints), int).reshape(-1, 2)
    chosen = np.asarray(sites, int)
    for name, atoms in (("sites", chosen), ("constraints", pairs)):
        if atoms.size and not (atoms.min() >= 0 and atoms.max() < n_atoms):
            raise ValueError(f"`{name}` must name atoms from 0 to {n_atoms - 1}, got {atoms}")
    if chosen.ndim != 1 or not len(chosen) or len(set(chosen.tolist())) < len(chosen):
        raise ValueError(f"`sites` must be distinct atoms, got {chosen.tolist()}")
    group = np.arange(n_atoms)
    for one, other in pairs:
        low, high = sorted((group[one], group[other]))
        group[group == high] = low
    owners = group[chosen]
    if len(set(owners.tolist())) < len(owners):
        held = [int(s) for s in chosen if np.sum(owners == group[s]) > 1]
        raise ValueError(f"constraints hold the sites {held} together; make one of them a site")
    return group, owners
