"""Spherical Bessel functions that vanish at a cutoff, and spherical harmonics, on edges."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import spherical_jn

Array = jax.Array


@functools.cache
def spherical_bessel_roots(n_spherical: int, n_radial: int) -> np.ndarray:
    """The first ``n_radial`` positive roots of ``j_l`` for ``l < n_spherical``, ``[l, n]``."""
    roots = np.arange(1, n_radial + n_spherical) * np.pi  # of j_0
    rows = [roots[:n_radial]]
    for l in range(1, n_spherical):  # those of j_(l-1) enclose those of j_l
        function = functools.partial(spherical_jn, l)
        roots = np.array(
            [brentq(function, *ends, xtol=1e-14) for ends in itertools.pairwise(roots)]
        )
        rows.append(roots[:n_radial])
    return np.stack(rows)


@functools.cache
def _chebyshev_series(n_spherical: int, n_radial: int, accuracy: float) -> np.ndarray:
    """Coefficients in ``T_k(2 x - 1)`` of all radial functions, ``[k, l * n]``."""
    roots = spherical_bessel_roots(n_spherical, n_radial)
    degree = int(roots.max()) + 36  # more than enough: the wave number in `2 x - 1` is half of that

    nodes = chebyshev.chebpts1(degree + 1)
    columns = [
        np.sqrt(2.0) / abs(spherical_jn(l + 1, root)) * spherical_jn(l, 0.5 * root * (nodes + 1.0))
        for l in range(n_spherical)
        for root in roots[l]
    ]
    series = 2.0 / (degree + 1) * chebyshev.chebvander(nodes, degree).T @ np.stack(columns, axis=1)
    series[0] *= 0.5
    needed = np.flatnonzero(np.abs(series).max(axis=1) > accuracy)
    return series[: needed[-1] + 1]


def spherical_bessel_functions(x: Array, n_spherical: int, n_radial: int) -> Array:
    r"""``sqrt(2 / j_(l+1)(z_ln)^2) j_l(z_ln x)`` with the roots ``z_ln`` of ``j_l``.

    For each ``l`` an orthonormal set on the unit ball. They are sums of Chebyshev polynomials,
    evaluated as one matrix product and as accurate as ``x`` everywhere; recurrences in ``l`` lose
    all digits for small ``x``. Derivatives are such sums as well.

    Args:
        x: distances in units of the cutoff, in ``[0, 1]``, shape ``[n]``.
        n_spherical: number of ``l``, from 0 on.
        n_radial: number of functions for each ``l``.

    Returns:
        Shape ``[n_spherical, n_radial, n]``.
    """
    return _derivatives(x, n_spherical, n_radial, 0).reshape(n_spherical, n_radial, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _derivatives(x: Array, n_spherical: int, n_radial: int, order: int) -> Array:
    """Of some order of all functions, ``[n_spherical * n_radial, n]``."""
    accuracy = 0.1 * float(jnp.finfo(x.dtype).eps)
    series = _chebyshev_series(n_spherical, n_radial, accuracy)
    if order:
        series = chebyshev.chebder(series, m=order, scl=2.0)
    s = 2.0 * x - 1.0
    T = jnp.stack([jnp.ones_like(s), s])
    while len(T) < len(series):  # T_(m+k) = 2 T_m T_k - T_(m-k)
        m = len(T) - 1
        T = jnp.concatenate([T, 2.0 * T[m:] * T[1:] - T[m - 1 :: -1]])
    return jnp.matmul(jnp.asarray(series.T, x.dtype), T[: len(series)], precision="highest")


@_derivatives.defjvp
def _derivatives_jvp(
    n_spherical: int, n_radial: int, order: int, given: tuple[Array], tangent: tuple[Array]
) -> tuple[Array, Array]:
    slope = _derivatives(*given, n_spherical, n_radial, order + 1)
    return _derivatives(*given, n_spherical, n_radial, order), slope * tangent[0][None]


def spherical_harmonics(x: Array, y: Array, z: Array, n_spherical: int) -> list[Array]:
    r"""Real spherical harmonics of unit vectors whose products add up to Legendre polynomials.

    ``sum_m Z_lm(u) Z_lm(v) = P_l(u . v)``: they are ``sqrt(4 pi / (2 l + 1)) Y_lm``, polynomials
    in the components and thus smooth everywhere.

    Args:
        x: first components, any shape.
        y: second components.
        z: third components.
        n_spherical: number of ``l``, from 0 on.

    Returns:
        For every ``l`` the ``2 l + 1`` functions along a new last axis but one, that is
        ``[..., 2 l + 1, n]`` for components of shape ``[..., n]``.
    """
    Z: dict[tuple[int, int], Array] = {}
    cosine, sine = jnp.ones_like(x), jnp.zeros_like(x)  # (x + i y)^m
    for m in range(n_spherical):
        before, Q = jnp.zeros_like(z), jnp.full_like(z, math.prod(range(1, 2 * m, 2)))
        for l in range(m, n_spherical):  # Q_lm = d^m P_l / dz^m
            if l > m:
                before, Q = Q, ((2 * l - 1) * z * Q - (l + m - 1) * before) / (l - m)
            norm = math.sqrt((2 if m else 1) * math.factorial(l - m) / math.factorial(l + m))
            Z[l, m] = norm * Q * cosine
            if m:
                Z[l, -m] = norm * Q * sine
        cosine, sine = cosine * x - sine * y, cosine * y + sine * x
    return [jnp.stack([Z[l, m] for m in range(-l, l + 1)], axis=-2) for l in range(n_spherical)]
