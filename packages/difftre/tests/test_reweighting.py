"""Reweighted averages and derivatives against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from difftre_ensembles import KT, harmonic_energy, harmonic_sampler, mean_square

from mosaicmd.difftre import Reweighting, Target
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.trajectory import StatePoint


def prepared(n_frames=4000, *, k=1.5, targets=None, n_atoms=1, seed=0):
    """A reweighting with samples drawn at spring constant ``k``."""
    sampler = harmonic_sampler(n_frames, n_atoms=n_atoms, seed=seed)
    params = {"k": jnp.asarray(k)}
    _, trajectory = sampler.sample(params, sampler.init())
    targets = targets or [Target(observable=mean_square(), value=0.02, tolerance=0.001)]
    reweighting = Reweighting(harmonic_energy, None, targets, StatePoint(KT))
    return reweighting, params, reweighting.prepare(params, trajectory, None)


@pytest.mark.parametrize("k", [1.5, 1.8, 1.3])
def test_harmonic_average_and_gradient_at_and_away_from_the_reference(k):
    """<x²> = kT/k and d<x²>/dk = -kT/k², from frames drawn at k = 1.5 eV/Å².

    The spread over 24 independent sets of frames gives the standard error; 4 sigma.
    """
    values, slopes = [], []
    for seed in range(24):
        reweighting, _, samples = prepared(400, seed=seed)
        one = reweighting.linearise({"k": jnp.asarray(k)}, samples, None)
        values.append(one.prediction.values["x2"])
        slopes.append(one.jacobian["x2"][0])
    for found, exact in ((values, KT / k), (slopes, -KT / k**2)):
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert abs(np.mean(found) - exact) < 4.0 * error + 2e-3 * abs(exact)


def test_effective_sample_size_of_a_gaussian_energy_difference():
    """U' - U = f x has beta² variance s² = f² / (k kT): N_eff / N = exp(-s²/2)."""

    def tilted(params, system, graph):
        return harmonic_energy(params, system, graph) + params["f"] * system.positions[:, 0]

    sampler = harmonic_sampler(200_000)
    params = {"k": jnp.asarray(1.5), "f": jnp.asarray(0.0)}
    _, trajectory = sampler.sample(params, sampler.init())
    reweighting = Reweighting(tilted, None, [], StatePoint(KT))
    samples = reweighting.prepare(params, trajectory, None)
    force = 0.15
    n_eff = reweighting.n_eff(params | {"f": jnp.asarray(force)}, samples, None)
    np.testing.assert_allclose(n_eff / 200_000, np.exp(-0.5 * force**2 / (1.5 * KT)), rtol=0.01)


def moving_targets():
    """A curve that stays, a number that changes with the parameters, a combined one."""
    histogram = Observable(
        name="powers",
        unit="",
        per_frame=lambda p, s, g, m: jnp.mean(s.positions**2) ** jnp.arange(1.0, 4.0),
        axis=np.arange(3.0),
    )
    virial = Observable(
        name="virial",
        unit="eV",
        per_frame=lambda p, s, g, m: jnp.sum(p["k"] ** 1.5 * jnp.abs(s.positions)),
        depends_on_params=True,
    )
    variance = Observable(
        name="variance",
        unit="Å⁴",
        per_frame=lambda p, s, g, m: jnp.mean(s.positions**2),
        combine=lambda v, w: w @ v**2 - (w @ v) ** 2,
    )
    return [
        Target(observable=histogram, value=np.array([0.02, 3e-4, 6e-6]), tolerance=0.01),
        Target(observable=virial, value=0.5, tolerance=0.1, weight=2.0, clip=1.0),
        Target(observable=variance, value=1e-4, tolerance=1e-4),
    ]


def test_derivatives_equal_central_differences_on_fixed_frames():
    """Loss gradient and Jacobian to 1e-6 relative, away from the reference."""
    reweighting, _, samples = prepared(50, targets=moving_targets(), n_atoms=3)
    at, step = 1.7, 1e-5

    def predicted(k):
        return reweighting.predict({"k": jnp.asarray(k)}, samples, None).values

    def loss(k):
        return reweighting.loss_and_gradient({"k": jnp.asarray(k)}, samples, None)[0][0]

    slope = reweighting.loss_and_gradient({"k": jnp.asarray(at)}, samples, None)[1]["k"]
    np.testing.assert_allclose(slope, (loss(at + step) - loss(at - step)) / (2 * step), rtol=1e-6)
    jacobian = reweighting.linearise({"k": jnp.asarray(at)}, samples, None).jacobian
    above, below = predicted(at + step), predicted(at - step)
    for name, column in jacobian.items():
        difference = (above[name] - below[name]) / (2 * step)
        np.testing.assert_allclose(column[..., 0], difference, rtol=1e-6)


@pytest.mark.parametrize("n_bins", [0, 20])
def test_few_averages_of_many_parameters_are_differentiated_backwards_and_exactly(
    n_bins, monkeypatch
):
    """A spring per direction, two averages: central differences on fixed frames, to 1e-6.

    A distribution that is fixed in each frame, of more bins than parameters, changes nothing.
    """

    def energy(params, system, graph):
        return 0.5 * jnp.sum(params["k"] * system.positions**2, axis=-1)

    def per_frame(params, system, graph, momenta):
        force = params["k"][0] ** 1.5 * jnp.abs(jnp.sum(system.positions, axis=0, keepdims=True))[0]
        return jnp.concatenate([force, jnp.sum(force, keepdims=True) ** 2])

    def combine(values, weights):
        mean = weights @ values
        return jnp.stack([weights @ values[:, 3] - mean[3] ** 2, mean[0] * mean[2]])

    observable = Observable(
        name="pull", unit="", per_frame=per_frame, combine=combine, depends_on_params=True
    )
    targets = [Target(observable=observable, value=np.zeros(2), tolerance=1.0)]
    if n_bins:
        bins = Observable(
            name="bins",
            unit="",
            per_frame=lambda p, s, g, m: jnp.sum(s.positions) * jnp.arange(1.0, n_bins + 1.0),
        )
        targets.insert(0, Target(observable=bins, value=np.zeros(n_bins), tolerance=1.0))
    monkeypatch.setattr(jax, "jacfwd", None)
    reweighting = Reweighting(energy, None, targets, StatePoint(KT))
    start = {"k": jnp.full((1, 3), 1.5)}
    sampler = harmonic_sampler(40, n_atoms=2)
    _, trajectory = sampler.sample({"k": 1.5}, sampler.init())
    samples = reweighting.prepare(start, trajectory, None)
    at, step = np.array([[1.7, 1.4, 1.55]]), 1e-5
    jacobian = reweighting.linearise({"k": jnp.asarray(at)}, samples, None).jacobian["pull"]
    for axis in range(3):
        move = step * np.eye(3)[axis][None]
        ends = [
            reweighting.predict({"k": jnp.asarray(at + sign * move)}, samples, None).values["pull"]
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(jacobian[:, axis], (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_direct_derivatives_from_some_frames_are_those_of_the_covariance_of_all_frames_and_theirs():
    """``J = J_w + J_d``: ``J_w`` keeps all frames, ``J_d`` is that of frames 0, 5, 10, ... alone.

    For ``|x|`` scaled by ``k^1.5`` the direct part is ``1.5 / k`` times its own average.
    """
    every, k = 5, 1.7
    whole, _, samples = prepared(100, targets=moving_targets(), n_atoms=3)
    some = Reweighting(harmonic_energy, None, whole.targets, StatePoint(KT), direct_every=every)
    params = {"k": jnp.asarray(k)}
    full, cheap = (one.linearise(params, samples, None) for one in (whole, some))
    weights = np.asarray(full.prediction.weights)
    size = k**1.5 * np.sum(np.abs(samples.systems.positions), axis=(1, 2))
    of_all = 1.5 / k * weights @ size
    of_some = 1.5 / k * weights[::every] @ size[::every] / weights[::every].sum()
    change = cheap.jacobian["virial"] - full.jacobian["virial"]
    np.testing.assert_allclose(change, [of_some - of_all], rtol=1e-10)
    for name in ("powers", "variance"):
        np.testing.assert_array_equal(cheap.jacobian[name], full.jacobian[name])
    np.testing.assert_array_equal(cheap.metric, full.metric)
    np.testing.assert_array_equal(
        cheap.prediction.values["virial"], full.prediction.values["virial"]
    )
    with pytest.raises(ValueError, match="direct_every"):
        Reweighting(harmonic_energy, None, [], StatePoint(KT), direct_every=0)


def test_gradient_of_the_loss_is_pull_times_jacobian():
    reweighting, _, samples = prepared(60, targets=moving_targets(), n_atoms=2)
    params = {"k": jnp.asarray(1.6)}
    one = reweighting.linearise(params, samples, None)
    expected = 0.0
    for target in reweighting.targets:
        name = target.observable.name
        value = one.prediction.values[name]
        scale = np.asarray(jax.jacobian(target.deviations)(value)).reshape(-1, value.size)
        expected += target.pull(value) @ scale @ np.asarray(one.jacobian[name]).reshape(-1, 1)
    slope = reweighting.loss_and_gradient(params, samples, None)[1]["k"]
    np.testing.assert_allclose(slope, expected[0], rtol=1e-10)


def test_metric_is_the_fisher_information_of_the_well():
    """beta² var(x²/2) over three components is 3 / (2 k²); 4 sigma of its estimate."""
    reweighting, params, samples = prepared(40_000)
    metric = reweighting.linearise(params, samples, None).metric[0, 0]
    exact = 3.0 / (2.0 * 1.5**2)
    # var of a variance estimate of a chi² variable with 3 degrees: (mu4 - mu2²)/n
    relative = np.sqrt((12.0 / 3.0 + 2.0) / 40_000)
    assert abs(metric / exact - 1.0) < 4.0 * relative


def test_names_must_differ():
    target = Target(observable=mean_square(), value=0.02, tolerance=0.001)
    with pytest.raises(ValueError, match="share an observable name"):
        Reweighting(harmonic_energy, None, [target, target], StatePoint(KT))
