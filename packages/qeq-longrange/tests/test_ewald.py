"""Ewald's sum by Madelung constants, invariances, and the water of NIST."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qeq_systems import energy, ewald_plan, graph_for, nist_water, potentials, random_ions, rows

from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.units import COULOMB_CONSTANT, KELVIN
from mosaicmd.qeq_longrange import EwaldPlan
from mosaicmd.qeq_longrange.ewald import ewald_reciprocal
from mosaicmd.qeq_longrange.lattice import fractional_coordinates, lattice_of

FCC = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
TRICLINIC = np.array([[8.0, 0.0, 0.0], [5.0, 7.0, 0.0], [-4.0, 3.0, 9.0]])

# Cell, position of the anion, distance to the nearest neighbor, constant.
CRYSTALS = {
    "NaCl": (FCC, [1.0, 0.0, 0.0], 1.0, 1.747564594633),
    "CsCl": (np.eye(3), [0.5, 0.5, 0.5], np.sqrt(0.75), 1.762674773071),
    "ZnS": (FCC, [0.5, 0.5, 0.5], np.sqrt(0.75), 1.638055053389),
}


def reciprocal(system, plan):
    """Potentials from wave vectors alone, eV/e."""
    lattice = lattice_of(system)
    fractional = fractional_coordinates(system.positions, lattice)
    return COULOMB_CONSTANT * ewald_reciprocal(fractional, lattice, plan)(system.charges)


@pytest.mark.parametrize("crystal", CRYSTALS)
@pytest.mark.parametrize("splitting", [0.9, 1.2])
def test_madelung_constants(crystal, splitting):
    """Energy per ion pair is ``-M k / d``; each ion has half of it.

    References:
        Borwein, Glasser, McPhedran, Wan & Zucker, Lattice Sums Then and Now (2013).
    """
    cell, anion, distance, madelung = CRYSTALS[crystal]
    system = make_system([[0.0, 0.0, 0.0], anion], 11, cell=cell, charges=[1.0, -1.0])
    plan = ewald_plan(cell, splitting)
    phi = potentials(system.charges, system, graph_for(system, plan), plan)
    expected = -madelung * COULOMB_CONSTANT / distance * np.array([1.0, -1.0])
    np.testing.assert_allclose(phi, expected, rtol=1e-11)


def test_madelung_constant_of_a_large_cubic_cell():
    """The 64 ions of a 2 x 2 x 2 supercell, and an accuracy that was asked for."""
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    charges = 1.0 - 2.0 * (grid.sum(axis=1) % 2)
    system = make_system(2.82 * grid, 11, cell=4 * 2.82, charges=charges)
    plan = ewald_plan(system.cell, 0.5)
    total = energy(system.charges, system, graph_for(system, plan), plan)
    expected = -32 * 1.747564594633 * COULOMB_CONSTANT / 2.82
    np.testing.assert_allclose(total, expected, rtol=1e-11)


def test_single_charge_in_its_background():
    """A charge in a cube of edge ``L`` has the energy ``-2.837297479481 k / 2 L``.

    References:
        Nijboer & Ruijgrok, J. Stat. Phys. 53, 361 (1988).
    """
    system = make_system([[0.3, 0.1, 0.2]], 11, cell=2.0, charges=[1.0])
    for splitting in (0.9, 1.3):
        plan = ewald_plan(system.cell, splitting)
        total = energy(system.charges, system, graph_for(system, plan), plan)
        expected = -2.837297479481 * COULOMB_CONSTANT / (2.0 * 2.0)
        np.testing.assert_allclose(total, expected, rtol=1e-11)


@pytest.mark.parametrize("net_charge", [0.0, 3.0])
@pytest.mark.parametrize("widths", [False, True])
def test_splitting_does_not_matter(net_charge, widths):
    """In a strongly triclinic cell, for net charges too, and Gaussians of several widths."""
    system = random_ions(TRICLINIC, 24, seed=1, net_charge=net_charge)
    rng = np.random.default_rng(2)
    sigma = jnp.asarray(rng.uniform(0.0, 0.9, 24) * (rng.random(24) > 0.3)) if widths else None
    results = []
    for splitting, reach in ((0.55, 6.2), (0.8, 9.0)):  # 0.5 / 0.9 Å is as slow as the first
        plan = ewald_plan(TRICLINIC, splitting, reach)
        graph = graph_for(system, plan)
        results.append(potentials(system.charges, system, graph, plan, widths=sigma))
    np.testing.assert_allclose(*results, rtol=0.0, atol=1e-10)


def test_half_of_the_wave_vectors_is_the_whole():
    """Against the plain sum over every wave vector of either sign, one by one."""
    system = random_ions(TRICLINIC, 10, seed=3)
    plan = EwaldPlan(splitting=0.5, cutoff=5.0, cell=rows(TRICLINIC), k_max=3.0)
    multiples = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3, indexing="ij"), axis=-1)
    k = 2.0 * np.pi * multiples.reshape(-1, 3) @ np.linalg.inv(TRICLINIC).T
    square = np.sum(k**2, axis=1)
    k, square = k[(square > 0.0) & (square <= 9.0)], square[(square > 0.0) & (square <= 9.0)]
    phase = np.exp(1j * k @ np.asarray(system.positions).T)
    weight = 4.0 * np.pi / np.linalg.det(TRICLINIC) * np.exp(-square) / square
    expected = np.real(phase.conj().T @ (weight * (phase @ np.asarray(system.charges))))
    actual = jax.jit(reciprocal, static_argnums=1)(system, plan)
    np.testing.assert_allclose(actual, COULOMB_CONSTANT * expected, rtol=1e-12)
    assert plan.wave_numbers()[1].sum() == len(k)


def test_wave_vectors_stay_while_the_cell_changes():
    """The energy of a fixed set is smooth in the cell: no vector enters or leaves."""
    system = random_ions(TRICLINIC, 10, seed=3)
    plan = EwaldPlan(splitting=0.5, cutoff=5.0, cell=rows(TRICLINIC), k_max=3.0)

    @jax.jit
    def along(scale):
        moved = system._replace(positions=system.positions * scale, cell=system.cell * scale)
        return 0.5 * jnp.sum(system.charges * reciprocal(moved, plan))

    slope = jax.grad(along)
    scales = np.linspace(0.95, 1.05, 9)
    values = np.array([along(s) for s in scales])
    fit = np.polynomial.Polynomial.fit(scales, values, 6)
    np.testing.assert_allclose(fit(scales), values, rtol=1e-8)
    np.testing.assert_allclose(slope(1.0), fit.deriv()(1.0), rtol=1e-5)


def test_nist_water_has_the_published_energies():
    """All four parts of configuration 4 to the six digits published, in units of K.

    There ``alpha`` is 0.2850 1/Å, the real sum ends at 10 Å, and the wave vectors are the 1028
    with ``|k| <= 2 pi 7 / 31.177 Å`` and multiples up to 7 (those of zero first multiple are
    counted for either sign). Ours go on to multiples of 8, which the test takes away.

    References:
        NIST Standard Reference Simulation Website, SPC/E Water Reference Calculations,
        Non-cuboid Cell, 10 Å cutoff; doi:10.18434/T4M88Q.
    """
    system, bonds = nist_water()
    bond = system.positions[bonds.pairs[:, 1]] - system.positions[bonds.pairs[:, 0]]
    lengths = np.linalg.norm(bond, axis=1).reshape(100, 3)
    np.testing.assert_allclose(lengths[:, :2], 1.0, atol=1e-9)  # the table is without misprints

    k_max = 2.0 * np.pi * 7.0 / float(system.cell[2, 2]) * (1.0 + 1e-9)
    plan = EwaldPlan(splitting=0.285, cutoff=10.0, cell=rows(system.cell), k_max=k_max)
    (l_max, m_max, n_max), weights = plan.wave_numbers()
    assert (l_max, m_max, n_max) == (8, 8, 8)
    inner = weights[:8, 1:-1, 1:-1]
    assert np.count_nonzero(inner) == 1028

    outer = weights.copy()
    outer[:8, 1:-1, 1:-1] = 0.0
    where = np.argwhere(outer)
    k = 2.0 * np.pi * (where - [0, 8, 8]) @ np.linalg.inv(system.cell).T
    square = np.sum(k**2, axis=1)
    structure = np.abs(np.exp(1j * k @ np.asarray(system.positions).T) @ system.charges) ** 2
    beyond = outer[tuple(where.T)] * np.exp(-square / (4 * 0.285**2)) / square * structure
    beyond = 2.0 * np.pi / abs(np.linalg.det(system.cell)) * beyond.sum() * COULOMB_CONSTANT
    fourier = 0.5 * jnp.sum(system.charges * reciprocal(system, plan)) - beyond

    graph = graph_for(system, plan)
    within = np.asarray(graph.senders) // 3 == np.asarray(graph.receivers) // 3

    def over(mask, **settings):
        edges = dataclasses.replace(graph, mask=graph.mask & mask)
        return energy(system.charges, system, edges, plan, **settings)

    nothing = over(np.zeros_like(within))  # wave vectors, self term, background of no net charge
    real = over(~within) - nothing
    own = nothing - fourier - beyond
    intra = over(within, exclusions=bonds) - nothing
    published = [f"{part / KELVIN:.5E}" for part in (real, fourier, own, intra)]
    assert published == ["-1.71462E+05", "2.23372E+04", "-2.89549E+06", "2.85884E+06"]
