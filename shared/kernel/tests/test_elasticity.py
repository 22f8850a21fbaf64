"""Elastic constants at T = 0 against explicit strain, symmetry and closed forms."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.elastic_tensors import birch_coefficients, point_group, stress_vector
from mosaicmd.kernel.elasticity import (
    athermal_elasticity,
    follow_minimum,
    relaxed_structure,
    strain_derivatives,
)
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.neighbors import neighbor_list
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase, pad_system, strained
from mosaicmd.kernel.testing import random_system
from mosaicmd.kernel.units import GPA

CUTOFF = 7.0
PARAMS = {"epsilon": jnp.array(0.0104), "sigma": jnp.array(3.4)}


def smooth_lennard_jones(params, system, graph):
    """12-6 with three continuous derivatives at the cutoff."""
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    inside = graph.mask & (squared < CUTOFF**2)
    squared = jnp.where(inside, squared, CUTOFF**2)
    sixth = (params["sigma"] ** 2 / squared) ** 3
    values = 2.0 * params["epsilon"] * (sixth**2 - sixth) * (1.0 - squared / CUTOFF**2) ** 4
    return sum_edges(values, graph, system.n_atoms)


def springs(params, system, graph):
    """Half of ``k (r - r0)^2 / 2`` for either end of an edge."""
    lengths = jnp.sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
    values = jnp.where(graph.mask, 0.25 * params["k"] * (lengths - params["r0"]) ** 2, 0.0)
    return sum_edges(values, graph, system.n_atoms)


@jax.jit
def evaluated(params, system, graph):
    """The stress, as everything else gets it."""
    return stress_vector(evaluate(smooth_lennard_jones, params, system, graph, stress=True).stress)


def explicit_strain(system, graph, h=1e-5):
    """d(Cauchy stress) / d(strain) by central differences, atoms carried along."""
    columns = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * h
        strain[j, i] += 0.5 * h
        plus, minus = (
            evaluated(PARAMS, strained(system, jnp.asarray(s * strain)), graph) for s in (1.0, -1.0)
        )
        columns.append((plus - minus) / (2.0 * h))
    return np.stack(columns, axis=1)


def hcp():
    """A hexagonal cell whose c/a is not the ideal one before it relaxes."""
    atoms = ase.build.bulk("Ar", "hcp", a=3.7, c=6.2)
    return relaxed_structure(smooth_lennard_jones, PARAMS, from_ase(atoms), cutoff=CUTOFF)


@pytest.fixture(scope="module")
def low_symmetry():
    """Three atoms of no symmetry in a triclinic cell, at rest, under stress."""
    system = random_system(2, n_atoms=3, species=(18,), volume_per_atom=36.0, min_distance=2.8)
    return relaxed_structure(smooth_lennard_jones, PARAMS, system, cutoff=CUTOFF, relax_cell=False)


def test_birch_coefficients_are_the_slope_of_the_stress():
    """Triclinic, not at rest, under a stress that is not hydrostatic; also in rows, padded."""
    system = random_system(1, n_atoms=6, species=(18,), volume_per_atom=30.0, min_distance=2.6)
    graph = host_graph(system, CUTOFF)
    found = strain_derivatives(smooth_lennard_jones, PARAMS, system, graph)
    stress = evaluated(PARAMS, system, graph)
    np.testing.assert_allclose(found.stress, stress, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.stiffness, found.stiffness.T, rtol=1e-9, atol=1e-14)
    assert np.ptp(np.asarray(found.stress)[:3]) > 0.1 * np.abs(found.stress).max()
    birch = birch_coefficients(found.stiffness, found.stress)
    assert np.abs(birch - birch.T).max() > 1e-3 * np.abs(birch).max()
    expected = explicit_strain(system, graph)
    np.testing.assert_allclose(birch, expected, atol=2e-7 * np.abs(expected).max())
    padded = pad_system(system, 8)
    rows = neighbor_list(padded, CUTOFF, skin=0.0).build(padded).graph
    again = strain_derivatives(smooth_lennard_jones, PARAMS, padded, rows)
    np.testing.assert_allclose(again.stiffness, found.stiffness, rtol=1e-9, atol=1e-13)


def test_relaxed_constants_are_the_slope_of_the_relaxed_stress(low_symmetry):
    """Atoms are relaxed anew under every strain: no formula is shared."""
    system = low_symmetry
    graph = host_graph(system, CUTOFF)
    found = athermal_elasticity(smooth_lennard_jones, PARAMS, system, graph)
    assert found.residual_force < 1e-8
    h, columns = 1e-4, []
    for i, j in ((0, 0), (1, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * h
        strain[j, i] += 0.5 * h
        ends = []
        for sign in (1.0, -1.0):
            moved = relaxed_structure(
                smooth_lennard_jones,
                PARAMS,
                strained(system, jnp.asarray(sign * strain)),
                cutoff=CUTOFF,
                relax_cell=False,
                tolerance=1e-10,
            )
            ends.append(evaluated(PARAMS, moved, host_graph(moved, CUTOFF)) / GPA)
        columns.append((ends[0] - ends[1]) / (2.0 * h))
    expected = np.stack(columns, axis=1)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.relaxed_gpa[:, [0, 3, 5]], expected, atol=1e-5 * largest)
    assert np.abs(found.clamped_gpa - found.relaxed_gpa).max() > 0.05 * largest
    padded = pad_system(system, 5)
    again = athermal_elasticity(smooth_lennard_jones, PARAMS, padded, host_graph(padded, CUTOFF))
    np.testing.assert_allclose(again.relaxed_gpa, found.relaxed_gpa, atol=1e-9 * largest)


def test_hcp_in_a_hexagonal_cell():
    """C66 = (C11 - C12) / 2 exactly; strain on the wrong side of the cell breaks it."""
    system = hcp()
    graph = host_graph(system, CUTOFF)
    found = athermal_elasticity(smooth_lennard_jones, PARAMS, system, graph)
    assert np.abs(found.stress_gpa).max() < 1e-8
    for c in (found.clamped_gpa, found.relaxed_gpa):
        np.testing.assert_allclose(c[5, 5], (c[0, 0] - c[0, 1]) / 2.0, rtol=1e-9)
        np.testing.assert_allclose(c[0, 0], c[1, 1], rtol=1e-9)
        np.testing.assert_allclose(c[3, 3], c[4, 4], rtol=1e-9)
        assert np.abs(np.asarray(c)[:3, 3:]).max() < 1e-9
    # the basis has no inversion at its atoms, so they move under strain in the plane
    assert found.clamped_gpa[5, 5] > 1.005 * found.relaxed_gpa[5, 5]
    assert point_group(system).shape == (24, 3, 3)


def test_cauchy_relation_of_a_pair_crystal_without_stress():
    """C12 = C44 where every atom is a centre of inversion; nothing relaxes there."""
    atoms = ase.build.bulk("Ar", "fcc", a=5.0)
    system = relaxed_structure(smooth_lennard_jones, PARAMS, from_ase(atoms), cutoff=CUTOFF)
    graph = host_graph(system, CUTOFF)
    found = athermal_elasticity(smooth_lennard_jones, PARAMS, system, graph)
    np.testing.assert_allclose(found.relaxed_gpa[0, 1], found.relaxed_gpa[3, 3], rtol=1e-8)
    np.testing.assert_allclose(found.relaxed_gpa, found.clamped_gpa, atol=1e-10)
    pressure = 0.5 * GPA
    squeezed = relaxed_structure(
        smooth_lennard_jones, PARAMS, system, cutoff=CUTOFF, pressure=pressure
    )
    graph = host_graph(squeezed, CUTOFF)
    found = athermal_elasticity(smooth_lennard_jones, PARAMS, squeezed, graph)
    np.testing.assert_allclose(found.stress_gpa[:3], -0.5, rtol=1e-7)
    # the Cauchy relation of Lagrangian constants, C12 = C44, reads B12 - B44 = 2 P for Birch's
    np.testing.assert_allclose(found.relaxed_gpa[0, 1] - found.relaxed_gpa[3, 3], 1.0, rtol=1e-6)
    other = athermal_elasticity(smooth_lennard_jones, PARAMS, squeezed, graph, kind="lagrangian")
    np.testing.assert_allclose(other.relaxed_gpa[0, 1], other.relaxed_gpa[3, 3], rtol=1e-8)


def test_springs_between_nearest_neighbors_of_fcc():
    """C11 = 2 k / a and C12 = C44 = k / a, and in a primitive cell as well."""
    a, params = 4.0, {"k": jnp.array(1.5), "r0": jnp.array(np.sqrt(8.0))}
    system = from_ase(ase.build.bulk("Ar", "fcc", a=a))
    found = athermal_elasticity(springs, params, system, host_graph(system, 3.2)).relaxed_gpa
    unit = 1.5 / a / GPA
    np.testing.assert_allclose(found[0], [2 * unit, unit, unit, 0, 0, 0], atol=1e-9 * unit)
    np.testing.assert_allclose(np.diag(found)[3:], unit, rtol=1e-10)


def test_the_lattice_scales_with_the_length_of_its_bonds():
    """a = sqrt(2) r0 for springs of any stiffness, and so its derivatives."""
    params = {"k": jnp.array(1.5), "r0": jnp.array(2.9)}
    system = from_ase(ase.build.bulk("Ar", "fcc", a=4.0))
    system = relaxed_structure(springs, params, system, cutoff=3.2)
    graph = host_graph(system, 3.2)

    def edge(params):
        return 2.0 * follow_minimum(springs, params, system, graph).cell[0, 1]

    value, slope = jax.value_and_grad(edge)(params)
    np.testing.assert_allclose(value, np.sqrt(2.0) * 2.9, rtol=1e-9)
    np.testing.assert_allclose(slope["r0"], np.sqrt(2.0), rtol=1e-9)
    np.testing.assert_allclose(slope["k"], 0.0, atol=1e-9)


def test_relaxed_constants_follow_the_parameters(low_symmetry):
    """The total derivative, atoms moving along, against relaxation at other parameters."""
    system = low_symmetry
    graph = host_graph(system, CUTOFF)

    def constants(params, system):
        return athermal_elasticity(smooth_lennard_jones, params, system, graph).relaxed_gpa[0]

    def of_sigma(sigma):
        params = PARAMS | {"sigma": sigma}
        follows = follow_minimum(smooth_lennard_jones, params, system, graph, relax_cell=False)
        return constants(params, follows)

    def anew(sigma):
        params = PARAMS | {"sigma": jnp.asarray(sigma)}
        moved = relaxed_structure(
            smooth_lennard_jones, params, system, cutoff=CUTOFF, relax_cell=False, tolerance=1e-10
        )
        return constants(params, moved)

    expected = (anew(3.4 + 1e-4) - anew(3.4 - 1e-4)) / 2e-4
    found = jax.jit(jax.jacrev(of_sigma))(jnp.array(3.4))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_bad_input_is_named():
    system = from_ase(ase.build.bulk("Ar", "fcc", a=4.0))
    graph = host_graph(system, 3.2)
    with pytest.raises(ValueError, match=r"`kind` must be 'birch' or 'lagrangian', got 'voigt'"):
        athermal_elasticity(springs, {}, system, graph, kind="voigt")
    with pytest.raises(RuntimeError, match=r"after 1 Newton steps: .* start nearer to it"):
        relaxed_structure(smooth_lennard_jones, PARAMS, system, cutoff=CUTOFF, max_steps=1)
