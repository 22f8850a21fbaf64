"""Priors from samples of known distributions, exact quantiles or random draws."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

from mosaicmd.gnn_models import (
    HarmonicBondConfig,
    PeriodicDihedralConfig,
    dihedral_prior,
    harmonic_bond,
    harmonic_prior,
    periodic_dihedral,
)

KT = 0.0257  # eV
QUANTILES = (np.arange(20_000) + 0.5) / 20_000


def dihedral_quantiles(amplitude, phase):
    """Samples of ``exp(-sum_n k_n (1 + cos(n phi - delta_n)) / kT)`` at equal probability."""
    grid = np.linspace(-np.pi, np.pi, 200_001)
    n = np.arange(1, len(amplitude) + 1)
    energy = np.sum(amplitude * (1.0 + np.cos(n * grid[:, None] - phase)), axis=1)
    density = np.exp(-energy / KT)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return np.interp(QUANTILES, cumulative / cumulative[-1], grid)


def test_gaussian_samples_return_their_force_constant():
    """Variance ``kT / k``; the quantiles of a Gaussian lack 2e-4 of it in the far tails."""
    stiffness, center = np.array([20.0, 3.0]), np.array([1.5, 2.1])
    values = center + np.sqrt(KT / stiffness) * norm.ppf(QUANTILES)[:, None]
    prior = harmonic_prior(values, KT)
    np.testing.assert_allclose(prior.stiffness, stiffness, rtol=3e-4)
    np.testing.assert_allclose(prior.center, center, rtol=1e-12)


def test_random_samples_agree_within_their_error():
    """The relative standard error of a variance of n Gaussian samples is ``sqrt(2 / n)``."""
    n, stiffness = 50_000, 12.0
    values = 1.5 + np.sqrt(KT / stiffness) * np.random.default_rng(0).normal(size=n)
    found = harmonic_prior(values, KT)
    assert abs(found.stiffness[0] / stiffness - 1.0) / np.sqrt(2.0 / n) < 4.0
    assert abs(found.center[0] - 1.5) / np.sqrt(KT / stiffness / n) < 4.0


def test_weights_take_out_the_density_of_free_atoms():
    """A bond in space is distributed as ``r² exp(-k (r - r_0)² / (2 kT))``."""
    r = np.linspace(0.5, 2.5, 40_001)
    density = r**2 * np.exp(-0.5 * 10.0 * (r - 1.5) ** 2 / KT)
    raw = harmonic_prior(r, KT, weights=density)
    corrected = harmonic_prior(r, KT, weights=density / r**2)
    np.testing.assert_allclose(corrected.stiffness, 10.0, rtol=1e-9)
    np.testing.assert_allclose(corrected.center, 1.5, rtol=1e-12)
    assert raw.center[0] - 1.5 > 0.003


def test_an_improper_may_vary_about_pi():
    values = np.pi + 0.1 * norm.ppf(QUANTILES)
    wrapped = np.mod(values + np.pi, 2.0 * np.pi) - np.pi
    prior = harmonic_prior(wrapped, KT, periodic=True)
    np.testing.assert_allclose(np.cos(prior.center), -1.0, rtol=1e-9)
    np.testing.assert_allclose(prior.stiffness, KT / 0.01, rtol=3e-4)


@pytest.mark.parametrize(
    ("amplitude", "phase"),
    [
        ((0.03,), (0.7,)),
        ((0.02, 0.05, 0.01), (0.3, 2.9, -1.2)),
        ((0.0, 0.0, 0.12), (0.0, 0.0, 0.0)),
    ],
)
def test_dihedral_samples_return_their_fourier_series(amplitude, phase):
    samples = dihedral_quantiles(np.array(amplitude), np.array(phase))
    prior = dihedral_prior(samples, KT, range(1, len(amplitude) + 1))
    expected = np.array(amplitude) * np.exp(1j * np.array(phase))
    np.testing.assert_allclose(prior.amplitude * np.exp(1j * prior.phase), expected, atol=2e-5)


def test_random_dihedrals_agree_within_their_error():
    """For free rotation the coefficients have the variance ``2 kT² / n``."""
    n = 20_000
    samples = np.random.default_rng(1).uniform(-np.pi, np.pi, n)
    prior = dihedral_prior(samples, KT)
    assert (prior.amplitude < 4.0 * KT * np.sqrt(2.0 / n)).all()


def test_priors_are_settings_of_the_bonded_terms():
    bond = harmonic_prior(1.5 + 0.04 * norm.ppf(QUANTILES), KT)
    potential = harmonic_bond(
        HarmonicBondConfig(
            atoms=((0, 1), (1, 2)),
            types=(0, 0),
            stiffness=tuple(bond.stiffness),
            length=tuple(bond.center),
        )
    )
    params = potential.init(jax.random.key(0))
    np.testing.assert_allclose(params["stiffness"], KT / 0.04**2, rtol=3e-4)
    torsion = dihedral_prior(dihedral_quantiles(np.array([0.03]), np.array([0.7])), KT, (1,))
    config = PeriodicDihedralConfig(
        atoms=((0, 1, 2, 3),),
        multiplicities=(1,),
        amplitude=tuple(torsion.amplitude),
        phase=tuple(torsion.phase),
    )
    params = periodic_dihedral(config).init(jax.random.key(0))
    np.testing.assert_allclose(params["amplitude"], [[0.03]], rtol=1e-3)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.ones(1), {}, r"shape \[n_samples, n_terms\] with two samples"),
        (np.ones((4, 2)), {}, r"`samples` of terms \[0, 1\] do not vary"),
        (np.array([1.0, np.nan]), {}, "not finite"),
        (np.arange(3.0), {"weights": np.ones(2)}, "`weights` must be like `samples`"),
        (np.arange(3.0), {"weights": -np.ones(3)}, "not negative"),
    ],
)
def test_bad_samples_are_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        harmonic_prior(samples, KT, **options)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="`kT` must be positive"):
        harmonic_prior(np.arange(3.0), 0.0)
    with pytest.raises(ValueError, match="`multiplicities` must be distinct and positive"):
        dihedral_prior(np.arange(3.0), KT, (1, 1))
    with pytest.raises(ValueError, match="too narrow for multiplicities"):
        dihedral_prior(np.full(10, 0.3), KT)
