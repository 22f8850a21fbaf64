"""Pieces of cubic B-splines against SciPy."""

import jax.numpy as jnp
import numpy as np
from scipy.interpolate import BSpline

from mosaicmd.gnn_models.splines import piecewise_cubic, spline_pieces


def test_pieces_are_the_b_splines_of_scipy():
    """Ten coefficients with unit knots from -3 on: seven intervals from 0 to 7."""
    coefficients = np.random.default_rng(0).normal(size=(3, 10))
    pieces = spline_pieces(jnp.asarray(coefficients))
    assert pieces.shape == (21, 4)
    x = np.linspace(0.0, 6.999, 50)
    interval = np.floor(x).astype(int)
    for k, row in enumerate(coefficients):
        found = piecewise_cubic(pieces, jnp.asarray(7 * k + interval), jnp.asarray(x - interval))
        np.testing.assert_allclose(found, BSpline(np.arange(-3, 11), row, 3)(x), atol=1e-14)


def test_single_precision_stays():
    pieces = spline_pieces(jnp.ones((1, 5), jnp.float32))
    assert pieces.dtype == jnp.float32
    np.testing.assert_allclose(piecewise_cubic(pieces, jnp.array([1]), jnp.array([0.3])), 1.0)
