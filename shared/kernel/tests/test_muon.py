"""Muon against the orthogonal factor of a matrix, and on parameters that are no matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.kernel.cli.optimizers import build_optimizer
from mosaicmd.kernel.cli.training_config import OptimizerConfig
from mosaicmd.kernel.muon import muon


def first_step(gradient, rate=0.1):
    optimizer = muon(rate)
    params = jax.tree.map(jnp.ones_like, gradient)
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    return jax.tree.map(np.asarray, change)


@pytest.mark.parametrize("shape", [(5, 3), (3, 8), (6, 6)])
def test_a_step_is_along_the_orthogonal_factor_of_the_gradient(shape):
    """Newton-Schulz iterations of Jordan et al. end at singular values of 0.7 to 1.2."""
    gradient = jax.random.normal(jax.random.key(0), shape)
    u, _, vt = np.linalg.svd(np.asarray(gradient), full_matrices=False)
    change = first_step(gradient)
    inner = u.T @ change @ vt.T / (-0.1 * 0.2 * np.sqrt(max(shape)))
    assert np.all(np.abs(np.diag(inner) - 0.95) < 0.27)
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-3
    outside = change - u @ u.T @ change @ vt.T @ vt
    assert np.abs(outside).max() < 1e-3


def test_the_size_of_a_step_is_that_of_adam():
    """Of large square matrices: 0.2 of the rate, as Liu et al. found for Adam."""
    change = first_step(jax.random.normal(jax.random.key(1), (64, 64)))
    assert np.sqrt(np.mean(change**2)) == pytest.approx(0.02, rel=0.2)


def test_stacks_are_matrices_one_by_one():
    gradient = jax.random.normal(jax.random.key(2), (2, 3, 5, 4))
    whole = first_step(gradient)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(whole[i, j], first_step(gradient[i, j]), atol=1e-6)


def test_all_else_goes_with_adam():
    gradient = {
        "bias": jnp.array([1.0, -3.0]),
        "column": jnp.ones((4, 1)),
        "product": jnp.ones((9, 1, 8)),
        "scale": jnp.array(2.0),
    }
    change = first_step(gradient)
    adam = optax.nadam(0.1)
    wanted, _ = adam.update(gradient, adam.init(gradient), gradient)
    for name in gradient:
        np.testing.assert_allclose(change[name], wanted[name], rtol=1e-5)


def test_frozen_matrices_stay_and_schedules_are_followed():
    config = OptimizerConfig.model_validate(
        {"name": "muon", "learning_rate": 0.1, "schedule": {"name": "cosine_decay"}}
    )
    params = {"a": jnp.eye(3), "b": (jnp.eye(4), jnp.ones(4))}
    gradient = jax.tree.map(jnp.ones_like, params)
    optimizer = build_optimizer(config, 10, params, max_gradient_norm=1.0, freeze=["b/0"])
    state, norms = optimizer.init(params), []
    for _ in range(10):
        change, state = optimizer.update(gradient, state, params)
        norms.append(float(jnp.linalg.norm(change["a"])))
        assert not np.any(change["b"][0])
        assert np.all(change["b"][1] < 0.0)
    decay = optax.cosine_decay_schedule(1.0, 10)
    wanted = [float(decay(k)) for k in range(10)]
    np.testing.assert_allclose(np.array(norms) / norms[0], wanted, rtol=1e-3)
