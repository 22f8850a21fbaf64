"""Charge equilibration by closed forms, conservation, and derivatives of its energy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from qeq_systems import graph_for, random_ions
from scipy.special import erf

from mosaicmd.kernel.cli.label_report import compare_labels
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.deploy import ase_calculator
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, evaluate, sum_potentials
from mosaicmd.kernel.reference_energies import atomic_energies
from mosaicmd.kernel.systems import from_ase, make_system, pad_system
from mosaicmd.kernel.testing import check_forces, check_stress
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange import (
    ChargeEquilibrationConfig,
    DirectPlan,
    EwaldPlan,
    charge_equilibration,
    coulomb_energy,
    coulomb_potentials,
    equilibrate_charges,
)

CELL = ((9.0, 0.0, 0.0), (3.0, 8.0, 0.0), (-2.0, 2.0, 8.0))
PERIODIC = EwaldPlan(splitting=0.55, cutoff=9.0, cell=CELL, k_max=5.5)
SETTINGS = {
    "species": (1, 8),
    "electronegativity": (4.5, 8.7),
    "hardness": (6.0, 9.0),
    "widths": (0.5, 0.7),
}


def model(plan=None, **change):
    plan = DirectPlan() if plan is None else plan
    return charge_equilibration(ChargeEquilibrationConfig(plan=plan, **{**SETTINGS, **change}))


def solve(found, system, graph=None):
    return jax.jit(found.equilibrium)(found.potential.init(jax.random.key(0)), system, graph)


def interaction(distance, width_a, width_b):
    spread = np.sqrt(2.0 * (width_a**2 + width_b**2))
    return COULOMB_CONSTANT * erf(distance / spread) / distance


def whole_hardness(hardness, width):
    return hardness + COULOMB_CONSTANT / (np.sqrt(np.pi) * width)


HYDROGEN, OXYGEN = whole_hardness(6.0, 0.5), whole_hardness(9.0, 0.7)


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_two_atoms_by_the_closed_form(total):
    """``q_1 = (chi_2 - chi_1 + Q (J_22 - J_12)) / (J_11 + J_22 - 2 J_12)``."""
    system = make_system([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]], np.array([1, 8]), total_charge=total)
    between = interaction(1.1, 0.5, 0.7)
    first = (8.7 - 4.5 + total * (OXYGEN - between)) / (HYDROGEN + OXYGEN - 2.0 * between)
    found = solve(model(), system)
    np.testing.assert_allclose(found.charges, [first, total - first], rtol=1e-13)
    potential = 4.5 + HYDROGEN * first + between * (total - first)
    np.testing.assert_allclose(found.chemical_potential, potential, rtol=1e-12)
    assert bool(found.stable)


def test_three_atoms_by_the_closed_form():
    """Two equal ends of a bent molecule, ``q = (chi_O - chi_H) / (J_H + 2 J_O + J_HH - 4 J_OH)``;
    its energy is ``(chi_H - chi_O) q``.
    """
    positions = np.array([[0.0, 0.0, 0.0], [0.9, 0.5, 0.0], [-0.9, 0.5, 0.0]])
    system = make_system(positions, np.array([8, 1, 1]))
    ends = interaction(1.8, 0.5, 0.5)
    bond = interaction(np.hypot(0.9, 0.5), 0.5, 0.7)
    charge = (8.7 - 4.5) / (HYDROGEN + 2.0 * OXYGEN + ends - 4.0 * bond)
    found = solve(model(), system)
    np.testing.assert_allclose(found.charges, [-2.0 * charge, charge, charge], rtol=1e-12)
    potential = model().potential
    energies = potential.energy(potential.init(jax.random.key(0)), system, None)
    np.testing.assert_allclose(energies.sum(), (4.5 - 8.7) * charge, rtol=1e-12)


def ions(n_atoms=12, **settings):
    bulk = random_ions(CELL, n_atoms, seed=7)
    species = np.random.default_rng(0).permutation(np.resize([1, 8, 1], n_atoms))
    return make_system(bulk.positions, species, cell=bulk.cell, **settings)


@pytest.mark.parametrize("total", [0.0, -3.0])
def test_net_charge_is_conserved_and_potentials_are_equal(total):
    system = ions(total_charge=total)
    found = model(PERIODIC)
    result = solve(found, system, graph_for(system, PERIODIC))
    assert abs(float(jnp.sum(result.charges)) - total) < 1e-12
    charges = np.asarray(result.charges)
    assert np.abs(charges).max() > 0.1

    @jax.jit
    def slopes(q):
        widths = jnp.where(system.species == 8, 0.7, 0.5)
        phi = coulomb_potentials(q, system, graph_for(system, PERIODIC), PERIODIC, widths=widths)
        chi, hard = (jnp.where(system.species == 8, o, h) for h, o in ((4.5, 8.7), (6.0, 9.0)))
        return chi + hard * q + phi

    np.testing.assert_allclose(slopes(charges), float(result.chemical_potential), rtol=1e-11)


def test_charges_are_the_least_energy():
    """Against the bordered linear system, which knows no projection."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(9, 9))
    matrix, chi = root @ root.T + 2.0 * np.eye(9), rng.normal(size=9)
    bordered = np.block([[matrix, np.ones((9, 1))], [np.ones((1, 9)), np.zeros((1, 1))]])
    expected = np.linalg.solve(bordered, np.append(-chi, 0.7))
    found = equilibrate_charges(jnp.asarray(matrix), jnp.asarray(chi), 0.7, jnp.ones(9, bool))
    np.testing.assert_allclose(found.charges, expected[:9], rtol=1e-10)
    np.testing.assert_allclose(found.chemical_potential, -expected[9], rtol=1e-10)


def test_a_matrix_need_be_positive_for_neutral_changes_only():
    """Far below zero for the net charge; and no minimum, which is said, if for others too."""
    matrix, ones = 2.0 * jnp.eye(4), jnp.ones((4, 4))
    chi, mask = jnp.array([1.0, -1.0, 0.5, -0.5]), jnp.ones(4, bool)
    found = equilibrate_charges(matrix - 10.0 * ones, chi, 0.0, mask)
    np.testing.assert_allclose(found.charges, -chi / 2.0, rtol=1e-13)
    assert bool(found.stable)
    assert not bool(equilibrate_charges(matrix - 5.0 * jnp.eye(4), chi, 0.0, mask).stable)


def test_forces_and_stress_are_those_at_fixed_charges():
    """The envelope theorem, and finite differences through the whole solution."""
    system = ions(total_charge=1.0)
    found = model(PERIODIC)
    params = found.potential.init(jax.random.key(0))
    check_forces(found.potential, params, system)
    check_stress(found.potential, params, system)
    graph = graph_for(system, PERIODIC)
    charges = solve(found, system, graph).charges

    def fixed(positions):
        widths = jnp.where(system.species == 8, 0.7, 0.5)
        moved = system._replace(positions=positions)
        return coulomb_energy(charges, moved, graph, PERIODIC, widths=widths)

    expected = -jax.jit(jax.grad(fixed))(system.positions)
    forces = jax.jit(lambda p, s: evaluate(found.potential.energy, p, s, graph).forces)(
        params, system
    )
    np.testing.assert_allclose(forces, expected, atol=1e-11)


def test_charges_respond_to_positions_and_parameters_as_differences_say():
    """The derivative of a charge, which the envelope theorem does not give."""
    system = make_system([[0.0, 0, 0], [1.0, 0, 0.2], [0, 1.3, 0]], np.array([8, 1, 1]))
    found = model()
    params = found.potential.init(jax.random.key(0))

    @jax.jit
    def charge(x):
        moved = system._replace(positions=system.positions.at[1, 0].add(x[0]))
        changed = {**params, "hardness": params["hardness"] + jnp.stack([x[1], 0.0 * x[1]])}
        return found.equilibrium(changed, moved, None).charges[0]

    step = 1e-5 * jnp.eye(2)
    expected = [(charge(d) - charge(-d)) / 2e-5 for d in step]
    np.testing.assert_allclose(jax.jit(jax.grad(charge))(jnp.zeros(2)), expected, rtol=1e-7)
    second = jax.jit(jax.hessian(charge))(jnp.zeros(2))
    slope = jax.jit(jax.grad(charge))
    expected = [(slope(d) - slope(-d)) / 2e-5 for d in step]
    np.testing.assert_allclose(second, expected, rtol=1e-6)


def test_padding_and_batches_change_nothing():
    system = ions()
    found = model(PERIODIC)
    params = found.potential.init(jax.random.key(0))
    graph = graph_for(system, PERIODIC)
    expected = solve(found, system, graph).charges
    padded = pad_system(system, 15)
    edges = pad_graph(graph, graph.n_edges + 5, n_atoms=15)
    actual = solve(found, padded, edges)
    np.testing.assert_allclose(actual.charges[:12], expected, rtol=1e-11)
    np.testing.assert_array_equal(actual.charges[12:], 0.0)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), system)
    many = jax.jit(jax.vmap(found.equilibrium, in_axes=(None, 0, None)))(params, batch, graph)
    np.testing.assert_allclose(many.charges, jnp.stack([expected] * 2), rtol=1e-11)


def test_configuration_round_trip():
    config = {"plan": {"method": "direct"}, **SETTINGS, "widths": ["0.05 nm", 0.7]}
    potential = build_potential("charge_equilibration", config)
    again = build_potential("charge_equilibration", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    np.testing.assert_allclose(again.init(jax.random.key(0))["widths"], [0.5, 0.7], rtol=1e-15)
    potential.check(make_system([[0.0, 0.0, 0.0]], 8))
    assert host_graph(make_system([[0.0, 0.0, 0.0]], 8), potential.cutoff).n_edges == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardness": (1.0,)}, "`hardness` has 1 values for 2 species"),
        ({"hardness": (1.0, 0.0)}, "`hardness` must be positive"),
        ({"widths": (0.0, 1.0)}, "`widths` must be positive"),
        ({"species": (1, 1)}, "distinct positive labels"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential(
            "charge_equilibration", {"plan": {"method": "direct"}, **SETTINGS, **change}
        )


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"`hardness_matrix` must have shape \(3, 3\)"):
        equilibrate_charges(jnp.eye(2), jnp.zeros(3), 0.0, jnp.ones(3, bool))


def test_a_model_file_gives_its_charges_to_calculator_and_evaluation(tmp_path):
    """Two atoms with a net charge of 1 e, by the closed form; in a sum with another term."""
    distance, total = 1.4, 1.0
    potential = sum_potentials(model().potential, atomic_energies({1: -1.0, 8: -2.0}))
    save_model(tmp_path / "model", potential, potential.init(jax.random.key(0)))
    atoms = Atoms("HO", [[0.0, 0.0, 0.0], [0.0, 0.0, distance]], info={"total_charge": total})
    atoms.calc = ase_calculator(tmp_path / "model")
    between = interaction(distance, 0.5, 0.7)
    on_oxygen = (4.5 - 8.7 + (HYDROGEN - between) * total) / (HYDROGEN + OXYGEN - 2.0 * between)
    wanted = [total - on_oxygen, on_oxygen]
    np.testing.assert_allclose(atoms.get_charges(), wanted, rtol=1e-10)
    labels = Labels(energy=0.0, charges=np.array([0.6, 0.4]))
    found, params = load_model(tmp_path / "model")
    examples = make_examples([(from_ase(atoms), labels)], found.cutoff)
    pairs = compare_labels(found, params, examples, separate=True)["charges"]
    np.testing.assert_allclose(pairs.predicted, wanted, rtol=1e-10)
    np.testing.assert_array_equal(pairs.label, [0.6, 0.4])
