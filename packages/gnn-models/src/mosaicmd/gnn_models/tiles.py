"""Strictly local networks tile by tile: every tile stays in the cache until it is done with.

The energies of some atoms depend on the edges around these atoms alone, so that derivatives with
respect to these edges are computed together with the energies, tile by tile, and nothing else of a
tile is kept. Memory is that of one tile, and traffic that of the edges.

Arrays of tiles have the shape ``[n_tiles, size, ...]``, with what belongs to one atom in one place
of the first two axes. What fills the last tile must give no energy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph

Array = jax.Array
Function = Callable[[Any, Any, Any], Any]
"""``(shared, varied, fixed)`` of one tile; only ``shared`` and ``varied`` have derivatives."""

_EDGES_PER_CORE = 256
_EDGES_ELSEWHERE = 2**19
"""Edges in a tile: few enough for the cache of a core, and enough to keep a GPU busy."""


class Tiles(NamedTuple):
    """How atoms are divided: ``size`` of them in each tile, the last of them possibly fewer."""

    n_atoms: int
    n_tiles: int
    size: int

    def divide(self, values: Array, fill: float = 0.0) -> Array:
        """``[n_atoms, ...] -> [n_tiles, size, ...]``, and ``fill`` where there is no atom."""
        missing = self.n_tiles * self.size - self.n_atoms
        widths = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
        padded = jnp.pad(values, widths, constant_values=fill)
        return padded.reshape(self.n_tiles, self.size, *values.shape[1:])

    def rejoin(self, values: Array) -> Array:
        """``[n_tiles, size, ...] -> [n_atoms, ...]``."""
        return values.reshape(-1, *values.shape[2:])[: self.n_atoms]


def tiles_of(graph: Graph, n_atoms: int) -> Tiles | None:
    """Tiles for a graph in rows; ``None`` for other graphs, and where one tile holds it all.

    Also for one that does not know its reverse edges, which is what is asked of graphs for
    derivatives in forward mode: tiles have none of first order.
    """
    if graph.row_length is None or graph.reverse is None:
        return None
    on_cpu = jax.default_backend() == "cpu"
    n_edges = _EDGES_PER_CORE * _n_cores() if on_cpu else _EDGES_ELSEWHERE
    n_tiles = -(-n_atoms // max(1, n_edges // graph.row_length))
    return None if n_tiles < 2 else Tiles(n_atoms, n_tiles, -(-n_atoms // n_tiles))


def rows_of_tile(size: int, row_length: int) -> Graph:
    """Edges of a tile, for sums over neighbors; who the senders are is not known."""
    n_edges = size * row_length
    return Graph(
        senders=jnp.zeros(n_edges, jnp.int32),
        receivers=jnp.repeat(jnp.arange(size, dtype=jnp.int32), row_length),
        shifts=jnp.zeros((n_edges, 3), jnp.int32),
        mask=jnp.ones(n_edges, bool),
        overflow=jnp.zeros((), bool),
        row_length=row_length,
    )


def _n_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_tiles(function: Function, shared: Any, varied: Any, fixed: Any) -> Any:
    """``function`` of every tile; derivatives compute it once more."""
    each = jax.checkpoint(lambda tile: function(shared, *tile))
    return jax.lax.map(each, (varied, fixed))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def energies_of_tiles(function: Function, shared: Any, varied: Any, fixed: Any) -> Array:
    """Energies ``[n_tiles, size]``, and their derivatives in the same pass over the tiles.

    Args:
        function: energies ``[size]`` of a tile. That of an atom must depend on its own place in
            the leaves of ``varied`` alone, and the function must not close over traced values.
        shared: parameters; their derivatives take a pass of their own.
        varied: floating-point arrays of tiles.
        fixed: other arrays of tiles.
    """
    return jax.lax.map(lambda tile: function(shared, *tile), (varied, fixed))


def _with_slopes(function: Function, shared: Any, varied: Any, fixed: Any) -> tuple[Array, Any]:
    def one(tile: Any) -> tuple[Array, Any]:
        own, rest = tile
        energies, pull = jax.vjp(lambda own: function(shared, own, rest), own)
        return energies, pull(jnp.ones_like(energies))[0]

    energies, slopes = jax.lax.map(one, (varied, fixed))
    return energies, (shared, varied, fixed, slopes)


def _apply_slopes(function: Function, residual: Any, cotangent: Array) -> tuple[Any, Any, None]:
    shared, varied, fixed, slopes = residual

    def scaled(slope: Array) -> Array:
        return cotangent.reshape(*cotangent.shape, *(1,) * (slope.ndim - 2)) * slope

    _, pull = jax.vjp(lambda shared: map_tiles(function, shared, varied, fixed), shared)
    return pull(cotangent)[0], jax.tree.map(scaled, slopes), None


energies_of_tiles.defvjp(_with_slopes, _apply_slopes)
