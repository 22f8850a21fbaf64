"""Lennard-Jones by its closed forms, lattice sums, ASE, and the NIST reference configurations."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.lj import LennardJones

from mosaicmd.gnn_models import LennardJonesConfig, lennard_jones, tail_correction
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import make_system, to_ase
from mosaicmd.kernel.testing import (
    check_forces,
    check_potential,
    check_smoothness,
    check_stress,
    random_system,
)

DATA = Path(__file__).parent / "data"
ORDERS = {"plain": -1, "energy_shift": 0, "force_shift": 1, "switch": 2}

# Configuration, cutoff/sigma, energy, virial and long-range correction of the energy.
# NIST Standard Reference Simulation Website (SRD 173), Lennard-Jones Fluid Reference
# Calculations: Cuboid Cell; units of epsilon.
NIST_TRUNCATED = [
    (1, 3.0, "-4.3515E+03", "-5.6867E+02", "-1.9849E+02"),
    (2, 3.0, "-6.9000E+02", "-5.6846E+02", "-2.4230E+01"),
    (3, 3.0, "-1.1467E+03", "-1.1649E+03", "-4.9622E+01"),
    (4, 3.0, "-1.6790E+01", "-4.6249E+01", "-5.4517E-01"),
    (1, 4.0, "-4.4675E+03", "-1.2639E+03", "-8.3769E+01"),
    (2, 4.0, "-7.0460E+02", "-6.5599E+02", "-1.0226E+01"),
    (3, 4.0, "-1.1754E+03", "-1.3371E+03", "-2.0942E+01"),
    (4, 4.0, "-1.7060E+01", "-4.7869E+01", "-2.3008E-01"),
]
NIST_FORCE_SHIFTED = [
    (1, "-3.8709E+03", "3.1754E+02"),
    (2, "-6.2012E+02", "-4.4533E+02"),
    (3, "-1.0210E+03", "-9.3578E+02"),
    (4, "-1.5001E+01", "-4.3096E+01"),
]


def nist_configuration(number):
    """Positions, cell edge, and SHA-256 digest of the file as published."""
    path = DATA / f"nist_lennard_jones_{number}.txt"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    return np.loadtxt(path), float(header[1].split()[-1]), header[-1].split()[-1]


def as_published(value):
    return f"{value:.4E}"


def reduced(cutoff, truncation):
    """In units of epsilon and sigma."""
    return lennard_jones(
        LennardJonesConfig(epsilon=1.0, sigma=1.0, cutoff=cutoff, truncation=truncation)
    )


def energy_and_virial(potential, system):
    """Energy and the sum over pairs of ``-r u'(r)``, eV."""
    params = potential.init(jax.random.key(0))
    graph = host_graph(system, potential.cutoff)
    result = jax.jit(lambda *args: evaluate(potential.energy, *args, stress=True))(
        params, system, graph
    )
    return result.energy, -jnp.trace(result.stress) * abs(np.linalg.det(system.cell))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_nist_configurations_are_as_published(number):
    """Written in the format of the original file, the table has its digest."""
    positions, edge, digest = nist_configuration(number)
    lines = [" " * 5 + f"{edge:25.12E}" * 3, f"{len(positions):12d}"]
    for i, position in enumerate(positions, start=1):
        lines.append(f"{i:5d}" + "".join(f"{x:25.12E}" for x in position))
    text = "\n".join(lines) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize(("number", "cutoff", "energy", "virial", "correction"), NIST_TRUNCATED)
def test_nist_configurations(number, cutoff, energy, virial, correction):
    positions, edge, _ = nist_configuration(number)
    system = make_system(positions, 1, cell=edge)
    measured = energy_and_virial(reduced(cutoff, "plain"), system)
    assert tuple(map(as_published, measured)) == (energy, virial)
    tail = tail_correction(1.0, 1.0, cutoff, len(positions), edge**3)
    assert as_published(tail.energy) == correction


@pytest.mark.parametrize(("number", "energy", "virial"), NIST_FORCE_SHIFTED)
def test_nist_configurations_with_shifted_forces(number, energy, virial):
    positions, edge, _ = nist_configuration(number)
    system = make_system(positions, 1, cell=edge)
    measured = energy_and_virial(reduced(3.0, "force_shift"), system)
    assert tuple(map(as_published, measured)) == (energy, virial)


def two_species(truncation):
    config = LennardJonesConfig(
        epsilon=(0.010, 0.015, 0.020),
        sigma=(2.6, 2.4, 2.2),
        cutoff=5.0,
        truncation=truncation,
        species=(8, 1),
    )
    return lennard_jones(config)


@pytest.mark.parametrize("truncation", ["plain", "switch"])
def test_contract(truncation):
    potential = two_species(truncation)
    params = potential.init(jax.random.key(0))
    check_potential(potential, params, random_system(0), order=ORDERS[truncation])


@pytest.mark.parametrize("truncation", ["energy_shift", "force_shift"])
def test_shifted_forms_have_their_forces_and_smoothness(truncation):
    potential = two_species(truncation)
    args = (potential, potential.init(jax.random.key(0)), random_system(0))
    check_forces(*args)
    check_stress(*args)
    check_smoothness(*args, order=ORDERS[truncation])
    with pytest.raises(AssertionError, match=r"jumps by .* at 5.0000"):
        check_smoothness(*args, order=ORDERS[truncation] + 1)


@pytest.mark.parametrize("truncation", ["energy_shift", "switch"])
def test_ase_has_the_same_energies(truncation):
    """ASE's ``smooth`` is another switch, so that one is compared below its onset alone."""
    system = random_system(2, species=(18,), n_atoms=32, min_distance=2.2)
    if truncation == "switch":  # a cluster of three, all within the onset
        system = make_system([[0, 0, 0], [0, 0, 2.7], [2.5, 0, 1.1]], 18)
    sigma, epsilon, cutoff = 2.5, 0.012, 6.5
    potential = lennard_jones(
        LennardJonesConfig(epsilon=epsilon, sigma=sigma, cutoff=cutoff, truncation=truncation)
    )
    atoms = to_ase(system)
    atoms.calc = LennardJones(
        sigma=sigma, epsilon=epsilon, rc=cutoff, ro=0.9 * cutoff, smooth=truncation == "switch"
    )
    params = potential.init(jax.random.key(0))
    periodic = truncation != "switch"
    result = evaluate(potential.energy, params, system, host_graph(system, cutoff), stress=periodic)
    np.testing.assert_allclose(result.energy, atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), rtol=1e-10, atol=1e-12)
    if periodic:
        expected = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(result.stress, expected, rtol=1e-10, atol=1e-14)


def test_fcc_lattice_sum():
    """Per atom 2 epsilon (A12 - A6) at r0 = sigma, with A12 = 12.13188, A6 = 14.45392 for fcc.

    References:
        Kittel, Introduction to Solid State Physics, 8th ed. (2005), ch. 3, Eq. 11; A6 beyond
        the cutoff is 4 pi sqrt(2) / (3 r_c^3), to 4e-3 of itself.
    """
    cell = np.sqrt(0.5) * (np.ones((3, 3)) - np.eye(3))  # nearest neighbors at 1
    system = make_system(np.zeros((1, 3)), 18, cell=cell)
    cutoff = 20.0
    energy, virial = energy_and_virial(reduced(cutoff, "plain"), system)
    beyond = 4.0 * np.pi * np.sqrt(2.0) / (3.0 * cutoff**3)
    np.testing.assert_allclose(energy, 2.0 * (12.13188 - (14.45392 - beyond)), atol=2e-5)
    expected = 2.0 * (12.0 * 12.13188 - 6.0 * (14.45392 - beyond))
    np.testing.assert_allclose(virial, expected, atol=2e-4)


def test_tail_correction_is_the_integral_beyond_the_cutoff():
    epsilon, sigma, cutoff, n_atoms, volume = 0.01, 3.4, 9.0, 864, 40000.0
    s = (np.arange(200_000) + 0.5) / 200_000  # r = cutoff / s
    r, weight = cutoff / s, cutoff / s**2 / len(s)
    shells = 0.5 * n_atoms**2 / volume * 4.0 * np.pi * r**2 * weight
    energy = 4.0 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6)
    virial = 24.0 * epsilon * (2.0 * (sigma / r) ** 12 - (sigma / r) ** 6)
    tail = tail_correction(epsilon, sigma, cutoff, n_atoms, volume)
    np.testing.assert_allclose(tail.energy, np.sum(shells * energy), rtol=1e-8)
    np.testing.assert_allclose(tail.virial, np.sum(shells * virial), rtol=1e-8)


def test_minimum_and_zero_are_where_the_closed_form_says():
    potential = reduced(4.0, "switch")
    params = potential.init(jax.random.key(0))
    for r, energy in ((1.0, 0.0), (2.0 ** (1.0 / 6.0), -1.0)):
        system = make_system([[0.0, 0.0, 0.0], [r, 0.0, 0.0]], 1)
        result = evaluate(potential.energy, params, system, host_graph(system, 4.0))
        np.testing.assert_allclose(result.energy, energy, atol=1e-12)
        np.testing.assert_allclose(result.forces[1, 0], 24.0 if r == 1.0 else 0.0, atol=1e-12)


def test_each_pair_of_species_has_its_own_parameters():
    potential = lennard_jones(
        LennardJonesConfig(
            epsilon=(1.0, 2.0, 3.0),
            sigma=(1.0, 1.1, 1.2),
            cutoff=4.0,
            truncation="plain",
            species=(18, 10),
        )
    )
    params = potential.init(jax.random.key(0))
    for pair, epsilon, sigma in (((18, 18), 1, 1.0), ((10, 18), 2, 1.1), ((10, 10), 3, 1.2)):
        system = make_system([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]], np.array(pair))
        energies = potential.energy(params, system, host_graph(system, 4.0))
        expected = 2.0 * epsilon * ((sigma / 1.5) ** 12 - (sigma / 1.5) ** 6)
        np.testing.assert_allclose(energies, [expected, expected], rtol=1e-12)


def test_configuration_round_trip():
    config = {"epsilon": "0.998 kJ/mol", "sigma": "0.34 nm", "cutoff": 8.5, "species": [18]}
    potential = build_potential("lennard_jones", config)
    again = build_potential("lennard_jones", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.architecture, again.cutoff, again.species) == ("lennard_jones", 8.5, (18,))
    np.testing.assert_allclose(potential.init(jax.random.key(0))["sigma"], [3.4], rtol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be positive"),
        ({"epsilon": [1.0, 2.0], "species": [1, 8]}, "2 values for 3 pairs"),
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"cutoff": -1.0}, "cutoff: got -1.0"),
        ({"truncation": "switch", "onset": 9.0}, r"`onset` 9.0 must lie in \[0, cutoff=8.5\)"),
        ({"truncation": "plain", "onset": 8.0}, "`onset` has no meaning"),
        ({"truncation": "shift"}, "truncation: got 'shift'"),
        ({"epsilonn": 1.0}, "did you mean `epsilon`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    settings = {"epsilon": 0.01, "sigma": 3.4, "cutoff": 8.5, **change}
    with pytest.raises(ConfigError, match=message):
        build_potential("lennard_jones", settings)
