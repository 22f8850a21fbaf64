"""Rigid distances in dynamics: SHAKE for positions, RATTLE for momenta, molecule by molecule."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.momenta import inverse_masses
from mosaicmd.kernel.systems import System

Array = jax.Array
_einsum = functools.partial(jnp.einsum, precision="highest")

_NEWTON_STEPS = 6
"""Each squares the error: 0.1 of a length falls below rounding in five."""


@dataclasses.dataclass(frozen=True, eq=False)
class Constraints:
    """Fixed distances, by groups that share no atom; made by :func:`rigid_distances`.

    Groups are padded to the longest, with atoms beyond the system and empty constraints.
    """

    atoms: np.ndarray  # [n_groups, n_local], int, index of an atom; n_atoms for padding
    incidence: np.ndarray  # [n_groups, n_bonds, n_local], 1 and -1 where a bond ends and begins
    shifts: np.ndarray  # [n_groups, n_bonds, 3], int, lattice vectors added to a bond
    lengths: np.ndarray  # [n_groups, n_bonds], Å; 1 for padding
    used: np.ndarray  # [n_groups, n_bonds], bool

    @property
    def count(self) -> int:
        """Number of constraints, each of which takes a degree of freedom."""
        return int(self.used.sum())

    @property
    def checksum(self) -> str:
        """Tells these constraints from others."""
        arrays = (self.atoms, self.incidence, self.shifts, self.lengths.round(9))
        return f"{zlib.crc32(b''.join(np.ascontiguousarray(a).tobytes() for a in arrays)):08x}"

    def positioned(self, system: System, reference: System) -> System:
        """Positions moved along the bonds of ``reference`` to where every length is right.

        By Newton's method in the multipliers, for each group by itself. The lengths are kept
        to rounding if ``system`` is a time step from ``reference``, whose lengths are right.
        """
        directions, weights = self._bonds(reference), self._weights(system)
        coupling = self._coupling(weights)
        bonds = self._bonds(system)
        squares = jnp.asarray(self.lengths**2, bonds.dtype)

        def improve(_: int, multipliers: Array) -> Array:
            change = _einsum("gkl,gl,glx->gkx", coupling, multipliers, directions)
            moved = bonds + change
            error = jnp.where(self.used, jnp.sum(moved**2, axis=-1) - squares, 0.0)
            slope = 2.0 * coupling * _einsum("gkx,glx->gkl", moved, directions)
            return multipliers - self._solved(slope, error)

        start = jnp.zeros(bonds.shape[:2], bonds.dtype)
        multipliers = jax.lax.fori_loop(0, _NEWTON_STEPS, improve, start)
        local = _einsum("gka,gk,gkx->gax", self._incidence(bonds), multipliers, directions)
        return system._replace(positions=self._added(system.positions, weights[..., None] * local))

    def tangent(self, system: System, momenta: Array) -> Array:
        """Momenta without the parts that would change a length."""
        bonds, weights = self._bonds(system), self._weights(system)
        velocities = self._gathered(inverse_masses(system) * momenta)
        incidence = self._incidence(bonds)
        rates = _einsum("gka,gax,gkx->gk", incidence, velocities, bonds)
        matrix = self._coupling(weights) * _einsum("gkx,glx->gkl", bonds, bonds)
        impulses = -self._solved(matrix, jnp.where(self.used, rates, 0.0))
        local = _einsum("gka,gk,gkx->gax", incidence, impulses, bonds)
        return self._added(momenta, local)

    def _solved(self, matrix: Array, values: Array) -> Array:
        """Solve for every group by Gauss-Jordan elimination, vectorised over groups.

        The matrices are positive definite but for the errors of the lengths, so no pivots
        are needed; a batched LAPACK solver takes several times as long for 3 x 3.
        """
        n_bonds = self.used.shape[1]
        unused = ~self.used[:, :, None] & np.eye(n_bonds, dtype=bool)[None]
        rows = jnp.concatenate([jnp.where(unused, 1.0, matrix), values[..., None]], axis=-1)
        for pivot in range(n_bonds):
            row = rows[:, pivot] / rows[:, pivot, pivot, None]
            rows = (rows - rows[:, :, pivot, None] * row[:, None]).at[:, pivot].set(row)
        return rows[..., -1]

    def _coupling(self, weights: Array) -> Array:
        """How a multiplier of one bond changes another, ``[n_groups, n_bonds, n_bonds]``, 1/u."""
        incidence = self._incidence(weights)
        return _einsum("gka,ga,gla->gkl", incidence, weights, incidence)

    def _bonds(self, system: System) -> Array:
        local = self._gathered(system.positions)
        shifts = _einsum("gkd,dx->gkx", jnp.asarray(self.shifts, local.dtype), system.cell)
        return _einsum("gka,gax->gkx", self._incidence(local), local) + shifts

    def _weights(self, system: System) -> Array:
        return self._gathered(inverse_masses(system))[..., 0]

    def _incidence(self, like: Array) -> Array:
        return jnp.asarray(self.incidence, like.dtype)

    def _gathered(self, values: Array) -> Array:
        return values.at[self.atoms].get(mode="fill", fill_value=0.0)

    def _added(self, values: Array, local: Array) -> Array:
        return values.at[self.atoms].add(local, mode="drop")


def rigid_distances(
    system: System, pairs: np.ndarray | list, lengths: np.ndarray | float | None = None
) -> Constraints:
    """Constraints that keep distances between pairs of atoms.

    A rigid water is three pairs. Pairs that share atoms form a group, which is solved as
    one small linear system; so rigid molecules and bonds with hydrogen are meant, not all
    bonds of a polymer. In a periodic cell each pair means its nearest images.

    Args:
        system: as it starts, of fixed cell; it may differ from ``lengths`` by some percent.
        pairs: indices of atoms, ``[n_pairs, 2]``.
        lengths: Å, one per pair or one for all; by default those of ``system``.

    Raises:
        ValueError: for pairs that are no pairs of distinct atoms of the system, repeat, or
            are more than a group has degrees of freedom; or lengths that are not positive.
    """
    pairs = np.asarray(pairs, int).reshape(-1, 2)
    n_atoms, mask = system.n_atoms, np.asarray(system.mask)
    bad = (pairs < 0).any(1) | (pairs >= n_atoms).any(1) | (pairs[:, 0] == pairs[:, 1])
    bad |= ~mask[np.where(bad[:, None], 0, pairs)].all(1)
    if len(pairs) == 0 or bad.any():
        what = f"{pairs[bad][0].tolist()} is none" if bad.any() else "it is empty"
        raise ValueError(f"`pairs` must hold pairs of distinct atoms of the system; {what}")
    ordered = np.sort(pairs, axis=1)
    if len(np.unique(ordered, axis=0)) < len(pairs):
        raise ValueError("`pairs` names a pair twice")
    vectors, shifts = _nearest_images(system, pairs)
    found = np.linalg.norm(vectors, axis=1)
    lengths = np.broadcast_to(found if lengths is None else np.asarray(lengths, float), len(pairs))
    if not (lengths > 0.0).all():
        raise ValueError(f"`lengths` must be positive (Å), got {lengths[~(lengths > 0.0)][0]!r}")
    label = _connected(pairs, n_atoms)[pairs[:, 0]]
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    members = [np.unique(pairs[bonds]) for bonds in groups]
    n_bonds, n_local = max(map(len, groups)), max(map(len, members))
    shape = (len(groups), n_bonds)
    result = Constraints(
        atoms=np.full((len(groups), n_local), n_atoms),
        incidence=np.zeros((*shape, n_local)),
        shifts=np.zeros((*shape, 3), int),
        lengths=np.ones(shape),
        used=np.zeros(shape, bool),
    )
    for g, (bonds, atoms) in enumerate(zip(groups, members, strict=True)):
        if len(bonds) > max(3 * len(atoms) - 6, 1):
            raise ValueError(
                f"`pairs` fixes {len(bonds)} distances between atoms {atoms.tolist()}, which "
                f"are rigid with {max(3 * len(atoms) - 6, 1)}; leave some out"
            )
        k = np.arange(len(bonds))
        result.atoms[g, : len(atoms)] = atoms
        result.incidence[g, k, np.searchsorted(atoms, pairs[bonds, 0])] = -1.0
        result.incidence[g, k, np.searchsorted(atoms, pairs[bonds, 1])] = 1.0
        result.shifts[g, k], result.lengths[g, k] = shifts[bonds], lengths[bonds]
        result.used[g, k] = True
    return result


def _connected(pairs: np.ndarray, n_atoms: int) -> np.ndarray:
    """For every atom the lowest atom that pairs lead to, ``[n_atoms]``."""
    label = np.arange(n_atoms)
    while True:
        lower = label.copy()
        for end in (0, 1):
            np.minimum.at(lower, pairs[:, end], label[pairs].min(axis=1))
        if np.array_equal(lower, label):
            return label
        label = lower


def _nearest_images(system: System, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors from the first to the second of each pair, and the lattice vectors in them."""
    from ase.geometry import find_mic

    positions, cell = np.asarray(system.positions, float), np.asarray(system.cell, float)
    plain = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    if not np.any(system.pbc):
        return plain, np.zeros(plain.shape, int)
    pbc: Any = np.asarray(system.pbc)
    vectors, _ = find_mic(plain, cell, pbc)
    return vectors, np.rint((vectors - plain) @ np.linalg.inv(cell)).astype(int)
