"""Velocity correlations against oscillators, Brownian motion and the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.observables import (
    diffusion_coefficient,
    green_kubo_diffusion,
    velocity_autocorrelation,
    vibrational_spectrum,
)
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

SPACING = 0.5
KT = 0.025


def trajectory_of(velocities, *, positions=None, species=1, masses=1.0, n_slots=None):
    n_frames, n_atoms = velocities.shape[:2]
    positions = np.zeros_like(velocities) if positions is None else positions
    system = make_system(positions[0], species, cell=50.0, masses=masses)
    if n_slots is not None:
        system = pad_system(system, n_slots)
        widths = ((0, 0), (0, n_slots - n_atoms), (0, 0))
        positions, velocities = np.pad(positions, widths), np.pad(velocities, widths)
    systems = system._replace(
        positions=jnp.asarray(positions), cell=jnp.tile(system.cell, (n_frames, 1, 1))
    )
    momenta = jnp.asarray(velocities) * system.masses[None, :, None]
    time = SPACING * jnp.arange(n_frames)
    return Trajectory(systems, {}, StatePoint(KT), momenta, time)


def by_definition(velocities, n_lags, weights=None, factors=1.0):
    n_frames = len(velocities)
    weights = np.ones(n_frames) if weights is None else weights
    found = []
    for lag in range(n_lags):
        origins = slice(0, n_frames - lag)
        products = np.sum(velocities[origins] * velocities[lag:], axis=2) * factors
        found.append(np.average(products.mean(axis=1), weights=weights[origins]))
    return np.array(found)


def langevin_paths(n_frames, n_atoms, friction, mass, seed=0):
    """Exact samples of free Langevin motion: positions and velocities after each spacing.

    Chandrasekhar, Rev. Mod. Phys. 15, 1 (1943).
    """
    rng = np.random.default_rng(seed)
    decay, thermal = np.exp(-friction * SPACING), np.sqrt(KT / mass)
    vv = 1.0 - decay**2
    rr = (2.0 * friction * SPACING - 3.0 + 4.0 * decay - decay**2) / friction**2
    rv = (1.0 - decay) ** 2 / friction
    cholesky = np.linalg.cholesky(np.array([[vv, rv], [rv, rr]]))
    velocity = thermal * rng.normal(size=(n_atoms, 3))
    position = np.zeros((n_atoms, 3))
    positions, velocities = [position], [velocity]
    for _ in range(n_frames - 1):
        kick, jump = thermal * np.einsum("ij,jad->iad", cholesky, rng.normal(size=(2, n_atoms, 3)))
        position = position + velocity * (1.0 - decay) / friction + jump
        velocity = decay * velocity + kick
        positions.append(position)
        velocities.append(velocity)
    return np.stack(positions), np.stack(velocities)


@pytest.mark.parametrize("n_slots", [None, 8])
def test_correlation_equals_its_definition(n_slots):
    rng = np.random.default_rng(0)
    velocities = np.cumsum(rng.normal(size=(60, 6, 3)), axis=0)
    masses, species = rng.uniform(1.0, 5.0, 6), np.array([1, 2, 1, 2, 1, 2])
    weights = rng.uniform(size=60)
    frames = trajectory_of(velocities, species=species, masses=masses, n_slots=n_slots)
    drift = np.einsum("a,fad->fd", masses / masses.sum(), velocities)
    chosen = (velocities - drift[:, None])[:, species == 2]
    heavy = masses[species == 2]
    found = velocity_autocorrelation(frames, species=2, max_lag=40, weights=weights)
    np.testing.assert_allclose(found.value, by_definition(chosen, 41, weights), rtol=1e-9)
    np.testing.assert_allclose(found.lag, SPACING * np.arange(41))
    found = velocity_autocorrelation(frames, species=2, mass_weighted=True)
    expected = by_definition(chosen, 31, factors=heavy)
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)
    found = velocity_autocorrelation(frames, remove_drift=False, normalised=True)
    expected = by_definition(velocities, 31)
    np.testing.assert_allclose(found.value, expected / expected[0], rtol=1e-9)


def oscillators(n_frames, omega):
    """Pairs a quarter of a period apart: the average over them is exact at any origin."""
    phase = omega * SPACING * np.arange(n_frames)[:, None]
    waves = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    return waves * np.array([1.0, 0.0, 0.0])


def test_harmonic_oscillator_correlates_as_a_cosine_and_has_one_line():
    """``cos(omega t)``; the line of the spectrum lies at omega and holds the single mode."""
    omega, n_frames = 0.9, 512
    frames = trajectory_of(oscillators(n_frames, omega))
    found = velocity_autocorrelation(frames, normalised=True, remove_drift=False)
    np.testing.assert_allclose(found.value, np.cos(omega * np.asarray(found.lag)), atol=1e-10)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-7)
    spectrum = vibrational_spectrum(frames, remove_drift=False)
    frequency, density = np.asarray(spectrum.frequency), np.asarray(spectrum.value)
    np.testing.assert_allclose(np.trapezoid(density, frequency), 3.0, rtol=1e-10)
    peak = np.argmax(density)
    assert abs(frequency[peak] - omega / (2.0 * np.pi)) <= 0.5 * frequency[1] * 1.0001
    line = np.abs(frequency - omega / (2.0 * np.pi)) < 4.0 * frequency[1]
    assert np.sum(density[line]) * frequency[1] > 2.98
    assert frequency[-1] == pytest.approx(0.5 / SPACING)
    hertz = frequency[peak] * units.SECOND
    np.testing.assert_allclose(spectrum.wavenumber_per_cm[peak], hertz / 2.99792458e10)


def test_spectrum_counts_modes_of_equal_energy_alike():
    """A light and a heavy oscillator of one energy: two equal lines if weighted by mass."""
    light, heavy = oscillators(1024, 0.6), oscillators(1024, 1.4) / 4.0
    velocities = np.concatenate([light, heavy], axis=1)
    frames = trajectory_of(velocities, species=[1, 1, 2, 2], masses=[1.0, 1.0, 16.0, 16.0])
    for species, omega in ((1, 0.6), (2, 1.4)):
        spectrum = vibrational_spectrum(frames, remove_drift=False)
        near = np.abs(np.asarray(spectrum.frequency) * 2.0 * np.pi - omega) < 0.2
        share = np.sum(spectrum.value[near]) * spectrum.frequency[1]
        np.testing.assert_allclose(share, 1.5, rtol=0.01)
        own = vibrational_spectrum(frames, species=species, remove_drift=False)
        share = np.sum(own.value[near]) * own.frequency[1]
        np.testing.assert_allclose(share, 3.0, rtol=0.01)


def test_free_langevin_particles_forget_exponentially_and_diffuse():
    """``3 kT / m exp(-gamma t)``; ``D = kT / (m gamma)`` by Green-Kubo and displacement.

    Within 4 sigma over 16 runs; the trapezoidal rule adds ``(gamma dt)² / 12``.
    """
    friction, mass, n_runs = 0.4, 2.0, 16
    exact = KT / (mass * friction)
    correlations, integrals, slopes = [], [], []
    for seed in range(n_runs):
        positions, velocities = langevin_paths(500, 40, friction, mass, seed)
        frames = trajectory_of(velocities, positions=positions, masses=mass)
        correlations.append(velocity_autocorrelation(frames, max_lag=40, remove_drift=False))
        integrals.append(green_kubo_diffusion(frames, max_lag=60, remove_drift=False))
        slopes.append(diffusion_coefficient(frames, fit=(15.0, 50.0), remove_drift=False)[0])
    found = np.array([one.value for one in correlations])
    errors = np.array([one.error for one in correlations])
    expected = 3.0 * KT / mass * np.exp(-friction * np.asarray(correlations[0].lag))
    scatter = found.std(axis=0, ddof=1)
    assert np.abs((found.mean(axis=0) - expected) / (scatter / np.sqrt(n_runs))).max() < 4.0
    np.testing.assert_allclose(np.median(errors / scatter[None]), 1.0, atol=0.3)

    values = np.array([value for value, _ in integrals])
    errors = np.array([info.error for _, info in integrals])
    bias = exact * (friction * SPACING) ** 2 / 12.0
    z = (values - exact - bias) / errors
    assert abs(z.mean()) < 1.0
    assert 0.5 < z.std(ddof=1) < 1.9
    difference = values - np.array(slopes)
    error = difference.std(ddof=1) / np.sqrt(n_runs)
    assert abs(difference.mean() - bias) / error < 4.0
    running = integrals[0][1].running
    assert running.shape == (61,)
    assert running[0] == 0.0


def test_spectrum_at_zero_is_the_diffusion():
    """``12 m D / kT``, with D by Green-Kubo under the same window."""
    _, velocities = langevin_paths(4000, 20, 0.4, 2.0)
    frames = trajectory_of(velocities, masses=2.0)
    spectrum = vibrational_spectrum(frames, max_lag=100, remove_drift=False)
    expected = 12.0 / 0.4  # D = kT / (m gamma)
    assert abs(spectrum.value[0] - expected) < 4.0 * spectrum.error[0] + 0.02 * expected
    assert spectrum.error[0] < 0.1 * expected


def test_weights_and_momenta_are_differentiable():
    rng = np.random.default_rng(1)
    frames = trajectory_of(rng.normal(size=(20, 3, 3)))
    weights = jnp.asarray(rng.uniform(0.5, 1.0, 20))

    @jax.jit
    def loss(weights, momenta):
        moved = frames._replace(momenta=momenta)
        spectrum = vibrational_spectrum(moved, weights=weights, max_lag=8, n_blocks=4)
        return spectrum.value[3]

    steps = [jnp.asarray(rng.normal(size=shape)) for shape in ((20,), (20, 3, 3))]
    at = (weights, frames.momenta)
    gradients = jax.grad(loss, argnums=(0, 1))(*at)
    ahead, behind = (
        loss(*(x + sign * 1e-6 * step for x, step in zip(at, steps, strict=True)))
        for sign in (1.0, -1.0)
    )
    along = sum(jnp.sum(g * step) for g, step in zip(gradients, steps, strict=True))
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"momenta": None}, {}, "has no momenta; run with `Simulation"),
        ({"time": None}, {}, "has no `time`"),
        ({}, {"max_lag": 20}, "`max_lag` must lie between 2 and 19 frames, got 20"),
        ({}, {"species": 4}, "no atom has the label 4"),
        ({}, {"n_blocks": 1}, "`n_blocks` must lie between 2 and"),
        ({}, {"weights": np.ones(3)}, "`weights` must have one value per frame"),
    ],
)
def test_bad_settings_are_named(change, settings, message):
    frames = trajectory_of(np.ones((20, 2, 3)))._replace(**change)
    with pytest.raises(ValueError, match=message):
        velocity_autocorrelation(frames, **settings)
