"""Density, temperature and pressure against closed forms and ASE."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.lj import LennardJones

from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.momenta import maxwell_boltzmann
from mosaicmd.kernel.observables import (
    density,
    number_density,
    pressure,
    pressure_tensor,
    temperature,
)
from mosaicmd.kernel.systems import from_ase, make_system, pad_system

KT = 300.0 * units.KELVIN


def lennard_jones(params, system, graph):
    """Half of ``4 eps [(s / r)^12 - (s / r)^6]`` for either end of an edge."""
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    sixth = (params["sigma"] ** 2 / squared) ** 3
    energy = jnp.where(graph.mask & (squared < 6.0**2), sixth**2 - sixth, 0.0)
    return sum_edges(2.0 * params["epsilon"] * energy, graph, system.n_atoms)


def nothing(params, system, graph):
    return jnp.zeros(system.n_atoms)


def argon():
    atoms = ase.build.bulk("Ar", "fcc", a=5.1).repeat((4, 3, 3))
    atoms.rattle(0.15, seed=0)
    atoms.set_cell(atoms.cell.array @ [[1.02, 0.03, 0], [0, 0.99, 0.04], [0, 0, 1]])
    return atoms


def test_density_of_water_by_hand():
    """33.4 molecules of 18.015 u per nm³ are just under one gram per cm³."""
    system = make_system(np.zeros((901, 3)), 1, cell=30.0, masses=18.015)
    by_hand = 901 * 18.015 * 1.660539040e-27 / 27.0e-27
    for padded in (system, pad_system(system, 950)):
        np.testing.assert_allclose(
            density().per_frame(None, padded, None, None), by_hand, rtol=1e-9
        )
        np.testing.assert_allclose(
            number_density().per_frame(None, padded, None, None), 901 / 27000.0, rtol=1e-13
        )


def test_number_density_of_one_species():
    system = make_system(np.zeros((5, 3)), [1, 1, 2, 2, 2], cell=10.0, masses=1.0)
    found = number_density(2).per_frame(None, system, None, None)
    np.testing.assert_allclose(found, 3.0e-3, rtol=1e-13)
    assert number_density(2).name == "number_density_2"


def test_temperature_of_thermal_momenta():
    """The draw removes the drift, so three degrees of freedom are fixed; 4 sigma."""
    system = pad_system(make_system(np.zeros((20, 3)), 18, cell=10.0), 23)
    keys = jax.random.split(jax.random.key(1), 500)
    momenta = jax.vmap(lambda key: maxwell_boltzmann(key, system, KT))(keys)
    observable = temperature(fixed=3)
    found = jax.vmap(lambda p: observable.per_frame(None, system, None, p))(momenta)
    z = (found.mean() - 300.0) / (found.std() / np.sqrt(500))
    assert abs(z) < 4.0


def test_ideal_gas_pressure():
    """``N kT / V``, exact by its mean, to 4 sigma by momenta, whose mean has N - 1."""
    system = make_system(np.random.default_rng(0).uniform(size=(20, 3)), 18, cell=10.0)
    graph = host_graph(system, 1.0)
    exact = pressure(nothing, cutoff=1.0, kT=KT).per_frame(None, system, graph, None)
    np.testing.assert_allclose(exact, 20 * KT / 1000.0, rtol=1e-13)
    np.testing.assert_allclose(exact / units.BAR, 828.4, rtol=1e-3)  # 20 k 300 K / nm³
    tensor = pressure_tensor(nothing, cutoff=1.0)
    keys = jax.random.split(jax.random.key(2), 1000)
    found = jax.vmap(
        lambda key: tensor.per_frame(None, system, graph, maxwell_boltzmann(key, system, KT))
    )(keys)
    z = (found.mean(axis=0) - 19 * KT / 1000.0 * np.eye(3)) / (found.std(axis=0) / np.sqrt(1000))
    assert np.abs(z).max() < 4.0
    np.testing.assert_allclose(found, jnp.swapaxes(found, 1, 2), rtol=1e-12)


def test_pressure_tensor_agrees_with_ase():
    """A sheared, rattled triclinic cell; ASE's stress includes the kinetic part on request."""
    atoms = argon()
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=False)
    atoms.set_momenta(np.random.default_rng(1).normal(0.0, 1.0, (len(atoms), 3)))
    expected = -atoms.get_stress(voigt=False, include_ideal_gas=True)
    system = from_ase(atoms)
    params = {"sigma": jnp.array(3.4), "epsilon": jnp.array(0.0104)}
    graph = host_graph(system, 6.0)
    momenta = jnp.asarray(atoms.get_momenta())
    tensor = pressure_tensor(lennard_jones, cutoff=6.0)
    found = jax.jit(tensor.per_frame)(params, system, graph, momenta)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    scalar = pressure(lennard_jones, cutoff=6.0)
    np.testing.assert_allclose(
        jax.jit(scalar.per_frame)(params, system, graph, momenta),
        np.trace(expected) / 3.0,
        rtol=1e-9,
    )
    assert scalar.depends_on_params
    assert scalar.cutoff == 6.0


def test_pressure_is_differentiable_in_parameters():
    system = from_ase(argon())
    graph = host_graph(system, 6.0)
    observable = pressure(lennard_jones, cutoff=6.0, kT=KT)

    @jax.jit
    def of_sigma(sigma):
        params = {"sigma": sigma, "epsilon": jnp.array(0.0104)}
        return observable.per_frame(params, system, graph, None)

    numeric = (of_sigma(3.4 + 1e-5) - of_sigma(3.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(of_sigma)(3.4), numeric, rtol=1e-7)


def test_missing_input_is_named():
    system = make_system(np.zeros((1, 3)), 18, cell=10.0)
    with pytest.raises(ValueError, match=r"`temperature_kelvin` needs momenta.*record them"):
        temperature().per_frame(None, system, None, None)
    with pytest.raises(ValueError, match="or give `kT` for the ideal kinetic part"):
        pressure(nothing, cutoff=1.0).per_frame(None, system, host_graph(system, 1.0), None)
    with pytest.raises(ValueError, match=r"`pressure` needs a graph of radius 1\.0 Å"):
        pressure(nothing, cutoff=1.0, kT=KT).per_frame(None, system, None, None)
