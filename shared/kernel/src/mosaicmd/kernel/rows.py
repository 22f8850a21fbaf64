"""From one bit per candidate to rows of neighbors, and the opposite of every edge.

The neighbors of an atom are the set bits of its row of words, in order. The ``k``-th set bit
is found from running counts, and the place of an atom among its neighbor's neighbors is
a count of the bits before its own: neither needs a sort, a scatter or a loop over neighbors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.candidates import BITS, Candidates, take

Array = jax.Array

_EDGES_AT_ONCE = 2**18
"""What is worked on at a time, so that intermediate arrays fit a processor's cache."""


class Rows(NamedTuple):
    """Neighbors in rows of equal length; ``reverse`` counts along all rows."""

    senders: Array  # [n_atoms, row_length], int32, the atom itself where masked
    shifts: Array  # [n_atoms, row_length, 3], int32, 0 where masked
    mask: Array  # [n_atoms, row_length], bool
    reverse: Array  # [n_atoms, row_length], int32, the edge itself where masked


def neighbor_rows(found: Candidates, row_length: int) -> tuple[Rows, Array]:
    """The first ``row_length`` neighbors of every atom, and how many the longest row needs.

    If that is more than ``row_length`` the rows are cut, and ``reverse`` is wrong for those
    whose opposite was cut off.
    """
    words = found.words
    n_atoms, n_words = words.shape
    # Whole numbers below 2**24: exact in float32, and a matrix product is cheaper than a scan.
    population = jax.lax.population_count(words)
    earlier = np.triu(np.ones((n_words, n_words), np.float32), 1)
    before = jnp.matmul(population.astype(jnp.float32), earlier, precision="highest")
    before = before.astype(jnp.uint32)  # set bits in the words before each
    count = before[:, -1] + population[:, -1]
    place = jnp.arange(row_length, dtype=jnp.uint32)[None, :]

    def some_rows(row: Array) -> Rows:
        own = row[:, None]
        mask = place < take(count, own)
        word = _last_not_above(take(before, row), place)
        index = own * n_words + word
        bit = _nth_set_bit(take(words.reshape(-1), index), place - take(before.reshape(-1), index))
        candidate = jnp.where(mask, word * BITS + bit, 0)
        blocks = candidate // found.block_size
        senders, shifts = found.resolve(row, blocks, candidate % found.block_size)
        senders = jnp.where(mask, senders, own)

        opposite = (found.n_blocks - 1 - blocks) * found.block_size + take(found.slots, own)
        index = senders * n_words + opposite // BITS
        lower = take(words.reshape(-1), index) & (
            jnp.left_shift(jnp.uint32(1), opposite % BITS) - 1
        )
        rank = take(before.reshape(-1), index) + jax.lax.population_count(lower)
        rank = jnp.where(mask, jnp.minimum(rank, row_length - 1), place)
        if found.order is not None:
            senders = take(found.order, senders)
        return Rows(
            senders=senders.astype(jnp.int32),
            shifts=jnp.stack([jnp.where(mask, shift, 0) for shift in shifts], axis=-1),
            mask=mask,
            reverse=(senders * row_length + rank).astype(jnp.int32),
        )

    rows = _in_chunks(some_rows, n_atoms, max(1, _EDGES_AT_ONCE // row_length))
    if found.order is not None:
        index = jnp.arange(n_atoms, dtype=jnp.uint32)
        row = jnp.zeros_like(index).at[found.order].set(index, unique_indices=True)
        rows = jax.tree.map(lambda values: take(values, row), rows)
    return rows, jnp.max(count, initial=0).astype(jnp.int32)


def _in_chunks(some_rows: Callable[[Array], Rows], n_rows: int, chunk: int) -> Rows:
    if n_rows <= chunk:
        return some_rows(jnp.arange(n_rows, dtype=jnp.uint32))
    n_chunks = -(-n_rows // chunk)
    rows = jnp.arange(n_chunks * -(-n_rows // n_chunks), dtype=jnp.uint32)
    chunks = jax.lax.map(some_rows, jnp.minimum(rows, n_rows - 1).reshape(n_chunks, -1))
    return jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:])[:n_rows], chunks)


def _last_not_above(before: Array, place: Array) -> Array:
    """The last word that has at most ``place`` bits before it, shape ``[n_rows, row_length]``."""
    # XLA makes a tree of intermediate arrays of a sum over more than 32.
    parts = jnp.split(before, list(range(BITS, before.shape[1], BITS)), axis=1)
    words = [
        jnp.sum(part[:, None, :] <= place[:, :, None], axis=-1, dtype=jnp.uint32) for part in parts
    ]
    return sum(words[1:], start=words[0]) - 1


def _nth_set_bit(word: Array, n: Array) -> Array:
    """Position of the set bit that has ``n`` set bits below it, by halving."""
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        count = jax.lax.population_count(word & ((1 << width) - 1))
        above = n >= count
        n = jnp.where(above, n - count, n)
        word = jnp.where(above, word >> width, word)
        position = jnp.where(above, position + width, position)
    return position
