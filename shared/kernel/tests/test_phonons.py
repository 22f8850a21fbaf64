"""Phonons against closed forms, phonopy and ASE."""

import sys

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.dft.kpoints import monkhorst_pack
from ase.thermochemistry import HarmonicThermo

from mosaicmd.kernel import units
from mosaicmd.kernel.elasticity import follow_minimum
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.phonons import (
    dynamical_matrix,
    force_constants,
    frequencies_thz,
    harmonic_thermodynamics,
    phonon_dos,
    supercell,
    to_phonopy,
)
from mosaicmd.kernel.potentials import total_energy
from mosaicmd.kernel.systems import from_ase, make_system, pad_system

EDGE = 4.0
STIFFNESS = 1.5  # eV/Å²
TO_THZ = units.PICOSECOND / (2.0 * np.pi)
PARAMS = {"k": jnp.array(STIFFNESS), "r0": jnp.array(EDGE / np.sqrt(2.0))}


def springs(params, system, graph):
    """Half of ``k (r - r0)^2 / 2`` per end of an edge; at rest in fcc with edge 4 Å."""
    lengths = jnp.sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
    values = 0.25 * params["k"] * (lengths - params["r0"]) ** 2
    return sum_edges(jnp.where(graph.mask, values, 0.0), graph, system.n_atoms)


def chain(params, system, graph):
    """Springs of rest length 2 Å along x."""
    x = jnp.abs(edge_vectors(system, graph)[:, 0])
    values = jnp.where(graph.mask, 0.25 * params["k"] * (x - 2.0) ** 2, 0.0)
    return sum_edges(values, graph, system.n_atoms)


def long_ranged(params, system, graph):
    """Decays too slowly for a small supercell: every pair has force constants, and images."""
    lengths = jnp.sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
    smooth = jnp.where(lengths < 9.0, (1.0 - (jnp.minimum(lengths, 9.0) / 9.0) ** 2) ** 3, 0.0)
    energy = params["k"] * ((3.0 / lengths) ** 6 - 2.0 * (3.0 / lengths) ** 3) * smooth
    return sum_edges(jnp.where(graph.mask, energy, 0.0), graph, system.n_atoms)


def fcc():
    return from_ase(ase.build.bulk("Al", "fcc", a=EDGE))


@pytest.fixture(scope="module")
def fcc_constants():
    return force_constants(springs, PARAMS, fcc(), (3, 3, 3), cutoff=3.2)


def test_springs_between_nearest_neighbors_of_fcc(fcc_constants):
    """``D(q) = sum_R k (1 - cos q R) R R / R^2`` over twelve neighbors, at any q."""
    half = 0.5 * EDGE
    neighbors = [(0, i, j) for i in (-half, half) for j in (-half, half)]
    neighbors = np.array([np.roll(vector, turn) for vector in neighbors for turn in range(3)])
    units_ = neighbors / np.linalg.norm(neighbors, axis=1, keepdims=True)
    mass = float(fcc().masses[0])
    reciprocal = 2.0 * np.pi * np.linalg.inv(np.asarray(fcc().cell)).T
    scaled = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 3))
    found = frequencies_thz(fcc_constants, scaled)
    for q, frequencies in zip(scaled @ reciprocal, found, strict=True):
        weights = STIFFNESS / mass * (1.0 - np.cos(neighbors @ q))
        squared = np.linalg.eigvalsh(np.einsum("n,ni,nj->ij", weights, units_, units_))
        np.testing.assert_allclose(frequencies, np.sqrt(squared) * TO_THZ, rtol=1e-8)
    # along [100] to X: 8 k / M sin^2(q a / 4) and twice half of it
    fraction = 0.3
    along = frequencies_thz(fcc_constants, [[0.0, fraction, fraction]])[0]
    largest = np.sqrt(8.0 * STIFFNESS / mass) * np.sin(np.pi * fraction) * TO_THZ
    np.testing.assert_allclose(along, [largest / 2**0.5, largest / 2**0.5, largest], rtol=1e-8)


def test_diatomic_chain():
    """``w^2 = k S -+ k sqrt(S^2 - 4 sin^2(q a / 2) / (m M))``, ``S = 1 / m + 1 / M``."""
    m, large = 10.0, 25.0
    cell = [4.0, 20.0, 20.0]
    system = make_system([[0, 0, 0], [2.0, 0, 0]], [1, 2], cell=cell, masses=[m, large])
    constants = force_constants(chain, PARAMS, system, (3, 1, 1), cutoff=2.5)
    q = np.array([0.07, 0.31, 0.5])
    total = 1.0 / m + 1.0 / large
    root = np.sqrt(total**2 - 4.0 * np.sin(np.pi * q) ** 2 / (m * large))
    found = frequencies_thz(constants, np.stack([q, 0 * q, 0 * q], axis=1))
    np.testing.assert_allclose(found[:, :4], 0.0, atol=1e-12)
    for column, sign in ((4, -1.0), (5, 1.0)):
        expected = np.sqrt(STIFFNESS * (total + sign * root)) * TO_THZ
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-9)


def test_rigid_translations_cost_nothing(fcc_constants):
    """The acoustic sum rule holds by itself; the matrix is Hermitian and periodic in q."""
    np.testing.assert_allclose(fcc_constants.values.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_array_equal(frequencies_thz(fcc_constants, np.zeros((1, 3))), 0.0)
    matrix = dynamical_matrix(fcc_constants, jnp.array([0.1, 0.2, 0.37]))
    np.testing.assert_allclose(matrix, matrix.conj().T)
    one, other = frequencies_thz(fcc_constants, [[0.1, 0.2, 0.37], [1.1, -0.8, 0.37]])
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_long_range_and_low_symmetry_agree_with_phonopy_and_the_supercell():
    """Two species in a triclinic cell, images shared; and all modes of the supercell."""
    cell = np.array([[3.1, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.4, 0.9, 3.8]])
    system = make_system(
        np.array([[0.0, 0.0, 0.0], [0.52, 0.47, 0.55]]) @ cell, [11, 17], cell=cell
    )
    constants = force_constants(long_ranged, PARAMS, system, (2, 2, 2), cutoff=9.0)
    assert constants.vectors.shape[2] > 1
    scaled = np.vstack([monkhorst_pack((2, 2, 2)) + 0.25, [[0.13, 0.29, -0.41]]])
    found = frequencies_thz(constants, scaled)
    phonopy = to_phonopy(constants)
    phonopy.run_qpoints(scaled)
    theirs = phonopy.qpoints.frequencies
    scale = np.abs(theirs).max()
    # each has its own constants of nature, to a few parts in a million
    np.testing.assert_allclose(found, theirs, atol=1e-5 * scale)
    large, n = constants.supercell, 16

    def energy(x):
        moved = large._replace(positions=x.reshape(-1, 3))
        return total_energy(long_ranged, PARAMS, moved, host_graph(large, 9.0))

    hessian = np.asarray(jax.jit(jax.hessian(energy))(large.positions.reshape(-1)))
    root = np.sqrt(np.repeat(np.asarray(large.masses), 3))
    squared = np.linalg.eigvalsh(hessian / np.outer(root, root))
    expected = np.sort(np.sign(squared) * np.sqrt(np.abs(squared))) * TO_THZ
    assert len(expected) == 3 * n
    commensurate = np.sort(np.asarray(found[:8]).reshape(-1))
    moving = np.abs(expected) > 1e-3 * scale
    np.testing.assert_allclose(commensurate[moving], expected[moving], atol=1e-8 * scale)


def test_harmonic_thermodynamics_agrees_with_ase():
    """Free energy, energy and entropy of ASE's oscillators; Einstein's heat capacity."""
    frequencies = jnp.array([[2.0, 5.0, 11.0], [3.0, 4.0, 9.0]])
    temperature = 240.0
    found = harmonic_thermodynamics(frequencies, temperature * units.KELVIN)
    quanta = np.asarray(frequencies).reshape(-1) * units.PLANCK / units.PICOSECOND
    ase_thermo = HarmonicThermo(quanta)
    free = ase_thermo.get_helmholtz_energy(temperature, verbose=False)
    energy = ase_thermo.get_internal_energy(temperature, verbose=False)
    entropy = ase_thermo.get_entropy(temperature, verbose=False)
    np.testing.assert_allclose(2.0 * found.free_energy, free, rtol=1e-8)
    np.testing.assert_allclose(2.0 * found.energy, energy, rtol=1e-8)
    np.testing.assert_allclose(2.0 * found.entropy_kB, entropy / units.KELVIN, rtol=1e-8)
    x = quanta / (temperature * units.KELVIN)
    einstein = np.sum(x**2 * np.exp(x) / np.expm1(x) ** 2)
    np.testing.assert_allclose(2.0 * found.heat_capacity_kB, einstein, rtol=1e-10)
    slope = jax.grad(lambda kT: harmonic_thermodynamics(frequencies, kT).energy)
    np.testing.assert_allclose(slope(temperature * units.KELVIN), einstein / 2.0, rtol=1e-8)


def test_heat_capacity_of_a_crystal_from_zero_to_dulong_and_petit(fcc_constants):
    frequencies = frequencies_thz(fcc_constants, monkhorst_pack((4, 4, 4)))
    at = {
        kelvins: harmonic_thermodynamics(frequencies, kelvins * units.KELVIN)
        for kelvins in (1.0, 300.0, 3e4)
    }
    np.testing.assert_allclose(at[3e4].heat_capacity_kB, 3.0, rtol=1e-4)
    assert at[1.0].heat_capacity_kB < 1e-3
    assert 2.0 < at[300.0].heat_capacity_kB < 3.0
    zero_point = 0.5 * jnp.mean(frequencies.sum(axis=1)) * units.PLANCK / units.PICOSECOND
    np.testing.assert_allclose(at[1.0].free_energy, zero_point, rtol=1e-6)


def test_density_of_states_counts_the_modes(fcc_constants):
    frequencies = frequencies_thz(fcc_constants, monkhorst_pack((4, 4, 4)))
    for smoothing in (None, 0.2):
        centres, density = phonon_dos(
            frequencies, max_thz=15.0, n_bins=150, smoothing_thz=smoothing
        )
        np.testing.assert_allclose(jnp.sum(density) * 0.1, 3.0, rtol=1e-6)
        moment = jnp.sum(density * jnp.asarray(centres) ** 2) * 0.1
        expected = jnp.mean(jnp.sum(frequencies**2, axis=1))
        np.testing.assert_allclose(moment, expected, rtol=2e-2)


def test_frequencies_follow_the_parameters(fcc_constants):
    """Proportional to sqrt(k), through degenerate modes and at zero; and no matter of r0.

    A longer spring stretches the crystal, which only with ``at`` relaxes on the way.
    """
    wave_vectors = np.array([[0.0, 0.0, 0.0], [0.0, 0.3, 0.3], [0.1, 0.2, 0.37]])
    crystal = fcc()
    graph = host_graph(crystal, 3.2)

    def of_params(params):
        at = follow_minimum(springs, params, crystal, graph)
        constants = force_constants(springs, params, crystal, (3, 3, 3), cutoff=3.2, at=at)
        return frequencies_thz(constants, wave_vectors)

    slope = jax.jit(jax.jacrev(of_params))(PARAMS)
    expected = frequencies_thz(fcc_constants, wave_vectors) / (2.0 * STIFFNESS)
    np.testing.assert_allclose(slope["k"], expected, rtol=1e-8)
    np.testing.assert_allclose(slope["r0"], 0.0, atol=1e-8)

    def pinned(r0):
        constants = force_constants(springs, PARAMS | {"r0": r0}, crystal, (3, 3, 3), cutoff=3.2)
        return frequencies_thz(constants, wave_vectors)[1:]

    assert np.abs(jax.jacrev(pinned)(PARAMS["r0"])).min() > 0.1


def test_supercell_repeats_every_property():
    system = make_system(
        [[0.0, 0, 0], [1.0, 0, 0]], [3, 4], cell=3.0, charges=[1.0, -0.5], total_charge=0.5
    )
    large = supercell(system, (1, 2, 3))
    assert large.n_atoms == 12
    np.testing.assert_array_equal(large.species, [3] * 6 + [4] * 6)
    np.testing.assert_array_equal(np.diag(large.cell), [3.0, 6.0, 9.0])
    np.testing.assert_array_equal(large.positions[1], [0.0, 3.0, 0.0])
    np.testing.assert_allclose([large.total_charge, large.charges.sum()], 3.0)


def test_bad_input_is_named(monkeypatch, fcc_constants):
    with pytest.raises(ValueError, match=r"`repeats` must be three positive integers, got \(2, 2"):
        force_constants(springs, PARAMS, fcc(), (2, 2), cutoff=3.2)
    with pytest.raises(ValueError, match=r"no masked atoms, got pbc \[True, True, True\] and 2"):
        force_constants(springs, PARAMS, pad_system(fcc(), 3), (2, 2, 2), cutoff=3.2)
    with pytest.raises(ValueError, match=r"imaginary ones, down to -1 THz .* relax it"):
        harmonic_thermodynamics(jnp.array([[-1.0, 2.0, 3.0]]), 0.025)
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ImportError, match=r"mosaicmd-kernel\[phonons\]"):
        to_phonopy(fcc_constants)
