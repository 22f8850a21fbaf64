"""Energy, forces and stress from one call, sums of terms, and rebuilding from a record."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.potentials import (
    Potential,
    build_potential,
    evaluate,
    sum_potentials,
    total_energy,
)
from mosaicmd.kernel.systems import from_ase, make_system

CUTOFF, SIGMA, EPSILON = 6.0, 3.4, 0.0103


def pair(scale=1.0, *, name="pair", species=None, cutoff=CUTOFF):
    """Lennard-Jones, truncated and shifted as in ASE's calculator, times ``params["scale"]``."""

    def shape(distance):
        sixth = (SIGMA / distance) ** 6
        return 4.0 * EPSILON * (sixth**2 - sixth)

    def energy(params, system, graph):
        distance = jnp.linalg.norm(edge_vectors(system, graph), axis=-1)
        values = jnp.where(distance < cutoff, shape(distance) - shape(cutoff), 0.0)
        return 0.5 * params["scale"] * sum_edges(values, graph, system.n_atoms)

    return Potential(
        architecture=name,
        config={"scale": scale},
        init=lambda key: {"scale": jnp.asarray(scale)},
        energy=energy,
        cutoff=cutoff,
        species=species,
    )


def strained_argon():
    """A rattled, sheared and compressed fcc supercell: nothing is zero by symmetry."""
    atoms = bulk("Ar", "fcc", a=5.0).repeat((2, 3, 2))
    atoms.rattle(0.15, seed=1)
    shear = np.eye(3) + np.array([[0.02, 0.07, -0.04], [0.0, -0.03, 0.05], [0.0, 0.0, 0.04]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    return atoms


def test_energy_forces_and_stress_are_those_of_ase():
    atoms = strained_argon()
    atoms.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF)
    system = from_ase(atoms)
    graph = host_graph(system, CUTOFF)
    result = evaluate(pair().energy, {"scale": jnp.asarray(1.0)}, system, graph, stress=True)
    np.testing.assert_allclose(result.energy, atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), atol=1e-13)
    np.testing.assert_allclose(result.stress, atoms.get_stress(voigt=False), atol=1e-15)


def test_stress_is_the_derivative_of_the_energy_in_the_strain():
    """Central differences of all nine strain components, applied to the cell by NumPy."""
    atoms = strained_argon()
    system = from_ase(atoms)
    params = {"scale": jnp.asarray(1.0)}
    stress = evaluate(pair().energy, params, system, host_graph(system, CUTOFF), stress=True).stress
    assert np.abs(stress).min() > 1e-6  # a stress that hides nothing

    def energy(strain):
        deformed = atoms.copy()
        deformed.set_cell(atoms.cell.array @ (np.eye(3) + strain).T, scale_atoms=True)
        there = from_ase(deformed)
        return float(total_energy(pair().energy, params, there, host_graph(there, CUTOFF)))

    for i in range(3):
        for j in range(3):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5e-5
            strain[j, i] += 0.5e-5
            slope = (energy(strain) - energy(-strain)) / 2e-5 / atoms.get_volume()
            np.testing.assert_allclose(stress[i, j], slope, rtol=1e-6, atol=1e-10)


def test_without_stress_none_is_computed():
    system = from_ase(strained_argon())
    result = evaluate(pair().energy, {"scale": 1.0}, system, host_graph(system, CUTOFF))
    assert result.stress is None


def test_terms_add_up_and_keep_their_parameters():
    system = from_ase(strained_argon())
    graph = host_graph(system, CUTOFF)
    both = sum_potentials(pair(2.0), pair(0.5, cutoff=4.5))
    params = both.init(jax.random.key(0))
    assert [float(p["scale"]) for p in params] == [2.0, 0.5]
    assert both.cutoff == CUTOFF
    expected = 2.0 * total_energy(pair().energy, {"scale": 1.0}, system, graph)
    expected += total_energy(pair(cutoff=4.5).energy, {"scale": 0.5}, system, graph)
    np.testing.assert_allclose(total_energy(both.energy, params, system, graph), expected)


def test_a_sum_knows_the_species_common_to_its_terms():
    both = sum_potentials(pair(species=(1, 8)), pair(species=(8, 14)), pair())
    assert both.species == (8,)
    with pytest.raises(ValueError, match="no species is common"):
        sum_potentials(pair(species=(1,)), pair(species=(8,)))
    with pytest.raises(ValueError, match="at least one term"):
        sum_potentials()


def test_unknown_species_are_named():
    system = from_ase(strained_argon())
    pair(species=(18,)).check(system)
    with pytest.raises(ValueError, match=r"`species` \[18\] of the system are unknown.*\[8\]"):
        pair(species=(8,)).check(system)


def test_potentials_are_rebuilt_by_name_and_unknown_names_get_a_suggestion():
    architectures = {"pair": lambda config: pair(config["scale"])}
    record = sum_potentials(pair(2.0), pair(3.0))
    again = build_potential(record.architecture, record.config, architectures=architectures)
    assert [float(p["scale"]) for p in again.init(jax.random.key(0))] == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"'pear' is not provided.*did you mean `pair`"):
        build_potential("pear", {}, architectures=architectures)


def test_total_energy_accumulates_in_double_precision():
    """A million atoms at -1/3 eV in float32: a float32 sum would lose about 1 eV."""

    def third(params, system, graph):
        return jnp.full(1_000_000, -1.0 / 3.0, jnp.float32)

    total = total_energy(third, None, None, None)  # type: ignore[arg-type]
    assert total.dtype == jnp.float64
    np.testing.assert_allclose(total, 1e6 * np.float64(np.float32(-1.0 / 3.0)), rtol=1e-14)


def test_a_sum_predicts_the_charges_of_the_term_that_does():
    def charges(params, system, graph):
        del graph
        return params["per_atom"] * system.mask

    plain = Potential(
        architecture="plain",
        config={},
        init=lambda key: {},
        energy=lambda params, system, graph: jnp.zeros(system.n_atoms),
        cutoff=1.0,
    )
    charged = dataclasses.replace(plain, charges=charges)
    assert sum_potentials(plain, plain).charges is None
    total = sum_potentials(plain, charged)
    system = make_system(np.zeros((2, 3)), 1, cell=5.0)
    found = total.charges(({}, {"per_atom": 0.25}), system, host_graph(system, 1.0))
    np.testing.assert_array_equal(found, [0.25, 0.25])
    with pytest.raises(ValueError, match=r"terms \[0, 2\] all predict charges"):
        sum_potentials(charged, plain, charged)
