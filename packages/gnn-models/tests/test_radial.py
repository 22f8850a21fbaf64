"""Radial functions: orthonormality, derivatives at the cutoff, and preserved variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models.radial import (
    bessel_basis,
    init_perceptron,
    perceptron,
    power_envelope,
    scaled_silu,
    silu,
)


def test_bessel_functions_are_orthonormal():
    """Integrals of ``b_m b_n r²`` over the sphere's radius, by Gauss–Legendre quadrature."""
    cutoff = 4.3
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = 0.5 * cutoff * (nodes + 1.0)
    values = np.asarray(bessel_basis(jnp.asarray(r), cutoff, 6))
    overlap = np.einsum("r,ri,rj->ij", 0.5 * cutoff * weights * r**2, values, values)
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("power", [1, 2, 5, 6])
def test_envelope_is_the_published_polynomial(power):
    u = np.linspace(0.0, 1.2, 49)
    p = power
    expected = (
        1.0
        - (p + 1.0) * (p + 2.0) / 2.0 * u**p
        + p * (p + 2.0) * u ** (p + 1)
        - p * (p + 1.0) / 2.0 * u ** (p + 2)
    )
    found = power_envelope(jnp.asarray(3.0 * u), 3.0, power)
    np.testing.assert_allclose(found, np.where(u < 1.0, expected, 0.0), atol=1e-13)
    gap = 1e-4
    near = power_envelope(jnp.float32(1.0 - gap), 1.0, power)
    leading = p * (p + 1.0) * (p + 2.0) / 6.0 * gap**3
    np.testing.assert_allclose(near, leading, rtol=3e-3)  # float32 of 1 - gap


def test_networks_preserve_the_mean_square():
    """The mean square of a SiLU of a standard normal is 1, by a sum over its quantiles."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=400_000))
    deviation = np.asarray(scaled_silu(z) ** 2)
    assert abs(deviation.mean() - 1.0) < 4.0 * deviation.std() / np.sqrt(len(z))
    weights = init_perceptron(jax.random.key(0), (8, 256, 256, 256))
    outputs = perceptron(weights, jax.random.normal(jax.random.key(1), (500, 8)))
    assert 0.8 < float(jnp.mean(outputs**2)) < 1.25
    assert (perceptron(weights, jnp.zeros((1, 8))) == 0.0).all()


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-13), ("float32", 1e-5)])
def test_silu_and_four_derivatives_are_those_of_jax(dtype, atol):
    """Also along directions, as for elastic constants, and where single precision overflows."""
    x = jnp.concatenate([jnp.linspace(-40.0, 40.0, 801), jnp.asarray([-1e4, 1e4])]).astype(dtype)
    found, expected = silu, jax.nn.silu
    for order in range(5):
        values, reference = jax.vmap(found)(x), jax.vmap(expected)(x.astype(jnp.float64))
        assert values.dtype == x.dtype
        np.testing.assert_allclose(values, reference, rtol=1e-6, atol=atol, err_msg=str(order))
        pushed = jax.jvp(found, (x[300],), (jnp.ones((), dtype),))[1]
        found, expected = jax.grad(found), jax.grad(expected)
        np.testing.assert_allclose(pushed, found(x[300]), rtol=1e-6, atol=atol)
