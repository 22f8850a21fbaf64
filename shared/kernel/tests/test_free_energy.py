"""Free energies against pymbar, harmonic oscillators and finite differences."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit

from mosaicmd.kernel import free_energy, statistics

pytest.importorskip("pymbar")
import pymbar
from pymbar import other_estimators, timeseries

# pymbar hands options to SciPy that its solvers do not know.
pytestmark = pytest.mark.filterwarnings("ignore:Unknown solver options")


@pytest.fixture(autouse=True)
def _quiet_pymbar():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def oscillators(stiffness, n_k, seed=0, offset=0.0):
    """Positions ``[n_samples]`` and reduced energies ``[n_states, n_samples]``.

    State ``k`` is ``u = stiffness_k x² / 2 + k offset``: ``f_k = ln(stiffness_k) / 2 + ...``.
    """
    rng = np.random.default_rng(seed)
    stiffness = np.asarray(stiffness)
    x = np.concatenate([rng.normal(0, k**-0.5, n) for k, n in zip(stiffness, n_k, strict=True)])
    return x, 0.5 * stiffness[:, None] * x**2 + offset * np.arange(len(n_k))[:, None]


def works(n_0, n_1, seed=0, shift=0.0):
    """``u_1 - u_0`` of samples of state 0, and the reverse, of two displaced oscillators."""
    rng = np.random.default_rng(seed)
    x_0, x_1 = rng.normal(0.0, 1.0, n_0), rng.normal(1.0, 0.6, n_1)

    def difference(x):
        return 0.5 * (x - 1.0) ** 2 / 0.36 - 0.5 * x**2 + shift

    return difference(x_0), -difference(x_1)


def reference(u_kn, n_k, start):
    """Solved by pymbar, which does not converge from zero where offsets are large."""
    with jax.numpy_rank_promotion("allow"):  # pymbar, which computes with JAX, needs it
        return pymbar.MBAR(
            u_kn, np.asarray(n_k), relative_tolerance=1e-13, initial_f_k=np.asarray(start)
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [0.0, 300.0, -40.0])
def test_fep_equals_pymbar(seed, shift):
    forward, _ = works(200, 1, seed, shift)
    value, info = free_energy.fep(forward)
    expected = other_estimators.exp(forward)
    np.testing.assert_allclose(value, expected["Delta_f"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(info.error, expected["dDelta_f"], rtol=1e-8)
    weights = statistics.reweighting_weights(jnp.asarray(forward))
    np.testing.assert_allclose(info.n_eff, statistics.effective_sample_size(weights))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [0.0, 300.0, -40.0])
@pytest.mark.parametrize("counts", [(150, 150), (100, 1000), (1000, 100)])
def test_bar_equals_pymbar(seed, shift, counts):
    forward, reverse = works(*counts, seed, shift)
    value, info = free_energy.bar(forward, reverse)
    expected = other_estimators.bar(forward, reverse)
    np.testing.assert_allclose(value, expected["Delta_f"], rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(info.error, expected["dDelta_f"], rtol=1e-8)
    with jax.numpy_rank_promotion("allow"):
        overlap = other_estimators.bar_overlap(forward - shift, reverse + shift)
    np.testing.assert_allclose(info.overlap, overlap, atol=1e-8)
    assert info.residual < 1e-12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "n_k", [(200, 200, 200, 200), (50, 500, 500, 50), (300, 0, 200, 0), (0, 300, 0, 100)]
)
@pytest.mark.parametrize("offset", [0.0, 250.0])
def test_mbar_equals_pymbar(seed, n_k, offset):
    _, u_kn = oscillators([1.0, 2.0, 4.0, 9.0], n_k, seed, offset)
    f_k, info = free_energy.mbar(u_kn, n_k)
    theirs = reference(u_kn, n_k, offset * np.arange(4))
    with jax.numpy_rank_promotion("allow"):
        results = theirs.compute_free_energy_differences(return_theta=True)
        weights = theirs.weights().T
        overlap = theirs.compute_overlap()["matrix"]
    np.testing.assert_allclose(f_k, results["Delta_f"][0], rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(info.error, results["dDelta_f"], atol=1e-8)
    np.testing.assert_allclose(info.covariance, results["Theta"], atol=1e-8)
    np.testing.assert_allclose(info.overlap, overlap, atol=1e-8)
    np.testing.assert_allclose(free_energy.mbar_weights(u_kn, n_k, f_k), weights, atol=1e-10)
    assert info.residual < 1e-12


def test_mbar_of_two_states_is_bar():
    forward, reverse = works(100, 1000, seed=4)
    u_kn = np.zeros((2, 1100))
    u_kn[1, :100], u_kn[0, 100:] = forward, reverse
    f_k, info = free_energy.mbar(u_kn, [100, 1000])
    delta_f, bar_info = free_energy.bar(forward, reverse)
    np.testing.assert_allclose(f_k[1], delta_f, atol=1e-12)
    np.testing.assert_allclose(info.overlap[0, 1] + info.overlap[1, 0], bar_info.overlap)
    expected = other_estimators.bar(forward, reverse, uncertainty_method="MBAR")
    np.testing.assert_allclose(info.error[0, 1], expected["dDelta_f"], rtol=1e-8)


def test_mbar_of_one_sampled_state_is_fep():
    _, u_kn = oscillators([1.0, 1.5], [400, 0])
    f_k, info = free_energy.mbar(u_kn, [400, 0])
    delta_f, fep_info = free_energy.fep(u_kn[1] - u_kn[0])
    np.testing.assert_allclose(f_k, [0.0, delta_f], atol=1e-13)
    np.testing.assert_allclose(info.error[0, 1], fep_info.error, rtol=1e-8)
    np.testing.assert_allclose(info.overlap, [[1.0, 0.0], [1.0, 0.0]], atol=1e-13)


@pytest.mark.parametrize("estimator", ["fep", "bar", "mbar"])
@pytest.mark.parametrize("counts", [(1000, 1000), (200, 2000), (2000, 200)])
def test_harmonic_free_energy(estimator, counts):
    """``f_1 - f_0 = ln(k_1 / k_0) / 2``; error bars must match the scatter of 200 runs."""
    k_0, k_1, n_0, n_runs = 1.0, 3.0, counts[0], 200
    _, u = oscillators([k_0, k_1], (n_0 * n_runs, counts[1] * n_runs), seed=7)
    delta_u = u[1] - u[0]
    forward = delta_u[: n_0 * n_runs].reshape(n_runs, -1)
    reverse = -delta_u[n_0 * n_runs :].reshape(n_runs, -1)

    def run(forward, reverse):
        if estimator == "fep":
            value, info = free_energy.fep(forward)
        elif estimator == "bar":
            value, info = free_energy.bar(forward, reverse)
        else:
            rows = jnp.stack([jnp.zeros(sum(counts)), jnp.append(forward, -reverse)])
            f_k, info = free_energy.mbar(rows, jnp.asarray(counts))
            return f_k[1], info.error[0, 1]
        return value, info.error

    values, errors = jax.jit(jax.vmap(run))(jnp.asarray(forward), jnp.asarray(reverse))
    exact = 0.5 * np.log(k_1 / k_0)
    assert abs(values[0] - exact) < 4.0 * errors[0]
    z = (np.asarray(values) - exact) / np.asarray(errors)
    assert abs(z.mean()) < 4.0 / np.sqrt(n_runs) + 0.05  # the bias of a nonlinear estimator
    assert abs(z.std(ddof=1) - 1.0) < 4.0 / np.sqrt(2 * n_runs)


def test_forgotten_counts_would_show():
    """Without ``ln(n_0 / n_1)`` the estimate at 1:10 would be off by many sigma."""
    _, u_kn = oscillators([1.0, 3.0], [2000, 20000], seed=8)
    delta_u = u_kn[1] - u_kn[0]
    value, info = free_energy.bar(delta_u[:2000], -delta_u[2000:])
    exact = 0.5 * np.log(3.0)
    assert abs(value - exact) < 4.0 * info.error
    even = scipy.optimize.brentq(
        lambda f: np.mean(expit(f - delta_u[:2000])) - np.mean(expit(delta_u[2000:] - f)), -9, 9
    )
    wrong = scipy.optimize.brentq(
        lambda f: np.sum(expit(f - delta_u[:2000])) - np.sum(expit(delta_u[2000:] - f)), -9, 9
    )
    assert abs(even - exact) < 6.0 * info.error  # another weighting, no error
    assert abs(wrong - exact) > 20.0 * info.error


def test_weights_give_averages_in_any_state():
    """``<x²> = 1 / k`` in the states, one without samples, and in a target not among them."""
    n_k = [20000, 20000, 0]
    x, u_kn = oscillators([1.0, 3.0, 2.0], n_k, seed=9)
    f_k, _ = free_energy.mbar(u_kn, n_k)
    weights = free_energy.mbar_weights(u_kn, n_k, f_k)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-13)
    np.testing.assert_allclose(weights @ x**2, [1.0, 1.0 / 3.0, 0.5], rtol=0.03)
    target = free_energy.mbar_weights(u_kn, n_k, f_k, 0.5 * 1.5 * x**2 + 7.0)
    assert target.shape == x.shape
    mean = statistics.weighted_mean(jnp.asarray(x**2), target)
    np.testing.assert_allclose(mean, 1.0 / 1.5, rtol=0.03)


def central(function, x, h=1e-5):
    x = np.asarray(x, float)
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([(function(x + s) - function(x - s)) / (2 * h) for s in steps]).reshape(x.shape)


def test_gradients_are_finite_differences():
    forward, reverse = map(jnp.asarray, works(4, 12, seed=10))
    u_kn = jnp.asarray(oscillators([1.0, 2.0, 4.0], [4, 0, 5], seed=11)[1])
    cases = [
        (lambda x: free_energy.fep(x)[0], forward),
        (lambda x: free_energy.bar(x, reverse)[0], forward),
        (lambda x: free_energy.bar(forward, x)[0], reverse),
        (lambda x: free_energy.mbar(x, [4, 0, 5])[0][1], u_kn),
        (lambda x: free_energy.mbar(x, [4, 0, 5])[0][2], u_kn),
    ]
    for function, x in cases:
        expected = central(jax.jit(function), x)
        np.testing.assert_allclose(jax.jit(jax.grad(function))(x), expected, atol=1e-9)


def test_bar_has_second_derivatives():
    forward, reverse = map(jnp.asarray, works(4, 6, seed=12))
    gradient = jax.jit(jax.grad(lambda x: free_energy.bar(x, reverse)[0]))
    hessian = jax.jit(jax.hessian(lambda x: free_energy.bar(x, reverse)[0]))(forward)
    expected = np.stack([central(lambda x, i=i: gradient(x)[i], forward) for i in range(4)])
    np.testing.assert_allclose(hessian, expected, atol=1e-8)


@pytest.mark.parametrize("gap", [30.0, 200.0, 2000.0])
def test_hardly_overlapping_states_are_solved_and_confess(gap):
    """Forward works near ``gap``, reverse works near ``gap``: the answer lies between."""
    rng = np.random.default_rng(13)
    forward, reverse = gap + rng.normal(size=50), gap + rng.normal(size=500)
    value, info = free_energy.bar(forward, reverse)
    one_sided = free_energy.fep(forward)[0] - free_energy.fep(reverse)[0]
    np.testing.assert_allclose(value, 0.5 * (one_sided + np.log(50 / 500)), atol=1e-4)
    assert info.residual < 1e-10
    assert info.overlap < 1e-6
    u_kn = np.zeros((2, 550))
    u_kn[1, :50], u_kn[0, 50:] = forward, reverse
    _, info = free_energy.mbar(u_kn, [50, 500])
    assert info.error[0, 1] > 1e4
    assert info.overlap[0, 1] < 1e-6


def test_works_that_leave_the_root_undetermined_stay_finite():
    """Both directions downhill, against the second law: any value between fits."""
    value, info = free_energy.bar(jnp.full(5, -500.0), jnp.full(50, -500.0))
    assert np.isfinite(value)
    assert abs(value) < 510.0
    assert info.residual < 10.0


def test_a_long_chain_of_states_converges():
    """Twenty displaced oscillators with offsets up to 2000, only neighbours overlapping."""
    rng = np.random.default_rng(14)
    centres, n_each = 2.5 * np.arange(20), 100
    x = np.concatenate([rng.normal(c, 1.0, n_each) for c in centres])
    u_kn = 0.5 * (x[None] - centres[:, None]) ** 2 + 100.0 * np.arange(20)[:, None]
    f_k, info = jax.jit(free_energy.mbar)(u_kn, jnp.full(20, n_each))
    z = (f_k - 100.0 * np.arange(20))[1:] / info.error[0, 1:]
    assert np.max(np.abs(z)) < 4.0
    assert info.residual < 1e-10


def test_forbidden_configurations_count_as_such():
    """Hard walls: a third of the wider box lies in the narrower, so f = ln 3."""
    forward = jnp.where(jnp.arange(300) % 3 == 0, 0.0, jnp.inf)
    np.testing.assert_allclose(free_energy.fep(forward)[0], np.log(3.0))
    value, info = free_energy.bar(forward, jnp.zeros(300))
    np.testing.assert_allclose(value, np.log(3.0))
    u_kn = jnp.stack([jnp.zeros(600), jnp.append(forward, jnp.zeros(300))])
    f_k, mbar_info = free_energy.mbar(u_kn, [300, 300])
    np.testing.assert_allclose(f_k[1], np.log(3.0))
    np.testing.assert_allclose(mbar_info.error[0, 1], info.error, rtol=0.3)
    gradient = jax.grad(lambda x: free_energy.bar(x, jnp.zeros(300))[0])(forward)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[1::3] == 0.0)
    gradient = jax.grad(lambda x: free_energy.mbar(x, [300, 300])[0][1])(u_kn)
    assert np.all(np.isfinite(gradient))


def test_single_samples_have_no_error():
    assert np.isnan(free_energy.fep([0.5])[1].error)
    value, info = free_energy.bar([0.5], [-0.1])
    np.testing.assert_allclose(value, 0.3)
    assert np.isnan(info.error)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_decorrelated_equals_pymbar(rho, seed):
    noise = np.random.default_rng(seed).normal(size=1500)
    series = np.copy(noise)
    for t in range(1, len(series)):
        series[t] = rho * series[t - 1] + noise[t]
    indices, info = free_energy.decorrelated(series)
    np.testing.assert_array_equal(indices, timeseries.subsample_correlated_data(series))
    np.testing.assert_allclose(info.inefficiency, timeseries.statistical_inefficiency(series))
    indices, _ = free_energy.decorrelated(series, 2.5)
    np.testing.assert_array_equal(indices, timeseries.subsample_correlated_data(series, g=2.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: free_energy.fep([]), r"`delta_u` must have shape \[n_samples\], not empty"),
        (lambda: free_energy.fep([[1.0]]), r"`delta_u` must have shape .* got \(1, 1\)"),
        (lambda: free_energy.fep([0.0, np.nan]), r"`delta_u` must not be NaN .* at \(1,\)"),
        (lambda: free_energy.fep([0.0, -np.inf]), r"`delta_u` must not be NaN or -inf, got -inf"),
        (lambda: free_energy.fep([np.inf]), "is .inf for every sample"),
        (lambda: free_energy.bar([1.0], []), r"`reverse` must have shape"),
        (lambda: free_energy.bar([np.nan], [1.0]), "`forward` must not be NaN"),
        (lambda: free_energy.mbar(np.zeros(3), [3]), r"`u_kn` must have shape"),
        (lambda: free_energy.mbar(np.zeros((2, 3)), [3]), r"got \(2, 3\) and \(1,\)"),
        (lambda: free_energy.mbar(np.zeros((2, 3)), [2, 2]), r"add up to the 3 .* \[2.0, 2.0\]"),
        (lambda: free_energy.mbar(np.zeros((2, 3)), [4, -1]), "none negative"),
        (lambda: free_energy.mbar(np.zeros((2, 3)), [1.5, 1.5]), "whole numbers"),
        (lambda: free_energy.mbar(np.zeros((2, 3)), [0, 0]), "add up to the 3"),
        (lambda: free_energy.mbar([[0.0, np.nan]], [2]), r"`u_kn` must not be NaN .* \(0, 1\)"),
        (lambda: free_energy.mbar([[0.0], [np.inf]], [1, 0]), "every sample in state 1"),
        (
            lambda: free_energy.mbar([[0.0, np.inf], [0.0, 0.0]], [2, 0]),
            r"sample 1 is \+inf in every state with samples",
        ),
        (lambda: free_energy.mbar_weights(np.zeros((2, 3)), [1, 2], [0.0]), "`f_k` must have"),
        (
            lambda: free_energy.mbar_weights(np.zeros((2, 3)), [1, 2], [0.0, 0.0], np.zeros(2)),
            "one energy per sample",
        ),
        (lambda: free_energy.overlap_matrix(np.zeros((2, 3)), [1]), "`weights` must have shape"),
        (lambda: free_energy.decorrelated([]), "`series` must have shape"),
        (lambda: free_energy.decorrelated([1.0, np.nan]), "must be finite, got nan at frame 1"),
        (lambda: free_energy.decorrelated(np.ones(5)), "is constant"),
        (lambda: free_energy.decorrelated([1.0, 2.0], 0.5), "at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
