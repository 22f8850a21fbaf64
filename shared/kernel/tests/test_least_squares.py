"""Least squares: known minima, the parameters that made the labels, slopes by differences."""

import functools

import jax.numpy as jnp
import matching_data
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.least_squares import (
    Quadratic,
    anchor,
    fit_labels,
    fit_residuals,
    least_squares,
    near,
    quadratic_loss,
)

LOSS = MatchingLoss(energy=10.0, forces=1.0, stress=1000.0)
TERMS = [matching_data.PAIR]
START = (matching_data.params_of(matching_data.START),)


@functools.cache
def batches():
    examples = make_examples(matching_data.labelled(), matching_data.CUTOFF)
    return Batches(examples, 4)


def test_least_squares_ends_in_the_minimum_of_rosenbrock():
    """Residuals 10 (y - x²) and 1 - x vanish at (1, 1)."""
    fit = fit_residuals(lambda p: jnp.array([10.0 * (p["y"] - p["x"] ** 2), 1.0 - p["x"]]))
    state = fit.init({"x": jnp.array(-1.2), "y": jnp.array(1.0)})
    losses = []
    for _ in range(40):
        state, metrics = fit.step(state, None)
        losses.append(metrics["loss"])
    assert np.all(np.diff(losses) <= 0.0)
    np.testing.assert_allclose([state.params["x"], state.params["y"]], 1.0, atol=1e-8)


def test_labels_are_fitted_by_the_parameters_that_made_them():
    fit = fit_labels(TERMS, LOSS, batches())
    state = fit.init(START)
    losses = []
    for _ in range(8):
        state, metrics = fit.step(state, None)
        losses.append(metrics["loss"])
    assert losses[-1] < 1e-12 * losses[0]
    for name, wanted in matching_data.TRUE.items():
        np.testing.assert_allclose(state.params[0][name], wanted, rtol=1e-8)


def test_the_slope_is_that_of_differences_and_the_curvature_that_of_the_minimum():
    """Where no deviation is left, Gauss and Newton's curvature is the whole: 1e-5 relative."""
    quadratic = quadratic_loss(TERMS, LOSS, batches())
    flat, unravel = ravel_pytree(START)
    best, _ = ravel_pytree((matching_data.params_of(matching_data.TRUE),))
    for axis in np.eye(2):
        move = 1e-5 * axis
        ends = [quadratic(unravel(flat + sign * move)).loss for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(quadratic(START).slope @ axis, slope, rtol=1e-6)
        ends = [quadratic(unravel(best + sign * move)).slope for sign in (1, -1)]
        row = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(quadratic(unravel(best)).curvature @ axis, row, rtol=1e-5)


def test_an_anchor_costs_what_the_loss_grows_by():
    """At the minimum the loss is the quadratic: half the square sum is weight times its growth."""
    quadratic = quadratic_loss(TERMS, LOSS, batches())
    best = (matching_data.params_of(matching_data.TRUE),)
    flat, unravel = ravel_pytree(best)
    residuals = anchor(best, quadratic(best), 3.0)
    assert not np.any(residuals(best))
    moved = unravel(flat + jnp.array([1e-5, -2e-5]))
    cost = 0.5 * float(jnp.sum(residuals(moved) ** 2))
    np.testing.assert_allclose(cost, 3.0 * quadratic(moved).loss, rtol=1e-3)


def test_a_tie_counts_every_change_alike():
    tie = near({"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}, 2.0)
    np.testing.assert_array_equal(
        tie({"a": jnp.array([1.5, 2.0]), "b": jnp.array(2.0)}), [1, 0, -2]
    )


def parabola(params):
    x = np.asarray(params["x"])
    return Quadratic(float(0.5 * x @ x), x, np.eye(1))


def test_a_step_that_does_not_lower_the_loss_is_not_taken():
    fit = least_squares(parabola, lambda params: float("inf"), damping=0.5)
    state, metrics = fit.step(fit.init({"x": jnp.array([2.0])}), None)
    assert float(state.params["x"][0]) == 2.0
    assert metrics == {"loss": 2.0, "damping": float(state.damping)}
    assert metrics["damping"] > 0.5


def test_damping_must_be_positive():
    with pytest.raises(ValueError, match="`damping` must be positive"):
        least_squares(parabola, float, damping=0.0)
