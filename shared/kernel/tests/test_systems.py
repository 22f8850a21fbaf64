import ase
import ase.build
import ase.geometry
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.systems import (
    bucket_size,
    cell_heights,
    from_ase,
    make_system,
    n_real_atoms,
    pad_system,
    stack_systems,
    strained,
    to_ase,
    volume,
    wrap,
)

TRICLINIC = np.array([[6.0, 0.0, 0.0], [2.5, 5.0, 0.0], [-2.0, 1.5, 7.0]])


def triclinic_system(n_atoms=20, seed=0, **options):
    rng = np.random.default_rng(seed)
    return make_system(
        rng.uniform(-2.0, 3.0, (n_atoms, 3)) @ TRICLINIC, 14, cell=TRICLINIC, **options
    )


def test_ase_atoms_come_back_as_they_were():
    """Positions, cell, pbc, species, masses, charges and total charge survive a round trip."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64).repeat((2, 1, 1))
    atoms.rattle(0.2, seed=1)
    atoms.pbc = [True, False, True]
    atoms.set_masses(np.linspace(20.0, 40.0, len(atoms)))
    atoms.set_initial_charges([1.0, -1.0, 1.0, -1.5])
    atoms.info["total_charge"] = -0.5
    system = from_ase(atoms)
    back = to_ase(pad_system(system, 9))
    for name in ("positions", "numbers", "initial_charges"):
        np.testing.assert_array_equal(back.arrays[name], atoms.arrays[name])
    np.testing.assert_array_equal(back.get_masses(), atoms.get_masses())
    np.testing.assert_array_equal(back.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(back.pbc, atoms.pbc)
    assert back.info["total_charge"] == -0.5
    assert to_ase(from_ase(ase.build.molecule("H2O"))).cell.rank == 0


def test_labels_may_replace_atomic_numbers():
    system = from_ase(ase.build.molecule("H2O"), species={"O": 1, "H": 2})
    np.testing.assert_array_equal(system.species, [1, 2, 2])
    np.testing.assert_allclose(system.masses, [15.999, 1.008, 1.008])
    with pytest.raises(ValueError, match=r"no label for \['H'\]"):
        from_ase(ase.build.molecule("H2O"), species={"O": 1})


def test_make_system_fills_in_what_is_not_given():
    system = make_system(np.zeros((2, 3)), [8, 1], cell=[4.0, 5.0, 6.0], dtype=jnp.float32)
    np.testing.assert_array_equal(system.cell, np.diag([4.0, 5.0, 6.0]))
    np.testing.assert_allclose(system.masses, [15.999, 1.008], rtol=1e-6)
    assert system.pbc.all()
    assert system.mask.all()
    assert system.positions.dtype == system.cell.dtype == system.masses.dtype == jnp.float32
    assert system.species.dtype == jnp.int32
    free = make_system(np.zeros((2, 3)), 1)
    assert not free.pbc.any()
    assert not free.cell.any()
    cubic = make_system(np.zeros((2, 3)), 1, cell=7.0, pbc=[True, True, False], masses=18.0)
    np.testing.assert_array_equal(cubic.cell, 7.0 * np.eye(3))
    np.testing.assert_array_equal(cubic.pbc, [True, True, False])
    np.testing.assert_array_equal(cubic.masses, [18.0, 18.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": np.zeros((3, 2))}, r"`positions` must have shape \[n_atoms, 3\]"),
        ({"positions": np.full((2, 3), np.nan)}, r"`positions` .* not finite at index \[0, 0\]"),
        ({"cell": np.full((3, 3), np.inf)}, "`cell` .* not finite"),
        ({"cell": np.ones((2, 2))}, "`cell` must have shape"),
        ({"cell": np.ones((3, 3))}, "`cell` .* has no volume"),
        ({"pbc": True}, "`cell` .* has no volume"),
        ({"species": [0, 1]}, "`species` must be positive"),
        ({"species": [1.0, 2.0]}, "`species` must be positive"),
        ({"species": [1, 500]}, "species 500 is no element"),
        ({"masses": [1.0, 0.0]}, "`masses` must be positive"),
        ({"charges": np.zeros(3)}, r"`charges` must have shape \(2,\)"),
    ],
)
def test_bad_input_is_named(options, message):
    arguments = {"positions": np.zeros((2, 3)), "species": 1} | options
    with pytest.raises(ValueError, match=message):
        make_system(**arguments)


def test_padding_adds_atoms_that_are_masked():
    system = triclinic_system(5, charges=np.arange(5.0))
    padded = pad_system(system, 8)
    assert padded.n_atoms == 8
    assert n_real_atoms(padded) == 5
    np.testing.assert_array_equal(padded.mask, [True] * 5 + [False] * 3)
    np.testing.assert_array_equal(padded.species[5:], 0)
    np.testing.assert_array_equal(padded.masses[5:], 1.0)
    np.testing.assert_array_equal(padded.charges[5:], 0.0)
    np.testing.assert_array_equal(padded.positions[:5], system.positions)
    np.testing.assert_array_equal(padded.cell, system.cell)
    with pytest.raises(ValueError, match="cannot pad 8 atoms down to 5"):
        pad_system(padded, 5)


def test_stacking_pads_to_the_largest():
    batch = stack_systems([triclinic_system(3), triclinic_system(6, seed=1)])
    assert batch.positions.shape == (2, 6, 3)
    assert batch.n_atoms == 6
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [3, 6])
    np.testing.assert_array_equal(batch.positions[0, :3], triclinic_system(3).positions)


def test_buckets_hold_and_are_few():
    """Every size fits with at most a quarter (and rounding to 8) wasted, in few sizes."""
    sizes = {n: bucket_size(n) for n in range(1, 5000)}
    assert all(size >= n for n, size in sizes.items())
    assert all(size <= 1.25 * n + 8 for n, size in sizes.items() if n > 16)
    assert len(set(sizes.values())) <= 2 + np.log(5000 / 16) / np.log(1.25)


def test_astype_leaves_integers_alone():
    system = triclinic_system(3, total_charge=1.0).astype(jnp.float32)
    floating = (system.positions, system.cell, system.masses, system.total_charge)
    assert {leaf.dtype for leaf in floating} == {jnp.dtype("float32")}
    assert system.species.dtype == jnp.int32
    assert system.mask.dtype == system.pbc.dtype == bool


def test_volume_and_heights():
    """det(cell) = 6 * 5 * 7; heights are V over the areas of the faces."""
    system = triclinic_system()
    np.testing.assert_allclose(volume(system), 210.0, rtol=1e-14)
    a, b, c = TRICLINIC
    areas = [np.linalg.norm(np.cross(*pair)) for pair in ((b, c), (c, a), (a, b))]
    np.testing.assert_allclose(cell_heights(system.cell), 210.0 / np.array(areas), rtol=1e-14)
    left_handed = system._replace(cell=system.cell[::-1])
    np.testing.assert_allclose(volume(left_handed), 210.0, rtol=1e-14)
    gradient = jax.grad(lambda cell: volume(system._replace(cell=cell)))(system.cell)
    np.testing.assert_allclose(gradient, 210.0 * np.linalg.inv(TRICLINIC).T, atol=1e-12)


@pytest.mark.parametrize("pbc", [True, [True, False, True], False])
def test_wrap_agrees_with_ase(pbc):
    system = triclinic_system(pbc=pbc)
    expected = ase.geometry.wrap_positions(
        np.asarray(system.positions), TRICLINIC, pbc=np.asarray(system.pbc), eps=0.0
    )
    wrapped = wrap(system)
    np.testing.assert_allclose(wrapped.positions, expected, atol=1e-12)
    np.testing.assert_allclose(wrap(wrapped).positions, wrapped.positions, atol=1e-12)


def test_wrapping_without_a_cell_changes_nothing():
    system = make_system(np.array([[100.0, -3.0, 0.5]]), 1)
    np.testing.assert_array_equal(wrap(system).positions, system.positions)


def test_strain_stretches_vectors_and_keeps_fractional_coordinates():
    """A uniaxial strain along x lengthens x alone, of positions and of every lattice vector."""
    system = triclinic_system()
    stretched = strained(system, jnp.zeros((3, 3)).at[0, 0].set(0.1))
    factor = np.array([[1.1, 1.0, 1.0]])
    np.testing.assert_allclose(stretched.positions, system.positions * factor, rtol=1e-14)
    np.testing.assert_allclose(stretched.cell, TRICLINIC * factor, rtol=1e-14)
    sheared = strained(system, jnp.zeros((3, 3)).at[0, 1].set(0.1))
    np.testing.assert_allclose(
        sheared.positions @ np.linalg.inv(sheared.cell),
        system.positions @ np.linalg.inv(TRICLINIC),
        atol=1e-12,
    )


def test_strain_acts_on_cartesian_axes_whatever_the_lattice():
    """The metric changes as h (1 + e)^2 h^T, and a symmetric strain turns nothing."""
    system = triclinic_system()
    strain = np.array([[0.02, 0.03, -0.01], [0.03, -0.04, 0.02], [-0.01, 0.02, 0.05]])
    deformation = np.eye(3) + strain
    result = strained(system, jnp.asarray(strain))
    metric = TRICLINIC @ deformation @ deformation @ TRICLINIC.T
    np.testing.assert_allclose(result.cell @ result.cell.T, metric, rtol=1e-13)
    np.testing.assert_allclose(np.linalg.inv(TRICLINIC) @ result.cell, deformation, atol=1e-14)
    np.testing.assert_allclose(volume(result), 210.0 * np.linalg.det(deformation), rtol=1e-13)


def test_the_rotation_in_a_strain_is_removed():
    system = triclinic_system()
    rotation = jnp.array([[0.0, 0.1, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(strained(system, rotation).positions, system.positions)
    strain = jnp.array([[0.0, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    symmetric = 0.5 * (strain + strain.T)
    np.testing.assert_array_equal(strained(system, strain).cell, strained(system, symmetric).cell)
