"""Sums over triplets ``k -> j -> i`` of directed edges, without a list of triplets.

What all neighbors ``k`` of an atom ``j`` send on to its neighbor ``i`` depends on the angle
between them by a series of Legendre polynomials, and these are sums of products of spherical
harmonics of either direction. So the neighbors first add up to moments of the atom, and
each edge then reads the moments: linear in the number of neighbors, in memory too. There is
nothing of which the number would have to be known beforehand, and so nothing can overflow.

An atom with few neighbors has fewer pairs of them than moments. Where all neighbors of an atom
stand in one short row, :func:`sum_filtered_pairs` goes over the pairs of each row, after one large
product of matrices has found the weights of all pairs. On a GPU, :func:`sum_pairs` takes one small
product per row for what takes one for every ``l`` by moments, and stores no weights.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph

Array = jax.Array


class EdgeRows(NamedTuple):
    """The edges of a graph in rows of one length, each of one receiver; see :func:`edge_rows`.

    An atom has as many rows as it needs.
    """

    edges: Array  # [n_rows, length], int32, some edge where masked
    mask: Array  # [n_rows, length], bool
    slots: Array  # [n_edges], int32, where in `edges` an edge stands
    atoms: Array  # [n_rows], int32, ascending
    reverse: Array  # [n_edges], int32
    paired: Array  # [n_edges], bool: has an opposite
    in_order: bool  # whether `edges` are all edges one after the other
    forward_mode: bool  # whether that kind of derivative is wanted, which is slower


def opposite_edges(graph: Graph) -> Array:
    """``graph.reverse``, by sorting where the graph lacks it; shape ``[n_edges]``, int32.

    An edge without an opposite, as ghost atoms have them, is its own.
    """
    if graph.reverse is not None:
        return graph.reverse
    each = jnp.arange(graph.n_edges, dtype=jnp.int32)
    own = jnp.where(graph.mask, 0, each + 1)  # a masked edge is alone
    shifts = [graph.shifts[:, axis] for axis in range(3)]
    forward = (own, *shifts, graph.senders, graph.receivers)
    backward = (own, *(-shift for shift in shifts), graph.receivers, graph.senders)
    keys = [jnp.concatenate(pair) for pair in zip(forward, backward, strict=True)]
    turned = jnp.concatenate([jnp.zeros_like(each), jnp.ones_like(each)])
    order = jnp.lexsort((turned, *keys))  # an edge stands right before its opposite, turned round
    equal = [key[order][1:] == key[order][:-1] for key in keys]
    found = functools.reduce(jnp.logical_and, equal)
    edges = jnp.concatenate([each, each])[order]
    target = jnp.where(found, edges[1:], graph.n_edges)
    return each.at[target].set(edges[:-1], mode="drop")


def edge_rows(graph: Graph, n_atoms: int, length: int, *, one_each: bool = False) -> EdgeRows:
    """Put the edges of a graph into rows.

    There are ``n_edges // length + n_atoms`` rows, which is enough for all graphs: an atom
    leaves at most one row unfilled.

    Args:
        graph: edges sorted by receiver.
        n_atoms: number of atom slots.
        length: of a row, if the graph is not in rows already.
        one_each: every atom has one row and no more, which is long enough for it.
    """
    n_edges = graph.n_edges
    reverse = opposite_edges(graph)
    each = jnp.arange(n_edges, dtype=jnp.int32)
    if graph.row_length is not None:
        rows = (n_atoms, graph.row_length)
        return EdgeRows(
            edges=each.reshape(rows),
            mask=jnp.ones(rows, bool),
            slots=each,
            atoms=jnp.arange(n_atoms, dtype=jnp.int32),
            reverse=reverse,
            paired=reverse != each,
            in_order=True,
            forward_mode=graph.reverse is None,
        )
    # counts, for jnp.searchsorted knows no symbolic sizes, which models have in export
    count = jnp.zeros(n_atoms, jnp.int32).at[graph.receivers].add(1, indices_are_sorted=True)
    last = jnp.cumsum(count, dtype=jnp.int32)
    first = last - count
    n_rows_of = jnp.ones_like(count) if one_each else -(-count // length)
    end = jnp.cumsum(n_rows_of, dtype=jnp.int32)
    row = end - n_rows_of  # the first of each atom
    rank = each - first[graph.receivers]
    n_rows = n_atoms if one_each else n_edges // length + n_atoms
    every = jnp.arange(n_rows, dtype=jnp.int32)
    owner = jnp.cumsum(jnp.zeros(n_rows, jnp.int32).at[end].add(1), dtype=jnp.int32)
    owner = jnp.minimum(owner, n_atoms - 1)
    place = (every - row[owner])[:, None] * length + jnp.arange(length, dtype=jnp.int32)[None]
    edges = first[owner][:, None] + place
    mask = edges < last[owner][:, None]
    return EdgeRows(
        edges=jnp.where(mask, edges, 0),
        mask=mask,
        slots=(row[graph.receivers] * length + rank).astype(jnp.int32),
        atoms=owner,
        reverse=reverse,
        paired=reverse != each,
        in_order=False,
        forward_mode=graph.reverse is None,
    )


def to_rows(values: Array, rows: EdgeRows) -> Array:
    """Per-edge ``values``, ``[n_edges, ...] -> [n_rows, length, ...]``, zero where masked."""
    shape = rows.edges.shape
    if rows.in_order:
        return values.reshape(*shape, *values.shape[1:])
    edges, mask = rows.edges.reshape(-1), rows.mask.reshape(-1)
    everywhere = jnp.ones(rows.slots.shape, bool)
    moved = _move(values, (edges, mask), (rows.slots, everywhere), rows.forward_mode)
    return moved.reshape(*shape, *values.shape[1:])


def from_rows_reversed(values: Array, rows: EdgeRows) -> Array:
    """What stands at the opposite of every edge: ``[n_rows, length, ...] -> [n_edges, ...]``.

    Zero for edges without one.
    """
    edges, mask = rows.edges.reshape(-1), rows.mask.reshape(-1)
    values = values.reshape(-1, *values.shape[2:])
    there = rows.slots[rows.reverse], rows.paired
    back = rows.reverse[edges], mask & rows.paired[edges]
    return _move(values, there, back, rows.forward_mode)


def sum_triplets(
    messages: Array, filters: list[Array], harmonics: list[Array], rows: EdgeRows, n_atoms: int
) -> Array:
    """``sum_(k != i) m_kj sum_l f_l(kj) P_l(cos angle_kji)`` for every edge from j to i.

    The neighbor that would send back to itself is taken off edge by edge, not atom by atom, so
    images of ``i`` count as other neighbors.

    Args:
        messages: ``m_kj`` per edge, ``[n_edges, n_features]``.
        filters: ``f_l``, for each ``l`` ``[n_rows, length, n_features]``, zero where masked;
            the first two may be one.
        harmonics: of the directions, for each ``l`` ``[n_rows, 2 l + 1, length]``, from
            :func:`~mosaicmd.gnn_models.spherical_bessel.spherical_harmonics`.
        rows: of the graph.
        n_atoms: number of atom slots.

    Returns:
        Shape ``[n_edges, n_features]``.
    """
    sent = to_rows(messages, rows)
    sent = [sent * each.reshape(sent.shape) for each in filters]
    gather, spread = (_plain_in, _plain_out) if rows.forward_mode else (_sum_in, _sum_out)
    parts = [gather(Z, each) for Z, each in zip(harmonics, sent, strict=True)]
    if not on_cpu():  # one product, and the moments once
        harmonics, parts = ([jnp.concatenate(each, axis=1)] for each in (harmonics, parts))
    if rows.atoms.shape[0] != n_atoms:  # sizes may be symbolic
        moments = jnp.concatenate(parts, axis=1)
        moments = jax.ops.segment_sum(moments, rows.atoms, n_atoms, indices_are_sorted=True)
        moments = moments.at[rows.atoms].get(indices_are_sorted=True, mode="promise_in_bounds")
        parts = [moments]
        if len(harmonics) > 1:
            parts = jnp.split(moments, [(l + 1) ** 2 for l in range(len(harmonics) - 1)], axis=1)
    read = [spread(Z, part) for Z, part in zip(harmonics, parts, strict=True)]
    total = sum(read[1:], start=read[0]) - sum(sent[1:], start=sent[0])
    return from_rows_reversed(total, rows)


def pair_polynomials(x: Array, y: Array, z: Array, n_spherical: int) -> Array:
    """``P_l`` of the cosines between all directions of a row, zero for one with itself.

    Args:
        x: first components of unit vectors, ``[n_rows, length]``.
        y: second components.
        z: third components.
        n_spherical: number of ``l``, from 0 on.

    Returns:
        ``[n_rows, length, n_spherical * length]``, ``l`` by ``l`` in the last axis.
    """
    cosine = functools.reduce(jnp.add, [c[:, :, None] * c[:, None, :] for c in (x, y, z)])
    others = jnp.asarray(~np.eye(x.shape[1], dtype=bool), x.dtype)[None]
    return jnp.concatenate([others * P for P in _legendre(cosine, n_spherical)], axis=2)


def _legendre(x: Array, n_spherical: int) -> list[Array]:
    """``P_l(x)`` for ``l < n_spherical``."""
    values = [jnp.ones_like(x), x]
    for l in range(2, n_spherical):
        values.append(((2 * l - 1) * x * values[-1] - (l - 1) * values[-2]) / l)
    return values[:n_spherical]


def sum_pairs(messages: Array, filters: list[Array], polynomials: Array, rows: EdgeRows) -> Array:
    """:func:`sum_triplets` pair by pair, on rows that hold all edges of their atoms.

    Args:
        messages: ``m_kj`` per edge, ``[n_edges, n_features]``.
        filters: ``f_l``, for each ``l`` ``[n_rows, length, n_features]``, zero where masked;
            the first two may be one.
        polynomials: of the directions, from :func:`pair_polynomials`.
        rows: of a graph in rows, or one for each atom.

    Returns:
        Shape ``[n_edges, n_features]``.
    """
    sent = to_rows(messages, rows)
    sent = jnp.concatenate([sent * each.reshape(sent.shape) for each in filters], axis=1)
    return from_rows_reversed(jnp.einsum("rkm,rmc->rkc", polynomials, sent), rows)


def pair_filters(radial: list[Array], directions: list[Array], weights: list[Array]) -> list[Array]:
    """``sum_l f_l(kj) P_l(cos angle_kji)`` for all pairs of a row, zero for an edge with itself.

    One product of matrices for each of several ``weights``, which for few neighbors is cheaper than
    sums over ``l`` in every place.

    Args:
        radial: functions of the distance by ``l``, ``[n, n_rows * length]``, zero where masked.
        directions: components of unit vectors, ``[n_rows, length]`` each.
        weights: each ``[n_spherical * n, n_features]``, of which ``f_l`` are combinations.

    Returns:
        For each of ``weights`` ``[length, n_rows, length, n_features]``, the edges ``ji`` along the
        first axis, ``kj`` along the third.
    """
    length = directions[0].shape[1]
    products = [c.T[:, :, None] * c[None] for c in directions]  # contiguous in what is summed
    cosine = functools.reduce(jnp.add, products)
    others = jnp.asarray(~np.eye(length, dtype=bool), cosine.dtype)[:, None]
    polynomials = jnp.stack([others * P for P in _legendre(cosine, len(radial))])
    functions = jnp.stack(radial)  # [n_spherical, n, n_rows * length]
    functions = functions.reshape(*functions.shape[:2], 1, *directions[0].shape)
    basis = (functions * polynomials[:, None]).reshape(len(radial) * functions.shape[1], -1)
    return [(basis.T @ weight).reshape(*cosine.shape, -1) for weight in weights]


def sum_filtered_pairs(messages: Array, filters: Array, rows: EdgeRows) -> Array:
    """:func:`sum_triplets` with filters from :func:`pair_filters`, ``[n_edges, n_features]``."""
    sent = to_rows(messages, rows)
    terms = [filters[:, :, k] * sent[None, :, k] for k in range(filters.shape[2])]
    heard = functools.reduce(jnp.add, terms)
    return from_rows_reversed(jnp.moveaxis(heard, 0, 1), rows)


def _move(
    values: Array,
    there: tuple[Array, Array],
    back: tuple[Array, Array],
    forward_mode: bool,
) -> Array:
    """``values[index]``, zero where masked, with a gather as derivative.

    ``there`` and ``back`` are each an index and a mask. Every value goes to at most one place,
    and ``back`` says to which.
    """
    return _take(values, *there) if forward_mode else _move_once(values, there, back)


def _take(values: Array, index: Array, mask: Array) -> Array:
    taken = values.at[index].get(mode="promise_in_bounds")
    return jnp.where(mask.reshape(-1, *[1] * (values.ndim - 1)), taken, 0.0)


@jax.custom_vjp
def _move_once(values: Array, there: tuple[Array, Array], back: tuple[Array, Array]) -> Array:
    return _take(values, *there)


_move_once.defvjp(
    lambda values, there, back: (_move_once(values, there, back), (there, back)),
    lambda ways, new: (_move_once(_kept(new, ways[1][0]), ways[1], ways[0]), None, None),
)


def _kept(values: Array, index: Array) -> Array:
    """The values: a conditional keeps XLA's fusion on CPUs from computing them in the gather."""
    never = jnp.max(index, initial=0) < 0
    return jax.lax.cond(never, jnp.zeros_like, lambda kept: kept, values)


def on_cpu() -> bool:
    """Whether programs are for a CPU, where small products of matrices are slow."""
    return jax.default_backend() == "cpu"


def _plain_in(Z: Array, sent: Array) -> Array:
    """``[r, m, k], [r, k, c] -> [r, m, c]``; on CPUs much faster than as small matrix products."""
    if not on_cpu():
        return jnp.einsum("rmk,rkc->rmc", Z, sent)
    return jnp.sum(Z[:, :, :, None] * sent[:, None], axis=2)


def _plain_out(Z: Array, moments: Array) -> Array:
    """``[r, m, k], [r, m, c] -> [r, k, c]``."""
    if not on_cpu():
        return jnp.einsum("rmk,rmc->rkc", Z, moments)
    return jnp.sum(Z[:, :, :, None] * moments[:, :, None], axis=1)


def _plain_across(moments: Array, sent: Array) -> Array:
    """``[r, m, c], [r, k, c] -> [r, m, k]``: where sums would run along memory, a product."""
    return jnp.einsum("rmc,rkc->rmk", moments, sent)


# Each is linear in both arguments, and its derivatives are the other two.
_sum_in, _sum_out, _across = map(jax.custom_vjp, (_plain_in, _plain_out, _plain_across))
_sum_in.defvjp(
    lambda Z, sent: (_sum_in(Z, sent), (Z, sent)),
    lambda given, new: (_across(new, given[1]), _sum_out(given[0], new)),
)
_sum_out.defvjp(
    lambda Z, moments: (_sum_out(Z, moments), (Z, moments)),
    lambda given, new: (_across(given[1], new), _sum_in(given[0], new)),
)
_across.defvjp(
    lambda moments, sent: (_across(moments, sent), (moments, sent)),
    lambda given, new: (_sum_in(new, given[1]), _sum_out(new, given[0])),
)
