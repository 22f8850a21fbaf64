"""Sample sizes, inefficiencies and error bars against closed forms and pymbar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymbar import timeseries

from mosaicmd.kernel import statistics


def ar1(rho, n_frames, n_series=1, seed=0):
    """Stationary first-order autoregression of unit variance, ``[n_frames, n_series]``."""
    noise = np.random.default_rng(seed).normal(size=(n_frames, n_series))
    series = np.empty_like(noise)
    series[0] = noise[0]
    for t in range(1, n_frames):
        series[t] = rho * series[t - 1] + np.sqrt(1.0 - rho**2) * noise[t]
    return series


@pytest.mark.parametrize(("rho", "n_frames"), [(0.0, 50), (0.5, 501), (0.9, 2000), (-0.4, 300)])
def test_inefficiency_equals_pymbar(rho, n_frames):
    for series in ar1(rho, n_frames, 4, seed=1).T:
        ours = statistics.statistical_inefficiency(jnp.asarray(series))
        np.testing.assert_allclose(ours, timeseries.statistical_inefficiency(series), rtol=1e-9)


@pytest.mark.parametrize("rho", [0.3, 0.8, 0.95])
def test_inefficiency_of_an_autoregression(rho):
    """``(1 + rho) / (1 - rho)``; 32 series give the standard error of our mean."""
    found = statistics.statistical_inefficiency(jnp.asarray(ar1(rho, 20000, 32, seed=2)))
    expected = (1.0 + rho) / (1.0 - rho)
    error = np.std(found, ddof=1) / np.sqrt(32)
    # Ending at the first zero crossing keeps up to 1 % of positive noise.
    assert abs(np.mean(found) - expected) < 4.0 * error + 0.01 * expected


def test_inefficiency_of_a_constant_is_one():
    np.testing.assert_array_equal(statistics.statistical_inefficiency(jnp.ones((10, 2))), 1.0)


@pytest.mark.parametrize("estimate", ["block", "correlation"])
def test_error_of_an_autoregression(estimate):
    """Variance of the mean: ``[n (1-rho²) - 2 rho (1-rho^n)] / [n² (1-rho)²]``."""
    rho, n = 0.8, 4000
    series = jnp.asarray(ar1(rho, n, 64, seed=3))
    exact = (n * (1.0 - rho**2) - 2.0 * rho * (1.0 - rho**n)) / (n * (1.0 - rho)) ** 2
    if estimate == "block":
        mean, error = statistics.block_average(series, n_blocks=20)
        np.testing.assert_allclose(mean, series.mean(axis=0), atol=1e-14)
    else:
        error, _ = statistics.standard_error(series)
    ratio = np.asarray(error) ** 2 / exact
    spread = ratio.std(ddof=1) / np.sqrt(64)
    assert abs(ratio.mean() - 1.0) < 4.0 * spread + 0.03  # blocks of 200 miss 2.5 %


@pytest.mark.parametrize("estimate", ["block", "correlation"])
def test_error_of_reweighted_mean(estimate):
    """Weights ``exp(a x)`` move a unit Gaussian to mean ``a``; the scatter is our truth."""
    shift, n_frames, n_runs = 0.7, 4000, 128
    x = jnp.asarray(ar1(0.5, n_frames, n_runs, seed=4))
    if estimate == "block":
        means, errors = jax.vmap(
            lambda series: statistics.block_average(series, jnp.exp(shift * series)), in_axes=1
        )(x)
    else:
        weights = jnp.exp(shift * x)
        means = jax.vmap(statistics.weighted_mean, in_axes=1)(x, weights)
        errors, _ = jax.vmap(statistics.standard_error, in_axes=1)(x, weights)
    assert abs(np.mean(means) - shift) < 4.0 * np.std(means) / np.sqrt(n_runs) + 1e-3
    z = (np.asarray(means) - shift) / np.asarray(errors)
    assert abs(z.std() - 1.0) < 4.0 / np.sqrt(2 * n_runs)


def test_blocks_of_unequal_size_use_every_frame():
    index = np.asarray(statistics.block_index(10, 4))
    np.testing.assert_array_equal(np.bincount(index), [3, 2, 3, 2])
    series = jnp.arange(10.0)
    np.testing.assert_allclose(statistics.block_average(series, n_blocks=4)[0], 4.5)


def test_weights_are_a_softmax_whatever_the_offset():
    delta_u = jnp.asarray(np.random.default_rng(5).normal(size=20))
    direct = np.exp(-np.asarray(delta_u))
    direct /= direct.sum()
    for offset in (0.0, 1e6, -1e6):
        weights = statistics.reweighting_weights(delta_u + offset)
        np.testing.assert_allclose(weights, direct, rtol=1e-9 if offset else 1e-14)
    np.testing.assert_allclose(jnp.exp(statistics.log_weights(delta_u)), direct, rtol=1e-13)


def test_weights_have_the_softmax_gradient():
    delta_u = jnp.asarray([0.3, -1.0, 2.0])
    weights = statistics.reweighting_weights(delta_u)
    expected = weights[:, None] * (weights[None, :] - np.eye(3))
    np.testing.assert_allclose(
        jax.jacobian(statistics.reweighting_weights)(delta_u), expected, atol=1e-15
    )


def test_weights_of_single_precision_accumulate_in_double():
    weights = statistics.reweighting_weights(jnp.zeros(3, jnp.float32))
    assert weights.dtype == jnp.float64
    assert statistics.weighted_mean(jnp.ones((3, 2), jnp.float32)).dtype == jnp.float64


@pytest.mark.parametrize(("kind", "exponent"), [("kish", 1.0), ("entropy", 0.5)])
def test_sample_size_of_gaussian_energy_differences(kind, exponent):
    """For ``u ~ N(0, s²)``: ``<w>² / <w²> = exp(s²) / exp(2 s²)``, so Kish gives exp(-s²).

    The entropy of normalised weights is ``ln N - <w u>`` of the tilted ensemble, whose
    ``-u`` has mean ``s²``, plus ``ln <w> = s² / 2``: ``N_eff = N exp(-s² / 2)``.
    """
    s, n_frames, n_runs = 0.8, 20000, 32
    u = jnp.asarray(np.random.default_rng(6).normal(0.0, s, (n_runs, n_frames)))
    sizes = jax.vmap(
        lambda u: statistics.effective_sample_size(statistics.reweighting_weights(u), kind)
    )(u)
    fractions = np.asarray(sizes) / n_frames
    z = (fractions.mean() - np.exp(-exponent * s**2)) / (fractions.std(ddof=1) / np.sqrt(n_runs))
    assert abs(z) < 4.0


@pytest.mark.parametrize("kind", ["kish", "entropy"])
def test_sample_size_bounds(kind):
    np.testing.assert_allclose(statistics.effective_sample_size(jnp.full(7, 3.0), kind), 7.0)
    one = jnp.zeros(7).at[2].set(1.0)
    np.testing.assert_allclose(statistics.effective_sample_size(one, kind), 1.0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`kind` must be 'kish' or 'entropy'"):
        statistics.effective_sample_size(jnp.ones(3), "shannon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`n_blocks` must lie between 2 and .* \(5\), got 6"):
        statistics.block_average(jnp.ones(5), n_blocks=6)
    with pytest.raises(ValueError, match=r"one value per frame, shape \(5,\), got \(4,\)"):
        statistics.weighted_mean(jnp.ones((5, 2)), jnp.ones(4))
