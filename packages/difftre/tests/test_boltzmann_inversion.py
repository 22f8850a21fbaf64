"""Iterative Boltzmann inversion where one step is exact."""

import jax.numpy as jnp
import numpy as np
import pytest
from difftre_ensembles import KT, uniform_sampler

from mosaicmd.difftre import boltzmann_inversion
from mosaicmd.kernel.observables import rdf


def test_one_step_from_the_ideal_gas_is_the_potential_of_mean_force():
    """g = 1 before, so the correction is -kT ln g_target, within the noise of g."""
    sampler = uniform_sampler(40, n_atoms=300, cell=12.0)
    observable = rdf(r_max=5.0, n_bins=25)
    r = np.asarray(observable.axis)
    wanted = np.where(r < 1.0, 0.0, 1.0 + 0.4 * np.cos(r))

    def add(params, known, correction):
        return {"u": params["u"] + known * correction, "known": known}

    algorithm = boltzmann_inversion(sampler, observable, wanted, add)
    params = {"u": jnp.zeros(25), "known": jnp.zeros(25)}
    state, metrics = algorithm.step(algorithm.init(params), None)
    known = np.asarray(state.params["known"]) > 0
    np.testing.assert_array_equal(known, (wanted > 0.01) & known)
    outer = known & (r > 1.5)
    counts = 40 * 300 * 299 / 2 * 4 * np.pi * r**2 * 0.2 / 12.0**3
    z = (np.asarray(state.params["u"]) + KT * np.log(np.where(known, wanted, 1.0))) / (
        KT / np.sqrt(counts)
    )
    assert np.abs(z[outer]).max() < 4.5
    assert metrics["simulations"] == 1


def test_target_must_fit_the_bins():
    with pytest.raises(ValueError, match="one finite value per bin"):
        boltzmann_inversion(
            uniform_sampler(2, n_atoms=5, cell=9.0),
            rdf(r_max=4.0, n_bins=8),
            np.ones(7),
            lambda *arguments: arguments,
        )
