"""What strategies copy, freeze, slow down and pull back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.gnn_models import PaiNNConfig, painn
from mosaicmd.transfer import Scales, Strategy, copy_except, optimizer_of, pull_towards, start

NETWORK = painn(PaiNNConfig(species=(14,), cutoff=4.0, n_features=4, n_layers=2, n_radial=3))
SOURCE = NETWORK.init(jax.random.key(1))
FLAT = {"a": jnp.ones(2), "b": {"c": jnp.ones(3), "d": jnp.ones(1)}}


def same(left, right):
    return [
        bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (left, right)), strict=True)
    ]


def test_everything_is_copied_unless_a_pattern_says_otherwise():
    potential, params = start(Strategy(), NETWORK, SOURCE, jax.random.key(0))
    assert potential is NETWORK
    assert all(same(params, SOURCE))
    fresh = NETWORK.init(jax.random.key(0))
    mixed = copy_except(SOURCE, fresh, ["embedding"])
    assert all(same(mixed["embedding"], fresh["embedding"]))
    assert same(mixed, SOURCE).count(False) == len(jax.tree.leaves(fresh["embedding"]))
    with pytest.raises(ValueError, match="'readoot' matches no parameter"):
        copy_except(SOURCE, fresh, ["readoot"])


def test_scales_and_species_make_a_rescaled_potential():
    strategy = Strategy(scales=Scales(1.04, 0.9))
    potential, _ = start(strategy, NETWORK, SOURCE, jax.random.key(0), species={32: 14})
    assert potential.architecture == "rescaled"
    assert potential.cutoff == pytest.approx(4.16)
    assert potential.species == (32,)
    assert json.loads(json.dumps(strategy.record()))["scales"] == {"length": 1.04, "energy": 0.9}


def test_rates_of_blocks_and_the_first_pattern_that_matches():
    strategy = Strategy(rates={"b/c": 0.5, "b": 0.0})
    optimizer = optimizer_of(strategy, optax.sgd(0.1), FLAT)
    gradient = jax.tree.map(jnp.ones_like, FLAT)
    change, _ = optimizer.update(gradient, optimizer.init(FLAT), FLAT)
    np.testing.assert_allclose(change["a"], -0.1, rtol=1e-12)
    np.testing.assert_allclose(change["b"]["c"], -0.05, rtol=1e-12)
    np.testing.assert_array_equal(change["b"]["d"], 0.0)


def test_pull_has_the_minimum_of_the_sum():
    """Gradient descent on ``a/2 (x - 3)² + c/2 (x - 1)²`` ends at ``(3 a + c) / (a + c)``."""
    optimizer = optimizer_of(Strategy(pull=0.5), optax.sgd(0.2), FLAT)
    params, state = FLAT, optimizer.init(FLAT)
    for _ in range(200):
        gradient = jax.tree.map(lambda x: 2.0 * (x - 3.0), params)
        change, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, change)
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf, 6.5 / 2.5, rtol=1e-12)


def test_what_is_learned_anew_is_not_pulled():
    optimizer = optimizer_of(Strategy(pull=0.5, reinitialise=("a",)), optax.sgd(1.0), FLAT)
    moved = jax.tree.map(lambda x: x + 1.0, FLAT)
    zeros = jax.tree.map(jnp.zeros_like, FLAT)
    change, _ = optimizer.update(zeros, optimizer.init(moved), moved)
    np.testing.assert_array_equal(change["a"], 0.0)
    np.testing.assert_allclose(change["b"]["c"], -0.5, rtol=1e-12)


def test_bad_strategies_are_refused():
    with pytest.raises(ValueError, match=r"`pull` must not be negative, got -1.0"):
        Strategy(pull=-1.0)
    with pytest.raises(ValueError, match=r"`rates` must not be negative, got \{'a': -2.0\}"):
        Strategy(rates={"a": -2.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"`rank` must be at least 1, got 0"):
        Strategy(adapters=("a",), rank=0)
    with pytest.raises(ValueError, match="have nothing to act on"):
        Strategy(adapters=("a",), pull=0.1)
    with pytest.raises(ValueError, match="freeze every parameter"):
        optimizer_of(Strategy(rates={"*": 0.0}), optax.sgd(0.1), FLAT)
    with pytest.raises(ValueError, match="needs the parameters"):
        pull_towards(FLAT, 1.0).update(FLAT, optax.EmptyState())
