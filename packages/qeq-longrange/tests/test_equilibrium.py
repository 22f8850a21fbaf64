"""Iterative equilibration, constraints on fragments, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qeq_systems import ewald_plan, graph_for, random_ions

from mosaicmd.kernel.graphs import pad_graph
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.testing import check_forces, check_stress
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange import (
    ChargeEquilibrationConfig,
    DirectPlan,
    Fragments,
    SolverConfig,
    charge_equilibration,
    equilibrate_charges,
    equilibrate_charges_iteratively,
    equilibrium_of_gaussians,
    plan_coulomb,
    require_equilibrium,
)

CELL = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [-2.0, 2.0, 8.0]])
PERIODIC = ewald_plan(CELL, 0.55, reach=5.0)
ITERATIVE = SolverConfig(method="iterative", tolerance=1e-13)
SETTINGS = {
    "species": (1, 8),
    "electronegativity": (4.5, 8.7),
    "hardness": (6.0, 9.0),
    "widths": (0.5, 0.7),
}


def ions(n_atoms=12, seed=7, **settings):
    bulk = random_ions(CELL, n_atoms, seed=seed)
    species = np.random.default_rng(seed).permutation(np.resize([1, 8, 1], n_atoms))
    return make_system(bulk.positions, species, cell=bulk.cell, **settings)


def model(plan, **change):
    return charge_equilibration(ChargeEquilibrationConfig(plan=plan, **{**SETTINGS, **change}))


def random_matrix(n=9, seed=1):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    return root @ root.T + 2.0 * np.eye(n), rng.normal(size=n)


def bordered(matrix, chi, labels, totals):
    """The linear system with one multiplier per fragment: charges, and the multipliers."""
    n, m = len(chi), len(totals)
    border = np.equal.outer(labels, np.arange(m)).astype(float)
    whole = np.block([[matrix, border], [border.T, np.zeros((m, m))]])
    found = np.linalg.solve(whole, np.concatenate([-chi, totals]))
    return found[:n], -found[n:]


@pytest.mark.parametrize("labels", [None, [0, 2, 1, 1, 0, 2, 2, 0, 1]])
def test_both_solvers_give_the_solution_of_the_bordered_system(labels):
    matrix, chi = random_matrix()
    totals = 0.7 if labels is None else np.array([0.5, -1.0, 2.0])
    expected = bordered(matrix, chi, labels or [0] * 9, np.atleast_1d(totals))
    labels = None if labels is None else jnp.asarray(labels)
    mask = jnp.ones(9, bool)
    for found in (
        equilibrate_charges(jnp.asarray(matrix), chi, totals, mask, fragments=labels),
        equilibrate_charges_iteratively(
            lambda q: jnp.asarray(matrix) @ q,
            jnp.diagonal(jnp.asarray(matrix)),
            chi,
            totals,
            mask,
            fragments=labels,
            tolerance=1e-13,
        ),
    ):
        np.testing.assert_allclose(found.charges, expected[0], rtol=1e-9)
        np.testing.assert_allclose(np.atleast_1d(found.chemical_potential), expected[1], rtol=1e-9)
        assert bool(found.stable)
        assert float(found.residual) < 1e-10
        require_equilibrium(found)


def test_two_charges_by_the_closed_form_without_iterations_to_spare():
    """One allowed change: conjugate gradients end after one step, whatever the matrix."""
    matrix, chi = jnp.array([[10.0, 7.2], [7.2, 14.0]]), jnp.array([5.0, 3.0])
    found = equilibrate_charges_iteratively(
        lambda q: matrix @ q, jnp.diagonal(matrix), chi, 0.0, jnp.ones(2, bool), max_iterations=1
    )
    np.testing.assert_allclose(found.charges, [-2.0 / 9.6, 2.0 / 9.6], rtol=1e-14)


def test_what_is_not_found_is_not_a_number_and_the_remedy_is_said():
    matrix, chi = random_matrix()
    mask = jnp.ones(9, bool)
    stalled = equilibrate_charges_iteratively(
        lambda q: jnp.asarray(matrix) @ q, jnp.ones(9), chi, 0.0, mask, max_iterations=2
    )
    concave = equilibrate_charges_iteratively(lambda q: -3.0 * q, jnp.ones(9), chi, 0.0, mask)
    dense = equilibrate_charges(-3.0 * jnp.eye(9), chi, 0.0, mask)
    for found in (stalled, concave, dense):
        assert not bool(found.stable)
        assert np.isnan(np.asarray(found.charges)).any()
        with pytest.raises(ValueError, match="Raise `hardness` or `widths`"):
            require_equilibrium(found)
    both = jax.tree.map(
        lambda a, b: jnp.stack([a, b]), equilibrate_charges(jnp.eye(9), chi, 0.0, mask), dense
    )
    with pytest.raises(ValueError, match=r"of structures \[1\]"):
        require_equilibrium(both)


@pytest.mark.parametrize("kind", [pytest.param("ewald", marks=pytest.mark.slow), "pme", "direct"])
def test_iterative_potential_is_the_dense_one(kind):
    """Energies, charges, forces and stress, with padding; charges are conserved to 1e-12."""
    system = ions(total_charge=-2.0)
    plan = {"ewald": PERIODIC, "direct": DirectPlan()}.get(kind)
    if kind == "direct":
        system = make_system(np.asarray(system.positions), system.species, total_charge=-2.0)
    if kind == "pme":
        plan = plan_coulomb(system, accuracy=1e-4, method="pme", widths=jnp.full(12, 0.7))
    graph = None if plan.cutoff is None else graph_for(system, plan)
    results = []
    for solver in (SolverConfig(), ITERATIVE):
        found = model(plan, solver=solver)
        params = found.potential.init(jax.random.key(0))
        padded = pad_system(system, 15)
        edges = None if graph is None else pad_graph(graph, graph.n_edges + 7, n_atoms=15)
        charges = jax.jit(found.equilibrium)(params, padded, edges).charges
        assert abs(float(jnp.sum(charges)) + 2.0) < 1e-12
        np.testing.assert_array_equal(charges[12:], 0.0)
        of = jax.jit(
            lambda p, s, e, f=found: evaluate(f.potential.energy, p, s, e, stress=kind != "direct")
        )
        results.append((charges, of(params, padded, edges)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-9), *results)


@pytest.mark.parametrize(
    "solver", [pytest.param(SolverConfig(), marks=pytest.mark.slow), ITERATIVE]
)
def test_forces_and_stress_are_differences_through_the_solution(solver):
    """Also with fragments of given charges, three of them."""
    fragments = {"fragments": ((0, 3, 5), (1, 2)), "fragment_charges": (1.0, -2.0)}
    potential = model(PERIODIC, solver=solver, **fragments).potential
    params = potential.init(jax.random.key(0))
    system = ions(total_charge=1.0)
    check_forces(potential, params, system)
    check_stress(potential, params, system)
    charges = jax.jit(potential.charges)(params, system, graph_for(system, PERIODIC))
    for atoms, charge in (([0, 3, 5], 1.0), ([1, 2], -2.0), ([4, *range(6, 12)], 2.0)):
        np.testing.assert_allclose(charges[jnp.asarray(atoms)].sum(), charge, atol=1e-12)


@pytest.mark.parametrize("solver", [SolverConfig(), ITERATIVE])
def test_derivatives_of_forces_and_of_charges_pass_through_the_solution(solver):
    """What training on forces and on charges needs: differences in parameters and net charge."""
    system = make_system(
        [[0.0, 0, 0], [1.0, 0, 0.2], [0, 1.3, 0], [0.5, 0.4, 1.8]],
        np.array([8, 1, 1, 8]),
        total_charge=0.5,
    )
    found = model(DirectPlan(), solver=solver)
    base = found.potential.init(jax.random.key(0))

    def of(x):
        params = {
            "electronegativity": base["electronegativity"].at[0].add(x[0]),
            "hardness": base["hardness"].at[1].add(x[1]),
            "widths": base["widths"].at[0].add(x[2]),
        }
        moved = system._replace(total_charge=system.total_charge + x[3])
        result = evaluate(found.potential.energy, params, moved, None)
        charges = found.potential.charges(params, moved, None)
        return jnp.stack([result.energy, jnp.sum(result.forces[0] ** 2), jnp.sum(charges**2)])

    slope = jax.jit(jax.jacrev(of))(jnp.zeros(4))
    of = jax.jit(of)
    steps = 1e-5 * jnp.eye(4)
    expected = jnp.stack([(of(d) - of(-d)) / 2e-5 for d in steps], axis=1)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-7)
    level = found.equilibrium(base, system, None).chemical_potential
    np.testing.assert_allclose(slope[0, 3], level, rtol=1e-9)  # dE/dQ


def test_forces_take_no_second_solution():
    """The envelope theorem: a derivative of the energy adds no loop, one of charges adds one."""
    found = model(DirectPlan(), solver=ITERATIVE)
    params = found.potential.init(jax.random.key(0))
    system = make_system([[0.0, 0, 0], [1.0, 0, 0.2], [0, 1.3, 0]], np.array([8, 1, 1]))

    def energy(positions):
        return jnp.sum(found.potential.energy(params, system._replace(positions=positions), None))

    def charges(positions):
        moved = system._replace(positions=positions)
        return jnp.sum(found.potential.charges(params, moved, None) ** 2)

    def loops(function):
        return jax.jit(function).lower(system.positions).compile().as_text().count(" while(")

    forward = loops(energy)
    assert loops(jax.grad(energy)) == forward
    assert loops(jax.grad(charges)) == forward + 1


def test_batches_of_padded_structures_are_the_single_ones():
    found = model(PERIODIC, solver=ITERATIVE)
    params = found.potential.init(jax.random.key(0))
    systems = [ions(n, seed=n, total_charge=q) for n, q in ((9, 1.0), (12, 0.0), (6, -1.0))]
    graphs = [graph_for(one, PERIODIC) for one in systems]
    n_edges = max(one.n_edges for one in graphs) + 1
    padded = [pad_system(one, 13) for one in systems]
    edges = [pad_graph(one, n_edges, n_atoms=13) for one in graphs]
    batch, lists = (jax.tree.map(lambda *x: jnp.stack(x), *many) for many in (padded, edges))
    many = jax.jit(jax.vmap(found.equilibrium, in_axes=(None, 0, 0)))(params, batch, lists)
    np.testing.assert_allclose(many.charges.sum(axis=1), [1.0, 0.0, -1.0], atol=1e-12)
    for k, (system, graph) in enumerate(zip(systems, graphs, strict=True)):
        alone = jax.jit(found.equilibrium)(params, system, graph)
        np.testing.assert_allclose(many.charges[k, : system.n_atoms], alone.charges, atol=1e-10)


def test_a_soft_crystal_screens_a_wave_as_the_lattice_sum_says():
    """Linear response: ``q_k = -chi_k / (J + rho sum_G 4 pi k exp(-sigma² |k+G|²) / |k+G|²)``.

    For long waves that is Thomas-Fermi screening: the sum grows as ``1 / k²``, and the charge
    that a soft crystal (``J`` small) holds against a wave of potential vanishes as ``k²``.
    """
    spacing, width, hardness, repeats = 2.5, 0.8, 0.5, 8
    cell = spacing * np.diag([float(repeats), 1.0, 1.0])
    x = spacing * np.arange(repeats)
    positions = np.stack([x, 0 * x, 0 * x], axis=1)
    system = make_system(positions, 11, cell=cell)
    plan = ewald_plan(cell, 0.9, reach=6.0)
    graph = graph_for(system, plan)
    n = np.arange(-40, 41)
    G = 2 * np.pi / spacing * np.stack(np.meshgrid(n, n[34:47], n[34:47], indexing="ij"), axis=-1)
    for solver in (SolverConfig(), ITERATIVE):
        responses = []

        @jax.jit
        def solve(chi, solver=solver):
            return equilibrium_of_gaussians(
                system,
                graph,
                plan,
                electronegativity=chi,
                hardness=jnp.full(repeats, hardness),
                widths=jnp.full(repeats, width),
                solver=solver,
            )

        for wave in (1, 2, 4):
            k = 2 * np.pi * wave / (spacing * repeats)
            squares = np.sum((G + np.array([k, 0.0, 0.0])) ** 2, axis=-1)
            stiff = 4 * np.pi * COULOMB_CONSTANT * np.sum(np.exp(-(width**2) * squares) / squares)
            chi = 0.3 * np.cos(k * x)
            found = solve(jnp.asarray(chi))
            responses.append(1.0 / (hardness + stiff / spacing**3))
            np.testing.assert_allclose(found.charges, -chi * responses[-1], atol=1e-9)
        longest = (2 * np.pi / (spacing * repeats)) ** 2
        screened = longest * spacing**3 / (4 * np.pi * COULOMB_CONSTANT)
        np.testing.assert_allclose(responses[0], screened, rtol=0.15)


def test_fragments_far_apart_are_those_alone_and_their_point_charges():
    """And without the constraint a charge is shared at any distance, which is the known fault.

    Charged: ``E = E_1(Q_1) + E_2(Q_2) + k Q_1 Q_2 / R``. Neutral: no interaction is left. Without
    constraint: ``q_1 -> (chi_2 - chi_1) / (J_11 + J_22)`` of two atoms.
    """
    water = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    species, distance = np.array([8, 1, 1]), 3.0e4
    far = np.concatenate([water, water + np.array([0.0, 0.0, distance])])
    for first, second in ((1.0, -1.0), (0.0, 0.0), (2.0, 1.0)):
        alone = 0.0
        for charge in (first, second):
            one = model(DirectPlan())
            system = make_system(water, species, total_charge=charge)
            params = one.potential.init(jax.random.key(0))
            alone += float(jnp.sum(one.potential.energy(params, system, None)))
        pair = model(DirectPlan(), fragments=((0, 1, 2),), fragment_charges=(first,))
        system = make_system(far, np.tile(species, 2), total_charge=first + second)
        energy = float(jnp.sum(pair.potential.energy(params, system, None)))
        expected = alone + COULOMB_CONSTANT * first * second / distance
        np.testing.assert_allclose(energy, expected, rtol=0.0, atol=1e-9)
    atoms = make_system([[0.0, 0.0, 0.0], [0.0, 0.0, 1e7]], np.array([1, 8]))
    hydrogen, oxygen = (
        hardness + COULOMB_CONSTANT / (np.sqrt(np.pi) * width)
        for hardness, width in ((6.0, 0.5), (9.0, 0.7))
    )
    shared = model(DirectPlan()).equilibrium(params, atoms, None).charges
    np.testing.assert_allclose(shared[0], (8.7 - 4.5) / (hydrogen + oxygen), rtol=1e-6)


def test_labels_of_fragments_may_be_arrays():
    """Every molecule of a box neutral on its own, by labels that are data and not settings."""
    system = ions()
    fragments = Fragments(jnp.repeat(jnp.arange(4), 3), jnp.zeros(4))
    found = equilibrium_of_gaussians(
        system,
        graph_for(system, PERIODIC),
        PERIODIC,
        electronegativity=jnp.where(system.species == 8, 8.7, 4.5),
        hardness=jnp.full(12, 7.0),
        widths=jnp.full(12, 0.6),
        solver=ITERATIVE,
        fragments=fragments,
    )
    np.testing.assert_allclose(found.charges.reshape(4, 3).sum(axis=1), 0.0, atol=1e-13)
    assert found.chemical_potential.shape == (4,)
    assert float(jnp.ptp(found.chemical_potential)) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fragments": ((0,),)}, "`fragment_charges` has 0 values for 1"),
        ({"fragments": ((0,), (0, 1)), "fragment_charges": (0.0, 1.0)}, "disjoint"),
        ({"fragments": ((),), "fragment_charges": (0.0,)}, "none of them empty"),
        ({"solver": {"tolerance": 1e-3}}, "`tolerance` has no meaning"),
    ],
)
def test_bad_settings_are_refused(change, message):
    config = {"plan": {"method": "direct"}, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        build_potential("charge_equilibration", config)


@pytest.mark.parametrize("atoms", [(0, 5), (0, 1)])
def test_fragments_must_fit_the_system(atoms):
    potential = model(DirectPlan(), fragments=(atoms,), fragment_charges=(0.0,)).potential
    system = make_system([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]], np.array([1, 8]))
    with pytest.raises(ValueError, match="leave at least one of its atoms"):
        potential.energy(potential.init(jax.random.key(0)), system, None)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="one number for each of the `fragments`"):
        equilibrate_charges(
            jnp.eye(3), jnp.zeros(3), 0.0, jnp.ones(3, bool), fragments=jnp.zeros(3, int)
        )


@pytest.mark.slow
def test_ten_thousand_atoms_by_particle_mesh():
    """Charges conserved, and a slope of the energy that is even to 1e-8 eV/e."""
    rng = np.random.default_rng(0)
    edge = 2.6
    corners = np.stack(np.meshgrid(*[np.arange(22)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    corners = corners[:10_000]
    positions = edge * corners + rng.uniform(-0.3, 0.3, (10_000, 3))
    species = rng.choice([1, 8], 10_000, p=[2 / 3, 1 / 3])
    system = make_system(positions, species, cell=edge * 22.0, total_charge=3.0)
    widths = jnp.where(system.species == 8, 0.7, 0.5)
    plan = plan_coulomb(system, accuracy=1e-3, charges=np.full(10_000, 0.5), widths=widths)
    found = model(plan, solver=SolverConfig(method="iterative"))
    params = found.potential.init(jax.random.key(0))
    result = jax.jit(found.equilibrium)(params, system, graph_for(system, plan))
    require_equilibrium(result)
    assert abs(float(jnp.sum(result.charges)) - 3.0) < 1e-11
    assert float(result.residual) < 1e-8
