"""NequIP: numbers of its authors' code, what its layers make, receptive field, and contract."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import NequIPConfig, nequip
from mosaicmd.gnn_models.nequip import _steps
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
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

# Two waters in a triclinic cell as nequip 0.6.2 (PyTorch, float64) sees them: `EnergyModel`
# with parity, trainable Bessel functions, gates of SiLU and tanh, and a mean of 8 neighbors;
# eV and eV/Å. Weights are drawn in the test; those of its features that cannot reach the
# energy, which we do not have, were random.
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
NEQUIP_ENERGIES = [
    0.41248341740451394,
    0.7337513652293491,
    0.45173874022655974,
    0.04592360938550879,
    1.18680191471599,
    0.612276189505454,
]
NEQUIP_FORCES = [
    [2.520157106649, 3.662695842995, 1.595408050096],
    [-1.809773124957, -1.337419813587, -0.822185244954],
    [-0.834607529608, -2.051928741097, -1.059434367353],
    [2.491432701513, -1.849033976453, -1.392998302783],
    [-5.84014313547, -4.028806056853, 3.52799568517],
    [3.472933981873, 5.604492744996, -1.848785820176],
]


def changed(**settings):
    return SMALL.model_copy(update=settings)


@pytest.mark.slow
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


def test_nequip_in_torch_has_the_same_energies_and_forces():
    """With six layers all of 0e, 0o, 1e and 1o take part."""
    potential = nequip(changed(n_layers=6, n_features=2, radial_widths=(5, 5)))
    initial = potential.init(jax.random.key(0))
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda leaf: rng.normal(scale=1.5, size=leaf.shape), initial)
    params["frequencies"] = initial["frequencies"] + 0.1 * params["frequencies"]
    system = make_system(WATERS, np.array([8, 1, 1, 8, 1, 1]), cell=CELL)
    args = (params, system, host_graph(system, 3.5))
    np.testing.assert_allclose(jax.jit(potential.energy)(*args), NEQUIP_ENERGIES, atol=1e-12)
    forces = jax.jit(lambda *args: evaluate(potential.energy, *args).forces)(*args)
    np.testing.assert_allclose(forces, NEQUIP_FORCES, atol=1e-11)


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
