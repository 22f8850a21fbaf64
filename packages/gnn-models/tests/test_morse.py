"""The Morse potential by its closed form, and ASE's on the same structure."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.morse import MorsePotential

from mosaicmd.gnn_models import MorseConfig, morse
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.systems import make_system, to_ase
from mosaicmd.kernel.testing import check_potential, random_system

SETTINGS = {"depth": 0.4, "distance": 2.6, "width": 0.7, "cutoff": 6.0}


def two_atoms(potential, distance):
    system = make_system([[0.0, 0.0, 0.0], [0.0, distance, 0.0]], 1)
    return system, host_graph(system, potential.cutoff)


def test_contract():
    potential = morse(
        MorseConfig(
            depth=(0.3, 0.5, 0.4),
            distance=(2.4, 2.2, 2.9),
            width=(0.6, 0.8, 0.7),
            cutoff=5.0,
            species=(8, 1),
        )
    )
    check_potential(potential, potential.init(jax.random.key(0)), random_system(0))


def test_ase_has_the_same_energies_forces_and_stress():
    """ASE's smooth end is the same quintic polynomial, in units of the distance."""
    system = random_system(3, species=(29,), n_atoms=32)
    potential = build_potential("morse", {**SETTINGS, "onset": 4.5})
    atoms = to_ase(system)
    atoms.calc = MorsePotential(
        epsilon=0.4, r0=2.6, rho0=2.6 / 0.7, rcut1=4.5 / 2.6, rcut2=6.0 / 2.6
    )
    params = potential.init(jax.random.key(0))
    result = evaluate(potential.energy, params, system, host_graph(system, 6.0), stress=True)
    np.testing.assert_allclose(result.energy, atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), rtol=1e-9, atol=1e-12)
    expected = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(result.stress, expected, rtol=1e-9, atol=1e-14)


def test_minimum_zero_and_curvature_are_where_the_closed_form_says():
    """``-D`` at ``r_0``, 0 at ``r_0 - w ln 2``, and ``u'' = 2 D / w^2`` at the minimum."""
    potential = build_potential("morse", SETTINGS)
    params = potential.init(jax.random.key(0))
    for distance, energy in ((2.6, -0.4), (2.6 - 0.7 * np.log(2.0), 0.0)):
        system, graph = two_atoms(potential, distance)
        found = total_energy(potential.energy, params, system, graph)
        np.testing.assert_allclose(found, energy, atol=1e-13)
    system, graph = two_atoms(potential, 2.6)

    def stretched(x):
        moved = system._replace(positions=system.positions.at[1, 1].add(x))
        return total_energy(potential.energy, params, moved, graph)

    np.testing.assert_allclose(jax.grad(stretched)(0.0), 0.0, atol=1e-13)
    curvature = jax.grad(jax.grad(stretched))(0.0)
    np.testing.assert_allclose(curvature, 2.0 * 0.4 / 0.7**2, rtol=1e-12)


@pytest.mark.parametrize("truncation", ["energy_shift", "force_shift"])
def test_shifted_forms_by_hand(truncation):
    """``u(r) - u(r_c)``, and with the force shift minus ``(r - r_c) u'(r_c)``."""
    potential = build_potential("morse", {**SETTINGS, "truncation": truncation})
    system, graph = two_atoms(potential, 3.1)
    found = total_energy(potential.energy, potential.init(jax.random.key(0)), system, graph)
    x, end = np.exp(-0.5 / 0.7), np.exp(-3.4 / 0.7)
    expected = 0.4 * (x**2 - 2.0 * x - end**2 + 2.0 * end)
    if truncation == "force_shift":
        expected += 2.9 * 0.4 * 2.0 / 0.7 * (end - end**2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_each_pair_of_species_has_its_own_parameters():
    potential = build_potential(
        "morse", {**SETTINGS, "species": [8, 1], "distance": [2.5, 2.0, 1.5], "truncation": "plain"}
    )
    params = potential.init(jax.random.key(0))
    np.testing.assert_array_equal(params["depth"], [0.4, 0.4, 0.4])
    for pair, distance in (((8, 8), 2.5), ((8, 1), 2.0), ((1, 8), 2.0), ((1, 1), 1.5)):
        system = make_system([[0.0, 0.0, 0.0], [2.2, 0.0, 0.0]], np.array(pair))
        found = potential.energy(params, system, host_graph(system, 6.0))
        x = np.exp((distance - 2.2) / 0.7)
        np.testing.assert_allclose(found, 0.2 * (x**2 - 2.0 * x) * np.ones(2), rtol=1e-12)


def test_configuration_round_trip():
    settings = {**SETTINGS, "depth": "10 kcal/mol", "distance": "0.26 nm"}
    potential = build_potential("morse", settings)
    again = build_potential("morse", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.architecture, again.cutoff, again.species) == ("morse", 6.0, None)
    params = again.init(jax.random.key(0))
    np.testing.assert_allclose(params["depth"], 0.4336, rtol=1e-4)
    assert jnp.array_equal(params["distance"], 2.6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0.0}, "`width` must be positive"),
        ({"depth": [0.1, 0.2], "species": [1, 8]}, "2 values for 3 pairs"),
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"onset": 6.0}, r"`onset` 6.0 must lie in \[0, cutoff=6.0\)"),
        ({"truncation": "plain", "onset": 5.0}, "`onset` has no meaning"),
        ({"deptth": 1.0}, "did you mean `depth`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("morse", {**SETTINGS, **change})
