import dataclasses

import ase.build
import ase.neighborlist
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.graphs import (
    FAR,
    edge_vectors,
    edges_within,
    gather_receivers,
    gather_senders,
    host_graph,
    pad_graph,
    rows_within,
    sum_edges,
)
from mosaicmd.kernel.neighbors import NeighborList, neighbor_list
from mosaicmd.kernel.systems import from_ase, make_system, pad_system, stack_systems, strained

build = jax.jit(NeighborList.build, static_argnums=0)


def rattled_titanium(repeat=(2, 2, 1), seed=1):
    atoms = ase.build.bulk("Ti").repeat(repeat)
    atoms.rattle(0.1, seed=seed)
    return atoms


def with_all_kinds_of_graphs(system, cutoff):
    """One graph without `reverse`, one with it, one with rows, and their padded versions."""
    plain, reverse = host_graph(system, cutoff), host_graph(system, cutoff, reverse=True)
    rows = build(neighbor_list(system, cutoff, skin=0.3), system).graph
    return {
        "plain": plain,
        "reverse": reverse,
        "padded": pad_graph(plain, n_atoms=system.n_atoms),
        "padded reverse": pad_graph(reverse, n_atoms=system.n_atoms),
        "rows": rows,
        "rows without reverse": dataclasses.replace(rows, reverse=None),
    }


def pair_energy(system, graph, cutoff):
    """A smooth sum over edges, through every function that a model uses."""
    vectors = edge_vectors(system, graph)
    square = jnp.sum(vectors**2, axis=1) / cutoff**2
    weight = jnp.where(square < 1.0, (1.0 - jnp.minimum(square, 1.0)) ** 3, 0.0)
    first = sum_edges(weight, graph, system.n_atoms)
    mixed = gather_senders(first, graph) * gather_receivers(first, graph) * weight
    return jnp.sum(sum_edges(mixed, graph, system.n_atoms))


@pytest.mark.parametrize("pbc", [True, False, [True, True, False]])
def test_host_graph_and_vectors_are_those_of_ase(pbc):
    """ASE's neighbor list is an independent source of edges, shifts and vectors."""
    atoms = rattled_titanium()
    atoms.pbc = pbc
    system = from_ase(atoms)
    graph = host_graph(system, 5.5)
    columns = (graph.receivers, graph.senders, *np.asarray(graph.shifts).T)
    ours = np.stack([np.asarray(column) for column in columns], axis=1)
    i, j, shifts, vectors = ase.neighborlist.neighbor_list("ijSD", atoms, 5.5)
    theirs = np.column_stack([i, j, shifts])
    order = np.lexsort(theirs.T[::-1])
    np.testing.assert_array_equal(ours, theirs[order])
    np.testing.assert_allclose(edge_vectors(system, graph), vectors[order], atol=1e-12)


def test_edges_are_sorted_by_receiver_and_reverse_runs_the_other_way():
    system = from_ase(rattled_titanium((1, 1, 1)))
    graph = host_graph(system, 6.0, reverse=True)
    vectors = edge_vectors(system, graph)
    assert (np.diff(graph.receivers) >= 0).all()
    np.testing.assert_array_equal(graph.senders[graph.reverse], graph.receivers)
    np.testing.assert_allclose(vectors[graph.reverse], -vectors, atol=1e-12)
    np.testing.assert_array_equal(graph.reverse[graph.reverse], np.arange(graph.n_edges))


def test_masked_atoms_have_no_edges_on_the_host():
    system = from_ase(rattled_titanium())
    padded = pad_system(system, system.n_atoms + 5)
    moved = padded._replace(mask=jnp.roll(padded.mask, 2))
    assert host_graph(padded, 5.0).n_edges == host_graph(system, 5.0).n_edges
    edges = host_graph(moved, 5.0)
    assert set(np.asarray(edges.senders)) <= set(np.flatnonzero(moved.mask))


def test_padding_edges_are_far_constant_and_at_the_end():
    system = from_ase(rattled_titanium())
    graph = host_graph(system, 4.0, reverse=True)
    padded = pad_graph(graph, graph.n_edges + 7, n_atoms=system.n_atoms)
    assert padded.n_edges == graph.n_edges + 7
    assert (np.diff(padded.receivers) >= 0).all()
    vectors, pull_back = jax.vjp(
        lambda r: edge_vectors(system._replace(positions=r), padded), system.positions
    )
    np.testing.assert_array_equal(vectors[-7:], np.tile([FAR, 0.0, 0.0], (7, 1)))
    (gradient,) = pull_back(jnp.zeros_like(vectors).at[-7:].set(1.0))
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(padded.reverse[-7:], np.arange(graph.n_edges, padded.n_edges))
    with pytest.raises(ValueError, match="cannot pad"):
        pad_graph(graph, graph.n_edges - 1, n_atoms=system.n_atoms)
    rows = build(neighbor_list(system, 4.0), system).graph
    with pytest.raises(ValueError, match="rows"):
        pad_graph(rows, n_atoms=system.n_atoms)


def test_senders_and_receivers_are_gathered_and_summed_by_definition():
    """Against plain indexing and `np.add.at`, for one and for several values per atom."""
    system = from_ase(rattled_titanium())
    values = jnp.asarray(np.random.default_rng(0).normal(size=(system.n_atoms, 2, 3)))
    for name, graph in with_all_kinds_of_graphs(system, 4.5).items():
        np.testing.assert_array_equal(gather_senders(values, graph), values[graph.senders], name)
        np.testing.assert_array_equal(gather_receivers(values, graph), values[graph.receivers])
        per_edge = gather_senders(values, graph) * graph.mask[:, None, None]
        expected = np.zeros(values.shape)
        np.add.at(expected, np.asarray(graph.receivers), np.asarray(per_edge))
        np.testing.assert_allclose(sum_edges(per_edge, graph, system.n_atoms), expected, atol=1e-13)


def test_all_graphs_give_the_same_energy_forces_and_second_derivatives():
    """`reverse` and rows change how derivatives are computed, not what they are."""
    system = from_ase(rattled_titanium())
    direction = jnp.asarray(np.random.default_rng(2).normal(size=system.positions.shape))
    results = {}
    for name, graph in with_all_kinds_of_graphs(system, 4.5).items():

        def energy(positions, graph=graph):
            return pair_energy(system._replace(positions=positions), graph, 4.5)

        def curvature(positions, energy=energy):
            return jax.grad(lambda r: jnp.vdot(jax.grad(energy)(r), direction))(positions)

        results[name] = jax.jit(lambda r: (energy(r), jax.grad(energy)(r), curvature(r)))(
            system.positions
        )
    assert np.abs(results["plain"][1]).max() > 0.1
    for result in results.values():
        for ours, plain in zip(result, results["plain"], strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "padded reverse", "rows"])
def test_first_and_second_derivatives_are_those_of_finite_differences(kind):
    """Central differences of the energy, and of the force; h = 1e-4 Å leaves 1e-7."""
    system = from_ase(rattled_titanium())
    graph = with_all_kinds_of_graphs(system, 4.5)[kind]
    direction = jnp.asarray(np.random.default_rng(3).normal(size=system.positions.shape))

    @jax.jit
    def along(step):
        positions = system.positions + step * direction
        return pair_energy(system._replace(positions=positions), graph, 4.5)

    slope = jax.jit(jax.grad(along))
    h = 1e-4
    np.testing.assert_allclose(slope(0.0), (along(h) - along(-h)) / (2 * h), rtol=1e-6)
    curvature = jax.jit(jax.grad(jax.grad(along)))(0.0)
    np.testing.assert_allclose(curvature, (slope(h) - slope(-h)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "reverse", "rows"])
def test_strain_derivative_is_that_of_finite_differences(kind):
    """Vectors follow the cell through their shifts, in a box smaller than the cutoff."""
    system = from_ase(rattled_titanium((1, 1, 1)))
    graph = with_all_kinds_of_graphs(system, 4.5)[kind]

    @jax.jit
    def energy(strain):
        return pair_energy(strained(system, strain), graph, 4.5)

    derivative, h = jax.grad(energy)(jnp.zeros((3, 3))), 1e-5
    for k, x in [(0, 0), (1, 2), (2, 0)]:
        step = jnp.zeros((3, 3)).at[k, x].set(h)
        numeric = (energy(step) - energy(-step)) / (2 * h)
        np.testing.assert_allclose(derivative[k, x], numeric, rtol=1e-6, atol=1e-8)


def test_batches_of_graphs_are_mapped():
    """`vmap` over systems and their graphs equals a loop, derivatives included."""
    systems = [from_ase(rattled_titanium(seed=seed)) for seed in (1, 2, 3)]
    batch = stack_systems(systems)
    plan = neighbor_list(batch, 4.5, skin=0.2)
    value_and_grad = jax.value_and_grad(
        lambda r, system, graph: pair_energy(system._replace(positions=r), graph, 4.5)
    )
    energies, gradients = jax.jit(jax.vmap(value_and_grad))(
        batch.positions, batch, build(plan, batch).graph
    )
    for k, system in enumerate(systems):
        energy, gradient = value_and_grad(system.positions, system, host_graph(system, 4.5))
        np.testing.assert_allclose(energies[k], energy, rtol=1e-12)
        np.testing.assert_allclose(gradients[k], gradient, atol=1e-11)


def test_derivatives_with_padding_are_finite():
    """Masked atoms all stand at the origin: nothing may divide by their distance."""
    system = pad_system(make_system(np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]]), 6), 5)
    graph = build(neighbor_list(system, 2.0, headroom=3.0), system).graph

    def lengths(positions):
        vectors = edge_vectors(system._replace(positions=positions), graph)
        return jnp.sum(jnp.where(graph.mask, jnp.linalg.norm(vectors, axis=1), 0.0))

    gradient = jax.grad(lengths)(system.positions)
    np.testing.assert_allclose(gradient[:2], [[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(gradient[2:], 0.0)


@pytest.mark.parametrize("kind", ["plain", "reverse", "padded reverse", "rows"])
@pytest.mark.parametrize("shortened", [rows_within, edges_within])
def test_edges_within_a_cutoff_are_the_graph_of_that_cutoff(kind, shortened):
    """Edges, energies and forces of 4.2 Å from lists of 5.5 Å, with as few slots as hold them."""
    system = from_ase(rattled_titanium())
    graph = with_all_kinds_of_graphs(system, 5.5)[kind]
    near = host_graph(system, 4.2)
    in_rows = shortened is rows_within
    most = int(np.bincount(np.asarray(near.receivers)).max()) if in_rows else near.n_edges
    found, fits = jax.jit(shortened, static_argnums=(2, 3))(system, graph, 4.2, most)
    assert fits
    assert found.row_length == (most if in_rows else None)
    mask = np.asarray(found.mask)
    assert edges_of(found, mask) == edges_of(near, np.ones(near.n_edges, bool))
    if in_rows:
        assert (np.asarray(found.receivers) == np.repeat(np.arange(system.n_atoms), most)).all()
    else:
        np.testing.assert_array_equal(found.receivers, near.receivers)
    assert (found.reverse is None) == (graph.reverse is None)
    if found.reverse is not None:
        back = np.asarray(found.reverse)
        np.testing.assert_array_equal(back[back], np.arange(found.n_edges))
        np.testing.assert_array_equal(found.senders[back], found.receivers)
        np.testing.assert_array_equal(found.shifts[back], -found.shifts)

    def energy(positions, graph):
        return pair_energy(system._replace(positions=positions), graph, 4.2)

    for one, wanted in zip(
        jax.value_and_grad(energy)(system.positions, found),
        jax.value_and_grad(energy)(system.positions, near),
        strict=True,
    ):
        np.testing.assert_allclose(one, wanted, rtol=1e-10, atol=1e-12)
    assert not shortened(system, graph, 4.2, most - 1)[1]


def test_slots_without_an_edge_are_those_of_the_last_atom():
    system = from_ase(rattled_titanium())
    near = host_graph(system, 4.2)
    found, fits = edges_within(system, host_graph(system, 5.5, reverse=True), 4.2, near.n_edges + 3)
    assert fits
    np.testing.assert_array_equal(found.mask, np.arange(near.n_edges + 3) < near.n_edges)
    np.testing.assert_array_equal(found.receivers[-3:], system.n_atoms - 1)
    np.testing.assert_array_equal(found.reverse[-3:], near.n_edges + np.arange(3))


def edges_of(graph, mask):
    """Edges as tuples of ends and shift."""
    parts = (np.asarray(a)[mask] for a in (graph.receivers, graph.senders, graph.shifts))
    return sorted((i, j, *shift) for i, j, shift in zip(*(p.tolist() for p in parts), strict=True))
