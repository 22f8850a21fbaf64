"""The pair spline against SciPy's B-splines, and the contract of potentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline

from mosaicmd.gnn_models import PairSplineConfig, pair_spline
from mosaicmd.gnn_models.pair_spline import build, spline_basis, spline_values
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import total_energy
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

CONFIG = PairSplineConfig(cutoff=5.0, r_min=1.0, n_coefficients=12)


def coefficients(n_pairs=1, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n_pairs, 12)))


def two_atoms(distance, species=1):
    return make_system(np.array([[0.0, 0.0, 0.0], [0.0, distance, 0.0]]), species, masses=1.0)


def test_energy_of_two_atoms_is_the_b_spline_of_scipy():
    """Cardinal knots, continued with coefficients of zero so that all of ours are inside."""
    values = coefficients()[0]
    knots = 1.0 + CONFIG.spacing * np.arange(-3, 19)
    reference = BSpline(knots, np.pad(np.asarray(values), 3), 3, extrapolate=False)
    potential = pair_spline(CONFIG)
    params = {"coefficients": values[None]}
    distances = np.linspace(0.7, 5.4, 61)
    expected = np.nan_to_num(reference(distances))
    np.testing.assert_allclose(spline_values(CONFIG, values, distances), expected, atol=1e-14)
    for distance, energy in zip(distances, expected, strict=True):
        system = two_atoms(distance)
        graph = host_graph(system, 6.0)
        found = total_energy(potential.energy, params, system, graph)
        np.testing.assert_allclose(found, energy, atol=1e-13)


def test_gradient_in_the_coefficients_is_the_basis():
    potential = pair_spline(CONFIG)
    system = two_atoms(2.345)
    graph = host_graph(system, 5.0)
    slope = jax.grad(lambda p: total_energy(potential.energy, p, system, graph))(
        {"coefficients": coefficients()}
    )
    basis = spline_basis(CONFIG, np.array([2.345]))
    np.testing.assert_allclose(slope["coefficients"], basis, atol=1e-14)


def test_each_pair_of_species_has_its_own_curve():
    config = CONFIG.model_copy(update={"species": (8, 1)})
    potential, values = pair_spline(config), coefficients(3)
    for pair, row in (((8, 8), 0), ((8, 1), 1), ((1, 8), 1), ((1, 1), 2)):
        system = two_atoms(3.1, np.array(pair))
        graph = host_graph(system, 5.0)
        found = total_energy(potential.energy, {"coefficients": values}, system, graph)
        np.testing.assert_allclose(found, spline_values(config, values[row], np.array([3.1]))[0])


@pytest.mark.parametrize("species", [None, (1, 8)])
def test_contract(species):
    config = CONFIG.model_copy(update={"species": species})
    params = {"coefficients": 0.1 * coefficients(1 if species is None else 3)}
    system = random_system(0, species=(1, 8))
    check_potential(pair_spline(config), params, system)


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match=r"`r_min` 5.0 must lie in"):
        build({"cutoff": 4.0, "r_min": 5.0})
    with pytest.raises(ConfigError, match=r"did you mean `n_coefficients`"):
        build({"cutoff": 4.0, "n_coeficients": 8})
