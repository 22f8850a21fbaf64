"""Steps of both optimisers where the right step is known."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from difftre_ensembles import KT, harmonic_energy, harmonic_sampler, mean_square, uniform_sampler

from mosaicmd.difftre import (
    Problem,
    Reweighting,
    Target,
    first_order,
    gauss_newton,
)
from mosaicmd.difftre.updates import _trust_region_step
from mosaicmd.gnn_models import PairSplineConfig, pair_spline
from mosaicmd.gnn_models.pair_spline import spline_values
from mosaicmd.kernel.observables import rdf
from mosaicmd.kernel.trajectory import StatePoint


def harmonic_problem(*, k=1.5, goal=1.6, n_frames=2000, penalty=None):
    """Frames at spring constant ``k``, the target being <x²> at ``goal``."""
    sampler = harmonic_sampler(n_frames)
    params = {"k": jnp.asarray(k)}
    _, trajectory = sampler.sample(params, sampler.init())
    target = Target(observable=mean_square(), value=KT / goal, tolerance=1e-3)
    reweighting = Reweighting(harmonic_energy, None, [target], StatePoint(KT))
    samples = reweighting.prepare(params, trajectory, None)
    return Problem((reweighting,), (samples,), (None,), penalty), params


def test_gauss_newton_step_is_the_newton_step_of_the_residual():
    """One parameter, one target: delta = -(<x²> - goal) / (d<x²>/dk), were there no damping."""
    problem, params = harmonic_problem()
    one = problem.linearise(params)[0]
    newton = -(one.prediction.values["x2"] - KT / 1.6) / one.jacobian["x2"][0]
    moved, _, info = gauss_newton(damping=1e-12).step(problem, params, ())
    np.testing.assert_allclose(moved["k"] - 1.5, newton, rtol=1e-6)
    assert info.step_scale == 1.0


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_gauss_newton_step_reaches_and_keeps_the_bound_on_the_divergence(bound):
    problem, params = harmonic_problem(goal=6.0)
    moved, _, _ = gauss_newton(max_divergence=bound).step(problem, params, ())
    delta = moved["k"] - 1.5
    metric = problem.linearise(params)[0].metric[0, 0]
    np.testing.assert_allclose(delta**2 * metric, bound, rtol=1e-6)
    assert delta > 0.0


@pytest.mark.parametrize(
    ("update", "keep"),
    [
        (first_order(optax.sgd(1e-2), keep_fraction=0.8), 0.8),
        (gauss_newton(keep_fraction=0.95), 0.95),
    ],
    ids=["first order", "Gauss-Newton"],
)
def test_steps_are_halved_until_enough_frames_count(update, keep):
    problem, params = harmonic_problem(goal=6.0)
    moved, _, info = update.step(problem, params, update.init(params))
    assert info.step_scale < 1.0
    assert keep * 2000 <= info.n_eff[0] < 2000
    twice = {"k": params["k"] + 2.0 * (moved["k"] - params["k"])}
    assert problem.n_eff(twice)[0] < keep * 2000


def test_steps_that_overshoot_are_halved_until_the_loss_falls():
    """``<x²>`` goes as ``1 / k``: to twice of it, Newton's step leads to a sixth of ``k``."""
    problem, params = harmonic_problem(goal=0.8)
    before = problem.loss(params)
    far, _, _ = gauss_newton(max_divergence=1e9).step(problem, params, ())
    assert problem.loss(far) > before
    moved, _, info = gauss_newton(max_divergence=1e9, descend=True).step(problem, params, ())
    assert info.step_scale < 1.0
    assert 0.0 < moved["k"] < params["k"]
    assert problem.loss(moved) <= before == info.loss


def test_penalty_pulls_both_updates():
    """With a stiff penalty the parameters end where it vanishes."""
    problem, params = harmonic_problem(penalty=lambda p: 1e5 * jnp.atleast_1d(p["k"] - 1.55))
    moved, _, _ = gauss_newton(damping=1e-12).step(problem, params, ())
    np.testing.assert_allclose(moved["k"], 1.55, atol=1e-6)
    _, gradient, _ = problem.loss_and_gradient(params)
    assert gradient["k"] < -1e8


def test_parameters_that_no_frame_depends_on_stay():
    def energy(params, system, graph):
        return harmonic_energy(params, system, graph) + 0.0 * params["idle"]

    problem, params = harmonic_problem()
    old = problem.reweightings[0]
    reweighting = Reweighting(energy, None, old.targets, StatePoint(KT))
    problem = problem._replace(reweightings=(reweighting,))
    params = params | {"idle": jnp.asarray(0.7)}
    moved, _, _ = gauss_newton().step(problem, params, ())
    assert moved["idle"] == 0.7
    assert moved["k"] > params["k"]


def test_steps_are_exact_where_few_parameters_are_seen_by_frames_and_all_by_a_penalty():
    """The model is stationary along parameters without frames, and the bound is reached.

    62 parameters, of which 12 have a penalty alone; scales of both differ by many decades, as
    those of splines do that are also matched to labels.
    """
    rng = np.random.default_rng(0)
    n, seen = 62, 50
    spread = rng.normal(size=(40, n)) * np.logspace(3, -1, 40)[:, None]
    spread[:, seen:] = 0.0
    jacobian = rng.normal(size=(24, 40)) @ spread / 300.0
    axes = np.linalg.qr(rng.normal(size=(n, n)))[0]
    curvature = jacobian.T @ jacobian + (axes * np.logspace(6, -2, n)) @ axes.T
    metric, slope = spread.T @ spread, jacobian.T @ rng.normal(scale=10.0, size=24)
    size = np.sqrt(np.diag(curvature + metric))
    step = _trust_region_step(slope, curvature, metric, size, 8.0, 1e-2, 1e-10)
    np.testing.assert_allclose(step @ metric @ step, 8.0, rtol=1e-6)
    left = (curvature @ step + slope) / size
    assert np.abs(left[seen:]).max() < 1e-6 * np.abs(slope / size).max()


def test_a_ridge_keeps_two_parameters_that_stand_for_each_other_from_running_apart():
    """``k = a b``: along ``a / b`` nothing changes to first order, and ``a`` and ``b`` share."""

    def energy(params, system, graph):
        return harmonic_energy({"k": params["a"] * params["b"]}, system, graph)

    problem, _ = harmonic_problem(goal=1.7)
    old = problem.reweightings[0]
    reweighting = Reweighting(energy, None, old.targets, StatePoint(KT))
    start = {"a": jnp.asarray(1.0), "b": jnp.asarray(1.5)}
    problem = problem._replace(
        reweightings=(reweighting,), samples=(problem.samples[0]._replace(params=start),)
    )
    moved, _, _ = gauss_newton(ridge=1e-3).step(problem, start, ())
    np.testing.assert_allclose(moved["a"] * moved["b"], 1.7, atol=0.1)
    np.testing.assert_allclose(moved["b"] - 1.5, 1.5 * (moved["a"] - 1.0), rtol=0.01)


def test_more_parameters_than_frames_take_the_step_of_one_and_share_it():
    """``k = c.x``: ``k`` moves as it would alone, bounded likewise, and ``x`` along ``c``."""
    problem, params = harmonic_problem(goal=6.0, n_frames=60)
    factors = jnp.asarray(np.random.default_rng(1).normal(size=200))

    def energy(params, system, graph):
        return harmonic_energy({"k": params["x"] @ factors}, system, graph)

    old = problem.reweightings[0]
    reweighting = Reweighting(energy, None, old.targets, StatePoint(KT))
    start = {"x": params["k"] * factors / (factors @ factors)}
    samples = problem.samples[0]._replace(params=start)
    many = problem._replace(reweightings=(reweighting,), samples=(samples,))
    for bound in (0.3, 1e9):
        update = gauss_newton(max_divergence=bound)
        alone, _, _ = update.step(problem, params, ())
        shared, _, _ = update.step(many, start, ())
        np.testing.assert_allclose(shared["x"] @ factors, alone["k"], rtol=1e-6)
        step = shared["x"] - start["x"]
        np.testing.assert_allclose(
            step, factors * (step @ factors) / (factors @ factors), atol=1e-8
        )


def test_first_step_of_a_pair_spline_has_the_sign_pattern_of_g_minus_target():
    """In an ideal gas bins are independent: u rises where g is too high, and only there."""
    config = PairSplineConfig(cutoff=5.0, r_min=1.0, n_coefficients=10)
    potential = pair_spline(config)
    sampler = uniform_sampler(1500, n_atoms=40, cell=10.0)
    observable = rdf(r_max=5.0, n_bins=20)
    r = np.asarray(observable.axis)
    wanted = 1.0 + 0.5 * np.sin(2.0 * np.pi * (r - 1.0) / 4.0) * (r > 1.0)
    params = potential.init(None)
    _, trajectory = sampler.sample(params, sampler.init())
    target = Target(observable=observable, value=wanted, tolerance=0.1)
    reweighting = Reweighting(potential.energy, 5.0, [target], StatePoint(KT))
    graphs = reweighting.graphs(trajectory.systems)
    samples = reweighting.prepare(params, trajectory, graphs)
    problem = Problem((reweighting,), (samples,), (graphs,), None)
    update = first_order(optax.sgd(1e-4))
    moved, _, info = update.step(problem, params, update.init(params))
    change = spline_values(config, moved["coefficients"][0], r)
    excess = np.asarray(info.predictions[0].values[observable.name]) - wanted
    clear = (np.abs(np.sin(2.0 * np.pi * (r - 1.0) / 4.0)) > 0.5) & (r > 1.5) & (r < 4.8)
    np.testing.assert_array_equal(np.sign(change[clear]), np.sign(excess[clear]))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="keep_fraction"):
        first_order(optax.adam(1e-3), keep_fraction=1.0)
    with pytest.raises(ValueError, match="must be positive"):
        gauss_newton(max_divergence=0.0)
