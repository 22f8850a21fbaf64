"""Functions of the distance that equivariant networks weigh their messages with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import comb

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(128)


def _scale(values: np.ndarray) -> float:
    """Inverse root of the mean square over a standard normal variable."""
    return float((_WEIGHTS @ values**2 / np.sqrt(2.0 * np.pi)) ** -0.5)


_SILU_SCALE = _scale(_NODES / (1.0 + np.exp(-_NODES)))
_TANH_SCALE = _scale(np.tanh(_NODES))


def bessel_basis(distances: Array, cutoff: float, n_radial: int) -> Array:
    """``sqrt(2 / r_c) sin(n pi r / r_c) / r`` for ``n`` = 1 to ``n_radial``.

    Args:
        distances: Å, ``[n_edges]``.
        cutoff: ``r_c``, Å.
        n_radial: number of functions.

    Returns:
        ``[n_edges, n_radial]``, Å^(-3/2).

    References:
        Gasteiger, Groß & Günnemann, ICLR (2020), Eq. 7.
    """
    r = distances[:, None]
    frequencies = jnp.asarray(np.pi / cutoff * np.arange(1, n_radial + 1), r.dtype)
    return np.sqrt(2.0 / cutoff).item() * jnp.sin(frequencies[None] * r) / r


def power_envelope(distances: Array, cutoff: float, power: int) -> Array:
    """One at zero distance, zero beyond ``cutoff``, with two continuous derivatives there.

    With ``u = r / r_c``, ``1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2)``. It is
    evaluated as ``(1 - u)³ sum_k C(k+2, 2) u^k`` over ``k < p``, which has full relative
    precision next to the cutoff.

    Args:
        distances: Å, any shape.
        cutoff: ``r_c``, Å.
        power: ``p``, at least 1.

    References:
        Gasteiger, Groß & Günnemann, ICLR (2020), Eq. 8, where this ``p`` is ``p - 1``.
    """
    u = jnp.minimum(distances / cutoff, 1.0)
    series = jnp.full_like(u, comb(power + 1, 2))
    for k in range(power - 2, -1, -1):
        series = series * u + comb(k + 2, 2)
    return (1.0 - u) ** 3 * series


@jax.custom_jvp
def silu(x: Array) -> Array:
    """``x / (1 + exp(-x))``, any shape.

    On CPUs a pass through memory takes longer than a hyperbolic tangent. So that XLA finds each
    derivative from ``x`` in one pass, and does not keep what they could share, the arguments of
    their tangents differ in sign or in the last digit.
    """
    return 0.5 * x * (1.0 + jnp.tanh(0.5 * x))


@jax.custom_jvp
def _slope(x: Array) -> Array:
    t = jnp.tanh(-0.5 * x)
    return 0.5 * (1.0 - t) + 0.25 * x * (1.0 - t * t)


def _curvature(x: Array) -> Array:
    t = jnp.tanh(np.nextafter(np.ones((), x.dtype) / 2, 1) * x)
    return 0.25 * (1.0 - t * t) * (2.0 - x * t)


silu.defjvp(lambda at, along: (silu(*at), along[0] * _slope(*at)))
_slope.defjvp(lambda at, along: (_slope(*at), along[0] * _curvature(*at)))


def scaled_silu(x: Array) -> Array:
    """SiLU times the constant that gives a standard normal ``x`` a mean square of one."""
    return _SILU_SCALE * silu(x)


def scaled_tanh(x: Array) -> Array:
    """Hyperbolic tangent times the constant that does the same."""
    return _TANH_SCALE * jnp.tanh(x)


def normal_weights(key: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Standard normal arrays of these shapes, by name."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(sub, shape)
        for sub, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def init_perceptron(key: Array, widths: Sequence[int]) -> tuple[Array, ...]:
    """Standard normal weights ``[n_in, n_out]`` between layers of these widths, no biases."""
    keys = jax.random.split(key, len(widths) - 1)
    shapes = itertools.pairwise(widths)
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))


def perceptron(weights: Sequence[Array], x: Array) -> Array:
    """Linear layers with :func:`scaled_silu` between them, zero where ``x`` is zero.

    Each layer divides by the root of its number of inputs, so that standard normal weights
    keep the mean square of ``x``.

    Args:
        weights: from :func:`init_perceptron`.
        x: ``[n_edges, n_in]``.
    """
    for k, weight in enumerate(weights):
        x = linear(weight, scaled_silu(x) if k > 0 else x)
    return x


def linear(weight: Array, x: Array) -> Array:
    """``x @ weight`` on the last axis, divided by the root of the number of inputs."""
    return x @ (weight * weight.shape[0] ** -0.5)
