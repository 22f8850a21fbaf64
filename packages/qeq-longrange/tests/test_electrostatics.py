"""Direct sums, Gaussian charges, slabs, exclusions, and the sum as a linear function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qeq_systems import energy, ewald_plan, graph_for, matrix, potentials, random_ions
from scipy.special import erf, erfc

from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange import (
    DirectPlan,
    Exclusions,
    MeshPlan,
    coulomb_energy,
    coulomb_operator,
    plan_coulomb,
)

TRICLINIC = np.array([[8.0, 0.0, 0.0], [5.0, 7.0, 0.0], [-4.0, 3.0, 9.0]])


def cluster(n_atoms=7, seed=0):
    rng = np.random.default_rng(seed)
    return make_system(rng.uniform(0, 6, (n_atoms, 3)), 11, charges=rng.normal(size=n_atoms))


def pair_sum(system, widths):
    """Energy of a cluster pair by pair, with the self energy of Gaussians."""
    r, q = np.asarray(system.positions), np.asarray(system.charges)
    total = sum(q[i] ** 2 / (2.0 * np.sqrt(np.pi) * w) for i, w in enumerate(widths) if w > 0.0)
    for i in range(len(q)):
        for j in range(i):
            d, s = np.linalg.norm(r[i] - r[j]), np.sqrt(2.0 * (widths[i] ** 2 + widths[j] ** 2))
            total += q[i] * q[j] * (erf(d / s) if s > 0.0 else 1.0) / d
    return COULOMB_CONSTANT * total


@pytest.mark.parametrize("gaussian", [False, True])
def test_direct_sum_over_all_pairs_and_over_a_graph(gaussian):
    system = cluster()
    widths = np.array([0.5, 0.0, 1.1, 0.3, 0.0, 0.7, 0.2]) * gaussian
    expected = pair_sum(system, widths)
    sigma = jnp.asarray(widths) if gaussian else None
    total = energy(system.charges, system, None, DirectPlan(), widths=sigma)
    np.testing.assert_allclose(total, expected, rtol=1e-13)
    plan = DirectPlan(cutoff=20.0)
    total = energy(system.charges, system, host_graph(system, 20.0), plan, widths=sigma)
    np.testing.assert_allclose(total, expected, rtol=1e-13)


def test_direct_sum_by_rows_is_that_by_matrix(monkeypatch):
    """Above a number of atoms the matrix is not stored; energy and forces stay."""
    system = cluster(70)

    def both(x):
        return coulomb_energy(system.charges, system._replace(positions=x), None, DirectPlan())

    expected = jax.jit(jax.value_and_grad(both))(system.positions)
    monkeypatch.setattr("mosaicmd.qeq_longrange.electrostatics._LARGEST_STORED_MATRIX", 8)
    actual = jax.jit(jax.value_and_grad(lambda x: both(x)))(system.positions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), actual, expected)


def test_overlapping_gaussians_approach_their_closed_forms():
    """At distance 0, ``2 q q k / sqrt(pi) s``; far apart, points; self energy ``q² k / 2 sqrt(pi)
    sigma``.
    """
    widths = jnp.array([0.6, 0.8])
    charges = jnp.array([1.0, 2.0])
    own = COULOMB_CONSTANT / np.sqrt(np.pi) * (0.5 * 1.0 / 0.6 + 0.5 * 4.0 / 0.8)
    for distance, pair in ((1e-7, 2.0 / np.sqrt(np.pi * 2.0 * (0.36 + 0.64))), (50.0, 1 / 50.0)):
        system = make_system([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], 11)
        total = energy(charges, system, None, DirectPlan(), widths=widths)
        np.testing.assert_allclose(total, own + 2.0 * COULOMB_CONSTANT * pair, rtol=1e-12)


def test_ewald_is_the_limit_of_a_cluster_sum():
    """The field at the middle of a growing block of neutral cells without dipole, as in a crystal.

    By Evjen's weights, (1/2, 1/4, 1/8 of ions on faces, edges, corners) the block of NaCl with
    10 shells has the potential of the crystal to 1e-5.

    References:
        Evjen, Phys. Rev. 39, 675 (1932).
    """
    n, d = 10, 2.82
    grid = np.arange(-n, n + 1)
    x, y, z = np.meshgrid(grid, grid, grid, indexing="ij")
    share = np.where(np.abs(grid) == n, 0.5, 1.0)
    weight = share[:, None, None] * share[None, :, None] * share[None, None, :]
    sign = 1.0 - 2.0 * ((x + y + z) % 2)
    distance = np.sqrt(x**2 + y**2 + z**2)
    distance[n, n, n] = np.inf
    expected = COULOMB_CONSTANT * np.sum(weight * sign / distance) / d
    cell = d * (np.ones((3, 3)) - np.eye(3))
    system = make_system([[0, 0, 0], [d, 0, 0]], 11, cell=cell, charges=[1.0, -1.0])
    plan = ewald_plan(cell, 0.4)
    phi = potentials(system.charges, system, graph_for(system, plan), plan)
    np.testing.assert_allclose(phi[0], expected, rtol=1e-5)


def test_a_molecule_in_a_growing_cell_approaches_the_direct_sum():
    """Without charge and dipole, the difference falls as ``L^-5``: 32 times in a doubled cell."""
    r = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [-1.5, 0.0, 0.0]])
    charges = jnp.array([-2.0, 1.0, 1.0])
    direct = energy(charges, make_system(r, 11), None, DirectPlan())
    differences = []
    for edge in (20.0, 40.0):
        system = make_system(r, 11, cell=edge)
        plan = ewald_plan(system.cell, 0.4, reach=5.0)
        differences.append(energy(charges, system, graph_for(system, plan), plan) - direct)
    np.testing.assert_allclose(differences[0] / differences[1], 32.0, rtol=0.02)
    assert abs(differences[1]) < 1e-4


def two_dimensional_ewald(system, splitting):
    """Energy of point charges periodic in the first two directions, summed exactly.

    References:
        Parry, Surf. Sci. 49, 433 (1975); Heyes, Barber & Clarke, J. Chem. Soc. Faraday Trans.
        2, 73, 1485 (1977).
    """
    r, q = np.asarray(system.positions), np.asarray(system.charges)
    a, b = np.asarray(system.cell)[:2]
    area, qq = np.linalg.norm(np.cross(a, b)), np.outer(q, q)
    apart = r[:, None] - r[None]
    z = apart[..., 2]
    total = -splitting / np.sqrt(np.pi) * np.sum(q**2)
    total -= (
        np.pi
        / area
        * np.sum(
            qq
            * (
                z * erf(splitting * z)
                + np.exp(-((splitting * z) ** 2)) / splitting / np.sqrt(np.pi)
            )
        )
    )
    reciprocal = 2.0 * np.pi * np.linalg.pinv(np.array([a, b])).T
    for i, j in np.ndindex(29, 29):
        shift = (i - 14) * a + (j - 14) * b
        distance = np.linalg.norm(apart + shift, axis=-1)
        if i == j == 14:
            np.fill_diagonal(distance, np.inf)
        total += 0.5 * np.sum(qq * erfc(splitting * distance) / distance)
        k = (i - 14) * reciprocal[0] + (j - 14) * reciprocal[1]
        length = np.linalg.norm(k)
        if 0.0 < length < 14.0 * splitting:
            half = 0.5 * length / splitting
            profile = np.exp(length * z) * erfc(half + splitting * z)
            profile += np.exp(-length * z) * erfc(half - splitting * z)
            total += np.pi / (2.0 * area * length) * np.sum(qq * np.cos(apart @ k) * profile)
    return COULOMB_CONSTANT * total


@pytest.mark.parametrize("net_charge", [0.0, 2.0])
@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_slab_is_the_exact_sum_over_two_periodic_directions(net_charge, method):
    """An oblique slab with a dipole, neutral and charged."""
    bulk = random_ions([[6.0, 0.0, 0.0], [1.5, 5.0, 0.0], [0.0, 0.0, 4.0]], 8, 3, net_charge)
    system = make_system(
        bulk.positions, 11, cell=bulk.cell, pbc=[True, True, False], charges=bulk.charges
    )
    accuracy = 1e-7 if method == "ewald" else 1e-5
    plan = plan_coulomb(system, accuracy=accuracy, method=method, cutoff=9.0)
    total = energy(system.charges, system, graph_for(system, plan), plan)
    expected = two_dimensional_ewald(system, 0.5)
    np.testing.assert_allclose(expected, two_dimensional_ewald(system, 0.65), rtol=1e-11)
    np.testing.assert_allclose(total, expected, atol=20 * accuracy)


def test_parallel_plates_have_the_field_of_a_capacitor():
    """Two Gaussian sheets: the step of the potential is ``4 pi k Q d / A`` (Gauss)."""
    edge, distance = 2.0, 9.0
    grid = np.stack(np.meshgrid([0.5, 1.5], [0.5, 1.5], indexing="ij"), axis=-1).reshape(-1, 2)
    sheets = [np.column_stack([grid, np.full(4, z)]) for z in (1.0, 1.0 + distance)]
    system = make_system(
        np.concatenate(sheets), 11, cell=[edge, edge, 12.0], pbc=[True, True, False]
    )
    charges, widths = jnp.repeat(jnp.array([0.25, -0.25]), 4), jnp.full(8, 0.8)
    plan = plan_coulomb(
        system, accuracy=1e-6, method="ewald", charges=charges, widths=widths, cutoff=9.0
    )
    phi = potentials(charges, system, graph_for(system, plan), plan, widths=widths)
    within = 2.0 * jnp.sum(phi[:4]) / 8.0  # the layers themselves are not flat: same on both
    step = 2.0 * within
    flat = 4.0 * np.pi * COULOMB_CONSTANT * distance / edge**2
    # a sheet of Gaussians lacks, at its own place, the part within their width
    own = 2.0 * 2.0 * np.pi * COULOMB_CONSTANT / edge**2 * 2.0 * 0.8 / np.sqrt(np.pi)
    np.testing.assert_allclose(step, flat - own, rtol=1e-3)


def test_excluded_pairs_do_not_interact():
    """Two ions and a bonded pair: as if the bond's energy were taken away at its nearest image."""
    system = random_ions(TRICLINIC, 12, seed=1)
    widths = jnp.linspace(0.0, 0.5, 12)
    plan = ewald_plan(TRICLINIC, 0.8, reach=8.0)
    graph = graph_for(system, plan)
    pairs, fraction = jnp.array([[0, 5], [3, 4]]), jnp.array([1.0, 0.3])
    q = np.asarray(system.charges)
    whole = energy(system.charges, system, graph, plan, widths=widths)
    part = energy(
        system.charges, system, graph, plan, widths=widths, exclusions=Exclusions(pairs, fraction)
    )
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    expected = 0.0
    r = np.asarray(system.positions)
    for (i, j), f in zip(np.asarray(pairs), np.asarray(fraction), strict=True):
        vectors = r[j] - r[i] + images @ TRICLINIC
        d, s = np.linalg.norm(vectors, axis=1).min(), np.sqrt(2 * (widths[i] ** 2 + widths[j] ** 2))
        expected += f * q[i] * q[j] * erf(d / s) / d
    np.testing.assert_allclose(whole - part, COULOMB_CONSTANT * expected, rtol=1e-10)


@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_operator_is_linear_symmetric_and_positive_for_gaussians(method):
    system = random_ions(TRICLINIC, 12, seed=2)
    plan = plan_coulomb(system, accuracy=1e-4, method=method, cutoff=8.0)
    graph = graph_for(system, plan)
    dense = np.asarray(matrix(system, graph, plan, widths=jnp.full(12, 0.7)))
    np.testing.assert_allclose(dense, dense.T, rtol=0.0, atol=1e-13 * np.abs(dense).max())
    phi = potentials(system.charges, system, graph, plan, widths=jnp.full(12, 0.7))
    np.testing.assert_allclose(dense @ np.asarray(system.charges), phi, rtol=1e-11)
    ones = np.ones((12, 1)) / np.sqrt(12.0)
    neutral = dense - ones @ (ones.T @ dense)
    assert np.sort(np.linalg.eigvals(neutral).real)[1] > 1.0  # eV/e²; one zero for the net charge


def test_masked_atoms_and_edges_change_nothing():
    system = random_ions(TRICLINIC, 12, seed=2)
    plan = MeshPlan(splitting=0.5, cutoff=6.0, mesh=(15, 15, 15))
    graph = graph_for(system, plan)
    expected = potentials(system.charges, system, graph, plan, widths=jnp.full(12, 0.3))
    padded = pad_system(system, 16)
    edges = pad_graph(graph, graph.n_edges + 9, n_atoms=16)
    charges = jnp.concatenate([system.charges, jnp.array([5.0, jnp.nan, -1.0, 2.0])])
    widths = jnp.concatenate([jnp.full(12, 0.3), jnp.array([jnp.nan, 0.0, 1.0, 2.0])])
    actual = potentials(charges, padded, edges, plan, widths=widths)
    np.testing.assert_allclose(actual[:12], expected, rtol=1e-13)
    np.testing.assert_array_equal(actual[12:], 0.0)


def test_one_program_serves_a_changing_box():
    """Positions, charges and cell are traced; nothing is compiled again."""
    system = random_ions(TRICLINIC, 12, seed=2)
    plan = MeshPlan(splitting=0.5, cutoff=6.0, mesh=(15, 15, 15))
    graph = graph_for(system, plan)
    program = jax.jit(lambda s, g: coulomb_energy(s.charges, s, g, plan))
    for scale in (1.0, 1.01, 1.02):
        program(
            system._replace(positions=scale * system.positions, cell=scale * system.cell), graph
        )
    assert program._cache_size() == 1


def test_edges_that_know_their_reverse_give_the_same_gradient():
    system = random_ions(TRICLINIC, 12, seed=2)
    plan = ewald_plan(TRICLINIC, 0.5, reach=3.0)

    def forces(graph):
        def total(x):
            return coulomb_energy(system.charges, system._replace(positions=x), graph, plan)

        return jax.jit(jax.grad(total))(system.positions)

    plain, reverse = (forces(graph_for(system, plan, reverse=flag)) for flag in (False, True))
    np.testing.assert_allclose(plain, reverse, rtol=1e-11, atol=1e-13)


def test_operator_is_computed_once_and_applied_to_many_charges():
    system = random_ions(TRICLINIC, 12, seed=2)
    plan = ewald_plan(TRICLINIC, 0.5, reach=3.0)
    graph = graph_for(system, plan)
    many = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)))

    @jax.jit
    def together(charges):
        return jax.vmap(coulomb_operator(system, graph, plan))(charges)

    each = [potentials(q, system, graph, plan) for q in many]
    np.testing.assert_allclose(together(many), each, rtol=1e-11, atol=1e-11)


def test_a_plan_with_neighbors_needs_a_graph():
    system = cluster()
    with pytest.raises(ValueError, match=r"a 'direct' plan with `cutoff` 5\.0 Å needs a `graph`"):
        coulomb_energy(system.charges, system, None, DirectPlan(cutoff=5.0))
