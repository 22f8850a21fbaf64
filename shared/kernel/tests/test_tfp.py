"""TensorFlow Probability loads on the jax we pin, and works there."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.tfp import load_tfp


def test_a_plain_import_still_fails():
    """When this fails, TFP no longer needs `mosaicmd.kernel.tfp`: delete it, import TFP plainly."""
    source = "from tensorflow_probability.substrates import jax as tfp; tfp.distributions"
    plain = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert plain.returncode != 0
    assert "has no attribute 'pytype_aval_mappings'" in plain.stderr


def test_without_tfp_the_error_names_the_remedy(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorflow_probability")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow_probability", None)
    with pytest.raises(ImportError, match=r"pip install 'mosaicmd-kernel\[tfp\]'"):
        load_tfp()


def test_mixture_density_by_the_closed_form():
    tfd = load_tfp().distributions
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(probs=jnp.array([0.3, 0.7])),
        tfd.Normal(jnp.array([-1.0, 2.0]), jnp.array([0.5, 1.5])),
    )
    x = 0.4
    density = sum(
        weight * np.exp(-0.5 * ((x - mean) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
        for weight, mean, width in [(0.3, -1.0, 0.5), (0.7, 2.0, 1.5)]
    )
    np.testing.assert_allclose(mixture.prob(x), density, rtol=1e-12)


def test_nuts_samples_a_gaussian():
    """64 independent chains started in equilibrium: their spread is the error."""
    tfp = load_tfp()
    width = 0.5
    kernel = tfp.mcmc.NoUTurnSampler(lambda x: -0.5 * (x / width) ** 2, step_size=0.4)
    start = width * jax.random.normal(jax.random.key(0), (64,))

    @jax.jit
    def sample(key):
        return tfp.mcmc.sample_chain(
            200, start, kernel=kernel, trace_fn=None, num_burnin_steps=20, seed=key
        )

    with jax.numpy_rank_promotion("allow"):
        second_moment = np.asarray(sample(jax.random.key(1)) ** 2).mean(axis=0)
    z_score = (second_moment.mean() - width**2) / (second_moment.std(ddof=1) / 8.0)
    assert abs(z_score) < 4.0
