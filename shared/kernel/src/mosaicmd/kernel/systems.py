"""`System`: atoms in a cell as one pytree, and the geometry of that cell.

A `System` holds one structure; the same type with a leading axis on every leaf holds a
batch (:func:`stack_systems`). Atoms that only fill a bucket have ``mask`` false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import ase

Array = jax.Array


class System(NamedTuple):
    """Atoms, their cell, and what they are.

    A cell row is a lattice vector, as in ASE. Directions with ``pbc`` false have no
    images; a system without any periodic direction may have a zero cell. ``species`` is
    the atomic number, or any positive label for a coarse-grained bead.
    """

    positions: Array  # [n_atoms, 3], Å
    cell: Array  # [3, 3], Å, rows are lattice vectors
    species: Array  # [n_atoms], int32, 0 where masked
    masses: Array  # [n_atoms], u, 1 where masked
    mask: Array  # [n_atoms], bool
    pbc: Array  # [3], bool
    charges: Array | None = None  # [n_atoms], e
    total_charge: Array | None = None  # [], e

    @property
    def n_atoms(self) -> int:
        """Number of atom slots, padding included."""
        return self.positions.shape[-2]

    def astype(self, dtype: jax.typing.DTypeLike) -> System:
        """The same system with every floating-point leaf in ``dtype``."""
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            self,
        )


def make_system(
    positions: np.ndarray | Array,
    species: np.ndarray | Array | int,
    *,
    cell: np.ndarray | Array | float | None = None,
    masses: np.ndarray | Array | float | None = None,
    pbc: bool | Sequence[bool] | np.ndarray | None = None,
    charges: np.ndarray | Array | None = None,
    total_charge: float | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> System:
    """A checked `System` from arrays.

    Args:
        positions: shape ``[n_atoms, 3]``, Å.
        species: atomic numbers or bead labels, shape ``[n_atoms]`` or one for all.
        cell: ``[3, 3]`` rows, ``[3]`` edges of an orthorhombic cell, or one cubic edge, Å;
            ``None`` for free boundaries.
        masses: shape ``[n_atoms]`` or one for all, u; by default those of the elements.
        pbc: periodic directions; by default all if a cell is given, else none.
        charges: shape ``[n_atoms]``, e.
        total_charge: net charge, e.
        dtype: of every floating-point leaf; by default JAX's default.

    Raises:
        ValueError: for shapes that do not belong together, positions or cells that are
            not finite, periodic directions without a cell, or labels below 1.
    """
    positions = np.asarray(positions)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"`positions` must have shape [n_atoms, 3], got {positions.shape}")
    n_atoms = len(positions)
    _require_finite("positions", positions)
    species = np.broadcast_to(np.asarray(species), (n_atoms,))
    if not np.issubdtype(species.dtype, np.integer) or (species < 1).any():
        raise ValueError(
            "`species` must be positive integers (atomic numbers or bead labels), "
            f"got {np.unique(species)[:5]}"
        )
    if masses is None:
        masses = _element_masses(species)
    masses = np.broadcast_to(np.asarray(masses, float), (n_atoms,))
    if not (masses > 0.0).all():
        raise ValueError(f"`masses` must be positive (u), got {masses[~(masses > 0.0)][0]!r}")
    matrix = np.zeros((3, 3)) if cell is None else _cell_matrix(np.asarray(cell, float))
    periodic = np.broadcast_to(np.asarray(cell is not None if pbc is None else pbc), (3,))
    if periodic.any() and abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(
            f"`cell` {matrix.tolist()} has no volume but `pbc` is {periodic.tolist()}; "
            "give three independent lattice vectors or pbc=False"
        )
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    if charges is not None:
        charges = np.asarray(charges)
        if charges.shape != (n_atoms,):
            raise ValueError(f"`charges` must have shape {(n_atoms,)}, got {charges.shape}")
    return System(
        positions=jnp.asarray(positions, dtype),
        cell=jnp.asarray(matrix, dtype),
        species=jnp.asarray(species, jnp.int32),
        masses=jnp.asarray(masses, dtype),
        mask=jnp.ones(n_atoms, bool),
        pbc=jnp.asarray(periodic),
        charges=None if charges is None else jnp.asarray(charges, dtype),
        total_charge=None if total_charge is None else jnp.asarray(total_charge, dtype),
    )


def from_ase(
    atoms: ase.Atoms,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    species: Mapping[str, int] | None = None,
) -> System:
    """`System` of an ``ase.Atoms`` (positions, cell, pbc, numbers, masses, initial charges).

    Args:
        atoms: the structure; ``atoms.info["total_charge"]`` becomes ``total_charge``.
        dtype: of every floating-point leaf.
        species: labels that replace atomic numbers, by chemical symbol.

    Raises:
        ValueError: as :func:`make_system`; a symbol that ``species`` lacks is named.
    """
    numbers = atoms.get_atomic_numbers()
    if species is not None:
        unknown = sorted(set(atoms.get_chemical_symbols()) - set(species))
        if unknown:
            raise ValueError(f"`species` has no label for {unknown}; it knows {sorted(species)}")
        numbers = np.array([species[symbol] for symbol in atoms.get_chemical_symbols()])
    charges = atoms.arrays.get("initial_charges")
    return make_system(
        atoms.get_positions(),
        numbers,
        cell=atoms.cell.array if atoms.cell.rank == 3 else None,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        charges=charges,
        total_charge=atoms.info.get("total_charge"),
        dtype=dtype,
    )


def to_ase(system: System) -> ase.Atoms:
    """``ase.Atoms`` of one system, without its padding."""
    import ase

    keep = np.asarray(system.mask)
    atoms = ase.Atoms(
        numbers=np.asarray(system.species)[keep],
        positions=np.asarray(system.positions, float)[keep],
        cell=np.asarray(system.cell, float),
        pbc=np.asarray(system.pbc),
        masses=np.asarray(system.masses, float)[keep],
    )
    if system.charges is not None:
        atoms.set_initial_charges(np.asarray(system.charges, float)[keep])
    if system.total_charge is not None:
        atoms.info["total_charge"] = float(system.total_charge)
    return atoms


def pad_system(system: System, n_atoms: int) -> System:
    """The system with masked atoms appended up to ``n_atoms`` slots.

    Raises:
        ValueError: if the system has more than ``n_atoms`` atoms.
    """
    missing = n_atoms - system.n_atoms
    if missing < 0:
        raise ValueError(f"cannot pad {system.n_atoms} atoms down to {n_atoms}")

    def pad(leaf: Array, value: float) -> Array:
        widths = [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, widths, constant_values=value)

    return system._replace(
        positions=pad(system.positions, 0.0),
        species=pad(system.species, 0),
        masses=pad(system.masses, 1.0),
        mask=pad(system.mask, False),
        charges=None if system.charges is None else pad(system.charges, 0.0),
    )


def stack_systems(systems: Sequence[System]) -> System:
    """One batch from several systems, padded to the largest of them."""
    n_atoms = max(system.n_atoms for system in systems)
    padded = [pad_system(system, n_atoms) for system in systems]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


def bucket_size(n: int, *, growth: float = 1.25, smallest: int = 16) -> int:
    """The least bucket that holds ``n`` items; bucket sizes grow geometrically.

    Padding to buckets bounds the number of compiled programs by
    ``log(n_max / smallest) / log(growth)`` at a padding of at most ``growth``.
    """
    size = smallest
    while size < n:
        size = max(size + 1, -(-int(size * growth) // 8) * 8)
    return size


def volume(system: System) -> Array:
    """Cell volume, Å³; differentiable in the cell."""
    a, b, c = system.cell
    return jnp.abs(jnp.dot(a, jnp.cross(b, c)))


def cell_heights(cell: Array) -> Array:
    """Distances between opposite faces of the cell, shape ``[3]``, Å."""
    a, b, c = cell
    normals = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    return jnp.abs(jnp.dot(a, normals[0])) / jnp.linalg.norm(normals, axis=-1)


def wrap(system: System) -> System:
    """The system with every atom moved into the cell along its periodic directions."""
    cell = _invertible(system)
    fractional = jnp.matmul(system.positions, jnp.linalg.inv(cell), precision="highest")
    images = jnp.where(system.pbc[None], jnp.floor(fractional), 0.0)
    shifts = jnp.matmul(images, cell, precision="highest")
    return system._replace(positions=system.positions - shifts)


def strained(system: System, strain: Array) -> System:
    """The system under a homogeneous strain, ``r' = (1 + sym(strain)) r``.

    The antisymmetric part, a rotation, is removed: under residual stress it would leak
    into second derivatives.
    """
    deformation = jnp.eye(3, dtype=strain.dtype) + 0.5 * (strain + strain.T)
    return system._replace(
        positions=jnp.matmul(system.positions, deformation, precision="highest"),
        cell=jnp.matmul(system.cell, deformation, precision="highest"),
    )


def n_real_atoms(system: System) -> Array:
    """Number of atoms that are not padding."""
    return jnp.sum(system.mask)


def _invertible(system: System) -> Array:
    """The cell, with the unit matrix in place of a zero cell."""
    empty = jnp.all(system.cell == 0.0)
    return jnp.where(empty, jnp.eye(3, dtype=system.cell.dtype), system.cell)


def _cell_matrix(cell: np.ndarray) -> np.ndarray:
    if cell.shape not in ((), (3,), (3, 3)):
        raise ValueError(f"`cell` must have shape [3, 3], [3] or [], got {cell.shape}")
    _require_finite("cell", cell)
    return cell if cell.ndim == 2 else np.diag(np.broadcast_to(cell, (3,)))


def _require_finite(name: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"`{name}` has a value that is not finite at index {bad[0].tolist()}")


def _element_masses(species: np.ndarray) -> np.ndarray:
    from ase.data import atomic_masses

    if species.max() >= len(atomic_masses):
        raise ValueError(
            f"species {species.max()} is no element, so it has no default mass; give `masses`"
        )
    return atomic_masses[species]
