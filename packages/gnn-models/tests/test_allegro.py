"""Allegro: the equations pair by pair with e3nn's coefficients, strict locality, the contract."""

import json

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import AllegroConfig, allegro, allegro_parts
from mosaicmd.gnn_models.allegro import _steps
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import gather_receivers, host_graph, sum_edges
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.potentials import Potential, build_potential, total_energy
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, check_rotation, random_system

SMALL = AllegroConfig(
    species=(8, 1),
    cutoff=3.5,
    n_scalars=5,
    n_tensors=2,
    l_max=2,
    n_layers=2,
    n_radial=4,
    two_body_widths=(6, 5),
    latent_widths=(7,),
    readout_widths=(3,),
    mean_neighbors=8.0,
)


def changed(**settings):
    return SMALL.model_copy(update=settings)


@pytest.mark.slow
def test_contract():
    potential = allegro(SMALL)
    check_potential(potential, potential.init(jax.random.key(1)), random_system(0))


def test_layers_make_what_can_reach_the_energy():
    """The last makes scalars alone; the one before only what couples with harmonics to 0e."""
    steps = _steps(changed(n_layers=3))
    assert set(steps[0].outputs) == {"0e", "1o", "1e", "2e", "2o"}
    assert set(steps[1].outputs) == {"0e", "1o", "2e"}
    assert steps[2].outputs == ()
    assert {path.out for path in steps[2].paths} == {"0e"}
    plain = _steps(changed(n_layers=3, parity=False))
    assert set(plain[0].outputs) == {"0e", "1o", "2e"}


def silu(x):
    return x / (1.0 + np.exp(-x))


Z = np.linspace(-12.0, 12.0, 200_001)
SILU = np.sqrt(np.exp(-0.5 * Z**2).sum() / np.sum(np.exp(-0.5 * Z**2) * silu(Z) ** 2))


def dense(weight, x):
    return x @ weight / np.sqrt(len(weight))


def network(weights, x):
    for k, weight in enumerate(weights):
        x = dense(weight, SILU * silu(x) if k else x)
    return x


def pair_by_pair(config, params, system, graph):
    """The equations of the docstring in loops over pairs and products."""
    C, n = config.n_tensors, system.n_atoms
    kinds = [config.species.index(int(label)) for label in system.species]
    receivers, senders = np.asarray(graph.receivers), np.asarray(graph.senders)
    edges = range(graph.n_edges)
    shifts = np.asarray(graph.shifts) @ np.asarray(system.cell)
    vectors = np.asarray(system.positions)[senders] + shifts
    vectors = vectors - np.asarray(system.positions)[receivers]
    r = np.linalg.norm(vectors, axis=1)
    p, u = config.envelope_power, r / config.cutoff
    envelope = 1.0 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1)
    envelope = (envelope - p * (p + 1) / 2 * u ** (p + 2))[:, None]
    degrees = range(config.l_max + 1)
    unit = jnp.asarray(vectors / r[:, None])
    Y = [np.asarray(e3nn.sh([l], unit, False, "component")) for l in degrees]
    waves = np.sin(np.pi * np.arange(1, config.n_radial + 1) * u[:, None]) / r[:, None]
    one_hot = np.eye(len(config.species))[kinds]
    inputs = np.hstack([one_hot[receivers], one_hot[senders], np.sqrt(2 / config.cutoff) * waves])
    x = envelope * network(params["two_body"], inputs)
    w = dense(params["tensors"], x)
    V = {
        str(e3nn.Irrep(l, (-1) ** l)): w[:, l * C : (l + 1) * C, None] * Y[l][:, None]
        for l in degrees
    }
    for step, layer in zip(_steps(config), params["layers"], strict=True):
        w = dense(layer["environment"], x) / np.sqrt(config.mean_neighbors)
        around = [np.zeros((n, C, 2 * l + 1)) for l in degrees]
        for e in edges:
            for l in degrees:
                around[l][receivers[e]] += w[e, l * C : (l + 1) * C, None] * Y[l][e]
        products = {}
        for path in step.paths:
            l1, l3 = int(path.first[0]), int(path.out[0])
            coupling = np.sqrt(2 * l3 + 1) * e3nn.clebsch_gordan(l1, path.degree, l3)
            values = [
                np.einsum(
                    "ca,cb,abm->cm", V[path.first][e], around[path.degree][receivers[e]], coupling
                )
                for e in edges
            ]
            products.setdefault(path.out, []).append(np.stack(values))
        joined = {name: np.concatenate(parts, axis=1) for name, parts in products.items()}
        latent = network(layer["latent"], np.hstack([x, joined["0e"][:, :, 0]]))
        a = 1.0 / (1.0 + np.exp(-layer["update"]))
        x = (x + a * envelope * latent) / np.sqrt(1.0 + a**2)
        V = {
            name: np.stack([dense(layer["mix"][name], v.T).T for v in joined[name]])
            for name in step.outputs
        }
    pair_energies = network(params["readout"], x)[:, 0] / np.sqrt(config.mean_neighbors)
    return np.bincount(receivers, weights=pair_energies, minlength=n)


def test_energies_are_those_of_the_equations_pair_by_pair():
    config = changed(n_layers=3)
    potential = allegro(config)
    params = potential.init(jax.random.key(0))
    params["layers"][0]["update"] = jnp.asarray(0.7)
    system = random_system(3, n_atoms=6)
    graph = host_graph(system, 3.5)
    with jax.numpy_rank_promotion("allow"):
        expected = pair_by_pair(config, jax.tree.map(np.asarray, params), system, graph)
    assert np.ptp(expected) > 1e-3
    found = jax.jit(potential.energy)(params, system, graph)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_no_atom_sees_beyond_the_cutoff(n_layers):
    """A chain with neighbors 0.8 cutoffs apart: force on atom k from the energy of atom 0."""
    potential = allegro(changed(n_layers=n_layers))
    params = potential.init(jax.random.key(0))
    system = make_system(np.arange(4)[:, None] * [[0.8 * 3.5, 0.0, 0.0]], 8)
    graph = host_graph(system, 3.5)

    @jax.jit
    @jax.grad
    def gradient(positions):
        return potential.energy(params, system._replace(positions=positions), graph)[0]

    felt = np.abs(gradient(system.positions)).max(axis=1)
    assert (felt[:2] > 0.0).all()
    assert (felt[2:] == 0.0).all()


@pytest.mark.parametrize(
    "change", [{}, {"n_layers": 1}, {"n_layers": 3}, {"l_max": 1, "parity": False}]
)
def test_every_parameter_matters(change):
    """No weight is without effect on energies, so none is stored in vain."""
    potential = allegro(changed(**change))
    params = potential.init(jax.random.key(0))
    system = random_system(0, n_atoms=8)
    graph = host_graph(system, 3.5)
    gradient = jax.jit(jax.grad(lambda p: total_energy(potential.energy, p, system, graph)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert (np.abs(leaf) > 0.0).all(), jax.tree_util.keystr(path)


def test_layers_of_others_can_stand_in_between():
    """Charges of atoms, from and for the scalars of pairs, make the energy less local."""
    parts = allegro_parts(SMALL)

    def energy(params, system, graph):
        state = parts.embed(params, system, graph)
        state = parts.layer(params, 0, state, graph, system.n_atoms)
        charges = sum_edges(state.scalars[:, :1], graph, system.n_atoms)
        charges = charges - jnp.mean(charges)
        known = state.envelope * gather_receivers(charges, graph)
        state = state._replace(scalars=state.scalars + known)
        state = parts.layer(params, 1, state, graph, system.n_atoms)
        return sum_edges(parts.readout(params, state), graph, system.n_atoms)

    potential = allegro(SMALL)
    params = parts.init(jax.random.key(0))
    system = random_system(0, n_atoms=8)
    args = (params, system, host_graph(system, 3.5))
    changed_by = jax.jit(energy)(*args) - jax.jit(potential.energy)(*args)
    assert np.abs(changed_by).min() > 1e-6
    between = Potential(
        architecture="between", config={}, init=parts.init, energy=energy, cutoff=3.5
    )
    check_rotation(between, params, system)


def test_untrained_energies_are_of_the_order_of_one():
    """With the default widths; root mean square over the atoms of random structures."""
    potential = allegro(AllegroConfig(species=(8, 1), cutoff=4.0, mean_neighbors=13.0))
    energy = jax.jit(potential.energy)
    values = []
    for seed in range(2):
        system = random_system(seed).astype(jnp.float32)
        params = potential.init(jax.random.key(seed))
        values.append(energy(params, system, host_graph(system, 4.0)))
    assert 0.02 < np.sqrt(np.mean(np.concatenate(values) ** 2)) < 2.0


def test_trajectories_conserve_energy():
    """200 steps of 0.25 fs at about 300 K: fluctuations far below the kinetic energy."""
    potential = allegro(SMALL)
    system = random_system(0, n_atoms=12, min_distance=2.0)
    params = potential.init(jax.random.key(0))
    simulation = Simulation(potential.energy, nve(0.025), cutoff=3.5, every=20)
    state = simulation.start(jax.random.key(1), params, system, kT=0.025)
    _, trajectory = simulation.run(params, state, 200)
    total = np.asarray(trajectory.quantities["energy"] + trajectory.quantities["kinetic_energy"])
    kinetic = np.asarray(trajectory.quantities["kinetic_energy"])
    assert np.ptp(total) < 1e-2 * kinetic.mean()


def test_configuration_round_trip():
    potential = allegro(SMALL)
    again = build_potential("allegro", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.cutoff, again.species) == (3.5, (8, 1))
    system = random_system(0, n_atoms=8)
    args = (potential.init(jax.random.key(0)), system, host_graph(system, 3.5))
    np.testing.assert_array_equal(jax.jit(again.energy)(*args), jax.jit(potential.energy)(*args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"cutoff": 0.0}, "cutoff: got 0.0"),
        ({"n_layers": 0}, "n_layers: got 0"),
        ({"latent_widths": [0]}, "`latent_widths` must be positive"),
        ({"n_tensor": 8}, "did you mean `n_tensors`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("allegro", {"species": [1], "cutoff": 5.0, **change})
