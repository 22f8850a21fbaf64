"""Constant pressure against closed forms of the isothermal-isobaric ensemble."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.barostats import npt
from mosaicmd.kernel.graphs import edge_vectors, sum_edges
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.momenta import kinetic_energy, maxwell_boltzmann
from mosaicmd.kernel.observables import pressure_tensor
from mosaicmd.kernel.potentials import Evaluation, evaluate
from mosaicmd.kernel.simulation import Simulation, split_replicas
from mosaicmd.kernel.systems import make_system, pad_system, volume
from mosaicmd.kernel.units import BAR, FEMTOSECOND, KELVIN

CELLS = ["isotropic", "orthorhombic", "flexible"]


def z_score(samples, expected):
    """How many standard errors the mean of independent samples is away from its truth."""
    samples = np.asarray(samples)
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(len(samples)))


def elastic_cell(stiffness):
    """A potential of the cell alone, ``stiffness * trace(h h^T)``, shared by the atoms."""

    def energy(params, system, graph):
        share = system.mask / jnp.sum(system.mask)
        return stiffness * jnp.sum(system.cell**2) * share

    return energy


def gas(n_atoms, edge, kT, n_replicas, seed=0):
    """Ideal atoms (and two of padding) in cells of the mean size, one key per replica."""
    masses = np.linspace(0.5, 1.5, n_atoms)
    system = pad_system(
        make_system(np.zeros((n_atoms, 3)), 1, cell=edge, masses=masses), n_atoms + 2
    )
    keys = jax.random.split(jax.random.key(seed), n_replicas)
    return system, keys


def sample_cells(integrator, energy_fn, system, keys, kT, n_samples, n_steps):
    """Cells of every replica, ``[replicas, n_samples, 3, 3]``, every ``n_steps`` steps.

    Atoms that do not interact keep the direction of their momenta in the frame of the cell,
    so these are drawn anew before every sample, which leaves the ensemble as it is.
    """

    def advance(state, _):
        state = integrator.drift(state)
        found = evaluate(energy_fn, None, state.system, None, stress=True)
        return integrator.kick(state, found), None

    def sample(state, _):
        key, sub = jax.random.split(state.key)
        state = state._replace(key=key, momenta=maxwell_boltzmann(sub, state.system, kT))
        state, _ = jax.lax.scan(advance, state, length=n_steps)
        return state, state.system.cell

    def one(key):
        draw, noise = jax.random.split(key)
        state = integrator.init(noise, system, maxwell_boltzmann(draw, system, kT), None)
        found = evaluate(energy_fn, None, system, None, stress=True)
        state = state._replace(energy=found.energy, stress=found.stress)
        return jax.lax.scan(sample, state, length=n_samples)[1]

    return np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("thermostat", ["csvr", "nose_hoover"])
def test_ideal_gas_has_the_exact_distribution_of_volumes(thermostat):
    """V ~ Gamma(N + 1, kT / P): <V> = (N + 1) kT / P, var V = (N + 1) (kT / P)^2, |z| < 4.

    The ratio of the two is the compressibility: var V / (<V> kT) = 1 / P.
    """
    n_atoms, kT, pressure = 7, 0.5, 0.1
    system, keys = gas(n_atoms, (8 * kT / pressure) ** (1 / 3), kT, 400)
    integrator = npt(
        0.05, kT, pressure, relaxation_time=1.0, barostat_time=2.0, thermostat=thermostat
    )
    cells = sample_cells(integrator, elastic_cell(0.0), system, keys, kT, 8, 120)
    volumes = np.linalg.det(cells)[:, 2:]
    mean, variance = 8 * kT / pressure, 8 * (kT / pressure) ** 2
    assert abs(z_score(volumes.mean(axis=1), mean)) < 4.0
    assert abs(z_score(((volumes - mean) ** 2).mean(axis=1), variance)) < 4.0


@pytest.mark.parametrize("cell", CELLS)
def test_elastic_cells_have_their_exact_distribution(cell):
    """Ideal atoms in a cell of energy ``a trace(h h^T)`` at P = 0, |z| < 4.

    With the measure of Martyna, Tobias & Klein (1994) ``S = h h^T`` of the flexible cell has a
    Wishart distribution of N + 1 degrees of freedom: <S_ij> = (N + 1) kT / (2 a) delta_ij,
    var S_ii = (N + 1) (kT / a)^2 / 2 and var S_ij half of that. The edges of the orthorhombic
    cell are independent, with the same moments; the square of the isotropic edge is
    Gamma(3 (N + 1) / 2, kT / (3 a)).
    """
    n_atoms, kT, stiffness = 7, 0.5, 0.1
    mean = (n_atoms + 1) * kT / (2.0 * stiffness)
    variance = 0.5 * (n_atoms + 1) * (kT / stiffness) ** 2 / (3.0 if cell == "isotropic" else 1.0)
    system, keys = gas(n_atoms, np.sqrt(mean), kT, 400, seed=1)
    integrator = npt(0.05, kT, 0.0, relaxation_time=1.0, barostat_time=2.0, cell=cell)
    cells = sample_cells(integrator, elastic_cell(stiffness), system, keys, kT, 8, 120)[:, 2:]
    metric = cells @ np.swapaxes(cells, -1, -2)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        entry = metric[..., i, j]
        if i == j:
            assert abs(z_score(entry.mean(axis=1), mean)) < 4.0
            assert abs(z_score(((entry - mean) ** 2).mean(axis=1), variance)) < 4.0
        elif cell == "flexible":
            assert abs(z_score(entry.mean(axis=1), 0.0)) < 4.0
            assert abs(z_score((entry**2).mean(axis=1), 0.5 * variance)) < 4.0
        else:
            np.testing.assert_array_equal(entry, 0.0)


# --- a crystal of argon


CUTOFF = 5.6
TIMESTEP = 5.0 * FEMTOSECOND
KT = 40.0 * KELVIN


def argon(params, system, graph):
    """Lennard-Jones, its force shifted to zero at the cutoff."""
    distances = jnp.sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
    inside = distances < CUTOFF
    sixth = (3.405 / jnp.where(inside, distances, CUTOFF)) ** 6
    last = (3.405 / CUTOFF) ** 6
    slope = -6.0 / CUTOFF * last * (2.0 * last - 1.0)
    energy = sixth * (sixth - 1.0) - last * (last - 1.0) - (distances - CUTOFF) * slope
    return sum_edges(jnp.where(inside, 0.0208 * energy, 0.0), graph, system.n_atoms)


def crystal(edge=5.5, seed=0, dtype=None):
    corners = np.array(list(itertools.product(range(2), repeat=3)), float)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = (corners[:, None] + basis).reshape(-1, 3) * edge
    sites += np.random.default_rng(seed).normal(0.0, 0.05, sites.shape)
    return make_system(sites, 18, cell=2.0 * edge, dtype=dtype)


def barostat(cell="isotropic", thermostat="csvr", timestep=TIMESTEP, pressure=0.0):
    return npt(
        timestep,
        KT,
        pressure,
        relaxation_time=50.0 * TIMESTEP,
        barostat_time=150.0 * TIMESTEP,
        cell=cell,
        thermostat=thermostat,
    )


def simulate(integrator, n_steps, every, observe=None, system=None, **start):
    simulation = Simulation(
        argon, integrator, cutoff=CUTOFF, every=every, chunk_frames=500, observe=observe
    )
    system = crystal() if system is None else system
    state = simulation.start(jax.random.key(0), None, system, **start)
    return simulation.run(None, state, n_steps)


@pytest.mark.parametrize("cell", CELLS)
def test_the_conserved_quantity_is_kept_to_second_order(cell):
    """Halving the time step divides its fluctuation by four, while the enthalpy fluctuates."""
    momenta = maxwell_boltzmann(jax.random.key(6), crystal(), 2.0 * KT)

    def fluctuation(factor):
        integrator = barostat(cell, "nose_hoover", factor * TIMESTEP)
        _, found = simulate(integrator, round(200 / factor), 1, momenta=momenta)
        quantities = found.quantities
        enthalpy = quantities["energy"] + quantities["kinetic_energy"]
        return np.std(quantities["conserved_energy"]), np.std(enthalpy)

    (coarse, exchanged), (fine, _) = fluctuation(1.0), fluctuation(0.5)
    assert coarse < 3e-3 * exchanged
    assert abs(coarse / fine - 4.0) < 0.4


def test_reversed_motion_leads_back_to_the_start():
    integrator = barostat("flexible", "nose_hoover", pressure=100.0 * BAR)
    system = crystal()
    momenta = maxwell_boltzmann(jax.random.key(5), system, KT)
    simulation = Simulation(argon, integrator, cutoff=CUTOFF, every=300)
    start = simulation.start(jax.random.key(0), None, system, momenta=momenta)
    there, _ = simulation.run(None, start, 300)
    assert np.abs(there.md.system.cell - system.cell).max() > 0.03
    md, cell = there.md, there.md.barostat
    md = md._replace(
        momenta=-md.momenta,
        thermostat=md.thermostat._replace(momenta=-md.thermostat.momenta),
        barostat=cell._replace(
            strain_rate=-cell.strain_rate,
            thermostat=cell.thermostat._replace(momenta=-cell.thermostat.momenta),
        ),
    )
    back, _ = simulation.run(None, dataclasses.replace(there, md=md), 300)
    np.testing.assert_allclose(back.md.system.positions, system.positions, rtol=0, atol=1e-10)
    np.testing.assert_allclose(back.md.system.cell, system.cell, rtol=0, atol=1e-10)
    np.testing.assert_allclose(-back.md.momenta, momenta, rtol=0, atol=1e-10)


def test_the_pressure_tensor_balances_the_external_pressure():
    """<V (P_int - P)_ij> = -2 kT delta_ij, from the stationarity of the strain rate, |z| < 4.

    So <P_int> = P up to the term that makes the distribution of the volume exact when the
    momentum of the centre of mass is fixed. The cell does not turn and keeps its momentum.
    """
    pressure, count = 300.0 * BAR, 16
    observed = [pressure_tensor(argon, cutoff=CUTOFF)]
    _, found = simulate(barostat("flexible", pressure=pressure), 3000, 10, observed, replicas=count)
    assert found.state_point.pressure == pytest.approx(np.full(count, pressure))
    tensor, size = (np.asarray(found.quantities[n])[60:] for n in ("pressure_tensor", "volume"))
    np.testing.assert_allclose(size, np.abs(np.linalg.det(found.systems.cell[60:])))
    balance = size[..., None, None] * (tensor - pressure * np.eye(3))
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        expected = -2.0 * KT if i == j else 0.0
        assert abs(z_score(balance[:, :, i, j].mean(axis=0), expected)) < 4.0
    kinetic = np.asarray(found.quantities["temperature_kelvin"])[60:].mean(axis=0)
    assert abs(z_score(kinetic, 40.0)) < 4.0
    conserved = np.asarray(found.quantities["conserved_energy"])
    assert np.abs(conserved - conserved[0]).max() < 0.2 * KT


def test_replicas_may_have_their_own_temperatures_and_pressures():
    """An ideal gas in each: <V> = (N + 1) kT / P, |z| < 4 over 50 replicas of each of four."""

    def nothing(params, system, graph):
        return 0.0 * system.positions[:, 0]

    kT, pressure = np.repeat([0.4, 0.8, 0.4, 0.8], 50), np.repeat([0.1, 0.1, 0.2, 0.2], 50)
    system = make_system(np.zeros((3, 3)), 1, cell=3.0, masses=1.0)
    integrator = npt(0.05, 1.0, 1.0, relaxation_time=1.0, barostat_time=2.0)
    simulation = Simulation(
        nothing,
        integrator,
        cutoff=0.1,
        skin=0.1,
        every=200,
        min_distance=0.0,
        max_temperature_kelvin=1e9,
    )
    state = simulation.start(
        jax.random.key(2), None, system, kT=kT, pressure=pressure, replicas=200
    )
    _, found = simulation.run(None, state, 2000)
    for index, replica in enumerate(split_replicas(found)):
        assert replica.state_point == pytest.approx((kT[index], pressure[index]))
    volumes = np.asarray(found.quantities["volume"])[2:].mean(axis=0)
    for group in range(4):
        own = slice(50 * group, 50 * group + 50)
        assert abs(z_score(volumes[own], 4.0 * kT[own][0] / pressure[own][0])) < 4.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("thermostat", ["csvr", "nose_hoover"])
def test_a_step_keeps_every_type(thermostat, dtype):
    system = pad_system(crystal(dtype=dtype), 40)
    integrator = barostat("flexible", thermostat)
    before = integrator.init(jax.random.key(1), system, jnp.ones((40, 3)), None)
    force = jnp.ones((40, 3), dtype)

    @jax.jit
    def step(state):
        return integrator.kick(
            integrator.drift(state), Evaluation(state.energy, force, state.stress)
        )

    after = step(before)
    assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, after)
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(after))
    assert not after.momenta[32:].any()
    np.testing.assert_allclose(after.system.cell, after.system.cell.T, rtol=0, atol=1e-6)
    assert volume(after.system) != volume(system)
    assert kinetic_energy(system, after.momenta) > 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"timestep": 0.0}, "timestep"),
        ({"kT": -1.0}, "kT"),
        ({"pressure": float("nan")}, "pressure"),
        ({"relaxation_time": 0.0}, "relaxation_time"),
        ({"barostat_time": 0.5}, "barostat_time"),
        ({"cell": "cubic"}, "cell"),
        ({"thermostat": "langevin"}, "thermostat"),
    ],
)
def test_bad_settings_are_named(change, name):
    settings = {"timestep": 0.1, "kT": KT, "pressure": 0.0, "relaxation_time": 5.0}
    with pytest.raises(ValueError, match=f"`{name}`"):
        npt(**settings | {"barostat_time": 20.0} | change)


def test_starts_that_do_not_fit_are_named():
    free = make_system(np.eye(3) * 4.0, 18)
    with pytest.raises(ValueError, match=r"periodic in three directions, `pbc` is \[False"):
        simulate(barostat(), 1, 1, system=free)
    with pytest.raises(ValueError, match="`pressure` is given, but 'nve' has no barostat"):
        simulate(nve(TIMESTEP), 1, 1, kT=KT, pressure=0.0)
    with pytest.raises(ValueError, match=r"`pressure` has shape \(2,\); .* each of the 3 replicas"):
        simulate(barostat(), 1, 1, pressure=jnp.zeros(2), replicas=3)
