"""Bonded terms against OpenMM, finite differences and closed forms, in triclinic cells."""

import json

import jax
import numpy as np
import pytest

from mosaicmd.gnn_models import (
    HarmonicAngleConfig,
    HarmonicBondConfig,
    HarmonicImproperConfig,
    LennardJonesConfig,
    PeriodicDihedralConfig,
    harmonic_angle,
    harmonic_bond,
    harmonic_improper,
    lennard_jones,
    periodic_dihedral,
)
from mosaicmd.kernel import testing
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, sum_potentials, total_energy
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.units import KJ_PER_MOL

# A chain of six atoms scattered over images of a triclinic cell, Å, as OpenMM 8.6.1
# (Reference platform, periodic boundary conditions) sees it: HarmonicBondForce,
# HarmonicAngleForce, PeriodicTorsionForce, and CustomTorsionForce of 0.5 k dt² with
# dt = min(|theta - theta_0|, 2 pi - |theta - theta_0|). Energies in kJ/mol, forces in kJ/mol/nm.
CELL = np.array([[6.0, 0.0, 0.0], [1.1, 6.5, 0.0], [-0.7, 0.9, 7.0]])
CHAIN = np.array(
    [
        [5.1, 5.6, 6.2],
        [0.3, 6.1, 6.5],
        [6.3, 0.0, -0.7],
        [-0.7, 1.5, 7.5],
        [14.2, 6.7, 1.2],
        [0.2, -5.1, 1.8],
    ]
)
PAIRS = tuple((i, i + 1) for i in range(5))
TRIPLES = tuple((i, i + 1, i + 2) for i in range(4))
QUADRUPLES = tuple((i, i + 1, i + 2, i + 3) for i in range(3))
KJ_MOL_NM2 = KJ_PER_MOL / 100.0
BOND = HarmonicBondConfig(
    atoms=PAIRS,
    stiffness=tuple((2e5 + 1e4 * k) * KJ_MOL_NM2 for k in range(5)),
    length=tuple(f"{0.13 + 0.01 * k} nm" for k in range(5)),
)
ANGLE = HarmonicAngleConfig(
    atoms=TRIPLES,
    stiffness=tuple(f"{300 + 50 * k} kJ/mol" for k in range(4)),
    angle=(1.6, 1.7, 1.8, 1.9),
)
DIHEDRAL = PeriodicDihedralConfig(
    atoms=QUADRUPLES,
    multiplicities=(1, 2, 3),
    amplitude=tuple((f"{4 + k} kJ/mol", f"{-7 + k} kJ/mol", f"{10 - k} kJ/mol") for k in range(3)),
    phase=(0.3, 3.0, -1.2),
)
IMPROPER = HarmonicImproperConfig(
    atoms=((1, 0, 2, 3), (5, 4, 3, 0)), stiffness=("40 kJ/mol", "25 kJ/mol"), angle=(2.9, -0.4)
)
POTENTIALS = {
    "bond": harmonic_bond(BOND),
    "angle": harmonic_angle(ANGLE),
    "dihedral": periodic_dihedral(DIHEDRAL),
    "improper": harmonic_improper(IMPROPER),
}
OPENMM_ENERGY = {
    "bond": 224.85351164880868,
    "angle": 69.11947591545903,
    "dihedral": 24.155978700743805,
    "improper": 144.48941105417464,
}
OPENMM_FORCES = {
    "bond": [
        [614.61130333, 256.08804305, 153.65282583],
        [-768.75260058, -757.04725912, -76.58217721],
        [755.33167504, -701.42153951, -2481.83215978],
        [-4982.56645811, 2795.60842115, -383.3869036],
        [3165.7442692, -8887.01853229, -858.74701861],
        [1215.63181112, 7293.79086672, 3646.89543336],
    ],
    "angle": [
        [-384.17710815, 1194.8445374, -454.69912975],
        [1477.97738077, -1420.89026012, 1173.00247732],
        [-1218.37426188, 525.00027163, -898.92411934],
        [146.08863923, -1150.32223574, -339.68378495],
        [-662.8034872, 1150.12071943, 136.56143726],
        [641.28883722, -298.7530326, 383.74311946],
    ],
    "dihedral": [
        [-19.67739932, 14.4568648, 54.6148226],
        [113.11341576, -43.21541443, -54.67336228],
        [-133.52272225, -85.46226468, 47.14727038],
        [91.05372999, 208.10046571, -73.53425362],
        [18.06363136, -60.64266911, -63.03866019],
        [-69.03065554, -33.2369823, 89.48418311],
    ],
    "improper": [
        [-359.84578499, 147.89971955, 680.60404954],
        [372.15512128, -273.42008911, -1032.92033662],
        [197.69155492, -218.963964, 778.28647318],
        [-138.87828847, 355.39221582, -531.50120055],
        [208.83002117, 123.88412184, -257.37053507],
        [-279.95262392, -134.79200411, 362.90154952],
    ],
}


evaluated = jax.jit(evaluate, static_argnums=0)


def chain():
    system = make_system(CHAIN, 6, cell=CELL)
    return system, host_graph(system, 1.0)


@pytest.mark.parametrize("name", POTENTIALS)
def test_openmm_has_the_same_energies_and_forces(name):
    potential = POTENTIALS[name]
    result = evaluated(potential.energy, potential.init(jax.random.key(0)), *chain())
    np.testing.assert_allclose(result.energy / KJ_PER_MOL, OPENMM_ENERGY[name], rtol=1e-12)
    forces = result.forces / (KJ_PER_MOL / 10.0)
    np.testing.assert_allclose(forces, OPENMM_FORCES[name], rtol=1e-8, atol=1e-7)


def without_hand(sign=0.0):
    """The four terms with phases of 0 and pi, plus ``sign`` times others that have a hand."""
    dihedral = {"phase": (sign * 0.3, np.pi + sign * 0.5, 0.0)}
    improper = {"angle": (sign * 2.0, np.pi)}
    return (
        POTENTIALS["bond"],
        POTENTIALS["angle"],
        periodic_dihedral(DIHEDRAL.model_copy(update=dihedral)),
        harmonic_improper(IMPROPER.model_copy(update=improper)),
    )


def test_contract():
    """All checks that leave the list of atoms as it is, for a sum with a pair potential."""
    pair = lennard_jones(LennardJonesConfig(epsilon=1e-6, sigma=1.5, cutoff=2.5))
    potential = sum_potentials(*without_hand(), pair)
    args = (potential, potential.init(jax.random.key(0)), chain()[0])
    assert potential.cutoff == 2.5
    testing.check_forces(*args)
    testing.check_stress(*args)
    testing.check_rotation(*args)
    testing.check_translation(*args)
    testing.check_periodic_images(*args)
    testing.check_precision(*args, tolerance=1e-3)  # the atoms lie cells apart
    testing.check_graph_layouts(*args)
    testing.check_batch(*args)


def test_a_reflection_turns_the_sign_of_phases():
    system, graph = chain()
    flip = np.diag([1.0, 1.0, -1.0])
    mirrored = system._replace(positions=system.positions @ flip, cell=system.cell @ flip)
    for right, left in zip(without_hand(1.0)[2:], without_hand(-1.0)[2:], strict=True):
        params = (right.init(jax.random.key(0)), left.init(jax.random.key(0)))
        expected = jax.jit(right.energy)(params[0], system, graph)
        np.testing.assert_allclose(jax.jit(left.energy)(params[1], mirrored, graph), expected)
        assert np.abs(jax.jit(left.energy)(params[1], system, graph) - expected).max() > 1e-3


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_term_with_a_masked_atom_has_no_energy_and_padding_changes_nothing(name):
    """Also the gradient in the parameters is that without padding, and finite."""
    potential = POTENTIALS[name]
    params = potential.init(jax.random.key(0))
    system, graph = chain()

    @jax.jit
    def both(params, system):
        gradient = jax.grad(lambda p: total_energy(potential.energy, p, system, graph))(params)
        return (
            potential.energy(params, system, graph),
            evaluate(potential.energy, params, system, graph),
            gradient,
        )

    energies, result, gradient = both(params, system)
    padded = both(params, pad_system(system, 9))
    np.testing.assert_allclose(padded[0][:6], energies, atol=1e-14)
    assert (padded[0][6:] == 0.0).all()
    np.testing.assert_allclose(padded[1].forces[:6], result.forces, rtol=1e-12, atol=1e-12)
    for leaf, padded_leaf in zip(*map(jax.tree.leaves, (gradient, padded[2])), strict=True):
        np.testing.assert_allclose(padded_leaf, leaf, rtol=1e-12, atol=1e-14)
    # Where the first atom is padding on top of another, its terms are gone.
    masked = system._replace(
        mask=system.mask.at[0].set(False), positions=system.positions.at[0].set(CHAIN[1])
    )
    energies, result, gradient = both(params, masked)
    assert energies[0] == 0.0
    assert (result.forces[0] == 0.0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.forces, gradient)))
    terms = [i for i, atoms in enumerate(potential.config["atoms"]) if 0 not in atoms]
    first = jax.tree.leaves(gradient)[0].reshape(len(potential.config["atoms"]), -1)
    assert sorted(np.flatnonzero(np.abs(first).max(axis=1) > 0.0).tolist()) == terms


def test_energy_is_shared_equally():
    """One angle of 90 degrees with theta_0 = 60: ``k / 2 (pi / 6)²``, a third for each."""
    potential = harmonic_angle(
        HarmonicAngleConfig(atoms=((0, 1, 2),), stiffness=2.0, angle="60 deg")
    )
    system = make_system([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 3.0, 3.0]], 6)
    found = potential.energy(potential.init(jax.random.key(0)), system, host_graph(system, 1.0))
    share = (np.pi / 6.0) ** 2 / 3.0
    np.testing.assert_allclose(found, [share, share, share, 0.0], rtol=1e-14)


def test_types_share_parameters_and_their_gradients_add():
    """Three equal bonds of two types: ``dE/dk`` of a type is the sum of ``(r - r_0)² / 2``."""
    potential = harmonic_bond(
        HarmonicBondConfig(
            atoms=((0, 1), (1, 2), (2, 3)), types=(0, 1, 0), stiffness=10.0, length=(1.0, 1.3)
        )
    )
    params = potential.init(jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "stiffness": (2,),
        "length": (2,),
    }
    system = make_system(np.arange(4)[:, None] * [[1.2, 0.0, 0.0]], 6)
    graph = host_graph(system, 1.0)
    energy = jax.jit(lambda p: total_energy(potential.energy, p, system, graph))
    np.testing.assert_allclose(energy(params), 5.0 * (0.04 + 0.01 + 0.04), rtol=1e-12)
    gradient = jax.grad(energy)(params)
    np.testing.assert_allclose(gradient["stiffness"], [0.04, 0.005], rtol=1e-12)
    np.testing.assert_allclose(gradient["length"], [-4.0, 1.0], rtol=1e-12)


def test_forces_of_straight_and_folded_angles_are_finite():
    """A straight angle with ``theta_0 = pi`` is at its minimum: zero energy and force."""
    for angle in (np.pi, 1.9):
        potential = harmonic_angle(
            HarmonicAngleConfig(atoms=((0, 1, 2),), stiffness=2.0, angle=angle)
        )
        for end in (2.0, 0.5):  # beyond the vertex, or on top of the other bond
            system = make_system([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [end, 0.0, 0.0]], 6)
            graph = host_graph(system, 1.0)
            result = evaluated(potential.energy, potential.init(jax.random.key(0)), system, graph)
            theta = np.pi if end > 1.0 else 0.0
            np.testing.assert_allclose(result.energy, (theta - angle) ** 2, atol=1e-14)
            assert np.isfinite(result.forces).all()


def test_terms_that_are_not_learnable_have_no_parameters():
    fixed = harmonic_bond(BOND.model_copy(update={"learnable": False}))
    assert fixed.init(jax.random.key(0)) == {}
    learnable = POTENTIALS["bond"]
    params = learnable.init(jax.random.key(0))
    np.testing.assert_allclose(
        jax.jit(fixed.energy)({}, *chain()), jax.jit(learnable.energy)(params, *chain()), rtol=1e-12
    )


@pytest.mark.parametrize("name", POTENTIALS)
def test_configuration_round_trip(name):
    potential = POTENTIALS[name]
    record = json.loads(json.dumps(potential.config))
    again = build_potential(potential.architecture, record)
    assert again.config == potential.config
    params = potential.init(jax.random.key(0))
    programs = (jax.jit(again.energy), jax.jit(potential.energy))
    np.testing.assert_array_equal(*(program(params, *chain()) for program in programs))


def test_an_atom_that_the_system_lacks_is_named():
    potential = harmonic_bond(HarmonicBondConfig(atoms=((0, 6),), stiffness=1.0, length=1.0))
    message = r"`atoms` of this 'harmonic_bond' potential name atom 6, but the system has 6"
    with pytest.raises(ValueError, match=message):
        potential.energy(potential.init(jax.random.key(0)), *chain())


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("harmonic_bond", {"atoms": []}, "`atoms` is empty"),
        ("harmonic_bond", {"atoms": [[0, 0]]}, r"distinct and counted from 0, got \[0, 0\]"),
        ("harmonic_bond", {"atoms": [[-1, 0]]}, r"distinct and counted from 0, got \[-1, 0\]"),
        ("harmonic_bond", {"atoms": [[0, 1, 2]]}, "atoms"),
        ("harmonic_bond", {"stiffness": -1.0}, "`stiffness` must be positive"),
        ("harmonic_bond", {"length": [1.0, 1.1, 1.2]}, "3 values for 2 sets of parameters"),
        ("harmonic_bond", {"types": [0]}, "`types` has 1 entries for 2 terms"),
        ("harmonic_bond", {"types": [0, 2]}, "without gaps"),
        ("harmonic_bond", {"lenght": 1.0}, "did you mean `length`"),
        ("harmonic_angle", {"angle": 104.5}, r"`angle` must lie in \[0, pi\] rad.*deg"),
        ("harmonic_improper", {"angle": 180.0}, r"`angle` must lie in \[-pi, pi\] rad.*deg"),
        ("periodic_dihedral", {"multiplicities": [0]}, "distinct and positive"),
        ("periodic_dihedral", {"amplitude": [1.0, 2.0]}, "`amplitude` must have one value for"),
        ("periodic_dihedral", {"phase": [[0.0]] * 3}, "`phase` must have one value for"),
    ],
)
def test_bad_settings_are_refused(architecture, change, message):
    settings = {
        "harmonic_bond": {"atoms": [[0, 1], [1, 2]], "stiffness": 20.0, "length": 1.0},
        "harmonic_angle": {"atoms": [[0, 1, 2]], "stiffness": 2.0, "angle": 1.9},
        "harmonic_improper": {"atoms": [[0, 1, 2, 3]], "stiffness": 2.0},
        "periodic_dihedral": {"atoms": [[0, 1, 2, 3]], "multiplicities": [1], "amplitude": [0.1]},
    }
    with pytest.raises(ConfigError, match=message):
        build_potential(architecture, {**settings[architecture], **change})
