"""MACE: numbers of mace-torch, body order, receptive field, and the contract."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import MACEConfig, mace
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

SMALL = MACEConfig(
    species=(8, 1),
    cutoff=3.5,
    n_channels=3,
    hidden_l_max=1,
    l_max=2,
    correlation=3,
    n_layers=2,
    n_radial=4,
    radial_widths=(6, 5),
    readout_width=4,
    mean_neighbors=8.0,
)

# Two waters in a triclinic cell as mace-torch 0.3.16 (float64) sees them: `ScaleShiftMACE` with
# `RealAgnosticInteractionBlock` first and `RealAgnosticResidualInteractionBlock` after it, in
# the settings above but three layers and a mean of 6 neighbors; eV and eV/Å. Weights are drawn
# in the test; its overcomplete symmetric products (26 for a vector, here 8) have those weights
# that make them equal to ours.
CELL = np.array([[4.2, 0.0, 0.0], [0.9, 4.5, 0.0], [-0.6, 0.7, 4.9]])
WATERS = np.array(
    [
        [0.3, 0.4, 0.2],
        [1.2, 0.6, 0.5],
        [0.1, 1.3, 0.4],
        [2.4, 2.6, 2.9],
        [3.2, 2.9, 2.4],
        [2.1, 1.7, 3.1],
    ]
)
MACE_TORCH_ENERGIES = [
    0.02678371482958812,
    -0.06202583819922893,
    -0.06492083259243976,
    -0.09728002725260465,
    -0.09895177315005,
    -0.10273107283149396,
]
MACE_TORCH_FORCES = [
    [0.036416154684, 0.230044250219, 0.048440841224],
    [0.162721323466, -0.204484027466, -0.059446832902],
    [-0.300920269579, -0.001624855374, -0.098531663759],
    [0.088418629487, -0.140174879196, -0.04905378166],
    [0.043135921724, 0.112108516769, -0.060136967444],
    [-0.029771759781, 0.004130995048, 0.21872840454],
]


def changed(**settings):
    return SMALL.model_copy(update=settings)


@pytest.mark.slow
def test_contract():
    potential = mace(SMALL)
    check_potential(potential, potential.init(jax.random.key(1)), random_system(0))


def test_mace_torch_has_the_same_energies_and_forces():
    potential = mace(changed(n_layers=3, mean_neighbors=6.0))
    rng = np.random.default_rng(7)
    params = potential.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(scale=1.3, size=leaf.shape), params)
    system = make_system(WATERS, np.array([8, 1, 1, 8, 1, 1]), cell=CELL)
    args = (params, system, host_graph(system, 3.5))
    np.testing.assert_allclose(jax.jit(potential.energy)(*args), MACE_TORCH_ENERGIES, atol=1e-13)
    forces = jax.jit(lambda *args: evaluate(potential.energy, *args).forces)(*args)
    np.testing.assert_allclose(forces, MACE_TORCH_FORCES, atol=2e-12)


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_one_layer_has_bodies_as_many_as_factors_plus_one(correlation):
    """Inclusion and exclusion of neighbors of one atom, which do not see each other's energy.

    With ``nu`` factors, ``sum_S (-1)^|S| E_0(S)`` over all subsets of ``nu`` neighbors is the
    ``nu + 1``-body energy, and over those of ``nu + 1`` neighbors it vanishes.
    """
    potential = mace(changed(correlation=correlation, n_layers=1))
    params = potential.init(jax.random.key(0))
    places = np.array([[1.1, 0.3, 0.2], [-0.4, 1.3, 0.5], [0.2, -0.9, 1.2], [0.7, 0.8, -1.4]])
    energy = jax.jit(potential.energy)

    def of_neighbors(chosen):
        keep = [0, *(k + 1 for k in chosen)]
        far = np.arange(1.0, 5.0)[:, None] * [[100.0, 0.0, 0.0]]
        positions = np.vstack([np.zeros(3), places + far])
        positions[keep[1:]] = places[list(chosen)]
        system = make_system(positions, np.array([8, 1, 8, 1, 1]))
        graph = host_graph(system, 3.5)
        return float(energy(params, system, pad_graph(graph, 32, n_atoms=5))[0])

    def correlated(n):
        subsets = itertools.chain.from_iterable(
            itertools.combinations(range(n), size) for size in range(n + 1)
        )
        return sum((-1) ** len(subset) * of_neighbors(subset) for subset in subsets)

    assert abs(correlated(correlation)) > 1e-6
    assert abs(correlated(correlation + 1)) < 1e-13


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_energies_reach_exactly_as_many_cutoffs_as_there_are_layers(n_layers):
    """A chain with neighbors 0.8 cutoffs apart: force on atom k from the energy of atom 0."""
    potential = mace(changed(n_layers=n_layers))
    params = potential.init(jax.random.key(0))
    system = make_system(np.arange(5)[:, None] * [[0.8 * 3.5, 0.0, 0.0]], 8)
    graph = host_graph(system, 3.5)

    @jax.jit
    @jax.grad
    def gradient(positions):
        return potential.energy(params, system._replace(positions=positions), graph)[0]

    felt = np.abs(gradient(system.positions)).max(axis=1)
    assert (felt[: n_layers + 1] > 0.0).all()
    assert (felt[n_layers + 1 :] == 0.0).all()


@pytest.mark.parametrize("change", [{}, {"n_layers": 1}, {"n_layers": 3}, {"correlation": 1}])
def test_every_parameter_matters(change):
    """No weight is without effect on energies, so none is stored in vain."""
    potential = mace(changed(**change))
    params = potential.init(jax.random.key(0))
    system = random_system(0, n_atoms=8)
    graph = host_graph(system, 3.5)
    gradient = jax.jit(jax.grad(lambda p: total_energy(potential.energy, p, system, graph)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert (np.abs(leaf) > 0.0).all(), jax.tree_util.keystr(path)


def test_an_atom_without_neighbors_has_no_energy():
    potential = mace(SMALL)
    system = make_system(np.zeros((1, 3)), 8)
    args = (potential.init(jax.random.key(0)), system, host_graph(system, 3.5))
    found = jax.jit(potential.energy)(*args)
    assert (found == 0.0).all()


def test_untrained_energies_are_of_the_order_of_ten_mev():
    """With the published widths; root mean square over the atoms of random structures."""
    potential = mace(MACEConfig(species=(8, 1), cutoff=4.0, hidden_l_max=0, mean_neighbors=13.0))
    energy = jax.jit(potential.energy)
    values = []
    for seed in range(2):
        system = random_system(seed).astype(jnp.float32)
        params = potential.init(jax.random.key(seed))
        values.append(energy(params, system, host_graph(system, 4.0)))
    assert 1e-3 < np.sqrt(np.mean(np.concatenate(values) ** 2)) < 0.1


def test_trajectories_conserve_energy():
    """200 steps of 0.25 fs at about 300 K: fluctuations far below the kinetic energy."""
    potential = mace(changed(n_layers=1, correlation=2))
    system = random_system(0, n_atoms=12, min_distance=2.0)
    params = potential.init(jax.random.key(0))
    simulation = Simulation(potential.energy, nve(0.025), cutoff=3.5, every=20)
    state = simulation.start(jax.random.key(1), params, system, kT=0.025)
    _, trajectory = simulation.run(params, state, 200)
    total = np.asarray(trajectory.quantities["energy"] + trajectory.quantities["kinetic_energy"])
    kinetic = np.asarray(trajectory.quantities["kinetic_energy"])
    assert np.ptp(total) < 1e-2 * kinetic.mean()


def test_configuration_round_trip():
    potential = mace(SMALL)
    again = build_potential("mace", json.loads(json.dumps(potential.config)))
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
        ({"correlation": 4}, "correlation: got 4"),
        ({"l_max": 0}, "`hidden_l_max` 1 must not exceed `l_max` 0"),
        ({"radial_widths": []}, "`radial_widths` must be positive"),
        ({"mean_neighbors": 0.0}, "mean_neighbors: got 0.0"),
        ({"n_channel": 8}, "did you mean `n_channels`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("mace", {"species": [1], "cutoff": 5.0, **change})
