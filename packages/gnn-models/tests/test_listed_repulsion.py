"""Repulsion of listed pairs against its formula."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import (
    LennardJonesConfig,
    ListedRepulsionConfig,
    lennard_jones,
    listed_repulsion,
)
from mosaicmd.kernel import testing
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, sum_potentials, total_energy
from mosaicmd.kernel.systems import make_system

CONFIG = ListedRepulsionConfig(
    atoms=((0, 2), (1, 3)), epsilon=(0.01, 0.02), sigma=3.0, learnable=True
)


def square():
    system = make_system([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 2.5, 0.0]], 6)
    return system, host_graph(system, 1.0)


@pytest.mark.parametrize("exponent", [12.0, 7.5])
def test_energy_is_the_formula(exponent):
    potential = listed_repulsion(CONFIG.model_copy(update={"exponent": exponent}))
    energies = potential.energy(potential.init(jax.random.key(0)), *square())
    one = 0.01 * (3.0 / np.sqrt(8.0)) ** exponent
    other = 0.02 * (3.0 / np.sqrt(10.25)) ** exponent
    np.testing.assert_allclose(energies, 0.5 * np.array([one, other, one, other]), rtol=1e-12)


def test_forces_are_right_and_learning_moves_both_parameters():
    potential = listed_repulsion(CONFIG)
    params = potential.init(jax.random.key(0))
    pair = lennard_jones(LennardJonesConfig(epsilon=1e-6, sigma=1.5, cutoff=2.5))
    both = sum_potentials(potential, pair)
    testing.check_forces(both, (params, pair.init(jax.random.key(0))), square()[0])
    gradient = jax.grad(lambda p: total_energy(potential.energy, p, *square()))(params)
    assert all(bool(jnp.all(leaf > 0.0)) for leaf in jax.tree.leaves(gradient))
    fixed = listed_repulsion(CONFIG.model_copy(update={"learnable": False}))
    assert fixed.init(jax.random.key(0)) == {}


def test_configuration_round_trip_and_bad_settings():
    potential = listed_repulsion(CONFIG)
    record = json.loads(json.dumps(potential.config))
    assert build_potential("listed_repulsion", record).config == potential.config
    with pytest.raises(ConfigError, match="`sigma` must be positive"):
        build_potential("listed_repulsion", record | {"sigma": -1.0})
