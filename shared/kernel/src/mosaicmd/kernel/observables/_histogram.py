"""Histograms on equal bins from zero, hard or smoothed by a Gaussian."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

REACH = 5.0
"""A smoothed value touches the bins within this many standard deviations."""


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
        index = jnp.where(include & (index < n_bins), index, n_bins)
        total = jnp.zeros(n_bins + 1, jnp.int32).at[index].add(1, mode="promise_in_bounds")
        return total[:n_bins].astype(values.dtype)

    reach = int(np.ceil(REACH * smoothing / width))
    offsets = np.arange(-reach, reach + 2)
    edges = (index[:, None] + offsets[None]).astype(values.dtype) * width
    scale = float(np.sqrt(2.0) * smoothing)
    cumulative = 0.5 * jax.lax.erf((edges - values[:, None]) / scale)
    share = jnp.where(include[:, None], jnp.diff(cumulative, axis=1), 0.0)
    target = index[:, None] + offsets[None, :-1]
    target = jnp.where((target >= 0) & (target < n_bins), target, n_bins)
    total = jnp.zeros(n_bins + 1, values.dtype).at[target].add(share, mode="promise_in_bounds")
    return total[:n_bins]
