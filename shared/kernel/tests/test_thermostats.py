"""Thermostats that rescale against the distributions they must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mosaicmd.kernel.integrators import csvr
from mosaicmd.kernel.momenta import kinetic_energy, maxwell_boltzmann
from mosaicmd.kernel.potentials import Evaluation
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.thermostats import nose_hoover_chain, stochastic_rescaling

KT = 0.025  # eV


@pytest.mark.parametrize("degrees", [1, 2, 5, 6])
def test_half_a_step_of_rescaling_is_a_noncentral_chi_square(degrees):
    """The norm of momenta under friction and noise: the law of Bussi et al. (2007), (A7).

    Kolmogorov-Smirnov over 20 000 draws, p > 1e-3; the sign is that of the largest part.
    """
    timestep, tau, doubled = 0.4, 0.5, 3.0 * KT
    thermostat = stochastic_rescaling(timestep, tau)
    bath = thermostat.init(jnp.asarray(KT), jnp.asarray(float(degrees)))
    terms = jnp.zeros(9).at[0].set(doubled)
    keys = jax.random.split(jax.random.key(degrees), 20_000)
    scale, _, after = jax.vmap(lambda key: thermostat.rescale(key, bath, terms))(keys)
    kept = np.exp(-0.5 * timestep / tau)
    law = stats.ncx2(degrees, kept * doubled / ((1.0 - kept) * KT), scale=(1.0 - kept) * KT)
    assert stats.kstest(np.asarray(scale) ** 2 * doubled, law.cdf).pvalue > 1e-3
    mean_along = np.sqrt(kept * doubled)  # of a Gaussian of variance (1 - kept) kT
    flipped = stats.norm(mean_along, np.sqrt((1.0 - kept) * KT)).cdf(0.0)
    assert stats.binomtest(int(np.sum(scale < 0.0)), len(keys), flipped).pvalue > 1e-3
    np.testing.assert_allclose(after.heat, 0.5 * doubled * (1.0 - scale**2), rtol=0, atol=1e-15)


def test_momenta_at_rest_stay_at_rest():
    thermostat = stochastic_rescaling(0.1, 1.0)
    bath = thermostat.init(jnp.asarray(KT), jnp.asarray(3.0))
    scale, _, after = thermostat.rescale(jax.random.key(0), bath, jnp.zeros((2, 3)))
    assert (scale, after.heat) == (1.0, 0.0)


def test_csvr_samples_the_canonical_kinetic_energy():
    """K ~ Gamma(f / 2, kT), f = 3 N - 3: Kolmogorov-Smirnov over 2000 replicas, p > 1e-3.

    From far too hot and without forces, after 20 relaxation times, half of the replicas at
    three times the temperature; the conserved quantity shows no step of it.
    """
    system = pad_system(make_system(np.zeros((5, 3)), 1, masses=[1.0, 2.0, 4.0, 8.0, 16.0]), 7)
    integrator = csvr(0.1, KT, 1.0)

    @jax.jit
    @jax.vmap
    def final(key, kT):
        momenta = maxwell_boltzmann(key, system, 10.0 * KT)
        state = integrator.init(key, system, momenta, kT)
        start = integrator.conserved(state)
        rest = Evaluation(jnp.zeros(()), jnp.zeros((7, 3)), None)
        state = jax.lax.fori_loop(
            0, 200, lambda _, s: integrator.kick(integrator.drift(s), rest), state
        )
        return state, integrator.conserved(state) - start

    temperatures = KT * jnp.repeat(jnp.array([1.0, 3.0]), 1000)
    state, change = final(jax.random.split(jax.random.key(1), 2000), temperatures)
    kinetic = jax.vmap(lambda momenta: kinetic_energy(system, momenta))(state.momenta)
    for kT in (KT, 3.0 * KT):
        own = np.asarray(kinetic)[np.asarray(temperatures) == kT]
        assert len(own) == 1000
        assert stats.kstest(own, stats.gamma(6.0, scale=kT).cdf).pvalue > 1e-3
    np.testing.assert_allclose(change, 0.0, atol=1e-13)
    np.testing.assert_allclose(state.momenta.sum(axis=1), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: stochastic_rescaling(0.1, 0.0), "relaxation_time"),
        (lambda: stochastic_rescaling(float("inf"), 1.0), "timestep"),
        (lambda: nose_hoover_chain(0.1, 0.5), "relaxation_time"),
        (lambda: nose_hoover_chain(0.1, 5.0, 0), "chain_length"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()
