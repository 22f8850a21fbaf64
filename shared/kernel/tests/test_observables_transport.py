"""Displacements against the definition, diffusion against Brownian motion."""

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.observables import diffusion_coefficient, mean_square_displacement
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

SPACING = 0.5


def walk(n_frames, n_atoms, seed=0, step=0.3):
    """Free Brownian motion: ``D = step² / (2 SPACING)``."""
    steps = np.random.default_rng(seed).normal(0.0, step, (n_frames, n_atoms, 3))
    return np.cumsum(steps, axis=0)


def trajectory_of(positions, *, cell=10.0, species=1, masses=1.0, kT=0.025, n_slots=None):
    system = make_system(positions[0], species, cell=cell, masses=masses)
    n_frames, n_atoms = positions.shape[:2]
    if n_slots is not None:
        system = pad_system(system, n_slots)
        positions = np.pad(positions, ((0, 0), (0, n_slots - n_atoms), (0, 0)))
    systems = system._replace(
        positions=jnp.asarray(positions), cell=jnp.tile(system.cell, (n_frames, 1, 1))
    )
    return Trajectory(systems, {}, StatePoint(kT=kT), time=SPACING * jnp.arange(n_frames))


def by_definition(positions, n_lags):
    found = np.zeros((positions.shape[1], n_lags))
    for lag in range(1, n_lags):
        moved = positions[lag:] - positions[:-lag]
        found[:, lag] = np.sum(moved**2, axis=-1).mean(axis=0)
    return found


def test_displacement_equals_its_definition():
    positions = walk(61, 5) + 1.0e3  # far from the origin, where squares are large
    found = mean_square_displacement(trajectory_of(positions), max_lag=50, remove_drift=False)
    expected = by_definition(positions, 51)
    np.testing.assert_allclose(found.per_atom, expected, rtol=1e-9)
    np.testing.assert_allclose(found.value, expected.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.lag, SPACING * np.arange(51))


def test_drift_is_that_of_all_atoms_by_mass():
    positions, masses = walk(40, 6), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    species = np.array([1, 2, 1, 2, 1, 2])
    centre = np.einsum("a,fad->fd", masses / masses.sum(), positions)
    expected = by_definition((positions - centre[:, None])[:, species == 2], 21)
    for n_slots in (None, 9):
        trajectory = trajectory_of(positions, species=species, masses=masses, n_slots=n_slots)
        found = mean_square_displacement(trajectory, species=2)
        np.testing.assert_allclose(found.per_atom, expected, rtol=1e-9)


def test_flight_at_constant_velocity():
    """``|v|² lag²``; all of it is drift when all atoms fly alike."""
    velocity = np.array([0.3, -0.1, 0.2])
    time = SPACING * np.arange(30)
    positions = np.broadcast_to((time[:, None] * velocity)[:, None], (30, 3, 3))
    found = mean_square_displacement(trajectory_of(positions), remove_drift=False)
    np.testing.assert_allclose(found.value, velocity @ velocity * found.lag**2, atol=1e-10)
    found = mean_square_displacement(trajectory_of(positions))
    np.testing.assert_allclose(found.value, 0.0, atol=1e-10)


def test_unwrapping_restores_the_path():
    cell = np.array([[7.0, 0.0, 0.0], [2.0, 6.5, 0.0], [-1.0, 1.5, 6.0]])
    positions = walk(200, 4)
    fractional = positions @ np.linalg.inv(cell)
    wrapped = (fractional % 1.0) @ cell
    assert np.abs(wrapped - positions).max() > 5.0
    expected = mean_square_displacement(trajectory_of(positions, cell=cell))
    found = mean_square_displacement(trajectory_of(wrapped, cell=cell), unwrap=True)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-9)


@pytest.mark.parametrize(("blocks_of", "n_atoms"), [("atoms", 100), ("time", 2)])
def test_brownian_particles_diffuse_at_their_rate(blocks_of, n_atoms):
    """Over 16 runs: mean within 4 sigma, and the error bars are as wide as the scatter."""
    exact = 0.3**2 / (2.0 * SPACING)
    runs = [
        diffusion_coefficient(
            trajectory_of(walk(1200, n_atoms, seed)),
            fit=(1.0, 10.0),
            blocks_of=blocks_of,
            remove_drift=False,
        )
        for seed in range(16)
    ]
    z = np.array([(value - exact) / info.error for value, info in runs])
    assert abs(z.mean()) < 1.0  # 4 sigma
    assert 0.5 < z.std(ddof=1) < 1.9  # chi-square of 15, at 4 sigma, with 10 blocks each
    assert runs[0][1].fitted == (1.0, 10.0)


def test_finite_size_correction_of_water():
    """SPC/E-like water, 18.64 Å, 298.15 K, 0.85 mPa s: 0.391e-9 m²/s by hand."""
    kT, viscosity = 298.15 * units.KELVIN, 0.85e-3 * units.PASCAL * units.SECOND
    trajectory = trajectory_of(walk(100, 20), cell=18.64, kT=kT)
    corrected, info = diffusion_coefficient(trajectory, viscosity=viscosity)
    plain, _ = diffusion_coefficient(trajectory)
    np.testing.assert_allclose(corrected - plain, info.correction, rtol=1e-12)
    by_hand = 2.837297 * 1.38064852e-23 * 298.15 / (6.0 * np.pi * 0.85e-3 * 18.64e-10)
    metre = 1.0e10
    np.testing.assert_allclose(info.correction * units.SECOND / metre**2, by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks_of": "space"}, "`blocks_of` must be 'atoms' or 'time'"),
        ({"n_blocks": 5}, "between 2 and the 4 atoms followed, got 5"),
        ({"blocks_of": "time", "n_blocks": 20}, "40 frames do not make 20 blocks"),
        ({"n_blocks": 2, "fit": (1.0, 50.0)}, "`fit` from 1 to 50 .* trajectory of 40 frames"),
        ({"n_blocks": 2, "species": 7}, "no atom has the label 7"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        diffusion_coefficient(trajectory_of(walk(40, 4)), **settings)


def test_bad_times_are_named():
    trajectory = trajectory_of(walk(5, 2))
    with pytest.raises(ValueError, match="has no `time`"):
        mean_square_displacement(trajectory._replace(time=None))
    with pytest.raises(ValueError, match="must grow by the same step"):
        mean_square_displacement(trajectory._replace(time=jnp.array([0.0, 1.0, 2.0, 4.0, 5.0])))
    with pytest.raises(ValueError, match="`max_lag` must lie between 1 and 4"):
        mean_square_displacement(trajectory, max_lag=5)
