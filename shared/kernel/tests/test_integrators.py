"""Integrators against closed forms, conservation laws and an independent thermostat."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.integrators import (
    MDState,
    NoseHooverChain,
    csvr,
    langevin,
    maxwell_boltzmann,
    nose_hoover,
    nve,
)
from mosaicmd.kernel.momenta import degrees_of_freedom, kinetic_energy, kinetic_tensor
from mosaicmd.kernel.potentials import Evaluation
from mosaicmd.kernel.systems import make_system, pad_system

KT = 0.025  # eV


def z_score(samples, expected, n_blocks=25):
    """How many standard errors, from block averages, a mean is away from its truth."""
    samples = np.asarray(samples).reshape(n_blocks, -1).mean(axis=1)
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(n_blocks))


def propagate(integrator, state, energy_fn, n_steps, observe=lambda state: None):
    """Run ``n_steps`` with ``energy_fn(positions)``; the final state and what was observed."""
    value_and_gradient = jax.value_and_grad(energy_fn)

    def with_forces(state):
        energy, gradient = value_and_gradient(state.system.positions)
        return state._replace(energy=energy, forces=-gradient)

    def step(state, _):
        state = integrator.drift(state)
        energy, gradient = value_and_gradient(state.system.positions)
        state = integrator.kick(state, Evaluation(energy, -gradient, None))
        return state, observe(state)

    return jax.jit(lambda s: jax.lax.scan(step, with_forces(s), None, length=n_steps))(state)


def ones(n_atoms):
    """An evaluation of forces and stress without meaning."""
    return Evaluation(jnp.zeros(()), jnp.ones((n_atoms, 3)), jnp.eye(3))


def wells(stiffness):
    return lambda positions: 0.5 * stiffness * jnp.sum(positions**2)


def crystal(n=3, spacing=1.1, seed=0):
    """A small open Lennard-Jones crystal (sigma 1, epsilon 1) and its energy function."""
    sites = np.array(list(itertools.product(range(n), repeat=3)), float) * spacing
    sites += np.random.default_rng(seed).normal(0.0, 0.01, sites.shape)
    first, second = np.triu_indices(len(sites), 1)

    def energy(positions):
        square = jnp.sum((positions[first] - positions[second]) ** 2, axis=1)
        sixth = 1.0 / square**3
        return 4.0 * jnp.sum(sixth**2 - sixth)

    return make_system(sites, 18, masses=1.0), energy


def covariance_of_baoab(stiffness, mass, kT, timestep, friction):
    """Exact stationary covariance of (x, p) in a harmonic well: the map is linear."""
    a = np.array([[1.0, 0.5 * timestep / mass], [0.0, 1.0]])
    b = np.array([[1.0, 0.0], [-0.5 * timestep * stiffness, 1.0]])
    decay = np.exp(-friction * timestep)
    noise = np.array([0.0, np.sqrt((1.0 - decay**2) * kT * mass)])
    step = b @ a @ np.diag([1.0, decay]) @ a @ b
    kicked = (b @ a @ noise)[:, None]
    source = (kicked @ kicked.T).ravel()
    return np.linalg.solve(np.eye(4) - np.kron(step, step), source).reshape(2, 2)


@pytest.mark.parametrize("timestep", [0.1, 1.0])
def test_langevin_samples_the_harmonic_variance_at_any_time_step(timestep):
    """<x²> = kT / k without bias; <p²> with the bias of the exact linear map (|z| < 4)."""
    stiffness, mass, friction = 2.0, 10.0, 0.5
    exact = covariance_of_baoab(stiffness, mass, KT, timestep, friction)
    np.testing.assert_allclose(exact[0, 0], KT / stiffness, rtol=1e-12)
    system = make_system(np.zeros((200, 3)), 1, masses=mass)
    integrator = langevin(timestep, friction, KT)
    state = integrator.init(jax.random.key(1), system, jnp.zeros((200, 3)), None)

    def observe(state):
        return jnp.mean(state.system.positions**2), jnp.mean(state.momenta**2)

    _, (position, momentum) = propagate(integrator, state, wells(stiffness), 5500, observe)
    assert abs(z_score(position[500:], KT / stiffness)) < 4.0
    assert abs(z_score(momentum[500:], exact[1, 1])) < 4.0


def test_free_langevin_momenta_are_gaussian_for_every_mass():
    """Variance m kT (equipartition) and kurtosis 3, per mass, |z| < 4."""
    masses = np.repeat([1.0, 16.0, 200.0], 100)
    system = make_system(np.zeros((300, 3)), 1, masses=masses)
    integrator = langevin(1.0, 0.7, KT)
    state = integrator.init(jax.random.key(2), system, jnp.zeros((300, 3)), None)

    def observe(state):
        scaled = state.momenta.reshape(3, 100, 3) / jnp.sqrt(jnp.array([[[1.0]], [[16]], [[200]]]))
        return jnp.mean(scaled**2, axis=(1, 2)), jnp.mean(scaled**4, axis=(1, 2))

    _, (second, fourth) = propagate(integrator, state, lambda r: 0.0 * jnp.sum(r), 2100, observe)
    for species in range(3):
        assert abs(z_score(second[100:, species], KT)) < 4.0
        assert abs(z_score(fourth[100:, species], 3.0 * KT**2)) < 4.0


def test_maxwell_boltzmann_has_no_drift_and_the_right_energy():
    """<K> = (3 N - 3) kT / 2, |z| < 4; var K = (3 N - 3) kT² / 2 within 4 standard errors."""
    system = make_system(np.zeros((10, 3)), 1, masses=np.linspace(1.0, 50.0, 10))
    momenta = jax.vmap(lambda key: maxwell_boltzmann(key, system, KT))(
        jax.random.split(jax.random.key(3), 4000)
    )
    np.testing.assert_allclose(momenta.sum(axis=1), 0.0, atol=1e-12)
    kinetic = np.asarray(jax.vmap(lambda p: kinetic_energy(system, p))(momenta))
    assert abs(z_score(kinetic, 13.5 * KT)) < 4.0
    squares = (kinetic - 13.5 * KT) ** 2
    assert abs(z_score(squares, 13.5 * KT**2)) < 4.0


@pytest.mark.parametrize("n_atoms", [2, 3, 10])
def test_momenta_without_rotation_at_an_exact_temperature(n_atoms):
    """No momentum, no angular momentum, K = f kT / 2 with f = 3 N - 6 (two atoms: 1)."""
    rng = np.random.default_rng(n_atoms)
    masses = rng.uniform(1.0, 50.0, n_atoms)
    system = make_system(5.0 + 3.0 * rng.normal(size=(n_atoms, 3)), 1, masses=masses)
    system = pad_system(system, 12)
    momenta = maxwell_boltzmann(jax.random.key(3), system, KT, exact=True, rotation=False)
    degrees = max(3 * n_atoms - 6, 1)
    np.testing.assert_allclose(kinetic_energy(system, momenta), 0.5 * degrees * KT, rtol=1e-12)
    np.testing.assert_allclose(momenta.sum(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(np.cross(system.positions, momenta).sum(axis=0), 0.0, atol=1e-11)
    assert not momenta[n_atoms:].any()
    with_rotation = maxwell_boltzmann(jax.random.key(3), system, KT, exact=True)
    np.testing.assert_allclose(
        kinetic_energy(system, with_rotation), 1.5 * (n_atoms - 1) * KT, rtol=1e-12
    )


def test_kinetic_quantities_leave_padding_out():
    system = pad_system(make_system(np.zeros((2, 3)), 1, masses=[2.0, 4.0]), 5)
    momenta = jnp.array([[2.0, 0.0, 0.0], [0.0, 4.0, 4.0]] + [[7.0, 7.0, 7.0]] * 3)
    assert kinetic_energy(system, momenta) == 1.0 + 2.0 + 2.0
    np.testing.assert_array_equal(
        kinetic_tensor(system, momenta), [[2.0, 0.0, 0.0], [0.0, 4.0, 4.0], [0.0, 4.0, 4.0]]
    )
    assert degrees_of_freedom(system, 3) == 3.0
    assert not maxwell_boltzmann(jax.random.key(0), system, KT)[2:].any()


def test_nve_energy_error_is_of_second_order():
    """Halving the time step divides the energy fluctuation by four."""
    system, energy_fn = crystal()
    momenta = maxwell_boltzmann(jax.random.key(4), system, 0.1)

    def fluctuation(timestep):
        integrator = nve(timestep)
        state = integrator.init(jax.random.key(0), system, momenta, None)
        n_steps = round(2.0 / timestep)
        _, total = propagate(integrator, state, energy_fn, n_steps, integrator.conserved)
        return np.std(total)

    coarse, fine, finer = (fluctuation(timestep) for timestep in (0.004, 0.002, 0.001))
    assert abs(coarse / fine - 4.0) < 0.1
    assert abs(fine / finer - 4.0) < 0.1


@pytest.mark.parametrize(
    "integrator", [nve(0.002), nose_hoover(0.002, 0.1, 0.1)], ids=["nve", "nose_hoover"]
)
def test_reversed_momenta_lead_back_to_the_start(integrator):
    system, energy_fn = crystal()
    momenta = maxwell_boltzmann(jax.random.key(5), system, 0.1)
    start = integrator.init(jax.random.key(0), system, momenta, None)
    state, _ = propagate(integrator, start, energy_fn, 300)
    assert np.abs(state.system.positions - system.positions).max() > 0.05
    state = state._replace(momenta=-state.momenta)
    if state.thermostat != ():
        chain = state.thermostat
        state = state._replace(thermostat=chain._replace(momenta=-chain.momenta))
    state, _ = propagate(integrator, state, energy_fn, 300)
    np.testing.assert_allclose(state.system.positions, system.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(-state.momenta, momenta, rtol=0, atol=1e-11)


def test_nose_hoover_keeps_its_conserved_quantity_to_second_order():
    system, energy_fn = crystal()
    momenta = maxwell_boltzmann(jax.random.key(6), system, 0.05)

    def fluctuation(timestep):
        integrator = nose_hoover(timestep, 0.1, 0.2)
        state = integrator.init(jax.random.key(0), system, momenta, None)

        def observe(state):
            kinetic = kinetic_energy(state.system, state.momenta)
            return integrator.conserved(state), state.energy + kinetic

        n_steps = round(4.0 / timestep)
        _, (conserved, total) = propagate(integrator, state, energy_fn, n_steps, observe)
        return np.std(conserved), np.std(total)

    (coarse, exchanged), (fine, _) = fluctuation(0.004), fluctuation(0.002)
    assert coarse < 1e-3 * exchanged  # energy did flow
    assert abs(coarse / fine - 4.0) < 0.2


def test_nose_hoover_samples_the_canonical_kinetic_energy():
    """<K> = f kT / 2 and var K = f kT² / 2 with f = 3 N - 3 degrees of freedom, |z| < 4."""
    system, energy_fn = crystal(n=2)
    system = pad_system(system, 11)
    kT, degrees = 0.15, 21
    integrator = nose_hoover(0.01, kT, 0.3)
    momenta = maxwell_boltzmann(jax.random.key(7), system, kT)
    states = integrator.init(jax.random.key(0), system, momenta, None)

    def observe(state):
        return kinetic_energy(state.system, state.momenta)

    state, kinetic = propagate(integrator, states, energy_fn, 210_000, observe)
    kinetic = np.asarray(kinetic)[10_000:]
    assert abs(z_score(kinetic, degrees * kT / 2)) < 4.0
    assert abs(z_score((kinetic - degrees * kT / 2) ** 2, degrees * kT**2 / 2)) < 4.0
    np.testing.assert_allclose(np.sum(state.momenta, axis=0), 0.0, atol=1e-9)


@pytest.mark.slow
def test_nose_hoover_chain_agrees_with_jax_md():
    """The passes of our chain, one by one, by an independent program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax_md.simulate import nose_hoover_chain

    timestep, kT, tau = 0.01, 0.1, 0.25
    system, _ = crystal()
    momenta = maxwell_boltzmann(jax.random.key(8), system, 2.0 * kT)
    ours = nose_hoover(timestep, kT, tau, chain_length=4)
    outer = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
    theirs = [
        nose_hoover_chain(weight * timestep, 4, 1, 1, tau)
        for weight in (outer, 1.0 - 2.0 * outer, outer)
    ]
    degrees = 3.0 * system.n_atoms - 3.0
    chain = theirs[0].initialize(degrees, kinetic_energy(system, momenta), jnp.asarray(kT))

    @jax.jit
    def our_step(state):  # without forces, a step is two half steps of the chain
        return ours.kick(
            ours.drift(state), Evaluation(jnp.zeros(()), jnp.zeros_like(momenta), None)
        )

    @jax.jit
    def their_half(expected, chain):
        for part in theirs:
            expected, chain = part.half_step(expected, chain, kT)
        return expected, chain

    state, expected = ours.init(jax.random.key(0), system, momenta, None), momenta
    for _ in range(20):
        state = our_step(state)
        expected, chain = their_half(*their_half(expected, chain))
    # JAX-MD rounds fractions of the time step to single precision.
    np.testing.assert_allclose(state.momenta, expected, rtol=2e-6)
    np.testing.assert_allclose(state.thermostat.positions, chain.position, rtol=2e-6)
    np.testing.assert_allclose(state.thermostat.momenta, chain.momentum, rtol=2e-6)
    assert np.abs(np.asarray(state.momenta / momenta) - 1.0).max() > 0.01


INTEGRATORS = {
    "nve": nve(0.1),
    "langevin": langevin(0.1, 0.5, KT),
    "nose_hoover": nose_hoover(0.1, KT, 5.0),
    "csvr": csvr(0.1, KT, 5.0),
}


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_keeps_every_type(name, dtype):
    """The state is the carry of a loop: same dtypes, no weak types, in either precision."""
    integrator = INTEGRATORS[name]
    system = make_system(np.eye(3), 18, dtype=dtype)
    momenta = maxwell_boltzmann(jax.random.key(0), system, KT)
    before = integrator.init(jax.random.key(1), system, momenta, None)

    @jax.jit
    def step(state):
        return integrator.kick(
            integrator.drift(state), Evaluation(before.energy, before.forces, before.stress)
        )

    after = step(before)
    assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, after)
    assert after.momenta.dtype == dtype
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", INTEGRATORS)
def test_masked_atoms_never_move(name):
    integrator = INTEGRATORS[name]
    system = pad_system(make_system(np.eye(3), 18), 5)
    state = integrator.init(jax.random.key(1), system, jnp.ones((5, 3)), None)
    for _ in range(3):
        state = integrator.kick(integrator.drift(state), ones(5))
    assert not state.system.positions[3:].any()
    assert not state.momenta[3:].any()
    assert (state.momenta[:3] != 0.0).all()


@pytest.mark.parametrize("name", INTEGRATORS)
def test_replicas_are_a_vmap(name):
    integrator = INTEGRATORS[name]
    system = make_system(np.eye(3), 18)
    keys = jax.random.split(jax.random.key(1), 4)
    momenta = jax.vmap(lambda key: maxwell_boltzmann(key, system, KT))(keys)
    temperatures = jnp.array([1.0, 1.0, 2.0, 2.0]) * KT

    def step(key, momenta, kT):
        state = integrator.init(key, system, momenta, kT)
        return integrator.kick(integrator.drift(state), ones(3))

    together = jax.vmap(step)(keys, momenta, temperatures)
    for i in range(4):
        alone = step(keys[i], momenta[i], temperatures[i])
        np.testing.assert_allclose(together.momenta[i], alone.momenta, rtol=1e-12)
        assert (together.momenta[i] != momenta[i]).all()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nve(0.0), "timestep"),
        (lambda: nve(float("nan")), "timestep"),
        (lambda: langevin(0.1, -1.0, KT), "friction"),
        (lambda: langevin(0.1, 1.0, 0.0), "kT"),
        (lambda: nose_hoover(0.1, KT, 0.2), "relaxation_time"),
        (lambda: nose_hoover(0.1, KT, 10.0, chain_length=0), "chain_length"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


def test_states_have_the_documented_fields():
    state = INTEGRATORS["nose_hoover"].init(
        jax.random.key(0), make_system(np.eye(3), 18), jnp.zeros((3, 3)), None
    )
    assert isinstance(state, MDState)
    assert isinstance(state.thermostat, NoseHooverChain)
    assert state.thermostat.degrees == 6.0
