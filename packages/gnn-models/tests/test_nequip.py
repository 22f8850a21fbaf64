"""NequIP: the equations edge by edge with e3nn's coefficients, receptive field, and contract."""

import json

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import NequIPConfig, nequip
from mosaicmd.gnn_models.nequip import _steps
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.potentials import build_potential, total_energy
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

SMALL = NequIPConfig(
    species=(8, 1),
    cutoff=3.5,
    n_features=4,
    l_max=1,
    n_layers=3,
    n_radial=4,
    radial_widths=(6, 5),
    mean_neighbors=8.0,
)


def changed(**settings):
    return SMALL.model_copy(update=settings)


def test_contract():
    potential = nequip(SMALL)
    check_potential(potential, potential.init(jax.random.key(1)), random_system(0))


def test_layers_make_what_can_reach_the_energy():
    """From scalars come 0e, 1o; then also 1e; the layer before the last has only 0e and 1o."""
    outputs = [set(step.outputs) for step in _steps(changed(n_layers=4))]
    assert outputs == [{"0e", "1o"}, {"0e", "1o", "1e"}, {"0e", "1o"}, {"0e"}]
    outputs = [set(step.outputs) for step in _steps(changed(n_layers=6))]
    assert outputs[2] == {"0e", "0o", "1o", "1e"}
    plain = [set(step.outputs) for step in _steps(changed(n_layers=4, parity=False))]
    assert plain == [{"0e", "1o"}] * 3 + [{"0e"}]


def rms_scale(function):
    """Inverse root mean square over a standard normal variable."""
    z = np.linspace(-12.0, 12.0, 200_001)
    weight = np.exp(-0.5 * z**2)
    return np.sqrt(weight.sum() / np.sum(weight * function(z) ** 2))


def silu(x):
    return x / (1.0 + np.exp(-x))


SILU, TANH = rms_scale(silu), rms_scale(np.tanh)


def dense(weight, x):
    return np.asarray(x) @ np.asarray(weight) / np.sqrt(len(weight))


def edge_by_edge(config, params, system, graph):
    """Convolution, self-connection and gate in loops over atoms, edges, and pairs of irreps."""
    F, n = config.n_features, system.n_atoms
    kinds = [config.species.index(int(label)) for label in system.species]
    h = {"0e": np.asarray(params["embedding"])[kinds][:, :, None]}  # [n_atoms, F, 2l+1]
    for step, layer in zip(_steps(config), params["layers"], strict=True):
        before = {
            name: np.stack([dense(layer["before"][name], v.T).T for v in x])
            for name, x in h.items()
        }
        blocks = {name: [] for name in step.outputs}
        p = 0
        for out in sorted(step.outputs, key=e3nn.Irrep):
            for first in step.inputs:
                for l in range(config.l_max + 1):
                    harmonic = e3nn.Irrep(l, (-1) ** l)
                    if e3nn.Irrep(out) not in e3nn.Irrep(first) * harmonic:
                        continue
                    l1, l3 = int(first[0]), int(out[0])
                    coupling = np.sqrt(2 * l3 + 1) * e3nn.clebsch_gordan(l1, l, l3)
                    total = np.zeros((n, F, 2 * l3 + 1))
                    for i, j, shift in zip(
                        graph.receivers, graph.senders, graph.shifts, strict=True
                    ):
                        vector = system.positions[j] + shift @ system.cell - system.positions[i]
                        r = float(np.linalg.norm(vector))
                        u = r / config.cutoff
                        power = config.envelope_power
                        envelope = (
                            1.0
                            - (power + 1) * (power + 2) / 2 * u**power
                            + power * (power + 2) * u ** (power + 1)
                            - power * (power + 1) / 2 * u ** (power + 2)
                        )
                        x = np.sin(np.asarray(params["frequencies"]) * u) / r
                        x = 2.0 / config.cutoff * envelope * x
                        for k, weight in enumerate(layer["radial"]):
                            x = dense(weight, SILU * silu(x) if k else x)
                        y = HARMONICS[l](np.asarray(vector) / r)
                        sent = x[p * F : (p + 1) * F, None] * before[first][j]
                        total[i] += np.einsum("ca,b,abm->cm", sent, y, coupling)
                    blocks[out].append(total / np.sqrt(config.mean_neighbors))
                    p += 1
        new = {}
        for name, parts in blocks.items():
            joined = np.concatenate(parts, axis=1)
            new[name] = np.stack([dense(layer["after"][name], v.T).T for v in joined])
            if name in h:
                own = [
                    dense(layer["skip"][name][kind], v.T).T
                    for kind, v in zip(kinds, h[name], strict=True)
                ]
                new[name] += np.stack(own)
        h, start = {"0e": SILU * silu(new["0e"][:, :F])}, F
        for name in sorted(step.outputs, key=e3nn.Irrep):
            if name == "0o":
                h[name] = TANH * np.tanh(new[name])
            elif name != "0e":
                h[name] = SILU * silu(new["0e"][:, start : start + F]) * new[name]
                start += F
        h = {name: h[name] for name in step.outputs}
    first, second = params["readout"]
    return dense(second, dense(first, h["0e"][:, :, 0]))[:, 0]


HARMONICS = {0: lambda u: np.ones(1), 1: lambda u: np.sqrt(3.0) * u}


@pytest.mark.parametrize("n_layers", [3, 6])
def test_energies_are_those_of_the_equations_edge_by_edge(n_layers):
    config = changed(n_layers=n_layers, n_features=2)
    potential = nequip(config)
    params = potential.init(jax.random.key(0))
    system = random_system(3, n_atoms=4)
    graph = host_graph(system, 3.3)
    with jax.numpy_rank_promotion("allow"):
        expected = edge_by_edge(config, jax.tree.map(np.asarray, params), system, graph)
    assert np.ptp(expected) > 0.01
    found = jax.jit(potential.energy)(params, system, graph)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_energies_reach_exactly_as_many_cutoffs_as_there_are_layers(n_layers):
    """A chain with neighbors 0.8 cutoffs apart: force on atom k from the energy of atom 0."""
    potential = nequip(changed(n_layers=n_layers))
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


@pytest.mark.parametrize(
    "change", [{}, {"n_layers": 1}, {"n_layers": 2, "l_max": 2, "parity": False}, {"n_layers": 6}]
)
def test_every_parameter_matters(change):
    """No weight is without effect on energies, so none is stored in vain."""
    potential = nequip(changed(**change))
    params = potential.init(jax.random.key(0))
    system = random_system(0, n_atoms=8)
    graph = host_graph(system, 3.5)
    gradient = jax.jit(jax.grad(lambda p: total_energy(potential.energy, p, system, graph)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert (np.abs(leaf) > 0.0).all(), jax.tree_util.keystr(path)


def test_untrained_energies_are_of_the_order_of_one():
    """With the published widths; root mean square over the atoms of random structures."""
    potential = nequip(NequIPConfig(species=(8, 1), cutoff=4.0, mean_neighbors=13.0))
    energy = jax.jit(potential.energy)
    values = []
    for seed in range(4):
        system = random_system(seed).astype(jnp.float32)
        params = potential.init(jax.random.key(seed))
        values.append(energy(params, system, host_graph(system, 4.0)))
    assert 0.1 < np.sqrt(np.mean(np.concatenate(values) ** 2)) < 3.0


def test_trajectories_conserve_energy():
    """200 steps of 0.25 fs at about 300 K: fluctuations far below the kinetic energy."""
    potential = nequip(changed(n_layers=2))
    system = random_system(0, n_atoms=12, min_distance=2.0)
    params = potential.init(jax.random.key(0))
    simulation = Simulation(potential.energy, nve(0.025), cutoff=3.5, every=20)
    state = simulation.start(jax.random.key(1), params, system, kT=0.025)
    _, trajectory = simulation.run(params, state, 200)
    total = np.asarray(trajectory.quantities["energy"] + trajectory.quantities["kinetic_energy"])
    kinetic = np.asarray(trajectory.quantities["kinetic_energy"])
    assert np.ptp(total) < 1e-2 * kinetic.mean()


def test_configuration_round_trip():
    potential = nequip(SMALL)
    again = build_potential("nequip", json.loads(json.dumps(potential.config)))
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
        ({"radial_widths": [0]}, "`radial_widths` must be positive"),
        ({"n_feature": 8}, "did you mean `n_features`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("nequip", {"species": [1], "cutoff": 5.0, **change})
