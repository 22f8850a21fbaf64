"""From one bit per candidate to rows of neighbors, and the opposite of every edge.

The neighbors of an atom are the set bits of its row of words, in order. The ``k``-th set bit
is found from running counts, and the place of an atom among its neighbor's neighbors is
a count of the bits before its own: neither needs a sort, a scatter or a loop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.candidates import BITS, Candidates

Array = jax.Array


class Rows(NamedTuple):
    """Neighbors in rows of equal length; ``reverse`` counts along all rows."""

    senders: Array  # [n_atoms, row_length], int32, the atom itself where masked
    shifts: Array  # [n_atoms, row_length, 3], int32, 0 where masked
    mask: Array  # [n_atoms, row_length], bool
    reverse: Array  # [n_atoms, row_length], int32, the edge itself where masked
    longest: Array  # [], int32, neighbors of the atom that has most


def neighbor_rows(found: Candidates, row_length: int) -> Rows:
    """The first ``row_length`` neighbors of every atom, and how many the longest row needs.

    A pair whose two directions disagree is dropped: rounding can cause that for a pair that
    is longer than the range asked for, never for a shorter one.
    """
    words = found.words
    n_atoms, n_words = words.shape
    population = jax.lax.population_count(words).astype(jnp.int32)
    through = jnp.cumsum(population, axis=1)  # set bits up to and with each word
    before = through - population
    own = jnp.arange(n_atoms, dtype=jnp.int32)[:, None]
    place = jnp.arange(row_length, dtype=jnp.int32)[None, :]

    word = jnp.sum(through[:, None, :] <= place[:, :, None], axis=-1, dtype=jnp.int32)
    mask = word < n_words
    index = own * n_words + jnp.minimum(word, n_words - 1)
    bit = _nth_set_bit(_take(words, index), place - _take(before, index))
    candidates = jnp.where(mask, word * BITS + bit, 0)
    senders, shifts = found.resolve(candidates)
    senders = jnp.where(mask, senders, own)

    mirrored = found.n_blocks - 1 - candidates // found.block_size
    bit = jnp.where(mask, mirrored * found.block_size + found.slots[:, None], 0)
    index = senders * n_words + bit // BITS
    lane = (bit % BITS).astype(jnp.uint32)
    word = _take(words, index)
    one = jnp.left_shift(jnp.uint32(1), lane)
    rank = _take(before, index) + jax.lax.population_count(word & (one - 1)).astype(jnp.int32)
    mask = mask & ((word & one) != 0) & (rank < row_length)
    return Rows(
        senders=jnp.where(mask, senders, own),
        shifts=jnp.where(mask[:, :, None], shifts, 0),
        mask=mask,
        reverse=jnp.where(mask, senders * row_length + rank, own * row_length + place),
        longest=jnp.max(through[:, -1], initial=0),
    )


def _take(values: Array, index: Array) -> Array:
    return values.reshape(-1).at[index].get(mode="promise_in_bounds")


def _nth_set_bit(word: Array, n: Array) -> Array:
    """Position of the set bit that has ``n`` set bits below it, by halving."""
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        low = word & jnp.uint32((1 << width) - 1)
        count = jax.lax.population_count(low).astype(jnp.int32)
        above = n >= count
        n = jnp.where(above, n - count, n)
        word = jnp.where(above, word >> width, word)
        position = jnp.where(above, position + width, position)
    return position
