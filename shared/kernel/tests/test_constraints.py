"""Rigid distances against closed forms, conservation laws and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.constraints import rigid_distances
from mosaicmd.kernel.graphs import edge_vectors, sum_edges
from mosaicmd.kernel.integrators import csvr, langevin, nose_hoover, nve
from mosaicmd.kernel.momenta import degrees_of_freedom, kinetic_energy
from mosaicmd.kernel.potentials import Evaluation
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system, pad_system, wrap
from mosaicmd.kernel.units import FEMTOSECOND, KELVIN

KT = 300.0 * KELVIN
WATER = np.array([[0.0, 0.0, 0.0], [0.8165, 0.5774, 0.0], [-0.8165, 0.5774, 0.0]])  # SPC/E, Å


def free(state):
    return Evaluation(jnp.zeros(()), jnp.zeros_like(state.momenta), None)


def waters(n=2, spacing=3.1, seed=0, dtype=None):
    """Rigid molecules in random orientations on a lattice, and their pairs of atoms."""
    from scipy.spatial.transform import Rotation

    sites = np.stack(np.meshgrid(*[np.arange(n) * spacing] * 3, indexing="ij"), -1).reshape(-1, 3)
    turns = Rotation.random(len(sites), rng=np.random.default_rng(seed))
    positions = np.concatenate(
        [site + turn.apply(WATER) for site, turn in zip(sites, turns, strict=True)]
    )
    species = np.tile([8, 1, 1], len(sites))
    system = make_system(positions, species, cell=n * spacing, dtype=dtype)
    own = np.array([[0, 1], [0, 2], [1, 2]])
    return system, (3 * np.arange(len(sites))[:, None, None] + own).reshape(-1, 2)


def short_ranged(params, system, graph):
    """Screened charges and repulsion, smooth at 4 Å: something for rigid molecules to feel."""
    vectors = edge_vectors(system, graph)
    r = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    charge = jnp.where(system.species == 8, -0.8, 0.4)
    size = jnp.where(system.species == 8, 1.4, 0.4)
    i, j = graph.receivers, graph.senders
    inside = (r < 4.0) & (i // 3 != j // 3)
    r = jnp.where(inside, r, 3.9)
    soft = 3.0 * charge[i] * charge[j] / r + ((size[i] + size[j]) / r) ** 8
    energy = 0.5 * soft * (1.0 - (r / 4.0) ** 2) ** 3
    return sum_edges(jnp.where(inside, energy, 0.0), graph, system.n_atoms)


def lengths_of(positions, pairs):
    return np.linalg.norm(positions[..., pairs[:, 1], :] - positions[..., pairs[:, 0], :], axis=-1)


def simulate(integrator, system, n_steps, every, **start):
    simulation = Simulation(short_ranged, integrator, cutoff=4.0, every=every, chunk_frames=200)
    state = simulation.start(jax.random.key(0), None, system, **start)
    return simulation.run(None, state, n_steps)


def test_rigid_waters_keep_their_shape_and_energy():
    """Lengths to 1e-10 Å; energy with an error of second order; 9 - 3 degrees per molecule."""
    system, pairs = waters()
    constraints = rigid_distances(system, pairs)
    assert constraints.count == 24
    expected = np.tile([1.0, 1.0, 1.633], 8)

    def fluctuation(timestep):
        integrator = nve(timestep, constraints=constraints)
        assert degrees_of_freedom(system, integrator.fixed_degrees) == 72 - 24 - 3
        _, found = simulate(integrator, system, round(100 * FEMTOSECOND / timestep), 1, kT=KT)
        lengths = lengths_of(np.asarray(found.systems.positions), pairs)
        np.testing.assert_allclose(lengths, np.broadcast_to(expected, lengths.shape), atol=1e-4)
        np.testing.assert_allclose(lengths, lengths[:1].repeat(len(lengths), 0), atol=1e-10)
        assert np.std(found.quantities["energy"]) > 0.05
        return np.std(found.quantities["conserved_energy"])

    coarse, fine = fluctuation(1.0 * FEMTOSECOND), fluctuation(0.5 * FEMTOSECOND)
    assert coarse < 0.01
    assert abs(coarse / fine - 4.0) < 0.4


def test_corrections_are_those_of_lagrange():
    """Positions move by forces along the old bonds, momenta to the nearest allowed ones.

    Of momenta the nearest in the metric of kinetic energy follow from normal equations.
    """
    system, pairs = waters()
    constraints = rigid_distances(system, pairs, np.tile([1.0, 1.0, 1.633], 8))
    system = constraints.positioned(system, system)
    rng = np.random.default_rng(0)
    positions, masses = np.asarray(system.positions), np.asarray(system.masses)
    forces = np.zeros((len(pairs), *positions.shape))
    for k, (i, j) in enumerate(pairs):
        forces[k, i] = positions[i] - positions[j]
        forces[k, j] = -forces[k, i]
    along = forces.reshape(len(pairs), -1)

    moved = positions + rng.normal(0.0, 0.03, positions.shape)
    after = constraints.positioned(system._replace(positions=jnp.asarray(moved)), system)
    found = np.asarray(after.positions)
    np.testing.assert_allclose(
        lengths_of(found[None], pairs)[0], np.tile([1.0, 1.0, 1.633], 8), atol=1e-10
    )
    change = ((found - moved) * masses[:, None]).ravel()
    assert np.abs(change).max() > 0.02
    multipliers = np.linalg.lstsq(along.T, change)[0]
    np.testing.assert_allclose(along.T @ multipliers, change, atol=1e-10)

    momenta = rng.normal(size=moved.shape) * masses[:, None]
    inverse = np.repeat(1.0 / masses, 3)
    metric = (along * inverse) @ along.T
    multipliers = np.linalg.solve(metric, along @ (inverse * momenta.ravel()))
    expected = momenta - (along.T @ multipliers).reshape(momenta.shape)
    tangent = constraints.tangent(system, jnp.asarray(momenta))
    np.testing.assert_allclose(tangent, expected, atol=1e-10)


def test_a_free_dimer_rotates_at_its_frequency():
    """Phase omega t to the second order of the time step, at constant energy and length."""
    system = make_system([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], 1, masses=[1.0, 3.0])
    constraints = rigid_distances(system, [[0, 1]])
    omega, centre = 0.2, np.array([[1.5, 0.0, 0.0]])
    velocity = omega * np.cross([[0.0, 0.0, 1.0]], system.positions - centre)
    momenta = jnp.asarray(velocity * np.array([[1.0], [3.0]]))

    def error(timestep):
        integrator = nve(timestep, constraints=constraints)
        state = integrator.init(jax.random.key(0), system, momenta, None)
        n_steps = round(40.0 / timestep)
        state = jax.jit(
            lambda s: jax.lax.fori_loop(
                0, n_steps, lambda _, s: integrator.kick(integrator.drift(s), free(s)), s
            )
        )(state)
        energy = kinetic_energy(system, state.momenta)
        np.testing.assert_allclose(energy, kinetic_energy(system, momenta), rtol=1e-12)
        x, y, _ = state.system.positions[1] - state.system.positions[0]
        np.testing.assert_allclose(np.hypot(x, y), 2.0, rtol=1e-12)
        return np.angle((x + 1j * y) * np.exp(-1j * omega * 40.0))

    coarse, fine = error(0.2), error(0.1)
    assert abs(fine) < 1e-3
    assert abs(coarse / fine - 4.0) < 0.05


def test_a_rigid_trimer_bends_by_the_law_of_kramers():
    """Two rigid bonds, three equal masses: p(x) ~ sqrt(4 - x^2) for the cosine x of the bend.

    The metric of constrained coordinates (Fixman, Proc. Natl. Acad. Sci. 71, 3050 (1974)):
    without it x would be uniform and <x^2> = 1/3. |z| < 4 over 200 replicas; the kinetic
    energy is 7 kT / 2, of 9 - 2 degrees.
    """
    system = make_system([[1.0, 0, 0], [0.0, 0, 0], [0.3, 0.9, 0]], 1, masses=2.0)
    constraints = rigid_distances(system, [[0, 1], [1, 2]], 1.0)
    integrator = langevin(0.1, 1.0, 1.0, constraints=constraints)

    def sample(state, _):
        state = jax.lax.fori_loop(
            0, 4, lambda _, s: integrator.kick(integrator.drift(s), free(s)), state
        )
        first, middle, last = state.system.positions
        bend = jnp.dot(first - middle, last - middle)
        return state, (bend, kinetic_energy(system, state.momenta))

    def one(key):
        state = integrator.init(key, system, jnp.zeros((3, 3)), None)
        return jax.lax.scan(sample, state, length=250)

    keys = jax.random.split(jax.random.key(1), 200)
    state, (bend, kinetic) = jax.jit(jax.vmap(one))(keys)
    bonds = lengths_of(np.asarray(state.system.positions), np.array([[0, 1], [1, 2]]))
    np.testing.assert_allclose(bonds, 1.0, atol=1e-12)
    x = np.linspace(-1.0, 1.0, 20_001)
    weight = np.sqrt(4.0 - x**2)
    for values, expected in (
        (np.asarray(bend) ** 2, np.sum(weight * x**2) / np.sum(weight)),
        (np.asarray(bend), 0.0),
        (np.asarray(kinetic), 3.5),
    ):
        means = values[:, 50:].mean(axis=1)
        assert abs(means.mean() - expected) < 4.0 * means.std(ddof=1) / np.sqrt(200)


@pytest.mark.parametrize("thermostat", [nose_hoover, csvr])
def test_thermostats_count_the_degrees_that_are_left(thermostat):
    """Molecules across the faces of the cell, with padding: lengths and temperature."""
    system, pairs = waters()
    wrapped = pad_system(wrap(system), 28)
    plain = lengths_of(np.asarray(wrapped.positions), pairs)
    assert plain.max() > 3.0  # some molecules are cut
    constraints = rigid_distances(wrapped, pairs)
    np.testing.assert_allclose(constraints.lengths, np.tile([1.0, 1.0, 1.633], (8, 1)), atol=1e-4)
    integrator = thermostat(1.0 * FEMTOSECOND, KT, 40 * FEMTOSECOND, constraints=constraints)
    _, found = simulate(integrator, wrapped, 1500, 10, replicas=8)
    temperature = np.asarray(found.quantities["temperature_kelvin"])[30:].mean(axis=0)
    error = temperature.std(ddof=1) / np.sqrt(8.0)
    assert abs(temperature.mean() - 300.0) < 4.0 * max(error, 1.0)
    moved = found.systems.positions[-1] - found.systems.positions[0]
    whole = np.asarray(system.positions)[pairs[:, 1]] - np.asarray(system.positions)[pairs[:, 0]]
    assert np.abs(moved).max() > 0.2
    assert np.linalg.norm(whole, axis=1).max() < 1.7


def test_a_start_is_brought_to_its_lengths_in_either_precision():
    system, pairs = waters(dtype=np.float32)
    stretched = system._replace(positions=system.positions * 1.02)
    constraints = rigid_distances(stretched, pairs, np.tile([1.0, 1.0, 1.633], 8))
    integrator = langevin(1.0 * FEMTOSECOND, 0.1, KT, constraints=constraints)
    state = integrator.init(jax.random.key(0), stretched, jnp.ones((24, 3)), None)
    after = jax.jit(lambda s: integrator.kick(integrator.drift(s), free(s)))(state)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    for one in (state, after):
        lengths = lengths_of(np.asarray(one.system.positions), pairs)
        np.testing.assert_allclose(lengths, np.tile([1.0, 1.0, 1.633], 8), atol=3e-6)
    assert integrator.settings["constraints"]["count"] == 24
    other = rigid_distances(stretched, pairs)
    assert other.checksum != constraints.checksum


@pytest.mark.parametrize(
    ("pairs", "lengths", "message"),
    [
        ([], None, "it is empty"),
        ([[0, 0]], None, r"\[0, 0\] is none"),
        ([[0, 9]], None, r"\[0, 9\] is none"),
        ([[0, 4]], None, r"\[0, 4\] is none"),
        ([[0, 1], [1, 0]], None, "names a pair twice"),
        ([[0, 1]], -1.0, "`lengths` must be positive"),
        ([[0, 1], [1, 2], [0, 2], [0, 3], [1, 3], [2, 3]], None, None),
    ],
)
def test_bad_pairs_are_named(pairs, lengths, message):
    corners = [[0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]]
    system = pad_system(make_system(corners, 1), 5)
    if message is None:  # a rigid tetrahedron is fine
        assert rigid_distances(system, pairs, lengths).count == 6
        return
    with pytest.raises(ValueError, match=message):
        rigid_distances(system, pairs, lengths)
