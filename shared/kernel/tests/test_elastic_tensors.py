"""Voigt notation, crystal classes and moduli against textbooks and closed forms."""

import importlib.util
import sys

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.spacegroup import Spacegroup

from mosaicmd.kernel.elastic_tensors import (
    birch_coefficients,
    eigenstiffnesses,
    full_tensor,
    independent_constants,
    is_stable,
    moduli,
    named_constants,
    point_group,
    project,
    rotate,
    strain_matrix,
    strain_vector,
    stress_matrix,
    stress_vector,
    voigt_tensor,
)
from mosaicmd.kernel.systems import from_ase, make_system, pad_system
from mosaicmd.kernel.testing import random_orthogonal


def random_stiffness(seed):
    matrix = np.random.default_rng(seed).normal(size=(6, 6))
    return jnp.asarray(matrix @ matrix.T + np.eye(6))


def cubic(c11, c12, c44):
    matrix = np.diag([c11 - c12] * 3 + [c44] * 3)
    matrix[:3, :3] += c12
    return jnp.asarray(matrix)


def test_voigt_vectors_keep_work_and_hooke():
    """Stress times strain and C times strain are the same in either notation."""
    rng = np.random.default_rng(0)
    stiffness, strain = random_stiffness(1), jnp.asarray(rng.normal(size=6))
    stress = stiffness @ strain
    eta, tensor = strain_matrix(strain), full_tensor(stiffness)
    by_tensor = jnp.einsum("ijkl,kl->ij", tensor, eta)
    np.testing.assert_allclose(stress_matrix(stress), by_tensor, rtol=1e-12)
    np.testing.assert_allclose(stress @ strain, jnp.sum(by_tensor * eta), rtol=1e-12)
    np.testing.assert_array_equal(stress_vector(by_tensor.T), stress_vector(by_tensor))
    np.testing.assert_array_equal(voigt_tensor(tensor), stiffness)
    np.testing.assert_allclose(strain_vector(eta), strain)


def test_rotation_turns_every_index():
    rotation = random_orthogonal(np.random.default_rng(2))
    stiffness = random_stiffness(3)
    expected = np.einsum("ai,bj,ck,dl,ijkl->abcd", *(rotation,) * 4, full_tensor(stiffness))
    np.testing.assert_allclose(full_tensor(rotate(stiffness, rotation)), expected, atol=1e-12)
    np.testing.assert_allclose(rotate(rotate(stiffness, rotation), rotation.T), stiffness)


@pytest.mark.parametrize(
    ("number", "names"),
    [  # Nye, table 9: one space group of every Laue class
        (2, "C11 C12 C13 C14 C15 C16 C22 C23 C24 C25 C26 C33 C34 C35 C36 C44 C45 C46 C55 C56 C66"),
        (14, "C11 C12 C13 C15 C22 C23 C25 C33 C35 C44 C46 C55 C66"),
        (62, "C11 C12 C13 C22 C23 C33 C44 C55 C66"),
        (88, "C11 C12 C13 C16 C33 C44 C66"),
        (136, "C11 C12 C13 C33 C44 C66"),
        (148, "C11 C12 C13 C14 C15 C33 C44"),
        (167, "C11 C12 C13 C14 C33 C44"),
        (176, "C11 C12 C13 C33 C44"),
        (194, "C11 C12 C13 C33 C44"),
        (205, "C11 C12 C44"),
        (227, "C11 C12 C44"),
    ],
)
def test_independent_constants_are_those_of_the_laue_class(number, names):
    hexagonal = 143 <= number <= 194
    basis = np.array([[1.0, -0.5, 0.0], [0.0, np.sqrt(0.75), 0.0], [0.0, 0.0, 1.0]])
    basis = basis if hexagonal else np.eye(3)
    rotations = basis @ Spacegroup(number).get_rotations() @ np.linalg.inv(basis)
    assert independent_constants(rotations) == tuple(names.split())
    stiffness = random_stiffness(4)
    symmetric = project(stiffness, jnp.asarray(rotations))
    np.testing.assert_allclose(project(symmetric, jnp.asarray(rotations)), symmetric, atol=1e-12)
    if hexagonal:
        np.testing.assert_allclose(symmetric[5, 5], (symmetric[0, 0] - symmetric[0, 1]) / 2.0)
    assert list(named_constants(symmetric, names.split())) == names.split()


@pytest.mark.parametrize(
    ("atoms", "order"),
    [
        (ase.build.bulk("Si", cubic=True).repeat((2, 1, 3)), 48),
        (ase.build.bulk("Ti", "hcp", a=2.93, c=4.68).repeat((2, 2, 1)), 24),
        (ase.build.bulk("NaCl", "rocksalt", a=5.6), 48),
        (ase.build.bulk("ZnS", "zincblende", a=5.4), 24),
        (ase.build.bulk("ZnO", "wurtzite", a=3.25, c=5.2), 12),
    ],
    ids=["supercell", "hcp", "rocksalt", "zincblende", "wurtzite"],
)
def test_point_group_of_a_crystal_in_any_orientation(atoms, order):
    turn = random_orthogonal(np.random.default_rng(5))
    atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    rotations = point_group(pad_system(from_ase(atoms), len(atoms) + 3))
    assert rotations.shape == (order, 3, 3)
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, 1, 2),
        np.broadcast_to(np.eye(3), (order, 3, 3)),
        atol=1e-9,
    )
    # turned back, the group must leave a tensor of the customary axes alone
    c = project(random_stiffness(6), jnp.asarray(turn.T @ rotations @ turn))
    scale = 3 if "Si" in atoms.symbols or "Na" in atoms.symbols or "S" in atoms.symbols else 5
    assert len(independent_constants(turn.T @ rotations @ turn)) == scale
    np.testing.assert_allclose(c[0, 0], c[1, 1], rtol=1e-9)


def test_what_has_no_point_group_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"`system` has pbc \[True, True, False\]"):
        point_group(make_system(np.zeros((1, 3)), 14, cell=5.0, pbc=[True, True, False]))
    with pytest.raises(ValueError, match=r"`tolerance` 0\.001 Å; pass the ideal crystal"):
        point_group(make_system(np.zeros((2, 3)), 14, cell=5.0))
    monkeypatch.setitem(sys.modules, "spglib", None)
    with pytest.raises(ImportError, match=r"mosaicmd-kernel\[elasticity\]"):
        point_group(make_system(np.zeros((1, 3)), 14, cell=5.0))
    assert importlib.util.find_spec("ase") is not None


def test_birch_coefficients_of_an_ideal_gas():
    """C = p (d_ik d_jl + d_il d_jk), so B11 = B12 = p: pressure is all its stiffness."""
    c = cubic(2.0, 0.0, 1.0)
    stress = jnp.array([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(birch_coefficients(c, stress), cubic(1.0, 1.0, 0.0), atol=1e-14)


def test_moduli_of_a_cubic_crystal():
    """Hill's closed forms; copper: 168.4, 121.4, 75.4 GPa (Kittel)."""
    c11, c12, c44 = 168.4, 121.4, 75.4
    found = moduli(cubic(c11, c12, c44))
    bulk = (c11 + 2.0 * c12) / 3.0
    voigt = (c11 - c12 + 3.0 * c44) / 5.0
    reuss = 5.0 * (c11 - c12) * c44 / (4.0 * c44 + 3.0 * (c11 - c12))
    np.testing.assert_allclose(found.bulk_voigt, bulk)
    np.testing.assert_allclose(found.bulk_reuss, bulk)
    np.testing.assert_allclose(found.shear_voigt, voigt)
    np.testing.assert_allclose(found.shear_reuss, reuss)
    np.testing.assert_allclose(found.anisotropy, 5.0 * voigt / reuss - 5.0)
    shear = (voigt + reuss) / 2.0
    np.testing.assert_allclose(found.young_hill, 9.0 * bulk * shear / (3.0 * bulk + shear))
    np.testing.assert_allclose(found.poisson_hill, found.young_hill / (2.0 * shear) - 1.0)
    slope = jax.grad(lambda c: moduli(c).shear_hill)(cubic(c11, c12, c44))
    assert np.isfinite(slope).all()


def test_born_stability_of_a_cubic_crystal():
    """C11 + 2 C12, C11 - C12 and C44 must be positive, and are the eigenvalues."""
    np.testing.assert_allclose(
        eigenstiffnesses(cubic(10.0, 4.0, 2.0)), [4.0, 4.0, 4.0, 6.0, 6.0, 18.0]
    )
    assert is_stable(cubic(10.0, 4.0, 2.0))
    for broken in (cubic(4.0, 5.0, 2.0), cubic(10.0, 4.0, -0.1), cubic(4.0, -2.1, 1.0)):
        assert not is_stable(broken)
