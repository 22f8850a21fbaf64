"""Irreducible representations on graphs: harmonics, paths of products, sums over neighbors.

Features are dictionaries from the name of an irreducible representation of O(3), such as
``"1o"`` (degree 1, odd), to arrays ``[2l+1, n_atoms, n_channels]``. Components lead, so that
contractions over them are matrix products with all atoms and channels as columns. Bases and
Clebsch–Gordan coefficients are those of e3nn-jax.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph, gather_senders, sum_edges

Array = jax.Array
Features = dict[str, Array]


_BLOCK = 8
"""Edges per block: more of them mean fewer sums of blocks, and more padding."""


class Path(NamedTuple):
    """A product of features and spherical harmonics, by names of irreps and degrees."""

    first: str  # of the features
    degree: int  # of the harmonics
    out: str


def natural(l: int) -> str:
    """The irrep of spherical harmonics of degree ``l``: parity ``(-1)^l``."""
    return f"{l}{'eo'[l % 2]}"


def degree(irrep: str) -> int:
    """The ``l`` of an irrep."""
    return int(irrep[:-1])


def parity(irrep: str) -> int:
    """1 for even, -1 for odd irreps."""
    return {"e": 1, "o": -1}[irrep[-1]]


@functools.cache
def convolution_paths(
    features: tuple[str, ...], l_max: int, outputs: tuple[str, ...]
) -> tuple[Path, ...]:
    """All products of features with harmonics up to ``l_max`` that give one of ``outputs``.

    They are sorted by what they give, then by feature and by degree.
    """
    import e3nn_jax as e3nn

    found = [
        (out, Path(first, l, str(out)))
        for first in features
        for l in range(l_max + 1)
        for out in e3nn.Irrep(degree(first), parity(first)) * e3nn.Irrep(l, (-1) ** l)
        if str(out) in outputs
    ]
    return tuple(path for _, path in sorted(found, key=lambda pair: pair[0]))


@functools.cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real coefficients ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]`` with squares that add up to one."""
    import e3nn_jax as e3nn

    return e3nn.clebsch_gordan(l1, l2, l3)


def spherical_harmonics(directions: Array, l_max: int) -> list[Array]:
    """Real harmonics of unit vectors with mean square one over the sphere per component.

    Args:
        directions: ``[3, n_edges]``; need not be unit vectors, then these are the harmonic
            polynomials.
        l_max: highest degree.

    Returns:
        ``[2l+1, n_edges]`` for each degree, in the basis of e3nn-jax.
    """
    harmonics = [jnp.ones_like(directions[:1]), np.sqrt(3.0).item() * directions]
    for l in range(1, l_max):
        product = (harmonics[l][:, None] * directions[None]).reshape(3 * (2 * l + 1), -1)
        harmonics.append(constant_product(_next_degree(l), product))
    return harmonics[: l_max + 1]


@functools.cache
def _next_degree(l: int) -> np.ndarray:
    """From products of degree ``l`` with a vector to degree ``l + 1``, ``[2l+3, (2l+1) 3]``.

    The square of the harmonics of a unit vector is ``2l + 1``, here for the vector (0, 1, 0),
    in e3nn's order the middle component of every degree.
    """
    coupling = clebsch_gordan(l, 1, l + 1)
    scale = np.sqrt((2 * l + 3) / (2 * l + 1)) / abs(coupling[l, 1, l + 1])
    return scale * np.sign(coupling[l, 1, l + 1]) * coupling.reshape(-1, 2 * l + 3).T


def in_blocks(graph: Graph, n_atoms: int) -> tuple[Graph, Array | None]:
    """The same edges in blocks that have one receiver each, with masked edges in between.

    Sums within blocks are small matrix products, which leaves a fraction of the additions
    that a sum edge by edge would need; see :func:`convolve`. Works under ``jit``: the number
    of blocks follows from the numbers of edges and atoms.

    Returns:
        The graph and the receiver of every block; a graph in rows as it is, and ``None``.
    """
    if graph.row_length is not None:
        return graph, None
    n_edges = graph.n_edges
    n_blocks = n_edges // _BLOCK + n_atoms
    n_slots = n_blocks * _BLOCK
    edges = jnp.arange(n_edges, dtype=jnp.int32)
    # counts, for jnp.searchsorted knows no symbolic sizes, which models have in export
    count = jnp.zeros(n_atoms, jnp.int32).at[graph.receivers].add(1, indices_are_sorted=True)
    end = jnp.cumsum((count + _BLOCK - 1) // _BLOCK, dtype=jnp.int32)
    start = jnp.pad(end[:-1], (1, 0))
    first = jnp.cumsum(count, dtype=jnp.int32) - count
    slot = (start * _BLOCK - first)[graph.receivers] + edges
    owner = jnp.cumsum(jnp.zeros(n_blocks, jnp.int32).at[end].add(1), dtype=jnp.int32)
    owner = jnp.minimum(owner, n_atoms - 1)
    own = jnp.arange(n_slots, dtype=jnp.int32)
    receivers = jnp.repeat(owner, _BLOCK)

    def place(values: Array, fill: Array) -> Array:
        return fill.at[slot].set(values, unique_indices=True)

    blocked = Graph(
        senders=place(graph.senders, receivers),
        receivers=receivers,
        shifts=place(graph.shifts, jnp.zeros((n_slots, 3), graph.shifts.dtype)),
        mask=place(graph.mask, jnp.zeros(n_slots, bool)),
        overflow=graph.overflow,
        reverse=None if graph.reverse is None else place(slot[graph.reverse], own),
    )
    return blocked, owner


def convolve(
    features: Features,
    weights: Array,
    harmonics: Sequence[Array],
    paths: Sequence[Path],
    graph: Graph,
    owner: Array | None = None,
) -> Features:
    r"""Sum over neighbors of weighted products with harmonics, channel by channel.

    ``out_{i,m3,p,c} = sum_j w_{ij,p,c} sqrt(2 l3 + 1) sum_{m1,m2} C_{m1,m2,m3} x_{j,m1,c}
    Y_{m2}(ij)``. On graphs in rows or blocks the sum over neighbors and ``m1`` is one matrix
    product for each row or block and path.

    Args:
        features: ``x``, by irrep ``[2l+1, n_atoms, n_channels]``.
        weights: ``w``, ``[n_edges, n_paths * n_channels]``, path by path.
        harmonics: from :func:`spherical_harmonics`.
        paths: ``p``, from :func:`convolution_paths`.
        graph: edges.
        owner: receivers of blocks, if the graph is from :func:`in_blocks`.

    Returns:
        By irrep ``[2l+1, n_atoms, n_paths_to_it * n_channels]``.
    """
    n_atoms, n_channels = next(iter(features.values())).shape[1:]
    n_edges = graph.n_edges
    n_rows = n_atoms if owner is None else owner.shape[0]
    # one gather for all that a sender knows
    known = jnp.concatenate([x.swapaxes(0, 1) for x in features.values()], axis=1)
    at_sender = gather_senders(known, graph)
    starts = np.cumsum([0, *(x.shape[0] for x in features.values())])
    part = {name: slice(starts[k], starts[k + 1]) for k, name in enumerate(features)}
    outputs: dict[str, list[Array]] = {}
    for p, path in enumerate(paths):
        l1, l3 = degree(path.first), degree(path.out)
        coupling = _coupling(l1, path.degree, l3)
        turn = constant_product(coupling, harmonics[path.degree])
        turn = turn.reshape(2 * l1 + 1, 2 * l3 + 1, n_edges)
        weight = weights[:, None, p * n_channels : (p + 1) * n_channels]
        sent = weight * at_sender[:, part[path.first]]  # [n_edges, 2 l1 + 1, n_channels]
        if graph.row_length is not None or owner is not None:
            turn = turn.transpose(2, 0, 1).reshape(n_rows, -1, 2 * l3 + 1)
            sent = sent.reshape(n_rows, -1, n_channels)
            total = jnp.einsum("nam,nac->nmc", turn, sent)
            if owner is not None:
                total = jax.ops.segment_sum(total, owner, n_atoms, indices_are_sorted=True)
        else:
            turn = turn.transpose(0, 2, 1)[..., None]
            messages = [turn[a] * sent[:, a, None] for a in range(2 * l1 + 1)]
            message = functools.reduce(jnp.add, messages)
            total = sum_edges(message, graph, n_atoms)
        outputs.setdefault(path.out, []).append(total.swapaxes(0, 1))
    return {name: jnp.concatenate(parts, axis=2) for name, parts in outputs.items()}


@functools.cache
def _coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """``[(2 l1 + 1) (2 l3 + 1), 2 l2 + 1]``, scaled to keep mean squares per component."""
    coupling = np.sqrt(2 * l3 + 1) * clebsch_gordan(l1, l2, l3)
    return coupling.transpose(0, 2, 1).reshape(-1, 2 * l2 + 1)


def packed(features: Features) -> Array:
    """One array ``[n_atoms, n_components, n_channels]``, irreps in the order of their names."""
    parts = [features[name].swapaxes(0, 1) for name in sorted(features)]
    return jnp.concatenate(parts, axis=1)


def unpacked(values: Array, names: Sequence[str]) -> Features:
    """What :func:`packed` packed, ``[n_atoms, n_components * n_channels]``, of these irreps."""
    names = sorted(names)
    ends = np.cumsum([2 * degree(name) + 1 for name in names])
    values = values.reshape(values.shape[0], int(ends[-1]), -1).swapaxes(0, 1)
    return dict(zip(names, jnp.split(values, ends[:-1]), strict=True))


def mix_by_species(weights: Array, x: Array, kinds: Array) -> Array:
    """A linear map of the channels for each species, divided by the root of their number.

    Args:
        weights: ``[n_species, n_channels, n_out]``.
        x: ``[..., n_atoms, n_channels]``.
        kinds: index of the species of every atom, ``[n_atoms]``.
    """
    n_species, n_channels, n_out = weights.shape
    here = jnp.arange(n_species)[None] == kinds[:, None]
    spread = jnp.where(here[..., None], x[..., None, :], 0.0)
    flat = spread.reshape(*x.shape[:-1], n_species * n_channels)
    return flat @ (weights.reshape(-1, n_out) * n_channels**-0.5)


def constant_product(matrix: np.ndarray, x: Array) -> Array:
    """A constant matrix times ``x``, exact also where single precision is not the default."""
    return jnp.matmul(jnp.asarray(matrix, x.dtype), x, precision="highest")
