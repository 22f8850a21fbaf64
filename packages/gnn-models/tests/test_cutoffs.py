"""The polynomial switch by its closed form, and its smoothness at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models.cutoffs import polynomial_switch

ONSET, CUTOFF = 4.0, 5.0  # Å


def derivative(order, r):
    function = lambda x: polynomial_switch(x, ONSET, CUTOFF)  # noqa: E731
    for _ in range(order):
        function = jax.grad(function)
    return float(function(jnp.asarray(r)))


def test_values_by_hand():
    r = jnp.array([0.0, 3.9, 4.0, 4.25, 4.5, 4.75, 5.0, 5.1, 1000.0])
    quarter = 1.0 - 10.0 / 64.0 + 15.0 / 256.0 - 6.0 / 1024.0
    expected = [1.0, 1.0, 1.0, quarter, 0.5, 1.0 - quarter, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(polynomial_switch(r, ONSET, CUTOFF), expected, atol=1e-15)


@pytest.mark.parametrize("end", [ONSET, CUTOFF])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_continuous_to_second_order(order, end):
    """The third derivative is 60 / width^3 at either end, so derivative k differs by h^(3-k)."""
    h = 1e-7
    assert abs(derivative(order, end + h) - derivative(order, end - h)) < 61.0 * h
    assert abs(derivative(3, end + h) - derivative(3, end - h)) > 59.0


def test_curvature_is_largest_where_the_closed_form_says():
    """``S'' = -60 x + 180 x^2 - 120 x^3`` at ``x = 1/2 - 1/sqrt(12)`` is ``-10 / sqrt(3)``."""
    x = 0.5 - 1.0 / np.sqrt(12.0)
    np.testing.assert_allclose(derivative(2, ONSET + x), -10.0 / np.sqrt(3.0), rtol=1e-12)


def test_single_precision_stays():
    assert polynomial_switch(jnp.ones(3, jnp.float32), ONSET, CUTOFF).dtype == jnp.float32


@pytest.mark.parametrize("onset", [-1.0, 5.0, 6.0])
def test_an_onset_beyond_the_cutoff_is_refused(onset):
    with pytest.raises(ValueError, match=r"`onset` .* must lie in \[0, cutoff=5.0 Å\)"):
        polynomial_switch(jnp.ones(3), onset, CUTOFF)
