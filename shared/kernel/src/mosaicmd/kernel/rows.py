"""From one bit per candidate to rows of neighbors, and the opposite of every edge.

The neighbors of an atom are the set bits of its row of words, in order. The ``k``-th set bit
is found from running counts, and the place of an atom among its neighbor's neighbors is
a count of the bits before its own: neither needs a sort, a scatter or a loop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    own = jnp.arange(n_atoms, dtype=jnp.uint32)[:, None]
    place = jnp.arange(row_length, dtype=jnp.uint32)[None, :]
    mask = place < count[:, None]

    word = (
        sum(
            jnp.sum(some[:, None, :] <= place[:, :, None], axis=-1, dtype=jnp.uint32)
            for some in jnp.split(before, list(range(BITS, n_words, BITS)), axis=1)
        )
        - 1
    )
    index = own * n_words + word
    bit = _nth_set_bit(_take(words, index), place - _take(before, index))
    candidate = jnp.where(mask, word * BITS + bit, 0)
    blocks = candidate // found.block_size
    senders, shifts = found.resolve(blocks, candidate % found.block_size)
    senders = jnp.where(mask, senders, own)

    mirrored = (found.n_blocks - 1 - blocks) * found.block_size + found.slots[:, None]
    index = senders * n_words + mirrored // BITS
    lower = jnp.left_shift(jnp.uint32(1), mirrored % BITS) - 1
    rank = _take(before, index) + jax.lax.population_count(_take(words, index) & lower)
    reverse = senders * row_length + jnp.minimum(rank, row_length - 1)
    return Rows(
        senders=senders.astype(jnp.int32),
        shifts=jnp.stack([jnp.where(mask, shift, 0) for shift in shifts], axis=-1),
        mask=mask,
        reverse=jnp.where(mask, reverse, own * row_length + place).astype(jnp.int32),
        longest=jnp.max(count, initial=0).astype(jnp.int32),
    )


def _take(values: Array, index: Array) -> Array:
    return values.reshape(-1).at[index].get(mode="promise_in_bounds")


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
