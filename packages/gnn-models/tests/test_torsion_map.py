"""Maps of two dihedrals against SciPy's splines; invariances and bad settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline

from mosaicmd.gnn_models import (
    LennardJonesConfig,
    TorsionMapConfig,
    lennard_jones,
    torsion_map,
)
from mosaicmd.kernel import testing
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.observables.internal_coordinates import dihedral
from mosaicmd.kernel.potentials import build_potential, sum_potentials, total_energy
from mosaicmd.kernel.systems import make_system, pad_system

N_POINTS = 7
CONFIG = TorsionMapConfig(
    first=((0, 1, 2, 3), (2, 3, 4, 5)),
    second=((1, 2, 3, 4), (3, 4, 5, 6)),
    n_points=N_POINTS,
    types=(0, 1),
)


def chain(seed=0):
    """Seven atoms on a random walk, and a graph that nothing reads."""
    steps = np.random.default_rng(seed).normal(size=(7, 3))
    steps *= 1.5 / np.linalg.norm(steps, axis=1, keepdims=True)
    system = make_system(np.cumsum(steps, axis=0), 6)
    return system, host_graph(system, 1.0)


def random_params(seed=1):
    values = np.random.default_rng(seed).normal(size=(2, N_POINTS, N_POINTS))
    return {"coefficients": jnp.asarray(values)}


def scipys(coefficients, phi, psi):
    """The periodic tensor product, with coefficient ``(k, l)`` centred on its grid point."""
    knots = np.arange(-5, N_POINTS + 6)

    def basis(angle):
        u = (angle + np.pi) * N_POINTS / (2.0 * np.pi)
        rows = np.zeros(N_POINTS)
        for centre in range(-3, N_POINTS + 3):
            one = BSpline.basis_element(knots[0] + 5 + centre + np.arange(-2, 3), extrapolate=False)
            rows[centre % N_POINTS] += np.nan_to_num(one(u))
        return rows

    return basis(phi) @ coefficients @ basis(psi)


@pytest.mark.parametrize("seed", range(4))
def test_energy_is_that_of_scipys_periodic_splines(seed):
    potential, params = torsion_map(CONFIG), random_params()
    system, graph = chain(seed)
    phi = np.asarray(dihedral(CONFIG.first).values(system))
    psi = np.asarray(dihedral(CONFIG.second).values(system))
    maps = np.asarray(params["coefficients"])
    expected = sum(scipys(maps[k], phi[k], psi[k]) for k in range(2))
    found = total_energy(potential.energy, params, system, graph)
    assert float(found) == pytest.approx(expected, rel=1e-11)


def test_a_constant_map_has_no_forces_and_is_shared_by_the_atoms():
    potential = torsion_map(CONFIG.model_copy(update={"types": None}))
    system, graph = chain()
    params = {"coefficients": jnp.full((1, N_POINTS, N_POINTS), 0.8)}
    energies = potential.energy(params, system, graph)
    np.testing.assert_allclose(energies, 0.1 * np.array([1, 2, 3, 4, 3, 2, 1]), rtol=1e-12)
    gradient = jax.grad(
        lambda r: total_energy(potential.energy, params, system._replace(positions=r), graph)
    )(system.positions)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-13)


def without_hand():
    """Coefficients that a reflection, which turns the sign of both dihedrals, leaves alone."""
    values = random_params()["coefficients"]
    back = -jnp.arange(N_POINTS) % N_POINTS
    return {"coefficients": values + values[:, back][:, :, back]}


def test_energies_and_forces_are_right_and_invariant():
    """In a sum with a pair potential, which sees the graph."""
    pair = lennard_jones(LennardJonesConfig(epsilon=1e-6, sigma=1.0, cutoff=2.5))
    potential = sum_potentials(torsion_map(CONFIG), pair)
    args = (potential, (without_hand(), pair.init(jax.random.key(0))), chain()[0])
    testing.check_forces(*args)
    testing.check_rotation(*args)
    testing.check_translation(*args)


def test_a_term_with_a_masked_atom_has_no_energy():
    potential, params = torsion_map(CONFIG), random_params()
    system, graph = chain()
    energies = potential.energy(params, system, graph)
    np.testing.assert_allclose(potential.energy(params, pad_system(system, 9), graph)[:7], energies)
    masked = system._replace(mask=system.mask.at[6].set(False))
    assert float(potential.energy(params, masked, graph)[6]) == 0.0
    first = torsion_map(
        TorsionMapConfig(first=CONFIG.first[:1], second=CONFIG.second[:1], n_points=7)
    )
    alone = {"coefficients": params["coefficients"][:1]}
    np.testing.assert_allclose(
        potential.energy(params, masked, graph), first.energy(alone, system, graph)
    )


def test_configuration_round_trip():
    potential = torsion_map(CONFIG)
    again = build_potential("torsion_map", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert again.init(jax.random.key(0))["coefficients"].shape == (2, N_POINTS, N_POINTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": []}, "one dihedral each"),
        ({"first": [[0, 1, 2, 2]]}, "four atoms counted from 0"),
        ({"types": [1]}, "without gaps"),
        ({"types": [0, 0]}, "2 entries for 1 terms"),
        ({"n_points": 3}, "n_points"),
    ],
)
def test_bad_settings_are_refused(change, message):
    settings = {"first": [[0, 1, 2, 3]], "second": [[1, 2, 3, 4]], "n_points": 8}
    with pytest.raises(ConfigError, match=message):
        build_potential("torsion_map", settings | change)


def test_an_atom_that_the_system_lacks_is_named():
    system = make_system(np.eye(4, 3), 6)
    with pytest.raises(ValueError, match="names atom 6, but the system has 4"):
        torsion_map(CONFIG).energy(random_params(), system, host_graph(system, 1.0))
