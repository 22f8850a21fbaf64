"""The charge equilibration layer within networks, and the fourth-generation network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qeq_systems import ewald_plan

from mosaicmd.gnn_models.layered import layered
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.testing import (
    check_atom_energies,
    check_batch,
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
from mosaicmd.qeq_longrange import (
    CELLIConfig,
    DirectPlan,
    FourthGenerationConfig,
    SolverConfig,
    SymmetryFunctionsConfig,
    celli,
    fourth_generation,
)

SMALL = {
    "allegro": {"n_scalars": 8, "n_tensors": 3, "l_max": 1, "n_layers": 2},
    "mace": {"n_channels": 4, "hidden_l_max": 1, "l_max": 1, "correlation": 2, "n_layers": 2},
    "nequip": {"n_features": 4, "n_layers": 2},
    "painn": {"n_features": 8, "n_layers": 2, "n_radial": 5},
}
ATOMS = {"electronegativity": (4.5, 8.7), "hardness": (6.0, 9.0), "widths": (0.5, 0.7)}
CRYSTAL = random_system(1, n_atoms=8)._replace(total_charge=jnp.asarray(1.0))
CLUSTER = random_system(1, n_atoms=8, pbc=False)._replace(total_charge=jnp.asarray(-1.0))
EWALD = ewald_plan(CRYSTAL.cell, 0.6, reach=5.2)


def model(name="painn", plan=None, cutoff=4.0, **change):
    plan = DirectPlan() if plan is None else plan
    if name == "fourth_generation":
        functions = SymmetryFunctionsConfig(
            species=(1, 8), cutoff=cutoff, n_radial=3, angular_widths=(2.0,), zetas=(1, 2)
        )
        settings = {"symmetry_functions": functions, "plan": plan, **ATOMS, **change}
        return fourth_generation(FourthGenerationConfig(**settings))
    network = {"architecture": name, "config": {"species": [1, 8], "cutoff": cutoff, **SMALL[name]}}
    return celli(CELLIConfig(**{"network": network, "plan": plan, **ATOMS, **change}))


def started(found, seed=0):
    return found.potential.init(jax.random.key(seed))


MODELS = [*sorted(SMALL), "fourth_generation"]


@pytest.mark.parametrize("name", MODELS)
def test_forces_are_differences_through_the_solution_and_charges_add_up(name):
    """A cluster with a net charge."""
    found = model(name)
    params = started(found)
    check_forces(found.potential, params, CLUSTER, n_components=5)
    graph = host_graph(CLUSTER, found.potential.cutoff)
    result = jax.jit(found.equilibrium)(params, CLUSTER, graph)
    assert abs(float(jnp.sum(result.charges)) + 1.0) < 1e-12
    assert float(result.residual) < 1e-11
    assert float(jnp.ptp(result.charges)) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_contract_in_a_crystal(name):
    """All of the contract that holds for what is not local.

    The wave vectors are enough for other vectors of the same lattice, whose multiples they are.
    """
    found = model(name, EWALD.model_copy(update={"k_max": 1.6 * EWALD.k_max}))
    args = (found.potential, started(found), CRYSTAL)
    check_atom_energies(*args)
    check_translation(*args)
    check_rotation(*args)
    check_permutation(*args)
    check_forces(*args)
    check_stress(*args)
    check_precision(*args, tolerance=1e-3)
    check_longer_list(*args)
    check_batch(*args)
    check_graph_layouts(*args)
    check_periodic_images(*args, tolerance=1e-7)


def test_the_network_is_local_but_for_the_charges():
    """A molecule far beyond the cutoff changes the energies of another one only by charges.

    Without electronegativities, and at no net charge, there are none: the energies of the
    molecule are those it has alone, to rounding. With them, or with a net charge, they are not.
    """
    positions = np.array([[0.0, 0, 0], [0, 0, 1.1], [12.0, 0, 0], [12.0, 1.1, 0]])
    species = np.array([8, 1, 1, 8])
    inert = {"electronegativity": 0.0, "electronegativity_scale": 1e-14}

    def energies_of_both(**settings):
        found = model("allegro", **settings)
        params, energy = started(found), jax.jit(found.potential.energy)

        def energies(n, total):
            system = make_system(positions[:n], species[:n], total_charge=total)
            graph = host_graph(system, found.potential.cutoff)
            edges = pad_graph(graph, 6, n_atoms=5)
            return np.asarray(energy(params, pad_system(system, 5), edges)[:2])

        return lambda total: np.abs(energies(4, total) - energies(2, 0.0)).max()

    change = energies_of_both(**inert)
    assert change(0.0) < 1e-12
    assert change(1.0) > 1e-2
    assert energies_of_both()(0.0) > 1e-6  # dipoles, 12 Å apart


def test_electronegativities_follow_the_surroundings():
    """Two hydrogen atoms, one of them beside oxygen, have different ones; fixed ones would not."""
    positions = np.array([[0.0, 0, 0], [0, 0, 1.0], [0, 0, 9.0], [0, 0, 9.8]])
    species = np.array([8, 1, 1, 1])
    system = make_system(positions, species, total_charge=0.0)
    found = model("painn", hardness=50.0, widths=1.0, electronegativity=0.0)
    params = started(found)
    graph = host_graph(system, found.potential.cutoff)
    charges = jax.jit(found.equilibrium)(params, system, graph).charges
    np.testing.assert_allclose(charges[2], charges[3], atol=2e-3)  # equal, in a far field
    still = model(
        "painn", hardness=50.0, widths=1.0, electronegativity=0.0, electronegativity_scale=1e-12
    )
    none = jax.jit(still.equilibrium)(params, system, graph).charges
    np.testing.assert_allclose(none, 0.0, atol=1e-9)
    assert float(jnp.max(jnp.abs(charges))) > 1e-3


def test_without_features_it_is_plain_charge_equilibration_and_the_network():
    """With nothing coming back from charges: ``E_network + E_Qeq``, the second by closed form."""
    found = model("painn", electronegativity_scale=1e-13)
    params = started(found)
    params = {
        **params,
        "charges_to_features": jax.tree.map(jnp.zeros_like, params["charges_to_features"]),
    }
    system = make_system([[0.0, 0, 0], [0, 0, 1.1]], np.array([1, 8]), total_charge=0.0)
    graph = host_graph(system, 4.0)
    network = build_potential("painn", {"species": [1, 8], "cutoff": 4.0, **SMALL["painn"]})
    own = network.energy(params["network"], system, graph)
    from scipy.special import erf

    spread = np.sqrt(2.0 * (0.5**2 + 0.7**2))
    between = COULOMB_CONSTANT * erf(1.1 / spread) / 1.1
    stiff = 6.0 + 9.0 - 2.0 * between
    stiff += COULOMB_CONSTANT / np.sqrt(np.pi) * (1 / 0.5 + 1 / 0.7)
    energy = -0.5 * (8.7 - 4.5) ** 2 / stiff
    total = found.potential.energy(params, system, graph)
    np.testing.assert_allclose(jnp.sum(total) - jnp.sum(own), energy, rtol=1e-9)


@pytest.mark.parametrize("name", ["painn", "fourth_generation"])
def test_fragments_of_a_dissociated_pair_interact_as_their_charges(name):
    """Far apart nothing but ``k Q_1 Q_2 / R`` depends on the distance ``R``."""
    found = model(name)
    params = started(found)
    ends = np.array([[0.0, 0, 0], [0, 0, 1.0]])

    @jax.jit
    def at(distance):
        positions = jnp.concatenate([ends, ends + jnp.stack([distance, 0.0, 0.0])[None]])
        system = make_system(np.zeros((4, 3)), np.array([8, 1, 1, 8]), total_charge=1.0)
        system = system._replace(positions=positions)
        result = found.equilibrium(params, system, graph)
        return jnp.sum(found.potential.energy(params, system, graph)), result.charges

    far = make_system(np.concatenate([ends, ends + np.array([1e3, 0, 0])]), [8, 1, 1, 8])
    graph = host_graph(far, found.potential.cutoff)
    (near, charges), (further, _) = at(1.0e3), at(2.0e3)
    first, second = float(charges[:2].sum()), float(charges[2:].sum())
    expected = COULOMB_CONSTANT * first * second * (1 / 1e3 - 1 / 2e3)
    if name == "painn":  # stationary, so the change of charges is of second order
        np.testing.assert_allclose(near - further, expected, rtol=3e-2)
    assert abs(float(near - further)) < 1e-2
    assert abs(first + second - 1.0) < 1e-12


def test_padding_and_batches_of_molecules_of_different_size():
    found = model("painn", solver=SolverConfig(method="iterative", tolerance=1e-13))
    params = started(found)
    molecules = [
        random_system(seed, n_atoms=n, pbc=False)._replace(total_charge=jnp.asarray(q))
        for seed, n, q in ((0, 5, 1.0), (1, 8, -1.0), (2, 3, 0.0))
    ]
    graphs = [host_graph(one, found.potential.cutoff) for one in molecules]
    n_edges = max(one.n_edges for one in graphs) + 2
    padded = [pad_system(one, 9) for one in molecules]
    edges = [pad_graph(one, n_edges, n_atoms=9) for one in graphs]
    batch, lists = (jax.tree.map(lambda *x: jnp.stack(x), *many) for many in (padded, edges))

    def both(system, graph):
        forces = evaluate(found.potential.energy, params, system, graph).forces
        return (
            found.potential.energy(params, system, graph),
            forces,
            found.potential.charges(params, system, graph),
        )

    many = jax.jit(jax.vmap(both))(batch, lists)
    np.testing.assert_allclose(many[2].sum(axis=1), [1.0, -1.0, 0.0], atol=1e-12)
    for k, (system, graph) in enumerate(zip(molecules, graphs, strict=True)):
        n = system.n_atoms
        for whole, single in zip(many, jax.jit(both)(system, graph), strict=True):
            np.testing.assert_allclose(whole[k, :n], single, atol=1e-9)
            np.testing.assert_array_equal(whole[k, n:], 0.0)


@pytest.mark.parametrize(
    "name", ["painn", pytest.param("fourth_generation", marks=pytest.mark.slow)]
)
def test_parameters_of_forces_and_charges_have_right_gradients(name):
    """What training differentiates, through the solution, against differences."""
    found = model(name)
    params = started(found)
    graph = host_graph(CLUSTER, found.potential.cutoff)

    @jax.jit
    def loss(params):
        forces = evaluate(found.potential.energy, params, CLUSTER, graph).forces
        charges = found.potential.charges(params, CLUSTER, graph)
        return jnp.sum(forces**2) + 10.0 * jnp.sum(charges**2)

    gradient = jax.jit(jax.grad(loss))(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        size = 1e-5

        def moved(step, way=way):
            return loss(jax.tree.map(lambda p, d: p + step * d, params, way))

        expected = (moved(size) - moved(-size)) / (2.0 * size)
        parts = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, way)
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), expected, rtol=1e-5)


def test_dynamics_of_a_charged_cluster_conserve_energy():
    """Velocity Verlet with charges by iteration: half the timestep, a quarter of the error."""
    found = model("painn", solver=SolverConfig(method="iterative"))
    params = started(found)
    system = random_system(4, n_atoms=5, pbc=False)._replace(total_charge=jnp.asarray(1.0))
    graph = host_graph(system, 40.0)  # all pairs, wherever atoms go
    masses = system.masses[:, None]

    def forces(positions):
        moved = system._replace(positions=positions)
        return evaluate(found.potential.energy, params, moved, graph)

    @jax.jit
    def largest_error(timestep):
        def step(state, _):
            positions, momenta, now = state
            momenta = momenta + 0.5 * timestep * now.forces
            positions = positions + timestep * momenta / masses
            now = forces(positions)
            momenta = momenta + 0.5 * timestep * now.forces
            energy = now.energy + 0.5 * jnp.sum(momenta**2 / masses)
            return (positions, momenta, now), energy

        start = forces(system.positions)
        state = (system.positions, jnp.zeros_like(system.positions), start)
        _, energies = jax.lax.scan(step, state, length=80)
        return jnp.max(jnp.abs(energies - start.energy))

    coarse, fine = (float(largest_error(dt)) for dt in (0.04, 0.02))  # 0.4 and 0.2 fs
    assert fine < 1e-3
    assert coarse / fine > 3.0


@pytest.mark.parametrize("name", MODELS)
def test_model_files_and_settings_round_trip(name, tmp_path):
    found = model(name)
    params = started(found)
    settings = json.loads(json.dumps(found.potential.config))
    architecture = found.potential.architecture
    assert build_potential(architecture, settings).config == found.potential.config
    save_model(tmp_path / "model", found.potential, params)
    again, stored = load_model(tmp_path / "model")
    graph = host_graph(CLUSTER, again.cutoff)
    if name in ("painn", "fourth_generation"):
        expected = jax.jit(found.potential.energy)(params, CLUSTER, graph)
        np.testing.assert_array_equal(jax.jit(again.energy)(stored, CLUSTER, graph), expected)
        assert again.charges is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": 2}, "`after` must be less than the 2 layers"),
        ({"hardness": (1.0, 2.0, 3.0)}, "`hardness` has 3 values for the 2 species"),
        ({"widths": 0.0}, "`widths` must be positive"),
        ({"embedding_widths": (0,)}, "`embedding_widths` must be positive"),
        ({"network": {"architecture": "morse", "config": {}}}, "architecture"),
    ],
)
def test_bad_settings_are_refused(change, message):
    config = {**model("painn").potential.config, **change}
    with pytest.raises(ConfigError, match=message):
        build_potential("celli", config)


def test_one_layer_leaves_no_room():
    network = {"species": [1, 8], "cutoff": 4.0, "n_layers": 1}
    config = {"network": {"architecture": "painn", "config": network}, "plan": {"method": "direct"}}
    assert layered("painn", network).n_layers == 1
    with pytest.raises(ConfigError, match="needs two layers"):
        build_potential("celli", config)
