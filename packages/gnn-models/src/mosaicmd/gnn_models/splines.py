"""Uniform cubic B-splines, evaluated as polynomials on their intervals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_BASIS = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]) / 6.0
"""Rows: the four cubic B-splines alive on an interval, as polynomials in ``t`` in [0, 1]."""


def spline_pieces(coefficients: Array) -> Array:
    """Monomial coefficients on every interval of several splines.

    Interval ``k`` lies under the B-splines ``k`` to ``k + 3``, so ``n`` coefficients make
    ``n - 3`` intervals.

    Args:
        coefficients: ``[n_splines, n]``.

    Returns:
        ``[n_splines * (n - 3), 4]``: rows for :func:`piecewise_cubic`, spline by spline.
    """
    n_intervals = coefficients.shape[1] - 3
    windows = jnp.stack([coefficients[:, m : m + n_intervals] for m in range(4)], axis=-1)
    return (windows @ jnp.asarray(_BASIS, coefficients.dtype)).reshape(-1, 4)


def piecewise_cubic(pieces: Array, row: Array, t: Array) -> Array:
    """The polynomial in ``row`` of ``pieces`` at ``t``, elementwise; rows must exist."""
    c0, c1, c2, c3 = (pieces[:, power].at[row].get(mode="promise_in_bounds") for power in range(4))
    return c0 + t * (c1 + t * (c2 + t * c3))


def cubic_basis(t: Array) -> Array:
    """The four B-splines alive on an interval at ``t`` in [0, 1], ``[n] -> [n, 4]``."""
    powers = t[:, None] ** jnp.arange(4, dtype=jnp.int32)[None]
    return powers @ jnp.asarray(_BASIS, t.dtype).T
