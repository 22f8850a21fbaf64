"""Averages, weights and error bars of observables, and their evaluation over frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import statistics
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.observables import (
    Observable,
    add_quantities,
    adf,
    density,
    evaluate_frames,
    observe,
    rdf,
    temperature,
)
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

LENGTH = Observable(name="x", unit="Å", per_frame=lambda params, system, graph, momenta: 0.0)


def frames(positions, quantities=None, cell=12.0, momenta=None):
    system = make_system(positions[0], 1, cell=cell, masses=1.0)
    cells = jnp.tile(system.cell, (len(positions), 1, 1))
    systems = system._replace(positions=jnp.asarray(positions), cell=cells)
    return Trajectory(systems, quantities or {}, StatePoint(kT=0.025), momenta)


def series(x):
    return frames(np.zeros((len(x), 1, 3)), {"x": jnp.asarray(x)})


def test_reweighted_variance_of_a_harmonic_well():
    """Samples at stiffness k have <x²> = kT / k; weights to k' give kT / k' to 4 sigma."""
    kT, k, stiffer = 0.025, 2.0, 2.6
    x = np.random.default_rng(0).normal(0.0, np.sqrt(kT / k), 20000)
    trajectory = series(x**2)
    value, info = LENGTH(trajectory)
    assert abs(value - kT / k) < 4.0 * info.error
    np.testing.assert_allclose(info.error, np.sqrt(2.0 / 20000) * kT / k, rtol=0.1)
    np.testing.assert_allclose(info.n_eff, 20000, rtol=0.1)
    weights = statistics.reweighting_weights(0.5 * (stiffer - k) * jnp.asarray(x) ** 2 / kT)
    value, info = LENGTH(trajectory, weights)
    assert abs(value - kT / stiffer) < 4.0 * info.error
    assert abs(value - kT / k) > 20.0 * info.error
    kish = statistics.effective_sample_size(weights)
    np.testing.assert_allclose(info.n_eff, kish / info.statistical_inefficiency)


def test_weights_need_not_be_normalised():
    x = np.random.default_rng(1).normal(size=(50, 3))
    weights = jnp.asarray(np.random.default_rng(2).uniform(size=50))
    value, info = LENGTH.estimate(jnp.asarray(x), weights)
    again, info_again = LENGTH.estimate(jnp.asarray(x), 7.0 * weights)
    np.testing.assert_allclose(value, np.average(x, axis=0, weights=weights), rtol=1e-12)
    np.testing.assert_allclose(again, value, rtol=1e-12)
    np.testing.assert_allclose(info_again.error, info.error, rtol=1e-12)
    assert info.error.shape == info.n_eff.shape == (3,)


@pytest.mark.parametrize("combine", [None, lambda x, w: w @ x**2 - (w @ x) ** 2])
def test_gradient_in_weights_equals_finite_differences(combine):
    observable = Observable(name="x", unit="1", per_frame=LENGTH.per_frame, combine=combine)
    x = jnp.asarray(np.random.default_rng(3).normal(size=12))
    delta_u = jnp.asarray(np.random.default_rng(4).normal(size=12))

    def value(delta_u):
        return observable.estimate(x, statistics.reweighting_weights(delta_u))[0]

    gradient = jax.grad(value)(delta_u)
    for i in range(12):
        step = jnp.zeros(12).at[i].set(1e-5)
        numeric = (value(delta_u + step) - value(delta_u - step)) / 2e-5
        np.testing.assert_allclose(gradient[i], numeric, rtol=1e-6, atol=1e-11)


def test_error_of_a_mean_knows_the_correlation():
    """First-order autoregression: ``g = (1 + rho) / (1 - rho)`` = 9, error sqrt(g / n)."""
    rho, n = 0.8, 20000
    noise = np.random.default_rng(5).normal(size=n) * np.sqrt(1.0 - rho**2)
    x = np.zeros(n)
    for t in range(1, n):
        x[t] = rho * x[t - 1] + noise[t]
    _, info = LENGTH(series(x))
    np.testing.assert_allclose(info.statistical_inefficiency, 9.0, rtol=0.25)
    np.testing.assert_allclose(info.error, np.sqrt(9.0 / n), rtol=0.2)


def test_error_of_a_variance_by_the_jackknife():
    """The sample variance of a unit Gaussian has standard error sqrt(2 / n)."""
    variance = Observable(
        name="x",
        unit="1",
        per_frame=LENGTH.per_frame,
        combine=lambda x, w: w @ x**2 - (w @ x) ** 2,
    )
    x = jnp.asarray(np.random.default_rng(6).normal(size=(40, 2000)))
    values, info = jax.vmap(variance.estimate)(x)
    z = (np.asarray(values) - 1.0) / np.asarray(info.error)
    assert abs(z.mean()) < 4.0 / np.sqrt(40)
    np.testing.assert_allclose(np.mean(info.error), np.sqrt(2.0 / 2000), rtol=0.1)


def test_one_frame_has_no_error_bar():
    value, info = LENGTH(series([3.0]))
    np.testing.assert_allclose(value, 3.0)
    assert np.isnan(info.error)


def test_too_few_weights_are_named():
    with pytest.raises(ValueError, match=r"one value per frame, shape \(3,\), got \(2,\)"):
        LENGTH(series([1.0, 2.0, 3.0]), jnp.ones(2))


def test_a_missing_quantity_names_the_remedy():
    with pytest.raises(KeyError, match=r"no quantity 'x', only \['energy'\].*add_quantities"):
        LENGTH(frames(np.zeros((2, 1, 3)), {"energy": jnp.zeros(2)}))


def test_evaluated_frames_equal_single_ones_whatever_the_list():
    """Frame 5 is four times as dense as those the list is planned with."""
    positions = np.random.default_rng(7).uniform(0.0, 12.0, (20, 40, 3))
    positions[5] = positions[5] % 6.0
    momenta = jnp.asarray(np.random.default_rng(8).normal(size=positions.shape))
    trajectory = frames(positions, momenta=momenta)
    observables = [
        rdf(r_max=5.0, n_bins=10),
        rdf(r_max=5.0, n_bins=10, pairs="all", name="rdf_all"),
        adf(r_max=3.0, n_bins=8, max_neighbors=48),
        temperature(),
        density(),
    ]
    trajectory = add_quantities(observables, None, trajectory)
    found = trajectory.quantities
    assert list(found) == ["rdf", "rdf_all", "adf", "temperature_kelvin", "density_kg_m3"]
    np.testing.assert_allclose(found["rdf_all"], found["rdf"], rtol=1e-12)
    for index in (0, 5):
        system = trajectory.frame(index)
        for observable in observables:
            graph = None if observable.cutoff is None else host_graph(system, observable.cutoff)
            one = jax.jit(observable.per_frame)(None, system, graph, momenta[index])
            np.testing.assert_allclose(found[observable.name][index], one, rtol=1e-12)
    value, info = observables[0](trajectory)
    np.testing.assert_allclose(value, found["rdf"].mean(axis=0), rtol=1e-12)
    assert info.error.shape == (10,)


def test_observing_uses_the_graph_of_the_run():
    positions = np.random.default_rng(9).uniform(0.0, 12.0, (1, 40, 3))
    system = frames(positions).frame(0)
    observables = [rdf(r_max=5.0, n_bins=10, pairs="all"), adf(r_max=3.0, n_bins=8)]
    observed = jax.jit(observe(observables, cutoff=4.0))
    values = observed(None, system, host_graph(system, 4.5), None)
    expected = evaluate_frames(observables, None, frames(positions))
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-12)


def test_observing_farther_than_the_run_is_named():
    with pytest.raises(ValueError, match=r"'rdf' needs neighbors within 5\.0 Å.*reach 4\.0 Å"):
        observe([rdf(r_max=5.0, n_bins=10)], cutoff=4.0)


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match=r"share the names \['rdf'\]"):
        evaluate_frames([rdf(r_max=5.0, n_bins=10)] * 2, None, frames(np.zeros((1, 2, 3))))


def test_a_radius_beyond_half_the_cell_is_an_error_that_names_the_remedy():
    positions = np.random.default_rng(7).uniform(0.0, 12.0, (3, 40, 3))
    wide = rdf(r_max=6.5, n_bins=10, pairs="all")
    with pytest.raises(ValueError, match=r"'rdf' is not finite in frame 0 .*reduce `r_max`"):
        evaluate_frames([wide], None, frames(positions))
    within = evaluate_frames([rdf(r_max=6.5, n_bins=10)], None, frames(positions))
    assert np.isfinite(within["rdf"]).all()
