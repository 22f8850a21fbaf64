"""Sums over triplets against loops over them, for every layout of a graph."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_legendre

from mosaicmd.gnn_models.spherical_bessel import spherical_harmonics
from mosaicmd.gnn_models.triplets import (
    edge_rows,
    from_rows_reversed,
    opposite_edges,
    pair_filters,
    pair_polynomials,
    sum_filtered_pairs,
    sum_pairs,
    sum_triplets,
    to_rows,
)
from mosaicmd.kernel.graphs import edge_vectors, host_graph, pad_graph
from mosaicmd.kernel.testing import in_rows, random_system

CUTOFF = 3.6
N_ATOMS = 5


def small_cell():
    """A cell of less than two cutoffs: most neighbors are images, some of the atom itself."""
    return random_system(1, n_atoms=N_ATOMS)


def layouts():
    system = small_cell()
    graph = host_graph(system, CUTOFF, reverse=True)
    shuffled = np.random.default_rng(0).permutation(graph.n_edges)
    shuffled = shuffled[np.argsort(np.asarray(graph.receivers)[shuffled], kind="stable")]
    plain = dataclasses.replace(
        graph,
        senders=graph.senders[shuffled],
        shifts=graph.shifts[shuffled],
        reverse=None,
    )
    return {
        "with reverse": graph,
        "without": dataclasses.replace(graph, reverse=None),
        "shuffled": plain,
        "padded": pad_graph(graph, graph.n_edges + 13, n_atoms=N_ATOMS),
        "padded without": pad_graph(plain, graph.n_edges + 13, n_atoms=N_ATOMS),
        "in rows": in_rows(graph, N_ATOMS),
    }


@pytest.fixture(params=list(layouts()))
def graph(request):
    return layouts()[request.param]


def test_opposite_edges_swap_ends_and_turn_shifts_round(graph):
    reverse = np.asarray(opposite_edges(graph))
    np.testing.assert_array_equal(reverse[reverse], np.arange(graph.n_edges))
    np.testing.assert_array_equal(graph.senders[reverse], graph.receivers)
    np.testing.assert_array_equal(graph.shifts[reverse], -graph.shifts)
    np.testing.assert_array_equal(graph.mask[reverse], graph.mask)
    assert not np.any((reverse == np.arange(graph.n_edges)) & np.asarray(graph.mask))


def test_edges_without_an_opposite_pair_with_themselves():
    """As edges of ghost atoms are missing: those that are left find each other all the same."""
    graph = layouts()["padded without"]
    kept = np.asarray(graph.receivers) != 3
    cut = dataclasses.replace(
        graph, **{n: getattr(graph, n)[kept] for n in ("senders", "receivers", "shifts", "mask")}
    )
    reverse, each = np.asarray(opposite_edges(cut)), np.arange(cut.n_edges)
    alone = (np.asarray(cut.senders) == 3) | ~np.asarray(cut.mask)
    np.testing.assert_array_equal(reverse == each, alone)
    np.testing.assert_array_equal(cut.senders[reverse][~alone], cut.receivers[~alone])
    np.testing.assert_array_equal(cut.receivers[reverse][~alone], cut.senders[~alone])
    np.testing.assert_array_equal(cut.shifts[reverse][~alone], -cut.shifts[~alone])
    rows = edge_rows(cut, N_ATOMS, 7)
    values = jnp.asarray(np.random.default_rng(0).normal(size=(cut.n_edges, 2)))
    moved = from_rows_reversed(to_rows(values, rows), rows)
    wanted = np.where(alone[:, None], 0.0, np.asarray(values)[reverse])
    np.testing.assert_array_equal(moved, wanted)


@pytest.mark.parametrize("length", [1, 7])
def test_every_edge_stands_in_one_row_of_its_receiver(graph, length):
    rows = edge_rows(graph, N_ATOMS, length)
    found = np.asarray(rows.edges)[np.asarray(rows.mask)]
    np.testing.assert_array_equal(np.sort(found), np.arange(graph.n_edges))
    np.testing.assert_array_equal(rows.edges.reshape(-1)[rows.slots], np.arange(graph.n_edges))
    owner = np.broadcast_to(np.asarray(rows.atoms)[:, None], rows.edges.shape)
    receivers = np.asarray(graph.receivers)[np.asarray(rows.edges)]
    assert (owner == receivers)[np.asarray(rows.mask)].all()
    assert (np.diff(rows.atoms) >= 0).all()


def test_atoms_without_neighbors_have_no_rows():
    system = random_system(1, n_atoms=6, pbc=False)
    far = np.asarray(system.positions) + np.array([[0, 0, 0]] * 2 + [[50, 0, 0]] + [[0, 0, 0]] * 3)
    graph = host_graph(system._replace(positions=jnp.asarray(far)), 4.0)
    assert not np.any(np.asarray(graph.receivers) == 2)
    rows = edge_rows(graph, 6, 4)
    assert not np.any((np.asarray(rows.atoms) == 2)[:, None] & np.asarray(rows.mask))


def of_layout(graph, system, length, n_spherical, n_features):
    """Messages and filters as functions of what an edge is, whichever its index."""
    vectors = edge_vectors(system, graph)
    distances = jnp.linalg.norm(vectors, axis=1)
    directions = vectors / distances[:, None]
    wave = jnp.arange(1.0, n_features + 1.0)
    fade = jnp.where(graph.mask, jnp.exp(-distances), 0.0)[:, None]
    messages = jnp.sin(wave[None] * vectors[:, :1]) + vectors[:, 1:2]
    filters = [jnp.cos(wave[None] * (l + distances[:, None])) * fade for l in range(n_spherical)]
    rows = edge_rows(graph, N_ATOMS, length)
    moved = jnp.moveaxis(to_rows(directions, rows), -1, 0)
    harmonics = spherical_harmonics(*moved, n_spherical)
    filters_of_rows = [to_rows(f, rows) for f in filters]
    sums = sum_triplets(messages, filters_of_rows, harmonics, rows, N_ATOMS)
    if graph.row_length is None:
        return (sums,), messages, filters, directions
    polynomials = pair_polynomials(*moved, n_spherical)
    pairs = sum_pairs(messages, filters_of_rows, polynomials, rows)
    radial = [f.reshape(-1, n_features).T for f in filters_of_rows]
    own = jnp.tile(jnp.eye(n_features), (n_spherical, 1))
    once, thrice = pair_filters(radial, list(moved), [own, 3.0 * own])  # in this order
    filtered = sum_filtered_pairs(messages, thrice, rows)
    filtered -= 2.0 * sum_filtered_pairs(messages, once, rows)
    return (sums, pairs, filtered), messages, filters, directions


@pytest.mark.parametrize("length", [3, 16])
def test_sums_are_those_of_loops_over_triplets(graph, length):
    """By moments and, of rows, by pairs; images of ``i`` count, only the edge back is left out."""
    found, *inputs = jax.jit(of_layout, static_argnums=(2, 3, 4))(graph, small_cell(), length, 4, 3)
    messages, filters, directions = jax.tree.map(np.asarray, inputs)
    receivers, senders, shifts = (
        np.asarray(a) for a in (graph.receivers, graph.senders, graph.shifts)
    )
    real = np.flatnonzero(graph.mask)
    n_images = 0
    for e in real:
        expected = np.zeros(3)
        for f in real[receivers[real] == senders[e]]:
            if senders[f] == receivers[e]:
                if (shifts[f] == -shifts[e]).all():
                    continue
                n_images += 1
            cosine = directions[f] @ -directions[e]
            for l in range(4):
                expected += messages[f] * filters[l][f] * eval_legendre(l, cosine)
        for each in found:
            np.testing.assert_allclose(each[e], expected, atol=1e-12)
    assert n_images > 0


def test_moves_to_rows_and_back_are_differentiated_in_both_modes():
    """Reverse mode by gathers with `reverse`, forward mode without: both as of a plain index."""
    rng = np.random.default_rng(0)
    graphs = layouts()
    for graph in (graphs["padded"], graphs["padded without"]):
        rows = edge_rows(graph, N_ATOMS, 4)
        values, tangent = (jnp.asarray(rng.normal(size=(graph.n_edges, 2))) for _ in range(2))

        def there_and_back(values, rows=rows):
            return from_rows_reversed(jnp.sin(to_rows(values, rows)), rows)

        paired = rows.paired[:, None]  # not those that are masked
        moved, pullback = jax.vjp(there_and_back, values)
        np.testing.assert_allclose(moved, jnp.sin(values[rows.reverse]) * paired)
        expected = tangent[rows.reverse] * jnp.cos(values) * paired
        np.testing.assert_allclose(pullback(tangent)[0], expected)
        if graph.reverse is None:
            _, pushed = jax.jvp(there_and_back, (values,), (tangent,))
            expected = (tangent * jnp.cos(values))[rows.reverse] * paired
            np.testing.assert_allclose(pushed, expected)
