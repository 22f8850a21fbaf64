import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.graphs import edge_vectors, host_graph
from mosaicmd.kernel.neighbor_plan import count_longest_row, frames_of
from mosaicmd.kernel.neighbors import NeighborList, grow, neighbor_list
from mosaicmd.kernel.systems import make_system, pad_system, stack_systems

build = jax.jit(NeighborList.build, static_argnums=0)
update = jax.jit(NeighborList.update, static_argnums=0)


def edges_within(graph, system, cutoff):
    """Edges as a set of (receiver, sender, shift)."""
    fields = (graph.receivers, graph.senders, graph.shifts, system.positions, system.cell)
    receivers, senders, shifts, positions, cell = map(np.asarray, fields)
    length = np.linalg.norm(positions[senders] - positions[receivers] + shifts @ cell, axis=1)
    keep = np.asarray(graph.mask) & (length < cutoff)
    columns = (receivers, senders, *shifts.T)
    return set(zip(*(column[keep].tolist() for column in columns), strict=True))


def host_edges(system, cutoff):
    return edges_within(host_graph(system, 1.001 * cutoff), system, cutoff)


def assert_consistent(graph):
    """Rows, masked edges and opposite edges are what `Graph` promises."""
    fields = (graph.receivers, graph.senders, graph.shifts, graph.mask, graph.reverse)
    receivers, senders, shifts, mask, reverse = map(np.asarray, fields)
    index = np.arange(len(mask))
    np.testing.assert_array_equal(receivers, index // graph.row_length)
    np.testing.assert_array_equal(reverse[reverse], index)
    np.testing.assert_array_equal(mask[reverse], mask)
    np.testing.assert_array_equal(receivers[reverse], senders)
    np.testing.assert_array_equal(shifts[reverse], -shifts)
    np.testing.assert_array_equal(reverse[~mask], index[~mask])
    np.testing.assert_array_equal(senders[~mask], receivers[~mask])
    assert not shifts[~mask].any()


def uniform_system(n_atoms, density=0.0334, seed=0, **options):
    """Atoms scattered about the points of a lattice, at a number density in 1/Å³."""
    rng = np.random.default_rng(seed)
    n = int(np.ceil(n_atoms ** (1 / 3)))
    edge = (n_atoms / density) ** (1 / 3)
    points = np.argwhere(np.ones((n, n, n)))[rng.permutation(n**3)[:n_atoms]]
    positions = (points + rng.uniform(0.2, 0.8, points.shape)) * edge / n
    return make_system(positions, 1, cell=edge, **options)


@functools.cache
def two_systems():
    """Two systems of 80 atoms and one plan for either, shared so that they compile once."""
    systems = [uniform_system(80, seed=seed) for seed in range(2)]
    return systems, neighbor_list(stack_systems(systems), 4.0, skin=1.0)


# Every kind of search, in every kind of box: what it is given, and how many heights of the cell
# the range may be per direction.
SEARCHES = {
    "pairs, periodic": ((1, 1, 1), (0, 0, 0), None, (0.5, 0.5, 0.5)),
    "pairs, images": ((1, 1, 1), (2, 1, 2), None, (2.0, 1.0, 2.0)),
    "pairs, open": ((0, 0, 0), (0, 0, 0), None, (3.0, 3.0, 3.0)),
    "pairs, mixed": ((0, 1, 1), (0, 2, 0), None, (3.0, 2.0, 0.5)),
    "cells, periodic": ((1, 1, 1), (0, 0, 0), (3, 2, 4), (1 / 3, 1 / 2, 1 / 4)),
    "cells, images": ((1, 1, 1), (1, 2, 2), (1, 1, 1), (1.0, 2.0, 2.0)),
    "cells, open": ((0, 0, 0), (0, 0, 0), (3, 2, 3), (1.0, 1.0, 1.0)),
    "cells, mixed": ((1, 0, 1), (0, 0, 2), (3, 2, 1), (1 / 3, 1.0, 2.0)),
}


def random_systems(pbc, heights, dtype, n_cases=10):
    """Atoms far outside skewed cells, some on faces and corners, and a range to search."""
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        cell = np.diag(rng.uniform(2.0, 8.0, 3))
        if seed % 3:
            cell = cell + rng.uniform(-0.8, 0.8, (3, 3)) * np.diag(cell)
        fractional = rng.uniform(-3.0, 4.0, (20, 3))
        if seed % 3 == 2:
            fractional = rng.integers(-12, 16, (20, 3)) / 4.0
        system = make_system(fractional @ cell, 1, cell=cell, pbc=np.array(pbc, bool), dtype=dtype)
        height = 1.0 / np.linalg.norm(np.linalg.inv(np.asarray(system.cell, float)), axis=0)
        limit = np.min(np.where(pbc, height * np.array(heights), np.max(height)))
        yield pad_system(system, 24), 0.995 * limit * rng.uniform(0.6, 1.0)


@pytest.mark.parametrize(
    ("search", "dtype"),
    [(search, "float64") for search in SEARCHES]
    + [(search, "float32") for search in SEARCHES if "mixed" in search],
)
def test_device_and_host_lists_agree_edge_by_edge(search, dtype):
    """Eighty skewed boxes, down to half the range, with atoms that were never wrapped."""
    pbc, images, grid, heights = SEARCHES[search]
    cases = list(random_systems(pbc, heights, dtype))
    rows = max(
        count_longest_row(frames_of(s.positions, s.cell, s.mask, s.pbc), 1.01 * radius)
        for s, radius in cases
    )
    # The range is part of the plan: scale the systems instead, and compile once.
    plan = NeighborList(
        cutoff=0.9,
        skin=0.1,
        row_length=rows,
        pbc=tuple(map(bool, pbc)),
        images=images,
        grid=grid,
        cell_capacity=None if grid is None else 20,
    )
    compiled = jax.jit(plan.build)
    for system, radius in cases:
        system = system._replace(positions=system.positions / radius, cell=system.cell / radius)
        graph = compiled(system).graph
        assert not graph.overflow
        assert_consistent(graph)
        assert edges_within(graph, system, plan.cutoff) == host_edges(system, plan.cutoff)
    assert compiled._cache_size() == 1


def test_primitive_fcc_cell_has_twelve_and_six_neighbors_all_of_them_itself():
    """One atom in a triclinic cell smaller than the cutoff: shells at a/sqrt(2) and a."""
    cell = 2.0 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    system = make_system(np.array([[0.3, -7.0, 11.0]]), 18, cell=cell)
    plan = neighbor_list(system, 4.2, skin=0.0)
    graph = build(plan, system).graph
    length = np.linalg.norm(np.asarray(edge_vectors(system, graph))[np.asarray(graph.mask)], axis=1)
    np.testing.assert_allclose(np.sort(length), [np.sqrt(8.0)] * 12 + [4.0] * 6)
    assert_consistent(graph)


def test_planned_lists_are_right_in_boxes_of_all_sizes():
    """`neighbor_list` chooses the search: from under one range to many cells."""
    kinds = set()
    for edge, n_atoms in [(3.1, 6), (6.5, 9), (14.0, 40), (55.0, 3000)]:
        rng = np.random.default_rng(n_atoms)
        cell = edge * np.array([[1.0, 0.0, 0.0], [0.55, 0.8, 0.0], [-0.4, 0.3, 0.9]])
        system = make_system(rng.uniform(-1.0, 2.0, (n_atoms, 3)) @ cell, 1, cell=cell)
        plan = neighbor_list(system, 4.0, skin=0.5)
        graph = build(plan, system).graph
        assert not graph.overflow
        assert_consistent(graph)
        assert edges_within(graph, system, 4.0) == host_edges(system, 4.0)
        kinds.add((plan.grid is None, max(plan.images)))
    assert kinds == {(True, 3), (True, 1), (True, 0), (False, 0)}


def test_molecule_without_a_cell():
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.5, 0.0, 0.0], [900.0, 0.0, 0.0]])
    system = make_system(positions, 6)
    graph = neighbor_list(system, 1.8, skin=0.0).build(system).graph
    pairs = {(i, j) for i, j, *_ in edges_within(graph, system, 1.8)}
    assert pairs == {(0, 1), (1, 0), (1, 2), (2, 1)}
    alone = make_system(np.zeros((1, 3)), 6)
    assert not neighbor_list(alone, 1.8).build(alone).graph.mask.any()


def test_edges_follow_a_fixed_order():
    """Two builds agree bit by bit, and so do builds in other programs."""
    system = uniform_system(300)
    plan = neighbor_list(system, 4.0, skin=0.4)
    first, second = build(plan, system), build(plan, system)
    batch = build(plan, stack_systems([system, system]))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), first, batch)


def test_masked_and_broken_atoms_have_no_neighbors():
    """Padding stands at the origin, amid real atoms; a NaN must not reach the others."""
    plan = neighbor_list(uniform_system(60), 4.0, skin=0.0, headroom=1.5)
    for grid in (None, (2, 2, 2)):
        plan = dataclasses.replace(plan, grid=grid, cell_capacity=None if grid is None else 30)
        system = pad_system(uniform_system(60), 70)
        broken = system._replace(positions=system.positions.at[7].set(jnp.nan))
        without = system._replace(mask=system.mask.at[7].set(False))
        neighbors = build(plan, broken)
        assert not neighbors.graph.overflow
        assert edges_within(neighbors.graph, without, 4.0) == host_edges(without, 4.0)
        assert set(np.asarray(neighbors.graph.receivers)[neighbors.graph.mask]) <= set(range(60))
        everything = system._replace(
            positions=jnp.full((70, 3), jnp.nan), cell=system.cell * jnp.nan
        )
        lost = build(plan, everything).graph
        assert not lost.mask.any()
        assert not lost.overflow
        assert not update(plan, neighbors, everything).graph.overflow


@pytest.mark.parametrize("grid", [None, (3, 3, 3)])
def test_overflow_is_flagged_exactly_when_a_row_is_too_short(grid):
    system = uniform_system(150, density=0.05)
    plan = neighbor_list(system, 4.0, skin=0.5)
    plan = dataclasses.replace(plan, grid=grid, cell_capacity=None if grid is None else 30)
    needed = int(build(plan, system).longest_row)
    for row_length in (needed - 1, needed):
        tight = dataclasses.replace(plan, row_length=row_length)
        neighbors = build(tight, system)
        assert bool(neighbors.graph.overflow) == (row_length < needed)
        assert int(neighbors.longest_row) == needed


def test_grow_makes_room_for_a_dense_cluster():
    """Atoms that gather in one place: first cells fill, then rows, and then all is listed."""
    dilute = uniform_system(3000, density=0.02)
    plan = neighbor_list(dilute, 3.0, skin=0.5)
    assert plan.grid is not None
    centre = 0.5 * jnp.diag(dilute.cell)[None, :]
    close = jnp.linalg.norm(dilute.positions - centre, axis=1, keepdims=True) < 14.0
    dense = dilute._replace(
        positions=jnp.where(close, centre + 0.45 * (dilute.positions - centre), dilute.positions)
    )
    plans = [plan]
    while (neighbors := build(plan, dense)).graph.overflow:
        plan = grow(plan, neighbors)
        plans.append(plan)
    assert 2 <= len(plans) <= 4
    assert edges_within(neighbors.graph, dense, 3.0) == host_edges(dense, 3.0)
    assert grow(plan, neighbors) == plan
    assert grow(plan, dense).row_length > plan.row_length


@pytest.mark.parametrize(
    ("n_atoms", "shrink"), [(60, 0.97), (60, 0.6), (2500, 0.97), (2500, 0.9), (2500, 0.3)]
)
def test_a_box_that_shrinks_overflows_when_it_outgrows_the_plan(n_atoms, shrink):
    """Fewer cells, or more images, come from `grow`; until then the flag is up."""
    start = uniform_system(n_atoms, density=0.02)
    plan = neighbor_list(start, 5.2, skin=0.5)
    small = start._replace(positions=start.positions * shrink, cell=start.cell * shrink)
    cutoff = min(5.2, 10.4 * shrink)
    plans = [plan]
    while (neighbors := build(plan, small)).graph.overflow:
        plan = grow(plan, neighbors)
        plans.append(plan)
    assert len(plans) == 1 if shrink > 0.95 else 2 <= len(plans) <= 4
    assert edges_within(neighbors.graph, small, cutoff) == host_edges(small, cutoff)
    assert_consistent(neighbors.graph)


def test_update_builds_when_half_the_skin_is_used_up():
    (system, _), plan = two_systems()
    first, n_compiled = build(plan, system), update._cache_size()
    for step, built in [(0.49, False), (0.51, True)]:
        moved = system._replace(positions=system.positions.at[3, 1].add(step))
        neighbors = update(plan, first, moved)
        np.testing.assert_array_equal(
            neighbors.positions, moved.positions if built else system.positions
        )
    padded = system._replace(mask=system.mask.at[3].set(False))
    far = padded._replace(positions=padded.positions.at[3, 1].add(50.0))
    np.testing.assert_array_equal(
        update(plan, build(plan, padded), far).positions, padded.positions, "padding does not count"
    )
    assert update._cache_size() <= n_compiled + 1


def test_update_never_misses_a_neighbor_while_atoms_and_cell_move():
    """A random walk in a breathing, shearing box against the exact list at every step."""
    rng = np.random.default_rng(5)
    cell = np.array([[12.0, 0.0, 0.0], [5.0, 11.0, 0.0], [-3.0, 2.0, 12.0]])
    system = make_system(rng.uniform(size=(120, 3)) @ cell, 1, cell=cell)
    plan = neighbor_list(system, 3.5, skin=0.8, headroom=1.6)
    compiled, neighbors = jax.jit(plan.update), build(plan, system)
    n_builds = 0
    for _ in range(60):
        deformation = np.eye(3) + rng.normal(0.0, 0.004, (3, 3))
        kick = rng.normal(0.0, 0.05, (120, 3))
        system = system._replace(
            positions=system.positions @ deformation + kick, cell=system.cell @ deformation
        )
        before, neighbors = neighbors, compiled(neighbors, system)
        n_builds += bool(jnp.any(before.positions != neighbors.positions))
        assert not neighbors.graph.overflow
        assert edges_within(neighbors.graph, system, 3.5) == host_edges(system, 3.5)
    assert 5 <= n_builds <= 40
    assert compiled._cache_size() == 1


def test_a_homogeneous_deformation_costs_only_what_it_shortens():
    """Positions that follow the cell have not moved; 0.5 % of 5 Å is less than the skin."""
    (system, _), plan = two_systems()
    first = build(plan, system)
    for stretch, built in [(1.005, False), (1.2, True)]:
        scaled = system._replace(positions=system.positions * stretch, cell=system.cell * stretch)
        changed = jnp.any(update(plan, first, scaled).positions != first.positions)
        assert bool(changed) == built


def test_overflow_stays_until_a_new_build():
    """The list of the first overflow is kept, so that `grow` learns what was needed."""
    (system, other), plan = two_systems()
    squeeze = 0.75 * jnp.ones((1, 1))
    dense = other._replace(positions=other.positions * squeeze, cell=other.cell * squeeze)
    neighbors = build(plan, stack_systems([dense, system]))
    np.testing.assert_array_equal(neighbors.graph.overflow, [True, False])
    later = update(plan, neighbors, stack_systems([system, dense]))
    np.testing.assert_array_equal(later.graph.overflow, [True, True])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), later, neighbors)
    np.testing.assert_array_equal(later.positions[1], dense.positions)
    last = update(plan, later, stack_systems([system, system]))
    jax.tree.map(np.testing.assert_array_equal, last, later)
    assert not build(plan, stack_systems([system, other])).graph.overflow.any()
    assert not build(grow(plan, last), stack_systems([dense, dense])).graph.overflow.any()


def test_replicas_are_updated_each_for_itself():
    """In a batch a replica gets the list it would have alone, whatever the others do."""
    systems, plan = two_systems()
    batch = stack_systems(systems)
    neighbors = build(plan, batch)
    moved = batch._replace(positions=batch.positions.at[1, 5].add(0.7).at[0].add(0.2))
    after = update(plan, neighbors, moved)
    changed = np.any(np.asarray(after.positions != neighbors.positions), axis=(1, 2))
    np.testing.assert_array_equal(changed, [False, True])
    for k, system in enumerate(systems):
        later = jax.tree.map(lambda leaf, k=k: leaf[k], moved)
        alone = update(plan, build(plan, system), later)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a, b[k]), alone, after)


def test_replicas_may_share_all_but_positions():
    (system, _), plan = two_systems()
    shared = system._replace(positions=jnp.stack([system.positions, system.positions + 0.4]))
    neighbors = build(plan, shared)
    whole = stack_systems([system, system._replace(positions=system.positions + 0.4)])
    jax.tree.map(np.testing.assert_array_equal, neighbors, build(plan, whole))
    jax.tree.map(np.testing.assert_array_equal, neighbors, update(plan, neighbors, shared))


@pytest.mark.parametrize("batched", [False, True])
def test_derivatives_pass_by_the_list(batched):
    """Reverse mode through steps that update the list: integers carry no derivative."""
    system = uniform_system(30)
    if batched:
        system = stack_systems([system, uniform_system(30, seed=1)])
    plan = neighbor_list(system, 3.0, skin=0.5)

    def energy(system, graph):
        square = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
        return jnp.sum(jnp.where(square < 9.0, (9.0 - square) ** 2, 0.0))

    def final(scale):
        def step(carry, _):
            system, neighbors = carry
            system = system._replace(positions=system.positions * scale)
            neighbors = plan.update(neighbors, system)
            of_all = jax.vmap(energy) if batched else energy
            return (system, neighbors), jnp.sum(of_all(system, neighbors.graph))

        start = system._replace(positions=system.positions * scale)
        return jnp.sum(jax.lax.scan(step, (start, plan.build(start)), length=3)[1])

    value_and_grad = jax.jit(jax.value_and_grad(final))
    numeric = (value_and_grad(1.0 + 1e-6)[0] - value_and_grad(1.0 - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(value_and_grad(1.0)[1], numeric, rtol=1e-6)


def test_twenty_thousand_atoms_take_memory_in_proportion_to_their_neighbors():
    """A cell list in a skewed box; all pairs would need 1.6 GB for the distances alone."""
    n_atoms = 20_000
    system = uniform_system(n_atoms, dtype=jnp.float32)
    skew = jnp.array([[1.0, 0.0, 0.0], [0.4, 1.0, 0.0], [0.3, -0.4, 1.0]], jnp.float32)
    system = system._replace(positions=system.positions @ skew, cell=system.cell @ skew)
    plan = neighbor_list(system, 5.0, skin=0.5)
    assert plan.grid is not None
    compiled = build.lower(plan, system).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 60 * n_atoms * plan.row_length
    neighbors = compiled(system)
    assert not neighbors.graph.overflow
    vectors = edge_vectors(system, neighbors.graph)
    n_edges = jnp.sum(neighbors.graph.mask & (jnp.sum(vectors**2, axis=1) < 25.0))
    host = host_graph(system, 5.0)
    assert abs(int(n_edges) - host.n_edges) <= 4  # float32 at the cutoff
    reverse = neighbors.graph.reverse
    np.testing.assert_array_equal(reverse[reverse], np.arange(len(reverse)))


def test_periodic_directions_must_be_those_of_the_plan():
    (system, _), plan = two_systems()
    slab = system._replace(pbc=jnp.array([True, True, False]))
    neighbors = build(plan, slab)
    assert neighbors.graph.overflow
    with pytest.raises(ValueError, match="pbc"):
        grow(grow(plan, neighbors), neighbors)
    assert not build(grow(plan, slab), slab).graph.overflow


def test_bad_input_is_named():
    system = uniform_system(20)
    for options, name in [
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"cutoff": 3.0, "skin": -0.1}, "skin"),
        ({"cutoff": 3.0, "headroom": 0.9}, "headroom"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}`"):
            neighbor_list(system, **options)
    broken = system._replace(positions=system.positions.at[4, 0].set(jnp.inf))
    with pytest.raises(ValueError, match="atom 4"):
        neighbor_list(broken, 3.0)
    with pytest.raises(ValueError, match="`cell`"):
        neighbor_list(system._replace(cell=system.cell * jnp.nan), 3.0)
    slab = system._replace(pbc=jnp.array([True, True, False]))
    with pytest.raises(ValueError, match="`pbc` differs"):
        neighbor_list(stack_systems([system, slab]), 3.0)
    with pytest.raises(ValueError, match="`headroom`"):
        grow(neighbor_list(system, 3.0), system, headroom=1.0)


def test_a_plan_can_be_hashed():
    system = uniform_system(20)
    plan = neighbor_list(system, 3.0)
    assert hash(plan) == hash(neighbor_list(system, 3.0))
    assert {plan: 1}[neighbor_list(system, 3.0)] == 1
