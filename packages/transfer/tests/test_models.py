"""Every network of mosaicmd-gnn-models: rescaled, trained in part, written, and specialised."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.pytrees import named_leaves
from mosaicmd.kernel.systems import from_ase
from mosaicmd.transfer import Scales, Strategy, learnable, optimizer_of, start

LENGTH, ENERGY = 1.0418, 0.89
NETWORKS = {  # the smallest of each kind
    "painn": {"n_features": 4, "n_layers": 1, "n_radial": 3},
    "mace": {"n_channels": 2, "n_layers": 1, "hidden_l_max": 0, "l_max": 1, "correlation": 2},
    "nequip": {"n_features": 2, "n_layers": 1, "n_radial": 3},
    "allegro": {"n_scalars": 4, "n_tensors": 2, "l_max": 1, "n_layers": 1, "n_radial": 3},
    "dimenet": {"n_features": 4, "n_blocks": 1, "n_radial": 3, "n_spherical": 2},
}
FAST = ("painn",)  # the others take half a minute together


def built(name):
    potential = build_potential(name, {**NETWORKS[name], "species": [14, 32], "cutoff": 2.9})
    return potential, potential.init(jax.random.key(1))


@pytest.fixture(
    params=[
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS
    ],
    scope="module",
)
def network(request):
    return built(request.param)


@pytest.fixture(scope="module")
def painn_network():
    return built("painn")


def germanium(a=5.65):
    atoms = ase.build.bulk("Ge", a=a)
    atoms.rattle(0.05, seed=1)
    return from_ase(atoms)


@pytest.fixture(scope="module")
def moved(network):
    """A strategy with all its parts, and what the network becomes by it."""
    source, weights = network
    frozen = named_leaves(weights)[0][0].split("/")[0]
    strategy = Strategy(scales=Scales(LENGTH, ENERGY), rates={frozen: 0.0}, pull=0.1)
    return strategy, *start(strategy, source, weights, jax.random.key(0), species={32: 14})


def test_rescaled_networks_are_the_source_in_other_units(network, moved):
    """Energies and forces of the small silicon, times e and e/l."""
    (source, weights), (_, potential, params) = network, moved
    system = germanium()
    small = system._replace(
        positions=system.positions / LENGTH,
        cell=system.cell / LENGTH,
        species=jnp.full_like(system.species, 14),
    )
    found, expected = (
        jax.jit(evaluate, static_argnums=0)(one.energy, p, s, host_graph(s, one.cutoff))
        for one, p, s in ((potential, params, system), (source, weights, small))
    )
    assert np.abs(found.forces).max() > 1e-6
    for name, factor in (("energy", ENERGY), ("forces", ENERGY / LENGTH)):
        wanted = factor * np.asarray(getattr(expected, name))
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-9, atol=1e-13)


def test_frozen_blocks_stay_and_the_file_says_so(network, moved, tmp_path):
    (_, weights), (strategy, potential, params) = network, moved
    (frozen,) = strategy.rates
    system = germanium()
    graph = host_graph(system, potential.cutoff)
    optimizer = optimizer_of(strategy, optax.sgd(1e-2), params)
    energy, gradient = jax.jit(
        jax.value_and_grad(lambda p: jnp.sum(potential.energy(p, system, graph)))
    )(params)
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    learned = optax.apply_updates(params, change)
    changed = {
        name
        for (name, new), old in zip(named_leaves(learned), jax.tree.leaves(weights), strict=True)
        if not np.array_equal(new, old)
    }
    assert changed
    assert not [name for name in changed if name.split("/")[0] == frozen]
    save_model(tmp_path / "m", potential, params, training={"transfer": strategy.record()})
    again, loaded = load_model(tmp_path / "m", dtype="float64")
    found = jax.jit(lambda p: jnp.sum(again.energy(p, system, graph)))(loaded)
    np.testing.assert_allclose(found, energy, rtol=1e-12)
    assert '"pull": 0.1' in (tmp_path / "m" / "model.json").read_text()


def test_adapters_start_as_the_source_and_become_an_ordinary_model(painn_network):
    source, weights = painn_network
    strategy = Strategy(adapters=("*",), rank=1)
    potential, params = start(strategy, source, weights, jax.random.key(0), species={32: 14})
    first = learnable(strategy, potential, params, jax.random.key(2))
    system = germanium()
    graph = host_graph(system, potential.cutoff)
    energy = potential.energy(params, system, graph)
    np.testing.assert_allclose(first.energy(first.params, system, graph), energy, rtol=1e-12)
    gradient = jax.grad(lambda p: jnp.sum(first.energy(p, system, graph)))(first.params)
    learned = jax.tree.map(lambda p, g: p + 0.1 * g, first.params, gradient)
    merged = first.merge(learned)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(
        potential.energy(merged, system, graph),
        first.energy(learned, system, graph),
        rtol=1e-9,
    )
    assert not np.allclose(potential.energy(merged, system, graph), energy, rtol=1e-9)


def test_a_model_of_several_elements_is_specialised_to_one(painn_network):
    """``species={32: 32}``: the same energies of germanium; silicon is refused."""
    source, weights = painn_network
    potential, params = start(Strategy(), source, weights, jax.random.key(0), species={32: 32})
    system = germanium()
    graph = host_graph(system, potential.cutoff)
    np.testing.assert_array_equal(
        potential.energy(params, system, graph), source.energy(weights, system, graph)
    )
    assert potential.species == (32,)
    with pytest.raises(ValueError, match=r"`species` \[14\] of the system are unknown"):
        potential.check(system._replace(species=jnp.full_like(system.species, 14)))
