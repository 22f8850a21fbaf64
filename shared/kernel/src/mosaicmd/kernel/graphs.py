"""`Graph`: who is whose neighbor, and the vectors between them.

An edge points from a *receiver* (the central atom) to a *sender* (its neighbor); every
pair appears twice, once for either centre, and edges are sorted by receiver. One code
path, :func:`edge_vectors`, turns positions, cell and integer shifts into vectors, so
forces and stress come from one derivative whichever list made the graph.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.systems import System, bucket_size

Array = jax.Array

FAR = 1.0e3
"""Length given to masked edges, Å: beyond every cutoff, so envelopes remove them."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("senders", "receivers", "shifts", "mask", "overflow", "reverse"),
    meta_fields=("row_length",),
)
@dataclasses.dataclass(frozen=True)
class Graph:
    """Directed edges between atoms of one system.

    ``reverse[e]`` is the index of the edge that runs the other way (itself for a masked
    edge). With it, derivatives of :func:`gather_senders` are gathers instead of scatters,
    which on a CPU is several times faster. ``row_length`` says that edges come in
    rows of that many per receiver, so sums over neighbors are plain sums.
    """

    senders: Array  # [n_edges], int32
    receivers: Array  # [n_edges], int32, ascending
    shifts: Array  # [n_edges, 3], int32, lattice vectors added to the sender
    mask: Array  # [n_edges], bool
    overflow: Array  # [], bool: edges are missing, discard what was computed
    reverse: Array | None = None  # [n_edges], int32
    row_length: int | None = None

    @property
    def n_edges(self) -> int:
        """Number of edge slots, padding included."""
        return self.senders.shape[-1]


def edge_vectors(system: System, graph: Graph) -> Array:
    """Vectors from receivers to senders, shape ``[n_edges, 3]``, Å.

    Masked edges have the constant vector ``(FAR, 0, 0)``: no potential sees them and
    their derivatives are zero and finite.
    """
    return jnp.stack(edge_components(system, graph), axis=-1)


def edge_components(system: System, graph: Graph) -> tuple[Array, Array, Array]:
    """The x, y and z of :func:`edge_vectors`, each ``[n_edges]``.

    Arithmetic on whole components vectorises where that on short vectors does not: a
    potential written with them runs about twice as fast on a CPU.
    """
    components = []
    for axis, far in enumerate((FAR, 0.0, 0.0)):
        values = _differences(system.positions[:, axis], graph)
        column = system.cell[:, axis]
        for direction in range(3):
            shift = graph.shifts[:, direction].astype(column.dtype)
            values = values + shift * column[direction]
        components.append(jnp.where(graph.mask, values, far))
    x, y, z = components
    return x, y, z


def gather_senders(values: Array, graph: Graph) -> Array:
    """Per-atom ``values`` at the sender of every edge, ``[n_atoms, ...] -> [n_edges, ...]``."""
    if graph.reverse is None:
        return values[graph.senders]
    return _gather_senders(values, graph.senders, graph.receivers, graph.reverse, graph.row_length)


def gather_receivers(values: Array, graph: Graph) -> Array:
    """Per-atom ``values`` at the receiver of every edge, ``[n_atoms, ...] -> [n_edges, ...]``."""
    if graph.row_length is None:
        return values.at[graph.receivers].get(indices_are_sorted=True, mode="promise_in_bounds")
    rows = jnp.broadcast_to(values[:, None], (values.shape[0], graph.row_length, *values.shape[1:]))
    return rows.reshape(-1, *values.shape[1:])


def sum_edges(values: Array, graph: Graph, n_atoms: int) -> Array:
    """Sum per-edge ``values`` at their receivers, ``[n_edges, ...] -> [n_atoms, ...]``.

    Masked edges take part: give them the value zero.
    """
    return _sum_rows(values, graph.receivers, graph.row_length, n_atoms)


def host_graph(system: System, cutoff: float, *, reverse: bool = False) -> Graph:
    """The exact graph of one system from a host neighbor list (vesin), without padding.

    Meant for data sets; during dynamics use :mod:`mosaicmd.kernel.neighbors`.

    Args:
        system: one structure; masked atoms get no edges.
        cutoff: Å; may exceed the cell, periodic images are then separate edges.
        reverse: also fill ``Graph.reverse``.
    """
    import vesin

    keep = np.flatnonzero(np.asarray(system.mask))
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True)
    receivers, senders, shifts = calculator.compute(
        points=np.asarray(system.positions, float)[keep],
        box=np.asarray(system.cell, float),
        periodic=np.asarray(system.pbc),
        quantities="ijS",
    )
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], senders, receivers))
    receivers, senders, shifts = (
        keep[receivers[order].astype(int)].astype(np.int32),
        keep[senders[order].astype(int)].astype(np.int32),
        shifts[order].astype(np.int32),
    )
    # jnp.asarray would compile for every new length
    return Graph(
        senders=jax.device_put(senders),
        receivers=jax.device_put(receivers),
        shifts=jax.device_put(shifts.reshape(-1, 3)),
        mask=jax.device_put(np.ones(len(senders), bool)),
        overflow=jax.device_put(np.zeros((), bool)),
        reverse=jax.device_put(reverse_edges(senders, receivers, shifts)) if reverse else None,
    )


def reverse_edges(senders: np.ndarray, receivers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """For every edge of a full list the index of its opposite, shape ``[n_edges]``, int32."""
    forward = np.lexsort((*shifts.T, senders, receivers))
    backward = np.lexsort((*(-shifts).T, receivers, senders))
    result = np.empty(len(senders), np.int32)
    result[forward] = backward
    return result


def pad_graph(graph: Graph, n_edges: int | None = None, *, n_atoms: int) -> Graph:
    """The graph with masked edges appended up to ``n_edges`` slots (default: a bucket).

    Raises:
        ValueError: if the graph has rows, or more than ``n_edges`` edges.
    """
    if graph.row_length is not None:
        raise ValueError("a graph in rows has its padding already")
    n_edges = bucket_size(graph.n_edges) if n_edges is None else n_edges
    missing = n_edges - graph.n_edges
    if missing < 0:
        raise ValueError(f"cannot pad {graph.n_edges} edges down to {n_edges}")
    last = n_atoms - 1
    own_index = jnp.arange(graph.n_edges, n_edges, dtype=jnp.int32)
    return dataclasses.replace(
        graph,
        senders=jnp.pad(graph.senders, (0, missing), constant_values=last),
        receivers=jnp.pad(graph.receivers, (0, missing), constant_values=last),
        shifts=jnp.pad(graph.shifts, ((0, missing), (0, 0))),
        mask=jnp.pad(graph.mask, (0, missing)),
        reverse=None if graph.reverse is None else jnp.concatenate([graph.reverse, own_index]),
    )


def rows_within(
    system: System, graph: Graph, cutoff: float, row_length: int
) -> tuple[Graph, Array]:
    """The edges of a graph that are shorter than ``cutoff``, in rows without gaps.

    Lists for dynamics hold a skin, and rows as long as the longest: networks whose cost is that of
    their edges gain by what is left out.

    Args:
        system: that the graph belongs to.
        graph: edges sorted by receiver, in rows or not.
        cutoff: Å.
        row_length: of the new rows.

    Returns:
        The graph, with ``reverse`` if ``graph`` has it, and whether all edges found a place: with
        ``False``, discard what is computed.
    """
    near = _shorter(system, graph, cutoff)
    n_atoms = system.n_atoms
    if graph.row_length is not None:
        table = near.reshape(n_atoms, graph.row_length).astype(jnp.int32)
        count = jnp.sum(table, axis=1)
        rank = (jnp.cumsum(table, axis=1) - 1).reshape(-1)
    else:
        ones = near.astype(jnp.int32)
        count = jnp.zeros(n_atoms, jnp.int32).at[graph.receivers].add(ones, indices_are_sorted=True)
        first = jnp.cumsum(count, dtype=jnp.int32) - count
        rank = jnp.cumsum(ones, dtype=jnp.int32) - 1 - first[graph.receivers]
    every = jnp.arange(n_atoms * row_length, dtype=jnp.int32)
    owner = every // row_length
    placed = near & (rank < row_length)
    slots = jnp.where(placed, graph.receivers * row_length + rank, n_atoms * row_length)
    rows = _rearranged(graph, placed, slots, every % row_length < count[owner], owner)
    return dataclasses.replace(rows, row_length=row_length), jnp.all(count <= row_length)


def edges_within(system: System, graph: Graph, cutoff: float, n_edges: int) -> tuple[Graph, Array]:
    """The edges of a graph that are shorter than ``cutoff``, one after the other, then padding.

    Args:
        system: that the graph belongs to.
        graph: edges sorted by receiver, in rows or not.
        cutoff: Å.
        n_edges: slots for edges of the new graph.

    Returns:
        The graph, with ``reverse`` if ``graph`` has it, and whether all edges found a place: with
        ``False``, discard what is computed.
    """
    near = _shorter(system, graph, cutoff)
    rank = jnp.cumsum(near, dtype=jnp.int32) - 1
    placed = near & (rank < n_edges)
    slots = jnp.where(placed, rank, n_edges)
    count = jnp.sum(near, dtype=jnp.int32)
    mask = jnp.arange(n_edges, dtype=jnp.int32) < count
    owner = jnp.full(n_edges, system.n_atoms - 1, jnp.int32)
    owner = owner.at[slots].set(graph.receivers, mode="drop")
    return _rearranged(graph, placed, slots, mask, owner), count <= n_edges


def _shorter(system: System, graph: Graph, cutoff: float) -> Array:
    x, y, z = edge_components(jax.lax.stop_gradient(system), graph)
    return graph.mask & (x * x + y * y + z * z < cutoff**2)


def _rearranged(graph: Graph, placed: Array, slots: Array, mask: Array, owner: Array) -> Graph:
    """A graph without rows, whose slots hold edges of another one.

    Args:
        graph: the other one.
        placed: which of its edges are kept, ``[n_edges]``.
        slots: where they go, ``[n_edges]``; beyond the new slots for those that are not kept.
        mask: which slots are filled, ``[n_slots]``.
        owner: receivers of the slots, ``[n_slots]``.
    """
    every = jnp.arange(mask.shape[0], dtype=jnp.int32)
    edges = jnp.arange(graph.n_edges, dtype=jnp.int32)
    edges = jnp.zeros_like(every).at[slots].set(edges, mode="drop")
    reverse = graph.reverse
    if reverse is not None:
        there = reverse[edges]
        reverse = jnp.where(mask & placed[there], slots[there], every).astype(jnp.int32)
    return Graph(
        senders=jnp.where(mask, graph.senders[edges], owner),
        receivers=owner,
        shifts=jnp.where(mask[:, None], graph.shifts[edges], 0),
        mask=mask,
        overflow=graph.overflow,
        reverse=reverse,
    )


def _sum_rows(values: Array, receivers: Array, row_length: int | None, n_atoms: int) -> Array:
    if row_length is not None:
        return values.reshape(n_atoms, row_length, *values.shape[1:]).sum(axis=1)
    return jax.ops.segment_sum(values, receivers, n_atoms, indices_are_sorted=True)


def _differences(values: Array, graph: Graph) -> Array:
    """``values[senders] - values[receivers]`` of one per-atom scalar, ``[n_edges]``."""
    return gather_senders(values, graph) - gather_receivers(values, graph)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _gather_senders(
    values: Array, senders: Array, receivers: Array, reverse: Array, row_length: int | None
) -> Array:
    return values.at[senders].get(mode="promise_in_bounds")


def _gather_senders_forward(values, senders, receivers, reverse, row_length):
    gathered = _gather_senders(values, senders, receivers, reverse, row_length)
    return gathered, (receivers, reverse, values.shape[0])


def _gather_senders_backward(row_length, residual, cotangent):
    """Who sends along an edge receives along its reverse: swap, then sum per receiver."""
    receivers, reverse, n_atoms = residual
    swapped = _swap(cotangent, reverse)
    return _sum_rows(swapped, receivers, row_length, n_atoms), None, None, None


_gather_senders.defvjp(_gather_senders_forward, _gather_senders_backward)


@jax.custom_vjp
def _swap(values: Array, reverse: Array) -> Array:
    """Per-edge ``values`` at the opposite edges; an involution, hence its own transpose.

    The conditional never takes its first branch. It keeps XLA's CPU fusion from computing
    ``values`` anew inside the gather, which measured three times slower.
    """
    values = jax.lax.cond(reverse[0] < 0, jnp.zeros_like, lambda kept: kept, values)
    return values.at[reverse].get(mode="promise_in_bounds", unique_indices=True)


_swap.defvjp(
    lambda values, reverse: (_swap(values, reverse), reverse),
    lambda reverse, cotangent: (_swap(cotangent, reverse), None),
)
