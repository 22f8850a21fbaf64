"""Histograms on equal bins from zero, hard or smoothed by a Gaussian."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

REACH = 5.0
"""A smoothed value touches the bins within this many standard deviations."""

_SPARE = 128
"""Bins past the end for what does not count: many in turn, as adding to one bin again and
again makes each addition wait for the one before."""


def bin_edges(upper: float, n_bins: int) -> np.ndarray:
    """Edges of ``n_bins`` equal bins on ``[0, upper]``, float64."""
    return np.linspace(0.0, upper, n_bins + 1)


def bin_centres(upper: float, n_bins: int) -> np.ndarray:
    """Centres of ``n_bins`` equal bins on ``[0, upper]``, float64."""
    edges = bin_edges(upper, n_bins)
    return 0.5 * (edges[1:] + edges[:-1])


def counts(
    values: Array,
    include: Array,
    *,
    upper: float,
    n_bins: int,
    smoothing: float | None = None,
    closed: bool = False,
) -> Array:
    """Number of ``values`` per bin, counting those to ``include``.

    Args:
        values: non-negative, any shape.
        include: bool, same shape.
        upper: right edge of the last bin.
        n_bins: number of bins.
        smoothing: standard deviation of the Gaussian that replaces each value, making the
            result differentiable in ``values``; ``None``: a value counts in one bin.
        closed: no value lies beyond ``upper``, and ``upper`` itself is in the last bin.

    Returns:
        Shape ``[n_bins]``, dtype of ``values``.
    """
    values, include = values.reshape(-1), include.reshape(-1)
    width = upper / n_bins
    # Far values would overflow the integers; all of them belong past the last bin.
    position = jnp.minimum(jax.lax.stop_gradient(values) / width, 2.0 * n_bins)
    index = jnp.floor(position).astype(jnp.int32)
    if closed:
        index = jnp.minimum(index, n_bins - 1)
    if smoothing is None:
        total = jnp.zeros(n_bins + _SPARE, jnp.int32)
        total = total.at[_targets(index, include, n_bins)].add(1, mode="promise_in_bounds")
        return total[:n_bins].astype(values.dtype)

    reach = math.ceil(REACH * smoothing / width)
    scale = 1.0 / (math.sqrt(2.0) * smoothing)
    inner = (index.astype(values.dtype) * width - values) * scale

    # A loop, as unrolled XLA would compute the values anew for every offset.
    def add(carry: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        total, below = carry
        above = 0.5 * jax.lax.erf(inner + (offset + 1).astype(inner.dtype) * (width * scale))
        target = _targets(index + offset, include, n_bins)
        return (total.at[target].add(above - below, mode="promise_in_bounds"), above), None

    below = 0.5 * jax.lax.erf(inner - reach * width * scale)
    empty = jnp.zeros(n_bins + _SPARE, values.dtype)
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.int32)
    (total, _), _ = jax.lax.scan(add, (empty, below), offsets)
    return total[:n_bins]


def _targets(index: Array, include: Array, n_bins: int) -> Array:
    spare = n_bins + (jnp.arange(index.size, dtype=jnp.int32) & (_SPARE - 1))
    return jnp.where(include & (index >= 0) & (index < n_bins), index, spare)
