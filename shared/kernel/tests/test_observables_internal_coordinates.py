"""Internal coordinates against mdtraj and ASE, free energies against Boltzmann."""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import mdtraj
import numpy as np
import pytest

from mosaicmd.kernel.observables import (
    add_quantities,
    bond_angle,
    bond_length,
    coordinate_average,
    coordinate_distribution,
    dihedral,
    evaluate_frames,
    free_energy_surface,
)
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

TRICLINIC = np.array([[10.0, 0.0, 0.0], [2.5, 9.5, 0.0], [-2.0, 3.0, 9.0]])
KT = 0.025


def frames_of(positions, cell=None, **options):
    positions = np.asarray(positions, float)
    system = make_system(positions[0], 1, cell=cell, masses=1.0, **options)
    systems = system._replace(
        positions=jnp.asarray(positions), cell=jnp.tile(system.cell, (len(positions), 1, 1))
    )
    return Trajectory(systems, {}, StatePoint(KT))


def chain(lengths, angles, dihedrals):
    """Positions of four atoms with these internal coordinates, ``[n_frames, 4, 3]``."""
    n = len(dihedrals)
    a, b, c = np.broadcast_to(lengths, (n, 3)).T
    first, second = np.broadcast_to(angles, (n, 2)).T
    zero = np.zeros(n)
    i = np.stack([a * np.sin(first), zero, a * np.cos(first)], axis=-1)
    j, k = np.zeros((n, 3)), np.stack([zero, zero, b], axis=-1)
    # Looking along +z, clockwise is from +x to +y.
    radius = c * np.sin(second)
    last = np.stack(
        [radius * np.cos(dihedrals), radius * np.sin(dihedrals), b - c * np.cos(second)], axis=-1
    )
    return np.stack([i, j, k, last], axis=1)


def test_mdtraj_finds_the_same_values_in_a_triclinic_cell():
    """Atoms anywhere, so that most groups cross the boundary; mdtraj is in single precision."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(-1.0, 2.0, size=(5, 40, 3)) @ TRICLINIC
    groups = np.array([rng.permutation(40)[:4] for _ in range(30)])
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(40):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    theirs = mdtraj.Trajectory(positions / 10.0, topology)
    theirs.unitcell_vectors = np.tile(TRICLINIC / 10.0, (5, 1, 1)).astype(np.float32)
    coordinates = {
        "r": bond_length(groups[:, :2], r_max=20.0),
        "theta": bond_angle(groups[:, :3]),
        "phi": dihedral(groups),
    }
    ours = evaluate_frames(
        [coordinate_average(one, name=name) for name, one in coordinates.items()],
        None,
        frames_of(positions, TRICLINIC),
    )
    lengths = 10.0 * mdtraj.compute_distances(theirs, groups[:, :2])
    np.testing.assert_allclose(ours["r"], lengths, atol=2e-5)
    angles = mdtraj.compute_angles(theirs, groups[:, :3])
    np.testing.assert_allclose(ours["theta"], angles, atol=2e-4)
    turn = np.asarray(ours["phi"]) - mdtraj.compute_dihedrals(theirs, groups)
    np.testing.assert_allclose(np.cos(turn), 1.0, atol=1e-6)


@pytest.mark.skipif("MOSAICMD_DATA" not in os.environ, reason="MOSAICMD_DATA is not set")
def test_mdtraj_finds_the_same_backbone_angles_of_alanine_dipeptide():
    path = Path(os.environ["MOSAICMD_DATA"], "alanine_dipeptide", "ala2_gbsa_amber.pdb")
    start = mdtraj.load(path, top=path)
    noise = np.random.default_rng(5).normal(scale=0.03, size=(40, *start.xyz.shape[1:]))
    theirs = mdtraj.Trajectory(start.xyz + noise, start.topology)
    frames = frames_of(10.0 * theirs.xyz.astype(float))
    for compute in (mdtraj.compute_phi, mdtraj.compute_psi):
        atoms, expected = compute(theirs, periodic=False)
        found = evaluate_frames([coordinate_average(dihedral(atoms))], None, frames)["dihedral"]
        np.testing.assert_allclose(np.cos(found - expected), 1.0, atol=1e-6)
        assert np.std(np.sin(found)) > 0.1


def test_dihedral_has_the_sign_of_iupac():
    """Clockwise, looking along the middle bond, is positive; trans is at the edge."""
    given = np.radians([0.0, 60.0, -60.0, 120.0, -170.0, 180.0])
    positions = chain([1.1, 1.5, 0.9], np.radians([100.0, 70.0]), given)
    found = evaluate_frames(
        [coordinate_average(dihedral([0, 1, 2, 3]))], None, frames_of(positions)
    )
    expected = np.where(given == np.pi, -np.pi, given)
    np.testing.assert_allclose(np.cos(found["dihedral"][:, 0] - expected), 1.0, atol=1e-15)
    assert -np.pi <= np.min(found["dihedral"]) <= np.max(found["dihedral"]) < np.pi


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_those_of_finite_differences(dtype):
    """Smooth distributions of all coordinates, with respect to positions and cell."""
    rng = np.random.default_rng(2)
    system = make_system(rng.uniform(size=(6, 3)) @ TRICLINIC, 1, cell=TRICLINIC, masses=1.0)
    groups = list(itertools.permutations(range(6), 4))[::40]
    observables = [
        coordinate_distribution(
            bond_length([g[:2] for g in groups], r_max=9.0), n_bins=12, smoothing=0.4
        ),
        coordinate_distribution(bond_angle([g[:3] for g in groups]), n_bins=9, smoothing=0.2),
        coordinate_distribution(
            dihedral(groups), bond_angle([g[1:] for g in groups]), n_bins=(8, 5), smoothing=0.25
        ),
    ]

    @jax.jit
    def loss(positions, cell):
        moved = system._replace(positions=positions, cell=cell)
        values = [o.per_frame(None, moved, None, None) for o in observables]
        return sum(jnp.sum(jnp.sin(5.0 * value.reshape(-1))) for value in values)

    at = (system.positions.astype(dtype), system.cell.astype(dtype))
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*at)
    assert all(leaf.dtype == dtype for leaf in found)
    steps = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in at]
    exact = (system.positions, system.cell)
    ahead, behind = (
        loss(*(x + sign * 1e-5 * step for x, step in zip(exact, steps, strict=True)))
        for sign in (1.0, -1.0)
    )
    along = sum(float(jnp.sum(g * step)) for g, step in zip(found, steps, strict=True))
    rtol = 1e-6 if dtype == "float64" else 1e-3
    np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=rtol)


def test_straight_and_coinciding_atoms_have_finite_gradients():
    system = make_system([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [0, 0, 0]], 1, masses=1.0)

    def total(positions):
        moved = system._replace(positions=positions)
        coordinates = (
            bond_length([[0, 4]], r_max=3.0),
            bond_angle([[0, 1, 2], [1, 0, 4]]),
            dihedral([[0, 1, 2, 3]]),
        )
        return sum(jnp.sum(one.values(moved)) for one in coordinates)

    assert np.isfinite(jax.jit(jax.grad(total))(system.positions)).all()


@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_distributions_are_normalised_and_know_their_ends(smoothing):
    """Mass at pi is folded back for angles, and enters at -pi for dihedrals."""
    given = np.radians([178.0, -178.0, 179.9, 3.0])
    angles = np.stack([np.radians([90.0, 90.0, 90.0, 90.0]), np.radians([179.9] * 4)], axis=1)
    frames = frames_of(chain(1.0, angles, given))
    rotation = coordinate_distribution(dihedral([0, 1, 2, 3]), n_bins=36, smoothing=smoothing)
    bend = coordinate_distribution(bond_angle([1, 2, 3]), n_bins=18, smoothing=smoothing)
    values = evaluate_frames([rotation, bend], None, frames)
    width = np.pi / 18
    np.testing.assert_allclose(np.sum(values[rotation.name], axis=1) * width, 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.sum(values[bend.name], axis=1) * width, 1.0, rtol=1e-6)
    if smoothing is not None:  # 178 and -178 degrees: mirror images
        first, second = np.asarray(values[rotation.name][:2])
        np.testing.assert_allclose(first, second[::-1], atol=1e-12)
        assert first[0] > 1.0
        assert first[-1] > 1.0


def test_joint_density_has_the_marginals_of_its_coordinates():
    rng = np.random.default_rng(3)
    frames = frames_of(rng.normal(size=(7, 10, 3)))
    phi = dihedral([[0, 1, 2, 3], [3, 4, 5, 6]])
    psi = dihedral([[1, 2, 3, 4], [4, 5, 6, 7]])
    joint = coordinate_distribution(phi, psi, n_bins=(12, 18), smoothing=(0.2, 0.3), name="rama")
    single = coordinate_distribution(psi, n_bins=18, smoothing=0.3)
    values = evaluate_frames([joint, single], None, frames)
    assert values["rama"].shape == (7, 12, 18)
    assert joint.axis is not None
    assert joint.axis.shape == (12, 18, 2)
    np.testing.assert_allclose(joint.axis[3, :, 1], single.axis)
    marginal = np.sum(values["rama"], axis=1) * (2.0 * np.pi / 12)
    np.testing.assert_allclose(marginal, values[single.name], atol=1e-9)


def harmonic_bonds(n_frames, stiffness, r0, seed=0):
    """Independent frames of one bond drawn from ``r² exp(-k (r - r0)² / 2 kT)``."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(1e-3, r0 + 8.0 * np.sqrt(KT / stiffness), 40_001)
    density = grid**2 * np.exp(-0.5 * stiffness * (grid - r0) ** 2 / KT)
    cumulative = np.cumsum(density) / np.sum(density)
    lengths = np.interp(rng.uniform(size=n_frames), cumulative, grid)
    directions = rng.normal(size=(n_frames, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.stack([np.zeros((n_frames, 3)), lengths[:, None] * directions], axis=1)


def test_harmonic_bond_has_its_boltzmann_distribution_and_its_potential_as_free_energy():
    """``p ~ r² exp(-U / kT)`` within 4 sigma; without the Jacobian the surface is ``U``."""
    stiffness, r0, n_frames = 2.0, 0.6, 20_000  # eV/Å², Å: soft, so that r² matters
    frames = frames_of(harmonic_bonds(n_frames, stiffness, r0))
    bond = bond_length([0, 1], r_max=1.2)
    density = coordinate_distribution(bond, n_bins=30)
    frames = add_quantities([density], None, frames)
    value, info = density(frames)
    fine = np.linspace(0.0, 1.2, 3001)
    fine = 0.5 * (fine[1:] + fine[:-1])
    exact = fine**2 * np.exp(-0.5 * stiffness * (fine - r0) ** 2 / KT)
    grid = np.linspace(1e-6, 3.0, 100_001)
    norm = np.trapezoid(grid**2 * np.exp(-0.5 * stiffness * (grid - r0) ** 2 / KT), grid)
    expected = exact.reshape(30, 100).mean(axis=1) / norm
    error = np.sqrt(expected / (n_frames * 0.04))  # binomial
    well = expected * n_frames * 0.04 > 20
    assert np.sum(well) > 12
    assert np.abs((np.asarray(value) - expected) / error)[well].max() < 4.0
    np.testing.assert_allclose(np.asarray(info.error)[well], error[well], rtol=0.25)

    surface, info = free_energy_surface(density, KT, geometry=[bond])(frames)
    weight = np.exp(-0.5 * stiffness * (fine - r0) ** 2 / KT) * fine**2
    potential = -KT * np.log(
        weight.reshape(30, 100).sum(axis=1) / (fine**2).reshape(30, 100).sum(axis=1)
    )
    lowest = np.argmin(surface)
    z = (surface - (potential - potential[lowest])) / np.asarray(info.error)
    z = np.delete(np.asarray(z)[well], np.flatnonzero(np.flatnonzero(well) == lowest))
    assert np.abs(z).max() < 5.0  # errors themselves are known to a fifth, from 16 blocks
    assert surface[lowest] == 0.0
    assert info.error[lowest] == 0.0


def test_empty_bins_are_infinite_and_weights_have_finite_gradients():
    frames = frames_of(chain(1.2, 1.5, np.array([-2.0, -2.0, 1.0, 1.02, 1.0, -2.0])))
    rama = coordinate_distribution(dihedral([0, 1, 2, 3]), bond_angle([0, 1, 2]), n_bins=12)
    surface = free_energy_surface(rama, KT)
    frames = add_quantities([surface], None, frames)
    weights = jnp.array([1.0, 2.0, 1.0, 1.0, 2.0, 1.0]) / 8.0
    value, info = surface(frames, weights)
    occupied = np.asarray(rama(frames, weights)[0]) > 0.0
    assert occupied.sum() == 2
    np.testing.assert_array_equal(np.isfinite(value), occupied)
    np.testing.assert_array_equal(np.isfinite(info.error), occupied)
    assert np.min(value) == 0.0

    def highest(weights):
        found = surface(frames, weights)[0]
        return jnp.max(jnp.where(jnp.isfinite(found), found, 0.0))

    # Three frames on either side: F = kT ln of the ratio of weights, 4/4 at first.
    weights = jnp.array([1.0, 2.0, 1.0, 1.0, 3.0, 1.0])
    assert highest(weights) == pytest.approx(KT * np.log(5.0 / 4.0), rel=1e-9)
    gradient = jax.grad(highest)(weights)
    expected = KT * np.array([-1 / 4, -1 / 4, 1 / 5, 1 / 5, 1 / 5, -1 / 4])
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_surface_of_a_torsion_and_its_errors():
    """Weights take a free torsion to ``cos(2 phi)``; errors match the scatter over runs."""
    barrier, n_frames, n_runs = 1.5 * KT, 1500, 24
    rotation = coordinate_distribution(dihedral([0, 1, 2, 3]), n_bins=24)
    surface = free_energy_surface(rotation, KT)
    rng = np.random.default_rng(4)
    values, errors = [], []
    for _ in range(n_runs):
        angle = rng.uniform(-np.pi, np.pi, n_frames)
        frames = add_quantities([rotation], None, frames_of(chain(1.0, 1.7, angle)))
        found, info = surface(frames, np.exp(-barrier * np.cos(2.0 * angle) / KT))
        values.append(np.asarray(found) - np.mean(found))
        errors.append(np.asarray(info.error))
    edges = np.linspace(-np.pi, np.pi, 24 * 50 + 1)
    weight = np.exp(-1.5 * np.cos(edges[1:] + edges[:-1])).reshape(24, 50).mean(axis=1)
    exact = -KT * np.log(weight)
    scatter = np.std(values, axis=0, ddof=1)
    # A bias of second order, half the relative variance, is below the error.
    z = (np.mean(values, axis=0) - (exact - exact.mean())) / (scatter / np.sqrt(n_runs))
    assert np.abs(z).max() < 4.5
    # Relative to the minimum, errors are larger than about the mean by that of the minimum.
    ratio = np.median(errors) / np.median(scatter)
    assert 0.9 < ratio < 2.0


def test_average_of_a_function():
    angle = np.array([0.3, 0.3, 1.0, 2.0])
    frames = frames_of(chain(1.0, 1.5, angle))
    karplus = coordinate_average(
        dihedral([0, 1, 2, 3]), lambda phi: 6.4 * jnp.cos(phi) ** 2, unit="Hz", name="J"
    )
    value, _ = karplus(add_quantities([karplus], None, frames))
    np.testing.assert_allclose(value, [np.mean(6.4 * np.cos(angle) ** 2)], rtol=1e-10)


ROTATION = dihedral([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bond_length([0, 1, 2], r_max=2.0), r"`pairs` must have shape \[n_groups, 2\]"),
        (lambda: bond_length([0, 0], r_max=2.0), "`pairs` has an atom twice"),
        (lambda: bond_length([0, 1], r_max=1.0, r_min=2.0), "`r_min` and `r_max` must grow"),
        (lambda: bond_angle([[0, -1, 2]]), "`triples` must hold indices of atoms"),
        (lambda: dihedral(np.zeros((0, 4), int)), "`quadruples` must have shape"),
        (lambda: coordinate_distribution(n_bins=3), "at least one coordinate"),
        (lambda: coordinate_distribution(ROTATION, n_bins=0), "`n_bins` must be at least 1"),
        (lambda: coordinate_distribution(ROTATION, n_bins=[3, 4]), "one for each of 1"),
        (
            lambda: coordinate_distribution(ROTATION, n_bins=3, smoothing=1.0),
            "`smoothing` of a dihedral must lie between 0 and 0.628 rad",
        ),
        (
            lambda: free_energy_surface(coordinate_distribution(ROTATION, n_bins=3), 0.0),
            "`kT` must be positive",
        ),
        (
            lambda: free_energy_surface(
                coordinate_distribution(ROTATION, n_bins=3), KT, geometry=[ROTATION] * 2
            ),
            "`geometry` has 2 coordinates, the distribution has 1",
        ),
        (
            lambda: ROTATION.values(make_system(np.eye(3), 1, masses=1.0)),
            "atom 3 does not exist: the system has 3",
        ),
        (
            lambda: jax.eval_shape(
                coordinate_distribution(ROTATION, dihedral([[0, 1, 2, 3]] * 2), n_bins=3).per_frame,
                *(None, make_system(np.eye(4)[:, :3], 1, masses=1.0), None, None),
            ),
            "must have one number of groups",
        ),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
