"""A model with charge equilibration moves to other elements as any other potential does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential
from mosaicmd.kernel.pytrees import named_leaves
from mosaicmd.kernel.testing import random_system
from mosaicmd.transfer import Scales, Strategy, optimizer_of, start

LENGTH, ENERGY = 1.15, 0.8
ELEMENTS = {9: 1, 17: 8}  # of the target, and which of the source stands for it
FROZEN = ("electronegativity", "raw_hardness")


@pytest.fixture(scope="module")
def source():
    network = {"species": [1, 8], "cutoff": 4.0, "n_features": 4, "n_layers": 2, "n_radial": 3}
    settings = {
        "network": {"architecture": "painn", "config": network},
        "plan": {"method": "direct"},
        "electronegativity": (4.5, 8.7),
        "hardness": (6.0, 9.0),
        "widths": (0.5, 0.7),
    }
    potential = build_potential("celli", settings)
    return potential, potential.init(jax.random.key(1))


@pytest.fixture(scope="module")
def moved(source):
    strategy = Strategy(scales=Scales(LENGTH, ENERGY), rates=dict.fromkeys(FROZEN, 0.0), pull=0.1)
    potential, params = source
    return strategy, *start(strategy, potential, params, jax.random.key(0), species=ELEMENTS)


def cluster():
    """Of source elements, with a net charge, and the same of the target, larger."""
    small = random_system(1, n_atoms=6, pbc=False)._replace(total_charge=jnp.asarray(-1.0))
    names = {old: new for new, old in ELEMENTS.items()}
    species = jnp.asarray([names[int(z)] for z in small.species], small.species.dtype)
    large = small._replace(
        positions=LENGTH * small.positions, cell=LENGTH * small.cell, species=species
    )
    return small, large


def test_energies_and_charges_are_those_of_the_source_in_other_units(source, moved, tmp_path):
    """The layer sees the cluster at its own size: equal charges, energies times the ratio."""
    (potential, weights), (strategy, target, params) = source, moved
    small, large = cluster()
    assert target.species == (9, 17)

    def both(one, p, system):
        graph = host_graph(system, one.cutoff)
        return jax.jit(lambda p: (one.energy(p, system, graph), one.charges(p, system, graph)))(p)

    energy, charges = both(potential, weights, small)
    found, found_charges = both(target, params, large)
    np.testing.assert_allclose(found, ENERGY * energy, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found_charges, charges, rtol=1e-9)
    assert float(jnp.sum(found_charges)) == pytest.approx(-1.0)
    assert float(jnp.ptp(found_charges)) > 0.05
    save_model(tmp_path / "m", target, params, training={"transfer": strategy.record()})
    again, loaded = load_model(tmp_path / "m", dtype="float64")
    np.testing.assert_allclose(both(again, loaded, large)[1], found_charges, rtol=1e-9)


def test_what_is_frozen_stays_and_the_network_learns_through_the_charges(source, moved):
    """Gradients of charges reach the network, whose layers lie before them."""
    (_, weights), (strategy, target, params) = source, moved
    _, large = cluster()
    graph = host_graph(large, target.cutoff)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(target.charges(p, large, graph) ** 2)))(params)
    optimizer = optimizer_of(strategy, optax.sgd(1e-2), weights)
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    learned = named_leaves(optax.apply_updates(params, change))
    changed = {
        name
        for (name, new), (_, old) in zip(learned, named_leaves(weights), strict=True)
        if not np.array_equal(new, old)
    }
    assert any(name.startswith("network/") for name in changed)
    assert not [name for name in changed if name.startswith(FROZEN)]
