"""Particle-mesh Ewald against Ewald's sum, OpenMM, and the properties of its splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qeq_systems import energy, ewald_plan, graph_for, nist_water, potentials, random_ions

from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.units import COULOMB_CONSTANT, KJ_PER_MOL
from mosaicmd.qeq_longrange import (
    CoulombConfig,
    MeshPlan,
    coulomb,
    coulomb_energy,
    plan_coulomb,
)
from mosaicmd.qeq_longrange.particle_mesh import spline_weights

CELLS = {
    "8 x 10 x 13": np.diag([8.0, 10.0, 13.0]),
    "triclinic": np.array([[8.0, 0.0, 0.0], [5.0, 7.0, 0.0], [-4.0, 3.0, 9.0]]),
}


@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_splines_are_a_partition_of_unity_with_the_right_mean(order):
    """B-splines of order p sum to one, and their first moment follows the charge."""
    t = jnp.linspace(0.0, 0.999, 50)
    weights = spline_weights(t, order)
    points = jnp.arange(order) - (order - 1.0)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(weights @ points, t - 0.5 * order, atol=1e-14)
    np.testing.assert_allclose(spline_weights(jnp.zeros(1), 4)[0], [1 / 6, 2 / 3, 1 / 6, 0.0])


@pytest.mark.parametrize("name", CELLS)
def test_mesh_gives_the_potentials_of_ewald(name):
    """Edges of three lengths, angles far from right ones; relative to 1e-5."""
    system = random_ions(CELLS[name], 30, seed=4)
    exact = ewald_plan(CELLS[name], 0.5)
    graph = graph_for(system, exact)
    expected = potentials(system.charges, system, graph, exact)
    plan = MeshPlan(splitting=0.5, cutoff=exact.cutoff, mesh=(24, 30, 36), order=6)
    actual = potentials(system.charges, system, graph, plan)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_error_falls_as_the_power_of_the_spacing_that_splines_promise():
    """Twice as fine, at least 2^(p-1) times better, with even and odd meshes."""
    system = random_ions(CELLS["triclinic"], 20, seed=5)
    exact = ewald_plan(CELLS["triclinic"], 0.5)
    graph = graph_for(system, exact)
    expected = potentials(system.charges, system, graph, exact)
    for order, coarse in ((4, 15), (5, 16)):
        errors = []
        for n in (coarse, 2 * coarse):
            plan = MeshPlan(splitting=0.5, cutoff=exact.cutoff, mesh=(n, n, n), order=order)
            difference = potentials(system.charges, system, graph, plan) - expected
            errors.append(np.sqrt(np.mean(difference**2)))
        assert errors[0] > 2.0 ** (order - 1) * errors[1]


def test_openmm_has_the_same_energy_and_forces():
    """NIST's water by OpenMM 8.6.1, Reference platform, double precision, the same pairs excluded.

    PME with ``setPMEParameters(3.5 / nm, 144, 144, 144)`` and a cutoff of 1.5 nm. With a mesh of
    96 and a cutoff of 1.3 nm its energy was higher by 2.2e-4 kJ/mol and forces differed by
    2e-3 kJ/mol/nm, which bounds its own error. Its Coulomb constant is 138.935456.
    """
    system, bonds = nist_water()
    plan = plan_coulomb(system, accuracy=1e-5, method="pme", cutoff=9.0)
    pairs = tuple(map(tuple, np.asarray(bonds.pairs).tolist()))
    potential = coulomb(CoulombConfig(plan=plan, excluded_pairs=pairs))
    result = jax.jit(lambda s, g: evaluate(potential.energy, {}, s, g))(
        system, graph_for(system, plan)
    )
    unit = COULOMB_CONSTANT / 138.935456 / 10.0  # eV per kJ/mol of the same constant
    np.testing.assert_allclose(unit, KJ_PER_MOL, rtol=2e-8)
    np.testing.assert_allclose(result.energy / unit, -1542.791885, atol=5e-3)  # 3e-6 of it
    expected = [
        [-84.143040515, 34.460052864, 218.992891553],
        [91.482280689, 365.170261116, 246.428465623],
        [2.396948947, -32.720417523, 12.403318743],
    ]
    forces = np.asarray(result.forces)[[0, 150, 299]] / unit * 10.0
    np.testing.assert_allclose(forces, expected, atol=0.02)  # two of the accuracy asked for


def test_second_derivatives_of_the_mesh():
    """Curvature along a direction: derivative of the derivative, and differences of forces."""
    system = random_ions(CELLS["triclinic"], 12, seed=6)
    plan = MeshPlan(splitting=0.5, cutoff=6.0, mesh=(12, 12, 15), order=4)
    graph = graph_for(system, plan)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)))

    def total(x):
        moved = system._replace(positions=system.positions + x * direction)
        return coulomb_energy(system.charges, moved, graph, plan)

    slope = jax.jit(jax.grad(total))
    curvature = jax.jit(jax.grad(jax.grad(total)))(0.0)
    step = 1e-5
    np.testing.assert_allclose(curvature, (slope(step) - slope(-step)) / (2.0 * step), rtol=1e-6)
    forward = jax.jit(lambda: jax.jvp(jax.grad(total), (0.0,), (1.0,))[1])()
    np.testing.assert_allclose(forward, curvature, rtol=1e-10)


def test_energy_does_not_depend_on_the_image_an_atom_is_in():
    system = random_ions(CELLS["triclinic"], 12, seed=6)
    plan = MeshPlan(splitting=0.5, cutoff=6.0, mesh=(12, 12, 15))
    images = np.random.default_rng(1).integers(-3, 4, (12, 3))
    moved = system._replace(positions=system.positions + jnp.asarray(images @ CELLS["triclinic"]))
    values = [energy(s.charges, s, graph_for(s, plan), plan) for s in (system, moved)]
    np.testing.assert_allclose(*values, rtol=1e-12)
