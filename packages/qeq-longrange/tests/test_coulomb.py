"""The Coulomb potential: the contract of potentials, model files, and bad settings."""

import jax
import numpy as np
import pytest
from qeq_systems import rows

from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, evaluate, sum_potentials
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.testing import (
    check_atom_energies,
    check_batch,
    check_extensivity,
    check_forces,
    check_graph_layouts,
    check_longer_list,
    check_periodic_images,
    check_permutation,
    check_precision,
    check_rotation,
    check_stress,
    check_translation,
    random_system,
)
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange import CoulombConfig, DirectPlan, EwaldPlan, MeshPlan, coulomb

SYSTEM = random_system(1, n_atoms=12, charges=True)
EWALD = EwaldPlan(splitting=0.5, cutoff=10.0, cell=rows(SYSTEM.cell), k_max=10.0)
MESH = MeshPlan(splitting=0.5, cutoff=6.0, mesh=(20, 20, 20), order=5)
IN_PAIRS = {"species": (1, 8), "widths": (0.3, 0.0)}


def potential_of(plan, **settings):
    return coulomb(CoulombConfig(plan=plan, **settings))


def test_contract_of_ewald():
    """With wave vectors enough for a doubled cell and for other vectors of the same lattice."""
    potential = potential_of(EWALD, **IN_PAIRS)
    args = (potential, {}, SYSTEM)
    for check in (
        check_atom_energies,
        check_rotation,
        check_translation,
        check_permutation,
        check_extensivity,
    ):
        check(*args)
    check_periodic_images(*args, tolerance=1e-8)
    check_forces(*args)
    check_stress(*args)
    check_precision(*args)
    check_longer_list(*args)


def test_contract_of_particle_mesh():
    """A mesh fixed in space is not invariant under translations; forces and stress are derivatives
    all the same.
    """
    potential = potential_of(MESH, **IN_PAIRS)
    args = (potential, {}, SYSTEM)
    check_permutation(*args)
    check_rotation(*args)  # of the cell too
    check_forces(*args)
    check_stress(*args)
    check_precision(*args)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [EWALD, MESH])
def test_contract_of_layouts_and_batches(plan):
    args = (potential_of(plan, **IN_PAIRS), {}, SYSTEM)
    check_graph_layouts(*args)
    check_batch(*args)


def test_contract_of_the_direct_sum():
    system = random_system(1, n_atoms=12, pbc=False, charges=True)
    args = (potential_of(DirectPlan(), **IN_PAIRS), {}, system)
    check_atom_energies(*args)
    check_rotation(*args)
    check_translation(*args)
    check_permutation(*args)
    check_forces(*args)


def test_padding_has_no_energy():
    potential = potential_of(MESH)
    graph = host_graph(SYSTEM, potential.cutoff)
    program = jax.jit(potential.energy)
    energies = program({}, pad_system(SYSTEM, 15), graph)
    np.testing.assert_allclose(energies[:12], program({}, SYSTEM, graph), rtol=1e-12)
    np.testing.assert_array_equal(energies[12:], 0.0)


def test_a_model_file_holds_it_and_it_adds_to_others(tmp_path):
    pairs = {"excluded_pairs": [[0, 1]], "scaled_pairs": [[2, 3]], "pair_scale": 0.8}
    settings = {"plan": MESH.model_dump(mode="json"), **pairs}
    single = build_potential("coulomb", settings)
    twice = sum_potentials(single, build_potential("coulomb", {"plan": {"method": "direct"}}))
    save_model(tmp_path / "model", twice, twice.init(jax.random.key(0)))
    again, params = load_model(tmp_path / "model")
    graph = host_graph(SYSTEM, again.cutoff)
    expected = jax.jit(twice.energy)(({}, {}), SYSTEM, graph)
    np.testing.assert_array_equal(jax.jit(again.energy)(params, SYSTEM, graph), expected)
    assert again.cutoff == MESH.cutoff


def test_excluded_and_scaled_pairs_of_a_cluster():
    """Three charges on a line; what remains of 0-1 is nothing, of 1-2 a quarter."""
    system = make_system(
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]], 1, charges=[1.0, 2.0, -1.0]
    )
    potential = potential_of(
        DirectPlan(), excluded_pairs=[(0, 1)], scaled_pairs=[(2, 1)], pair_scale=0.25
    )
    graph = host_graph(system, potential.cutoff)
    result = jax.jit(lambda s, g: evaluate(potential.energy, {}, s, g))(system, graph)
    expected = COULOMB_CONSTANT * (-0.25 * 2.0 / 2.0 - 1.0 / 3.0)
    np.testing.assert_allclose(result.energy, expected, rtol=1e-13)
    force = COULOMB_CONSTANT * (0.25 * 2.0 / 4.0 + 1.0 / 9.0)
    np.testing.assert_allclose(result.forces[2], [-force, 0.0, 0.0], rtol=1e-13, atol=1e-14)


def test_charges_are_needed():
    system = SYSTEM._replace(charges=None)
    with pytest.raises(ValueError, match="`charges` of the system are missing"):
        potential_of(DirectPlan()).energy({}, system, None)
    potential = potential_of(DirectPlan(), excluded_pairs=[(0, 40)])
    with pytest.raises(ValueError, match="atom 40 of a system of 12 atoms"):
        potential.energy({}, SYSTEM, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": {"method": "p3m"}}, "plan: got .*'direct', 'ewald', 'pme'"),
        ({"widths": [0.5]}, "must be one for each of `species`"),
        ({"widths": [-0.5], "species": [1]}, "`widths` must not be negative"),
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"excluded_pairs": [[1, 1]]}, r"different atoms, each once, got \(1, 1\)"),
        ({"excluded_pairs": [[1, 2]], "scaled_pairs": [[2, 1]]}, r"each once, got \(1, 2\)"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("coulomb", {"plan": {"method": "direct"}, **change})
