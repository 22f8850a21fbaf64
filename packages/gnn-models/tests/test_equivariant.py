"""Pieces of equivariant networks against e3nn-jax and sums over edges in loops."""

import dataclasses

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models.equivariant import (
    Path,
    clebsch_gordan,
    convolution_paths,
    convolve,
    in_blocks,
    mix_by_species,
    natural,
    spherical_harmonics,
)
from mosaicmd.kernel.graphs import edge_components, host_graph, pad_graph
from mosaicmd.kernel.testing import in_rows, random_system


def test_harmonics_are_those_of_e3nn():
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = spherical_harmonics(jnp.asarray(vectors.T), 5)
    assert [len(one) for one in found] == [1, 3, 5, 7, 9, 11]
    for l, values in enumerate(found):
        with jax.numpy_rank_promotion("allow"):
            expected = e3nn.sh([l], jnp.asarray(vectors), False, "component")
        np.testing.assert_allclose(values.T, expected, atol=1e-13)
        np.testing.assert_allclose(np.sum(values**2, axis=0), 2 * l + 1, rtol=1e-13)
    assert len(spherical_harmonics(jnp.asarray(vectors.T), 0)) == 1


def test_paths_conserve_angular_momentum_and_parity():
    """Of 1o: with 0e, 1o, 2e; the pseudovector 1e is left out unless it is asked for."""
    expected = [("1o", 1, "0e"), ("1o", 0, "1o"), ("1o", 2, "1o"), ("1o", 1, "2e")]
    found = convolution_paths(("1o",), 2, ("0e", "1o", "2e"))
    assert found == tuple(Path(*path) for path in expected)
    every = convolution_paths(("1o",), 2, ("0e", "1e", "1o", "2e", "2o", "3o"))
    assert {path.out for path in every if path.degree == 1} == {"0e", "1e", "2e"}
    assert {path.out for path in every if path.degree == 2} == {"1o", "2o", "3o"}


def as_tuples(graph):
    """Receiver, sender and shift of every real edge."""
    table = np.column_stack([graph.receivers, graph.senders, graph.shifts])
    return table[np.asarray(graph.mask)].tolist()


@pytest.mark.parametrize("n_atoms", [6, 9])
def test_blocks_hold_the_same_edges_of_one_receiver_each(n_atoms):
    """Also with padding, and with atoms that have no neighbors in between."""
    system = random_system(0, n_atoms=6)
    graph = host_graph(system, 3.2, reverse=True)
    if n_atoms > 6:
        graph = dataclasses.replace(graph, receivers=graph.receivers + 2, senders=graph.senders + 2)
        graph = pad_graph(graph, graph.n_edges + 13, n_atoms=n_atoms)
    blocked, owner = jax.jit(in_blocks, static_argnums=1)(graph, n_atoms)
    assert as_tuples(blocked) == as_tuples(graph)
    assert (np.diff(owner) >= 0).all()
    np.testing.assert_array_equal(blocked.receivers, np.repeat(owner, 8))
    back = np.asarray(blocked.reverse)
    np.testing.assert_array_equal(back[back], np.arange(blocked.n_edges))
    real = np.flatnonzero(blocked.mask)
    np.testing.assert_array_equal(blocked.senders[real], blocked.receivers[back[real]])
    np.testing.assert_array_equal(blocked.shifts[real], -blocked.shifts[back[real]])
    np.testing.assert_array_equal(back[~np.asarray(blocked.mask)], np.flatnonzero(~blocked.mask))


@pytest.mark.parametrize("layout", ["edges", "rows", "blocks"])
def test_convolution_is_the_sum_over_edges(layout):
    """Against a loop over edges with Clebsch–Gordan coefficients of e3nn."""
    system = random_system(0, n_atoms=6)
    graph = host_graph(system, 3.2, reverse=True)
    if layout == "rows":
        graph = in_rows(graph, 6)
    graph, owner = in_blocks(graph, 6) if layout == "blocks" else (graph, None)
    rng = np.random.default_rng(1)
    features = {
        name: jnp.asarray(rng.normal(size=(2 * l + 1, 6, 2)))
        for name, l in (("0e", 0), ("1o", 1), ("1e", 1))
    }
    paths = convolution_paths(tuple(features), 2, ("0e", "1o", "2e"))
    weights = jnp.asarray(rng.normal(size=(graph.n_edges, 2 * len(paths))))
    weights = jnp.where(graph.mask[:, None], weights, 0.0)
    vectors = jnp.stack(edge_components(system, graph))
    harmonics = spherical_harmonics(vectors / jnp.sqrt(jnp.sum(vectors**2, axis=0))[None], 2)
    found = convolve(features, weights, harmonics, paths, graph, owner)

    place = dict.fromkeys(found, 0)
    for p, (first, l2, out) in enumerate(paths):
        l3 = int(out[0])
        expected = np.zeros((2 * l3 + 1, 6, 2))
        coupling = np.sqrt(2 * l3 + 1) * e3nn.clebsch_gordan(int(first[0]), l2, l3)
        for e in range(graph.n_edges):
            i, j = int(graph.receivers[e]), int(graph.senders[e])
            x, y = np.asarray(features[first])[:, j], np.asarray(harmonics[l2])[:, e]
            w = np.asarray(weights)[e, 2 * p : 2 * p + 2]
            expected[:, i] += w * np.einsum("ac,b,abm->mc", x, y, coupling)
        mine = slice(2 * place[out], 2 * place[out] + 2)
        place[out] += 1
        np.testing.assert_allclose(found[out][..., mine], expected, atol=1e-12)
    assert all(found[name].shape[2] == 2 * n for name, n in place.items())


def test_masked_edges_with_weights_of_zero_add_nothing():
    system = random_system(0, n_atoms=6)
    graph = host_graph(system, 3.2)
    dropped = dataclasses.replace(graph, mask=graph.mask.at[::2].set(False))
    paths = convolution_paths(("0e",), 1, ("0e", "1o"))
    x = {"0e": jnp.ones((1, 6, 1))}

    def total(graph):
        vectors = jnp.stack(edge_components(system, graph))
        harmonics = spherical_harmonics(vectors / jnp.sqrt(jnp.sum(vectors**2, axis=0))[None], 1)
        weights = jnp.where(graph.mask[:, None], 1.0, 0.0) * jnp.ones((1, 2))
        return convolve(x, weights, harmonics, paths, graph)

    counts = np.bincount(np.asarray(graph.receivers)[1::2], minlength=6)
    np.testing.assert_allclose(total(dropped)["0e"][0, :, 0], counts, rtol=1e-14)


def test_coupling_coefficients_have_unit_norm():
    for l1, l2, l3 in ((0, 0, 0), (1, 1, 2), (3, 2, 1)):
        np.testing.assert_allclose(np.sum(clebsch_gordan(l1, l2, l3) ** 2), 1.0, rtol=1e-12)
    assert (natural(2), natural(3)) == ("2e", "3o")


def test_channels_are_mixed_by_the_map_of_each_species():
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(3, 4, 5)), rng.normal(size=(2, 7, 4))
    kinds = np.array([0, 2, 1, 1, 0, 2, 2])
    found = mix_by_species(jnp.asarray(weights), jnp.asarray(x), jnp.asarray(kinds))
    expected = np.stack([x[:, i] @ weights[kind] for i, kind in enumerate(kinds)], axis=1)
    np.testing.assert_allclose(found, expected / 2.0, rtol=1e-12)
