"""Roots, radial functions and harmonics against SciPy, tables and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_legendre, spherical_jn

from mosaicmd.gnn_models.spherical_bessel import (
    spherical_bessel_functions,
    spherical_bessel_roots,
    spherical_harmonics,
)


def test_roots_are_those_of_the_table():
    """Abramowitz & Stegun, Handbook of Mathematical Functions (1964), Table 10.6, a_(l+1/2)."""
    table = [
        [3.141593, 6.283185, 9.424778],
        [4.493409, 7.725252, 10.904122],
        [5.763459, 9.095011, 12.322941],
        [6.987932, 10.417119, 13.698023],
    ]
    np.testing.assert_allclose(spherical_bessel_roots(4, 3), table, atol=1e-6)


def test_roots_are_roots_and_none_is_left_out():
    roots = spherical_bessel_roots(8, 7)
    for l, row in enumerate(roots):
        assert np.abs(spherical_jn(l, row)).max() < 1e-13
        x = np.linspace(1e-3, row[-1] + 1e-3, 5000)
        assert np.sum(np.diff(np.sign(spherical_jn(l, x))) != 0) == len(row)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_radial_functions_are_those_of_scipy(dtype, tolerance):
    x = np.linspace(0.0, 1.0, 301)
    found = spherical_bessel_functions(jnp.asarray(x, dtype), 7, 6)
    assert found.shape == (7, 6, 301)
    assert found.dtype == dtype
    roots = spherical_bessel_roots(7, 6)
    for l in range(7):
        for n in range(6):
            norm = np.sqrt(2.0 / spherical_jn(l + 1, roots[l, n]) ** 2)
            expected = norm * spherical_jn(l, roots[l, n] * x)
            np.testing.assert_allclose(found[l, n], expected, atol=tolerance * norm)


def test_radial_functions_have_the_derivatives_of_scipy():
    """The second one is wanted by gradients of losses of forces."""
    x = np.linspace(0.0, 1.0, 101)

    def function(x):
        return jnp.sum(spherical_bessel_functions(x, 7, 6)[5, 3])  # each of its own x

    slope = jax.jit(jax.grad(function))
    curvature = jax.jit(jax.grad(lambda x: jnp.sum(slope(x))))
    root = spherical_bessel_roots(7, 6)[5, 3]
    norm = np.sqrt(2.0) / abs(spherical_jn(6, root))
    first = norm * root * spherical_jn(5, root * x, derivative=True)
    np.testing.assert_allclose(slope(jnp.asarray(x)), first, atol=1e-9)
    step = 1e-5
    ahead, behind = (spherical_jn(5, root * (x + d), derivative=True) for d in (step, -step))
    second = norm * root * (ahead - behind) / (2.0 * step)
    np.testing.assert_allclose(curvature(jnp.asarray(x)), second, atol=1e-5)


def test_radial_functions_are_orthonormal_on_the_unit_ball():
    """``integral x^2 f_m f_n dx = delta_mn``, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    x = 0.5 * (nodes + 1.0)
    f = np.asarray(spherical_bessel_functions(jnp.asarray(x), 7, 6))
    overlap = np.einsum("lmx,lnx,x->lmn", f, f, 0.5 * weights * x**2)
    np.testing.assert_allclose(overlap, np.broadcast_to(np.eye(6), (7, 6, 6)), atol=1e-12)


def test_products_of_harmonics_add_up_to_legendre_polynomials():
    rng = np.random.default_rng(0)
    u, v = (w / np.linalg.norm(w, axis=0) for w in rng.normal(size=(2, 3, 40)))
    u[:, 0], v[:, 0] = [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]  # poles, straight
    u[:, 1], v[:, 1] = u[:, 2], u[:, 2]  # folded
    pair = [spherical_harmonics(*map(jnp.asarray, w), 9) for w in (u, v)]
    for l, (of_u, of_v) in enumerate(zip(*pair, strict=True)):
        assert of_u.shape == (2 * l + 1, 40)
        expected = eval_legendre(l, np.sum(u * v, axis=0))
        np.testing.assert_allclose(np.sum(of_u * of_v, axis=0), expected, atol=1e-13)
