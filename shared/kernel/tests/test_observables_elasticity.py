"""Thermal elastic constants against exact averages, closed forms and finite differences."""

import dataclasses

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.elastic_tensors import strain_matrix, stress_vector
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.observables import (
    elastic_constants,
    elastic_constants_from_strain,
    elastic_terms,
    evaluate_frames,
)
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.statistics import reweighting_weights
from mosaicmd.kernel.systems import from_ase, make_system, strained
from mosaicmd.kernel.testing import random_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

KT = 300.0 * units.KELVIN
WIDTH, REACH = 0.9, 5.5
PARAMS = {"height": jnp.array(4.0 * KT), "width": jnp.array(WIDTH)}


def soft_spheres(params, system, graph):
    """Gaussian repulsion of all images, which may pass through each other."""
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    values = 0.5 * params["height"] * jnp.exp(-0.5 * squared / params["width"] ** 2)
    return sum_edges(jnp.where(graph.mask, values, 0.0), graph, system.n_atoms)


def nothing(params, system, graph):
    return jnp.zeros(system.n_atoms)


def two_atoms(cell, n_grid):
    """Every relative position of two atoms on a grid: ``positions [n, 2, 3]``, and a graph.

    Sums over a grid of a smooth periodic function are exact up to an error that falls
    exponentially, so weighted by Boltzmann's factor these frames are the ensemble.
    """
    cell = np.asarray(cell)
    axis = np.arange(n_grid) / n_grid - 0.5
    fractional = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    system = make_system(np.zeros((2, 3)), 18, cell=cell)
    longest = np.linalg.norm(np.abs(fractional) @ np.abs(cell), axis=1).max()
    graph = host_graph(
        system._replace(positions=jnp.array([[0.0] * 3, [1e-3] * 3])), REACH + longest
    )
    positions = np.stack([0.0 * fractional, fractional @ cell], axis=1)
    return system, graph, jnp.asarray(positions)


def exact_stress(system, graph, positions):
    """Mean Cauchy stress of the ensemble, kinetic part included, ``[6]``."""

    def one(r):
        result = evaluate(soft_spheres, PARAMS, system._replace(positions=r), graph, stress=True)
        return result.energy, stress_vector(result.stress)

    energy, stress = jax.lax.map(one, positions, batch_size=256)
    mean = reweighting_weights(energy / KT) @ stress
    ideal = 2.0 * KT / jnp.abs(jnp.linalg.det(system.cell))
    return mean - ideal * jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])


def exact_constants(system, graph, positions, **settings):
    observable = elastic_constants(soft_spheres, cutoff=REACH, kT=KT, **settings)

    def one(r):
        moved = system._replace(positions=r)
        energy = jnp.sum(soft_spheres(PARAMS, moved, graph))
        return energy, observable.per_frame(PARAMS, moved, graph, None)

    energy, values = jax.jit(lambda p: jax.lax.map(one, p, batch_size=128))(positions)
    weights = reweighting_weights(energy / KT)
    return observable.combine(values, weights), values, weights


def test_fluctuations_give_the_slope_of_the_exact_stress():
    """Two soft atoms in a triclinic cell: B = d<s>/de by explicit strain of the ensemble."""
    cell = [[2.6, 0.0, 0.0], [0.5, 2.4, 0.0], [-0.3, 0.4, 2.9]]
    system, graph, positions = two_atoms(cell, 12)
    found, values, weights = exact_constants(system, graph, positions)
    terms = elastic_terms(values, weights, kT=KT)
    stress = jax.jit(exact_stress)
    np.testing.assert_allclose(terms.stress, stress(system, graph, positions), rtol=1e-8)
    h, columns = 2e-3, []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * h
        strain[j, i] += 0.5 * h
        ends = []
        for sign in (1.0, -1.0):
            moved = strained(system, jnp.asarray(sign * strain))
            carried = positions @ (jnp.eye(3) + sign * strain)
            ends.append(stress(moved, graph, carried))
        columns.append((ends[0] - ends[1]) / (2.0 * h))
    expected = np.stack(columns, axis=1) / units.GPA
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
    # each of the terms matters, so none could be wrong unseen
    for term in (terms.born, terms.fluctuation, terms.kinetic):
        assert np.abs(term).max() / units.GPA > 0.05 * scale
    assert np.abs(expected - expected.T).max() > 1e-3 * scale


def test_thermal_constants_of_a_hexagonal_cell():
    """C66 = (C11 - C12) / 2 for the ensemble of a hexagonal lattice, without projection."""
    cell = ase.build.bulk("Ti", "hcp", a=2.6, c=4.0).cell.array
    system, graph, positions = two_atoms(cell, 12)
    for kind in ("birch", "lagrangian"):
        c, _, _ = exact_constants(system, graph, positions, kind=kind)
        if kind == "birch":  # of a mean stress that differs along c
            assert abs(c[0, 2] - c[2, 0]) > 1e-3 * c[0, 2]
        np.testing.assert_allclose(c[5, 5], (c[0, 0] - c[0, 1]) / 2.0, rtol=1e-6)
        np.testing.assert_allclose(c[0, 0], c[1, 1], rtol=1e-6)
        assert abs(c[3, 3] - c[5, 5]) > 0.02 * c[5, 5]


def test_ideal_gas():
    """Birch: B11 = B12 = N kT / V, no shear; Lagrangian: C11 = 2 p, C12 = 0, C44 = p."""
    system = random_system(0, n_atoms=5, species=(18,))
    p = 5.0 * KT / abs(np.linalg.det(system.cell)) / units.GPA
    frames = system._replace(
        positions=jnp.stack([system.positions] * 3), cell=jnp.stack([system.cell] * 3)
    )
    trajectory = Trajectory(frames, {}, StatePoint(KT))
    expected = {
        "birch": np.pad(np.full((3, 3), p), (0, 3)),
        "lagrangian": np.diag([2 * p, 2 * p, 2 * p, p, p, p]),
    }
    for kind, matrix in expected.items():
        observable = elastic_constants(nothing, cutoff=2.0, kT=KT, kind=kind)
        values = evaluate_frames([observable], None, trajectory)[observable.name]
        value, info = observable.estimate(values)
        np.testing.assert_allclose(value, matrix, atol=1e-12 * p)
        np.testing.assert_allclose(info.error, 0.0, atol=1e-12 * p)


def test_projection_keeps_what_symmetry_allows():
    """A cubic group makes three constants of a noisy matrix, the means of equivalent ones."""
    from ase.spacegroup import Spacegroup

    rotations = Spacegroup(221).get_rotations()
    plain = elastic_constants(soft_spheres, cutoff=REACH, kT=KT, kind="lagrangian")
    symmetric = elastic_constants(
        soft_spheres, cutoff=REACH, kT=KT, kind="lagrangian", rotations=rotations
    )
    values = np.random.default_rng(0).normal(size=(40, 29))
    raw, cubic = (np.asarray(o.estimate(jnp.asarray(values))[0]) for o in (plain, symmetric))
    np.testing.assert_allclose(np.diag(cubic)[:3], np.diag(raw)[:3].mean(), rtol=1e-10)
    np.testing.assert_allclose(np.diag(cubic)[3:], np.diag(raw)[3:].mean(), rtol=1e-10)
    np.testing.assert_allclose(cubic[0, 1:3], raw[:3, :3][np.triu_indices(3, 1)].mean(), rtol=1e-10)
    np.testing.assert_allclose(cubic[:3, 3:], 0.0, atol=1e-10)


def test_cells_of_a_known_stiffness():
    """Gaussian strains ``exp(-V e.C.e / (2 kT))`` of a triclinic cell give back C to 4 sigma."""
    rng = np.random.default_rng(7)
    root = rng.normal(size=(6, 6))
    stiffness = 40.0 * np.eye(6) + 8.0 * root @ root.T  # GPa
    cell = np.array([[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.0, 3.0, 10.0]])
    spread = np.linalg.inv(np.linalg.det(cell) * stiffness * units.GPA / KT)
    strain = jnp.asarray(rng.multivariate_normal(np.zeros(6), spread, size=6000))
    eta = jax.vmap(strain_matrix)(strain)
    stretch = jax.vmap(lambda e: jax.scipy.linalg.sqrtm(jnp.eye(3) + 2.0 * e).real)(eta)
    cells = jnp.asarray(cell) @ stretch
    observable = elastic_constants_from_strain(kT=KT)
    found, info = observable.estimate(cells)
    assert (info.error < 0.04 * np.abs(found).max()).all()
    np.testing.assert_array_less(np.abs(found - stiffness) / info.error, 4.5)
    assert observable.cutoff is None
    weights = jnp.asarray(rng.uniform(size=6000))
    slope = jax.grad(lambda w: observable.estimate(cells, w)[0][3, 3])(weights)
    h = 1e-4
    ends = [observable.estimate(cells, weights.at[5].add(s * h))[0][3, 3] for s in (1.0, -1.0)]
    np.testing.assert_allclose(slope[5], (ends[0] - ends[1]) / (2.0 * h), rtol=1e-5)


def test_gradients_in_parameters_and_weights():
    """What reweighting differentiates, against finite differences on four frames."""
    system = random_system(4, n_atoms=4, species=(18,), volume_per_atom=14.0, min_distance=1.5)
    rng = np.random.default_rng(1)
    positions = system.positions[None] + rng.normal(scale=0.2, size=(4, 4, 3))
    # with what a list for dynamics brings, which forward derivatives must do without
    graph = host_graph(system, 9.0, reverse=True)
    observable = elastic_constants(soft_spheres, cutoff=9.0, kT=KT)
    some = jnp.asarray(rng.normal(size=(6, 6)))

    @jax.jit
    def scalar(params, logits):
        def one(r):
            return observable.per_frame(params, system._replace(positions=r), graph, None)

        value, _ = observable.estimate(jax.lax.map(one, positions), jnp.exp(logits))
        return jnp.sum(some * value)

    logits = jnp.asarray(rng.normal(size=4))
    of_params, of_logits = jax.grad(scalar, argnums=(0, 1))(PARAMS, logits)
    for name, h in (("height", 1e-6), ("width", 1e-6)):
        plus, minus = (scalar(PARAMS | {name: PARAMS[name] + s * h}, logits) for s in (1, -1))
        np.testing.assert_allclose(of_params[name], (plus - minus) / (2.0 * h), rtol=1e-6)
    for k in range(4):
        plus, minus = (scalar(PARAMS, logits.at[k].add(s * 1e-6)) for s in (1, -1))
        scale = np.abs(of_logits).max()
        np.testing.assert_allclose(of_logits[k], (plus - minus) / 2e-6, atol=1e-6 * scale)


def test_single_precision_keeps_four_digits():
    system = random_system(4, n_atoms=4, species=(18,), volume_per_atom=14.0, min_distance=1.5)
    graph = host_graph(system, 9.0)
    observable = elastic_constants(soft_spheres, cutoff=9.0, kT=KT)
    per_frame = jax.jit(lambda params, system: observable.per_frame(params, system, graph, None))
    wide = per_frame(PARAMS, system)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    narrow = per_frame(params, system.astype(jnp.float32))
    np.testing.assert_allclose(narrow[:27], wide[:27], atol=1e-4 * np.abs(wide[:27]).max())


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match=r"`kT` of `elastic_constants_gpa` must be positive, got 0"
    ):
        elastic_constants(nothing, cutoff=2.0, kT=0.0)
    with pytest.raises(ValueError, match=r"`kind` must be 'birch' or 'lagrangian', got 'born'"):
        elastic_constants(nothing, cutoff=2.0, kT=KT, kind="born")
    with pytest.raises(ValueError, match=r"`rotations` must have shape \[n, 3, 3\], got \(3, 3\)"):
        elastic_constants(nothing, cutoff=2.0, kT=KT, rotations=np.eye(3))
    observable = elastic_constants(nothing, cutoff=2.0, kT=KT)
    system = from_ase(ase.build.bulk("Ar", "fcc", a=5.0))
    with pytest.raises(ValueError, match=r"`elastic_constants_gpa` needs a graph of radius 2\.0 Å"):
        observable.per_frame(None, system, None, None)
    assert observable.depends_on_params
    assert dataclasses.replace(observable, name="c").name == "c"
