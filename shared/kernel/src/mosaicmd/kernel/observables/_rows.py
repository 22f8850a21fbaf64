"""Neighbors within a radius as short rows per atom, from a graph of any layout."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph, edge_vectors, pad_graph
from mosaicmd.kernel.systems import System

Array = jax.Array


class Rows(NamedTuple):
    """Neighbors of every atom, padded to a common number."""

    vectors: Array  # [n_atoms, k, 3], Å; zero where masked
    distances: Array  # [n_atoms, k], Å; 1 where masked
    senders: Array  # [n_atoms, k]; the atom itself where masked
    mask: Array  # [n_atoms, k], bool
    overflow: Array  # [], bool: an atom has more than k neighbors, or the graph overflowed


def rows_within(system: System, graph: Graph, radius: float, max_neighbors: int) -> Rows:
    """The neighbors within ``radius`` in at most ``max_neighbors`` columns.

    Args:
        system: one structure.
        graph: at least of this radius.
        radius: Å.
        max_neighbors: number of columns.
    """
    n_atoms = system.n_atoms
    if graph.n_edges == 0:
        graph = pad_graph(graph, 1, n_atoms=n_atoms)
    vectors = edge_vectors(system, graph)
    squared = jnp.sum(vectors**2, axis=-1)
    within = graph.mask & (squared < radius**2)
    if graph.row_length is not None and graph.row_length <= max_neighbors:
        shape = (n_atoms, graph.row_length)
        return _fill(
            vectors.reshape(*shape, 3),
            squared.reshape(shape),
            graph.senders.reshape(shape),
            within.reshape(shape),
            graph.overflow,
        )
    rank, too_many = _rank(within, graph, n_atoms, max_neighbors)
    # Whatever has no place goes to one slot past the end.
    slot = jnp.where(
        within & (rank < max_neighbors),
        graph.receivers * max_neighbors + rank,
        n_atoms * max_neighbors,
    )
    source = jnp.full(n_atoms * max_neighbors + 1, graph.n_edges, jnp.int32)
    source = (
        source.at[slot]
        .set(jnp.arange(graph.n_edges, dtype=jnp.int32), mode="promise_in_bounds")[:-1]
        .reshape(n_atoms, max_neighbors)
    )
    mask = source < graph.n_edges
    source = jnp.where(mask, source, 0)
    return _fill(
        vectors[source], squared[source], graph.senders[source], mask, graph.overflow | too_many
    )


def _rank(within: Array, graph: Graph, n_atoms: int, max_neighbors: int) -> tuple[Array, Array]:
    """Of every edge, how many of its receiver's edges before it count; and overflow."""
    if graph.row_length is not None:
        table = within.reshape(n_atoms, graph.row_length).astype(jnp.int32)
        rank = (jnp.cumsum(table, axis=1) - table).reshape(-1)
    else:
        counted = jnp.cumsum(within, dtype=jnp.int32) - within
        first = jnp.searchsorted(graph.receivers, jnp.arange(n_atoms, dtype=jnp.int32))
        first = jnp.minimum(first, graph.n_edges - 1)
        rank = counted - counted[first][graph.receivers]
    return rank, jnp.any(within & (rank >= max_neighbors))


def _fill(vectors: Array, squared: Array, senders: Array, mask: Array, overflow: Array) -> Rows:
    own = jnp.arange(mask.shape[0], dtype=senders.dtype)[:, None]
    return Rows(
        vectors=jnp.where(mask[..., None], vectors, 0.0),
        distances=jnp.sqrt(jnp.where(mask, squared, 1.0)),
        senders=jnp.where(mask, senders, jnp.broadcast_to(own, mask.shape)),
        mask=mask,
        overflow=overflow,
    )
