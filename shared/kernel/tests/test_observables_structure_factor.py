"""Structure factors of gases, crystals and hard spheres, from wave vectors and from g(r)."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from mosaicmd.kernel.observables import (
    add_quantities,
    bragg_intensities,
    evaluate_frames,
    rdf,
    structure_factor,
    structure_factor_from_rdf,
    transform_of_rdf,
    wave_vectors,
)
from mosaicmd.kernel.systems import from_ase, make_system, pad_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

TRICLINIC = np.array([[10.0, 0.0, 0.0], [2.5, 9.5, 0.0], [-2.0, 3.0, 9.0]])


def value(observable, system):
    return np.asarray(jax.jit(observable.per_frame)(None, system, None, None))


def frames_of(system, positions):
    systems = system._replace(
        positions=jnp.asarray(positions), cell=jnp.tile(system.cell, (len(positions), 1, 1))
    )
    return Trajectory(systems, {}, StatePoint(0.025))


def test_wave_vectors_are_all_within_the_sphere_once():
    found = wave_vectors(TRICLINIC, 3.1)
    reciprocal = 2.0 * np.pi * np.linalg.inv(TRICLINIC).T
    grid = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), axis=-1).reshape(-1, 3)
    lengths = np.linalg.norm(grid @ reciprocal, axis=1)
    inside = {tuple(n) for n in grid[(lengths > 0.0) & (lengths <= 3.1)].tolist()}
    ours = {tuple(n) for n in found.tolist()}
    assert len(ours) == len(found)
    assert ours | {(-a, -b, -c) for a, b, c in ours} == inside
    assert not ours & {(-a, -b, -c) for a, b, c in ours}
    assert (np.diff(np.linalg.norm(found @ reciprocal, axis=1)) > -1e-9).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_equal_their_definition(dtype):
    rng = np.random.default_rng(0)
    positions = rng.uniform(-2.0, 3.0, size=(40, 3)) @ TRICLINIC
    labels = rng.integers(1, 3, 40)
    system = make_system(positions, labels, cell=TRICLINIC, masses=1.0)
    indices = wave_vectors(TRICLINIC, 4.0)
    k = 2.0 * np.pi * indices @ np.linalg.inv(TRICLINIC).T
    waves = np.exp(1j * k @ positions.T)
    one, two = (waves[:, labels == label].sum(axis=1) for label in (1, 2))
    counts = np.bincount(labels)
    expected = {
        (None, None): np.abs(one + two) ** 2 / 40,
        (1, None): np.abs(one) ** 2 / counts[1],
        (1, 2): (one * two.conj()).real / np.sqrt(counts[1] * counts[2]),
    }
    wanted = list(expected.values())
    wanted.append(np.abs(2.0 * one - 0.5 * two) ** 2 / (4.0 * counts[1] + 0.25 * counts[2]))
    lengths = np.linalg.norm(k, axis=1)
    shell = np.minimum(lengths / 4.0 * 9, 8).astype(int)
    wanted.append(np.array([wanted[0][shell == i].mean() for i in np.unique(shell)]))
    shells = structure_factor(TRICLINIC, k_max=4.0, n_shells=9)
    np.testing.assert_allclose(shells.axis, [lengths[shell == i].mean() for i in np.unique(shell)])
    observables = [bragg_intensities(indices, *species) for species in expected]
    observables += [bragg_intensities(indices, scattering_lengths={1: 2.0, 2: -0.5}), shells]

    @jax.jit
    def values(system):
        return [observable.per_frame(None, system, None, None) for observable in observables]

    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == "float64" else {"atol": 2e-3}
    for found, exact in zip(values(pad_system(system, 47).astype(dtype)), wanted, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact, **tolerance)


def test_ideal_gas_has_one_everywhere():
    """Within 4 sigma at every shell, with error bars as wide as the deviations; unlike: 0."""
    n_frames, labels = 300, np.arange(60) % 3 + 1
    rng = np.random.default_rng(1)
    positions = rng.uniform(size=(n_frames, 60, 3)) @ TRICLINIC
    system = make_system(positions[0], labels, cell=TRICLINIC, masses=1.0)
    observables = [
        structure_factor(TRICLINIC, *species, k_max=3.0, n_shells=8)
        for species in ((), (1,), (1, 2))
    ]
    frames = add_quantities(observables, None, frames_of(system, positions))
    for observable, exact in zip(observables, (1.0, 1.0, 0.0), strict=True):
        found, info = observable(frames)
        z = (np.asarray(found) - exact) / np.asarray(info.error)
        assert np.abs(z).max() < 4.0
        assert 0.3 < np.sqrt(np.mean(z**2)) < 2.0


def test_fcc_has_its_bragg_peaks_and_extinctions():
    """``S = N`` where hkl are all odd or all even, and 0 elsewhere, in a supercell."""
    system = from_ase(ase.build.bulk("Cu", "fcc", a=3.6, cubic=True).repeat(3))
    k_max = 2.0 * np.pi / 3.6 * 3.01
    indices = wave_vectors(system.cell, k_max)
    found = value(bragg_intensities(indices), system)
    whole = (indices % 3 == 0).all(axis=1)
    parity = (indices // 3) % 2
    allowed = whole & ((parity == 0).all(axis=1) | (parity == 1).all(axis=1))
    assert allowed.sum() == 4 + 3 + 6  # half of {111}, {200} and {220}
    np.testing.assert_allclose(found, np.where(allowed, 108.0, 0.0), atol=1e-10)
    shells = structure_factor(system.cell, k_max=k_max)
    assert shells.axis is not None
    peaks = shells.axis[value(shells, system) > 1e-9]
    np.testing.assert_allclose(peaks, 2.0 * np.pi / 3.6 * np.sqrt([3.0, 4.0, 8.0]))


def test_rock_salt_has_negative_partials_at_odd_reflections():
    system = from_ase(ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    indices = [[1, 1, 1], [2, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(
        value(bragg_intensities(indices, 11, 17), system), [-4.0, 4.0, 0.0], atol=1e-12
    )
    np.testing.assert_allclose(value(bragg_intensities(indices), system), [0, 8, 0], atol=1e-12)


def test_thermal_motion_weakens_peaks_by_the_debye_waller_factor():
    """Independent displacements: ``N exp(-k² u²) + 1 - exp(-k² u²)``, and without ``N``."""
    u, n_frames = 0.18, 400
    crystal = from_ase(ase.build.bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2))
    noise = np.random.default_rng(2).normal(scale=u, size=(n_frames, 32, 3))
    frames = frames_of(crystal, np.asarray(crystal.positions) + noise)
    indices = np.array([[2, 2, 2], [4, 0, 0], [4, 4, 0], [1, 0, 0], [2, 1, 1]])
    observable = bragg_intensities(indices)
    found, info = observable(add_quantities([observable], None, frames))
    k2 = np.sum((2.0 * np.pi / 7.2 * indices) ** 2, axis=1)
    weak = np.exp(-k2 * u**2)
    expected = np.where(np.arange(5) < 3, 32.0, 0.0) * weak + 1.0 - weak
    assert np.abs((np.asarray(found) - expected) / np.asarray(info.error)).max() < 4.0


def hard_spheres(n_atoms, edge, diameter, seed):
    """Random sequential addition."""
    rng = np.random.default_rng(seed)
    placed = np.zeros((0, 3))
    while len(placed) < n_atoms:
        trial = rng.uniform(size=3) * edge
        apart = placed - trial
        apart -= edge * np.round(apart / edge)
        if (np.sum(apart**2, axis=1) > diameter**2).all():
            placed = np.vstack([placed, trial])
    return placed


def test_wave_vectors_and_pair_distribution_agree():
    """Hard spheres at random, 24 configurations: both routes within their errors.

    Past 4 diameters their g(r) is 1, so cutting it at 6 without a window does no harm.
    """
    n_atoms, edge, diameter = 96, 12.0, 2.0
    positions = np.stack([hard_spheres(n_atoms, edge, diameter, seed) for seed in range(24)])
    system = make_system(positions[0], 1, cell=edge, masses=1.0)
    direct = structure_factor(system.cell, k_max=5.0, n_shells=10)
    # With N² as the norm g(r) tends to 1 - 1 / N beyond: the missing atom is at the centre.
    pairs = rdf(r_max=6.0, n_bins=240, pairs="all")
    frames = add_quantities([direct, pairs], None, frames_of(system, positions))
    assert direct.axis is not None
    density = n_atoms / edge**3
    transformed = structure_factor_from_rdf(pairs, direct.axis, density, lorch=False)
    one, first = direct(frames)
    other, second = transformed(frames)
    z = (one - other) / np.hypot(first.error, second.error)
    assert np.abs(z[1:]).max() < 4.0  # in the first shell the cut-off is felt
    assert np.ptp(np.asarray(one)) > 20.0 * np.median(first.error)
    np.testing.assert_array_equal(transformed.axis, direct.axis)


@pytest.mark.parametrize("lorch", [False, True])
def test_transform_of_dilute_hard_spheres(lorch):
    """A step at sigma: ``1 - 4 pi rho (sin x - x cos x) / k³``, and with window by quadrature."""
    rho, sigma, upper, n_bins = 0.01, 3.0, 12.0, 120
    axis = (np.arange(n_bins) + 0.5) * upper / n_bins
    k = np.array([0.05, np.pi / upper, 0.7, 1.9, 6.3])
    found = transform_of_rdf((axis > sigma) * 1.0, axis, k, rho, lorch=lorch)
    if lorch:
        expected = [
            1.0
            - 4.0
            * np.pi
            * rho
            * scipy.integrate.quad(
                lambda r, q=q: r**2 * np.sinc(q * r / np.pi) * np.sinc(r / upper), 0.0, sigma
            )[0]
            for q in k
        ]
    else:
        x = k * sigma
        expected = 1.0 - 4.0 * np.pi * rho * (np.sin(x) - x * np.cos(x)) / k**3
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_gradients_with_respect_to_positions_weights_and_g():
    rng = np.random.default_rng(3)
    system = make_system(rng.uniform(size=(12, 3)) @ TRICLINIC, 1, cell=TRICLINIC, masses=1.0)
    observable = structure_factor(TRICLINIC, k_max=2.0, n_shells=5)
    coefficients = jnp.asarray(rng.normal(size=len(observable.axis)))

    @jax.jit
    def loss(positions, cell):
        moved = system._replace(positions=positions, cell=cell)
        return coefficients @ observable.per_frame(None, moved, None, None)

    at = (system.positions, system.cell)
    steps = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in at]
    gradients = jax.grad(loss, argnums=(0, 1))(*at)
    ahead, behind = (
        loss(*(x + sign * 1e-6 * step for x, step in zip(at, steps, strict=True)))
        for sign in (1.0, -1.0)
    )
    along = sum(jnp.sum(g * step) for g, step in zip(gradients, steps, strict=True))
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-6)

    values = jnp.asarray(rng.uniform(size=(4, 5)))
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    gradient = jax.grad(lambda w: observable.estimate(values, w)[0][2])(weights)
    np.testing.assert_allclose(gradient, values[:, 2] - weights @ values[:, 2], rtol=1e-12)
    axis, k = np.arange(20) + 0.5, np.array([0.3, 1.0])
    jacobian = jax.jacobian(lambda g: transform_of_rdf(g, axis, k, 0.02))(jnp.ones(20))
    assert np.isfinite(jacobian).all()
    assert np.abs(jacobian).min() > 0.0


def test_without_periodicity_there_is_none():
    system = make_system(np.eye(3), 1, masses=1.0)
    assert np.isnan(value(bragg_intensities([[1, 0, 0]]), system)).all()
    with pytest.raises(ValueError, match="not finite in frame 0"):
        evaluate_frames([bragg_intensities([[1, 0, 0]])], None, frames_of(system, [np.eye(3)]))


PAIRS = rdf(r_max=5.0, n_bins=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wave_vectors(np.zeros((3, 3)), 1.0), "`cell` must be three independent"),
        (lambda: wave_vectors(TRICLINIC, -1.0), "`k_max` must be positive"),
        (lambda: wave_vectors(TRICLINIC, 0.1), "no wave vector of the cell is shorter"),
        (lambda: structure_factor(TRICLINIC, k_max=2.0, n_shells=0), "`n_shells` must be at least"),
        (lambda: bragg_intensities([[0.5, 0, 0]]), "`indices` must be integers"),
        (lambda: bragg_intensities([[1, 0, 0]], None, 2), "`species_b` is 2 but"),
        (lambda: bragg_intensities([[1, 0, 0]], 1, scattering_lengths={1: 1.0}), "not both"),
        (lambda: structure_factor_from_rdf(PAIRS, np.array([0.0]), 0.1), "`k` must be positive"),
        (lambda: structure_factor_from_rdf(PAIRS, np.ones(2), 0.0), "`number_density` must be"),
        (
            lambda: structure_factor_from_rdf(bragg_intensities([[1, 0, 0]]), np.ones(2), 0.1),
            "`rdf` must have an axis of distances",
        ),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
