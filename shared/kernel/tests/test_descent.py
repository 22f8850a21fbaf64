"""Descent by optax on a parabola."""

import jax.numpy as jnp
import optax

from mosaicmd.kernel.descent import descent


def test_heavy_ball_has_the_iterates_of_the_closed_form():
    """From 1 with rate 1/4 and momentum 1/2: m = 1, 3/4 + 1/2, 7/16 + 5/8."""
    algorithm = descent(lambda x, _: 0.5 * x**2, optax.sgd(0.25, momentum=0.5))
    state, found, losses = algorithm.init(jnp.asarray(1.0)), [], []
    for _ in range(3):
        state, metrics = algorithm.step(state, None)
        found.append(float(state.params))
        losses.append(metrics["loss"])
    assert found == [3 / 4, 7 / 16, 11 / 64]
    assert losses == [1 / 2, 9 / 32, 49 / 512]


def test_the_batch_reaches_the_loss():
    algorithm = descent(lambda x, batch: 0.5 * jnp.sum((x - batch) ** 2), optax.sgd(1.0))
    state, metrics = algorithm.step(algorithm.init(jnp.zeros(2)), jnp.array([3.0, 4.0]))
    assert metrics["loss"] == 12.5
    assert state.params.tolist() == [3.0, 4.0]
