"""PaiNN: SchNetPack's numbers, the equations edge by edge, receptive field, and the contract."""

import json

import jax
import numpy as np
import pytest

from mosaicmd.gnn_models import PaiNNConfig, painn
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

SMALL = PaiNNConfig(species=(8, 1), cutoff=3.5, n_features=6, n_layers=2, n_radial=5)


# Two waters in a triclinic cell as SchNetPack 2.1.1 (float64) sees them: `PaiNN` with 6
# features, 2 interactions, `BesselRBF` of 5 functions and the quintic polynomial as cutoff
# function, and `build_mlp` as readout; eV and eV/Å. Weights are drawn in the test; those of
# its first `dmumu` and last `dmu_intra`, which we do not have, were random.
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
SCHNETPACK_ENERGIES = [
    0.870755095755,
    0.538095067915,
    0.532019858966,
    0.88663484041,
    0.557142619391,
    0.552453877966,
]
SCHNETPACK_FORCES = [
    [0.08540941634, 0.11070951388, 0.016855529443],
    [-0.348326636042, 0.128386387073, -0.066142389936],
    [0.217231714737, -0.208793605921, -0.038535788622],
    [-0.062228441218, 0.105675168451, 0.095368543797],
    [0.088682312586, -0.013648138572, -0.046465557687],
    [0.019231633597, -0.122329324911, 0.038919663005],
]


def with_biases(potential, seed=0):
    """Initial parameters with random biases, so that no term of the network is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), potential.init(jax.random.key(1))
    )


def test_contract():
    potential = painn(SMALL)
    check_potential(potential, with_biases(potential), random_system(0))


def test_schnetpack_has_the_same_energies_and_forces():
    potential = painn(SMALL)
    params = potential.init(jax.random.key(0))
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), params)
    params = {**drawn, "frequencies": params["frequencies"]}
    system = make_system(WATERS, np.array([8, 1, 1, 8, 1, 1]), cell=CELL)
    args = (params, system, host_graph(system, 3.5))
    np.testing.assert_allclose(jax.jit(potential.energy)(*args), SCHNETPACK_ENERGIES, atol=1e-11)
    forces = jax.jit(lambda *args: evaluate(potential.energy, *args).forces)(*args)
    np.testing.assert_allclose(forces, SCHNETPACK_FORCES, atol=1e-11)


def silu(x):
    return x / (1.0 + np.exp(-x))


def perceptron(params, x):
    hidden, out = params["hidden"], params["out"]
    return silu(x @ hidden["weight"] + hidden["bias"]) @ out["weight"] + out["bias"]


def edge_by_edge(config, params, system, graph):
    """Eqs. 7-10 of the paper in loops, with the tensor product of features left as it is."""
    params = jax.tree.map(np.asarray, params)
    F, n = config.n_features, system.n_atoms
    kinds = [config.species.index(int(label)) for label in system.species]
    s, v = params["embedding"][kinds], np.zeros((n, F, 3))
    edges = []
    for i, j, shift in zip(graph.receivers, graph.senders, graph.shifts, strict=True):
        vector = np.asarray(system.positions[j] + shift @ system.cell - system.positions[i])
        edges.append((int(i), int(j), vector))
    for k, layer in enumerate(params["layers"]):
        ds, dv = np.zeros_like(s), np.zeros_like(v)
        for i, j, vector in edges:
            r = np.linalg.norm(vector)
            x = min(r / config.cutoff, 1.0)
            envelope = 1.0 - 10.0 * x**3 + 15.0 * x**4 - 6.0 * x**5
            basis = np.sin(params["frequencies"] * r / config.cutoff) / r
            weights = layer["message"]["filter"]
            filters = (basis @ weights["weight"] + weights["bias"]) * envelope
            blocks = np.split(perceptron(layer["message"], s[j]) * filters, 2 if k == 0 else 3)
            ds[i] += blocks[0]
            dv[i] += np.outer(blocks[1], vector / r)
            if k > 0:
                dv[i] += blocks[2][:, None] * v[j]
        s, v = s + ds, v + dv
        u_matrix, v_matrix = np.split(layer["update"]["mix"], 2, axis=1)
        for i in range(n):
            uv, vv = u_matrix.T @ v[i], v_matrix.T @ v[i]
            norms = np.sqrt(np.sum(vv**2, axis=1) + 1e-8)
            a = perceptron(layer["update"], np.concatenate([s[i], norms]))
            s[i] += a[:F] + a[F : 2 * F] * np.sum(uv * vv, axis=1)
            if k < config.n_layers - 1:
                v[i] += a[2 * F :, None] * uv
    return perceptron(params["readout"], s)[:, 0]


def test_energies_are_those_of_the_equations_edge_by_edge():
    potential = painn(SMALL)
    params = with_biases(potential)
    system = random_system(3, n_atoms=8)
    graph = host_graph(system, 3.5)
    expected = edge_by_edge(SMALL, params, system, graph)
    assert np.ptp(expected) > 0.1
    found = jax.jit(potential.energy)(params, system, graph)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_energies_reach_exactly_as_many_cutoffs_as_there_are_layers(n_layers):
    """A chain with neighbors 0.9 cutoffs apart: force on atom k from the energy of atom 0."""
    config = SMALL.model_copy(update={"n_layers": n_layers})
    potential = painn(config)
    params = with_biases(potential)
    system = make_system(np.arange(5)[:, None] * [[0.9 * 3.5, 0.0, 0.0]], 8)
    graph = host_graph(system, 3.5)

    @jax.jit
    @jax.grad
    def gradient(positions):
        return potential.energy(params, system._replace(positions=positions), graph)[0]

    felt = np.abs(gradient(system.positions)).max(axis=1)
    assert (felt[: n_layers + 1] > 0.0).all()
    assert (felt[n_layers + 1 :] == 0.0).all()


def test_every_parameter_matters():
    """No weight is without effect on energies, so none is stored in vain."""
    potential = painn(SMALL)
    params = with_biases(potential)
    system = random_system(0)
    graph = host_graph(system, 3.5)
    gradient = jax.jit(jax.grad(lambda p: total_energy(potential.energy, p, system, graph)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert (np.abs(leaf) > 0.0).all(), jax.tree_util.keystr(path)


def test_angles_are_seen():
    """Two neighbors at the same distances, at 90 and at 120 degrees."""
    potential = painn(SMALL.model_copy(update={"n_layers": 1}))
    params = with_biases(potential)
    energies = []
    for angle in (np.pi / 2.0, np.pi / 1.5):
        third = 2.0 * np.array([np.cos(angle), np.sin(angle), 0.0])
        system = make_system(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], third]), 8)
        edges = host_graph(system, 2.1)  # of the first atom alone
        energies.append(float(potential.energy(params, system, edges)[0]))
    assert abs(energies[0] - energies[1]) > 1e-3


def test_configuration_round_trip():
    potential = painn(SMALL)
    again = build_potential("painn", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.cutoff, again.species) == (3.5, (8, 1))
    system = random_system(0)
    args = (potential.init(jax.random.key(0)), system, host_graph(system, 3.5))
    np.testing.assert_array_equal(jax.jit(again.energy)(*args), jax.jit(potential.energy)(*args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"cutoff": 0.0}, "cutoff: got 0.0"),
        ({"n_layers": 0}, "n_layers: got 0"),
        ({"n_feature": 8}, "did you mean `n_features`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("painn", {"species": [1], "cutoff": 5.0, **change})
