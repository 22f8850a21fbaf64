"""Elastic tensors in Voigt notation: rotation, crystal symmetry, stress, and moduli.

A stiffness is a ``[6, 6]`` array over the pairs xx, yy, zz, yz, xz, xy, as in ASE; a strain
vector has the doubled shears, ``(e_xx, e_yy, e_zz, 2 e_yz, 2 e_xz, 2 e_xy)``, a stress vector
has not, so that ``stress = stiffness @ strain``. Functions here do not care about the unit
of a stiffness and are differentiable in it.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.systems import System

Array = jax.Array

VOIGT_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Indices of the tensor components behind those of a Voigt vector."""

_ROWS, _COLUMNS = (np.array(indices) for indices in zip(*VOIGT_PAIRS, strict=True))
_VOIGT_INDEX = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
_SHEAR_FACTOR = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])


class Moduli(NamedTuple):
    """Moduli of a polycrystal without texture, in the unit of the stiffness."""

    bulk_voigt: Array  # [], uniform strain: the upper bound
    bulk_reuss: Array  # [], uniform stress: the lower bound
    bulk_hill: Array  # [], mean of both
    shear_voigt: Array
    shear_reuss: Array
    shear_hill: Array
    young_hill: Array
    poisson_hill: Array  # [], dimensionless
    anisotropy: Array  # [], dimensionless, 5 G_V / G_R + K_V / K_R - 6: 0 if isotropic


def strain_matrix(strain: Array) -> Array:
    """The symmetric ``[3, 3]`` strain of a Voigt vector with doubled shears."""
    return (strain / jnp.asarray(_SHEAR_FACTOR, strain.dtype))[_VOIGT_INDEX]


def strain_vector(strain: Array) -> Array:
    """The Voigt vector, with doubled shears, of a symmetric ``[3, 3]`` strain."""
    return strain[_ROWS, _COLUMNS] * jnp.asarray(_SHEAR_FACTOR, strain.dtype)


def stress_matrix(stress: Array) -> Array:
    """The symmetric ``[3, 3]`` stress of a Voigt vector."""
    return stress[_VOIGT_INDEX]


def stress_vector(stress: Array) -> Array:
    """The Voigt vector of a symmetric ``[3, 3]`` stress."""
    return stress[_ROWS, _COLUMNS]


def full_tensor(stiffness: Array) -> Array:
    """The ``[3, 3, 3, 3]`` tensor of a ``[6, 6]`` stiffness."""
    return stiffness[_VOIGT_INDEX[:, :, None, None], _VOIGT_INDEX[None, None]]


def voigt_tensor(tensor: Array) -> Array:
    """The ``[6, 6]`` stiffness of a ``[3, 3, 3, 3]`` tensor symmetric in either pair."""
    return tensor[_ROWS[:, None], _COLUMNS[:, None], _ROWS[None], _COLUMNS[None]]


def rotate(stiffness: Array, rotation: Array) -> Array:
    """The stiffness of the body turned by ``rotation``, ``[3, 3]`` acting on columns."""
    return _average_over(stiffness, jnp.asarray(rotation, stiffness.dtype)[None])


def project(stiffness: Array, rotations: Array) -> Array:
    """The stiffness averaged over a point group: the nearest one of that symmetry.

    Args:
        stiffness: ``[6, 6]``.
        rotations: ``[n, 3, 3]`` Cartesian, of a whole group as from :func:`point_group`.
    """
    return _average_over(stiffness, jnp.asarray(rotations, stiffness.dtype))


def point_group(system: System, *, tolerance: float = 1e-3) -> np.ndarray:
    """Cartesian rotations and rotoinversions of a crystal, in the frame of its cell.

    Those of the crystal itself: a supercell that has less symmetry than what it repeats
    still gets the group of the latter. Elastic constants do not see inversion, so the group
    stands for its Laue class.

    Args:
        system: the ideal structure, not a frame of a run; periodic in three directions.
        tolerance: by how much atoms may miss their images, Å.

    Returns:
        Shape ``[n, 3, 3]``, orthogonal to the accuracy of the structure.

    Raises:
        ImportError: without spglib, the extra ``elasticity``.
        ValueError: for a system that is not periodic, or in which no symmetry was found.
    """
    if not np.asarray(system.pbc).all():
        raise ValueError(
            f"`system` has pbc {np.asarray(system.pbc).tolist()}; a point group needs a crystal"
        )
    keep = np.asarray(system.mask)
    cell = np.asarray(system.cell, float)
    fractional = np.asarray(system.positions, float)[keep] @ np.linalg.inv(cell)
    crystal = (cell, fractional, np.asarray(system.species)[keep])
    lattice, rotations = _primitive_symmetry(crystal, tolerance)
    basis = lattice.T  # columns are lattice vectors
    return basis @ np.unique(rotations, axis=0) @ np.linalg.inv(basis)


def independent_constants(rotations: np.ndarray) -> tuple[str, ...]:
    """Names of the constants that determine all others under a point group.

    In the order C11, C12, ... C66 of the upper triangle, each that does not follow from
    those before it. With the customary axes these are the constants of textbooks: three for
    cubic crystals (C11, C12, C44), five for hexagonal ones, six or seven for trigonal and
    tetragonal ones.

    Args:
        rotations: ``[n, 3, 3]``, as from :func:`point_group`.

    References:
        Nye, Physical Properties of Crystals (Oxford, 1985), table 9.
    """
    upper = [(i, j) for i in range(6) for j in range(i, 6)]
    units = np.zeros((len(upper), 6, 6))
    for k, (i, j) in enumerate(upper):
        units[k, i, j] = units[k, j, i] = 1.0
    images = np.stack([_numpy_average(unit, np.asarray(rotations, float)) for unit in units])
    values = np.array([[image[i, j] for i, j in upper] for image in images])
    chosen: list[int] = []
    for k in range(len(upper)):
        if np.linalg.matrix_rank(values[:, [*chosen, k]], tol=1e-6) > len(chosen):
            chosen.append(k)
    return tuple(f"C{upper[k][0] + 1}{upper[k][1] + 1}" for k in chosen)


def named_constants(stiffness: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """Components of a stiffness, or of its error, by names such as ``C44``."""
    return {name: stiffness[int(name[1]) - 1, int(name[2]) - 1] for name in names}


def birch_coefficients(stiffness: Array, stress: Array) -> Array:
    r"""Stress-strain coefficients ``B = d(Cauchy stress) / d(strain)`` at a stressed state.

    ``B_ijkl = C_ijkl + (s_ik d_jl + s_il d_jk + s_jk d_il + s_jl d_ik) / 2 - s_ij d_kl``.
    They are what explicit strain measures, they decide on stability, and they equal ``C``
    where the stress vanishes. Under a stress that is not hydrostatic ``B`` is not symmetric:
    rows belong to the stress, columns to the strain.

    Args:
        stiffness: ``C``, second derivative of the free energy in the Lagrangian strain per
            volume, ``[6, 6]``.
        stress: Cauchy stress ``s``, ``[6]``, tension positive, same unit.

    References:
        Wallace, Thermodynamics of Crystals (Wiley, 1972), sec. 2; Barron & Klein, Proc.
        Phys. Soc. 85, 523 (1965); Wang, Li, Yip, Phillpot & Wolf, Phys. Rev. B 52, 12627
        (1995).
    """
    s, d = stress_matrix(stress), jnp.eye(3, dtype=stiffness.dtype)
    mixed = [
        jnp.einsum(f"{left},{right}->ijkl", s, d)
        for left, right in (("ik", "jl"), ("il", "jk"), ("jk", "il"), ("jl", "ik"))
    ]
    added = 0.5 * sum(mixed[1:], start=mixed[0]) - jnp.einsum("ij,kl->ijkl", s, d)
    return stiffness + voigt_tensor(added)


def moduli(stiffness: Array) -> Moduli:
    """Bulk and shear moduli by Voigt, Reuss and Hill, and what follows from Hill's.

    Args:
        stiffness: ``[6, 6]``, symmetric.

    References:
        Hill, Proc. Phys. Soc. A 65, 349 (1952); Ranganathan & Ostoja-Starzewski, Phys. Rev.
        Lett. 101, 055504 (2008) for the anisotropy.
    """
    compliance = jnp.linalg.inv(stiffness)
    c, s = (_invariants(matrix) for matrix in (stiffness, compliance))
    bulk_voigt, bulk_reuss = (c[0] + 2.0 * c[1]) / 9.0, 1.0 / (s[0] + 2.0 * s[1])
    shear_voigt = (c[0] - c[1] + 3.0 * c[2]) / 15.0
    shear_reuss = 15.0 / (4.0 * (s[0] - s[1]) + 3.0 * s[2])
    bulk, shear = 0.5 * (bulk_voigt + bulk_reuss), 0.5 * (shear_voigt + shear_reuss)
    return Moduli(
        bulk_voigt=bulk_voigt,
        bulk_reuss=bulk_reuss,
        bulk_hill=bulk,
        shear_voigt=shear_voigt,
        shear_reuss=shear_reuss,
        shear_hill=shear,
        young_hill=9.0 * bulk * shear / (3.0 * bulk + shear),
        poisson_hill=(3.0 * bulk - 2.0 * shear) / (6.0 * bulk + 2.0 * shear),
        anisotropy=5.0 * shear_voigt / shear_reuss + bulk_voigt / bulk_reuss - 6.0,
    )


def eigenstiffnesses(birch: Array) -> Array:
    """Stiffness against each of six orthogonal strains, ascending, ``[6]``.

    Eigenvalues of the tensor, so without the preference of Voigt notation for shears. A
    crystal is stable against homogeneous strain while all are positive; ``3 K``, twice
    ``C'`` = C11 - C12, and thrice ``2 C44`` are those of a cubic crystal.

    Args:
        birch: ``[6, 6]``; of a matrix that is not symmetric the symmetric part counts.

    References:
        Mouhat & Coudert, Phys. Rev. B 90, 224104 (2014).
    """
    scale = jnp.sqrt(jnp.asarray(_SHEAR_FACTOR, birch.dtype))
    matrix = 0.5 * (birch + birch.T) * scale[:, None] * scale[None]
    return jnp.linalg.eigvalsh(matrix)


def is_stable(birch: Array) -> Array:
    """Born's criterion: every homogeneous strain raises the energy; shape ``[]``, bool."""
    return jnp.all(eigenstiffnesses(birch) > 0.0)


def _primitive_symmetry(crystal: tuple, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The primitive cell of a crystal, not turned, and its rotations in fractions of it."""
    try:
        import spglib
    except ImportError as error:
        raise ImportError(
            "point groups need spglib: pip install 'mosaicmd-kernel[elasticity]'"
        ) from error
    failure, primitive, found = None, None, None
    with warnings.catch_warnings():  # of 2.7 to 2.9, that failures will raise, as they may here
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            primitive = spglib.standardize_cell(
                crystal, to_primitive=True, no_idealize=True, symprec=tolerance
            )
            if primitive is not None:
                found = spglib.get_symmetry_dataset(primitive, symprec=tolerance)
        except Exception as error:  # its class is not the same in all versions
            failure = error
    if primitive is None or found is None:
        raise ValueError(
            f"spglib found no symmetry within `tolerance` {tolerance} Å; pass the ideal crystal, "
            "in which no two atoms coincide, or another tolerance"
        ) from failure
    return np.asarray(primitive[0], float), np.asarray(found.rotations)


def _invariants(matrix: Array) -> tuple[Array, Array, Array]:
    """Sums of the normal, of the mixed, and of the shear constants."""
    normal = matrix[0, 0] + matrix[1, 1] + matrix[2, 2]
    mixed = matrix[0, 1] + matrix[0, 2] + matrix[1, 2]
    return normal, mixed, matrix[3, 3] + matrix[4, 4] + matrix[5, 5]


def _average_over(stiffness: Array, rotations: Array) -> Array:
    tensor = full_tensor(stiffness)

    def turned(rotation: Array) -> Array:
        result = tensor
        for _ in range(4):  # contract the first index and put the new one last
            result = jnp.tensordot(result, rotation, axes=((0,), (1,)), precision="highest")
        return voigt_tensor(result)

    return jnp.mean(jax.vmap(turned)(rotations), axis=0)


def _numpy_average(stiffness: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    tensor = stiffness[_VOIGT_INDEX[:, :, None, None], _VOIGT_INDEX[None, None]]
    turned = np.einsum(
        "nai,nbj,nck,ndl,ijkl->nabcd", *(rotations,) * 4, tensor, optimize=True
    ).mean(axis=0)
    return turned[_ROWS[:, None], _COLUMNS[:, None], _ROWS[None], _COLUMNS[None]]
