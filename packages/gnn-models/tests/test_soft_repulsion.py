"""Soft repulsion by its closed form, as a fixed and as a learnable prior."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import SoftRepulsionConfig, soft_repulsion
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

WATER = {"epsilon": "1 kJ/mol", "sigma": "0.3165 nm", "exponent": 12, "cutoff": 5.0}


def pair_energy(potential, params, distance):
    system = make_system([[0.0, 0.0, 0.0], [0.0, 0.0, distance]], 1)
    return total_energy(potential.energy, params, system, host_graph(system, 10.0))


@pytest.mark.parametrize("learnable", [False, True])
def test_contract(learnable):
    config = SoftRepulsionConfig(
        epsilon=(0.5, 0.3, 0.2),
        sigma=(2.0, 2.4, 2.6),
        exponent=8.0,
        cutoff=5.0,
        learnable=learnable,
        species=(8, 1),
    )
    potential = soft_repulsion(config)
    check_potential(potential, potential.init(jax.random.key(0)), random_system(0))


def test_water_prior_has_the_published_values():
    """1 kJ/mol = 0.0103643 eV at sigma; (sigma/r)^12 elsewhere below the onset of 4.5 Å."""
    potential = build_potential("soft_repulsion", WATER)
    assert potential.init(jax.random.key(0)) == {}
    kj_per_mol = 0.01036427
    for r in (2.5, 2.8, 3.165, 4.4):
        expected = kj_per_mol * (3.165 / r) ** 12
        np.testing.assert_allclose(pair_energy(potential, {}, r), expected, rtol=1e-6)
    assert pair_energy(potential, {}, 5.0) == 0.0


def test_force_by_the_closed_form():
    potential = soft_repulsion(
        SoftRepulsionConfig(epsilon=0.1, sigma=3.0, exponent=7.5, cutoff=6.0, onset=4.0)
    )
    system = make_system([[0.0, 0.0, 0.0], [0.0, 2.9, 0.0]], 1)
    forces = evaluate(potential.energy, {}, system, host_graph(system, 6.0)).forces
    expected = 0.1 * 7.5 / 2.9 * (3.0 / 2.9) ** 7.5
    np.testing.assert_allclose(forces, [[0.0, -expected, 0.0], [0.0, expected, 0.0]], rtol=1e-12)


def test_learnable_parameters_have_the_derivatives_of_a_power():
    """``epsilon dE/d(epsilon) = E`` and ``sigma dE/d(sigma) = exponent E``."""
    potential = build_potential("soft_repulsion", {**WATER, "learnable": True})
    params = potential.init(jax.random.key(0))
    energy, gradient = jax.value_and_grad(lambda p: pair_energy(potential, p, 3.0))(params)
    np.testing.assert_allclose(params["epsilon"] * gradient["epsilon"], energy, rtol=1e-12)
    np.testing.assert_allclose(params["sigma"] * gradient["sigma"], 12.0 * energy, rtol=1e-12)
    other = jax.tree.map(lambda leaf: 2.0 * leaf, params)
    np.testing.assert_allclose(pair_energy(potential, other, 6.0), 0.0)
    assert pair_energy(potential, other, 3.0) > 1000.0 * energy


def test_configuration_round_trip():
    potential = build_potential("soft_repulsion", WATER)
    again = build_potential("soft_repulsion", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.architecture, again.cutoff) == ("soft_repulsion", 5.0)
    assert jnp.array_equal(pair_energy(again, {}, 3.0), pair_energy(potential, {}, 3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "`epsilon` must be positive"),
        ({"sigma": [3.0, 3.0, 3.0]}, "give `species`"),
        ({"exponent": 0.0}, "exponent: got 0.0"),
        ({"onset": 5.0}, "`onset` 5.0 must lie in"),
        ({"sigmma": 3.0}, "did you mean `sigma`"),
        ({"cutoff": "5 eV"}, "cutoff"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("soft_repulsion", {**WATER, **change})
