"""Residuals and the Huber loss, by hand."""

import jax
import numpy as np
import pytest
from difftre_ensembles import mean_square

from mosaicmd.difftre import Target
from mosaicmd.kernel.observables import rdf


def test_loss_is_half_the_mean_square_in_tolerances():
    bins = rdf(r_max=4.0, n_bins=4)
    target = Target(observable=bins, value=np.zeros(4), tolerance=0.5, weight=3.0)
    prediction = np.array([0.5, -1.0, 0.0, 1.5])
    np.testing.assert_allclose(target.loss(prediction), 0.5 * 3.0 * (1 + 4 + 0 + 9) / 4)
    np.testing.assert_allclose(np.sum(target.deviations(prediction) ** 2), 10.5)


def test_beyond_the_clip_the_loss_is_linear_and_its_slope_is_the_pull():
    target = Target(observable=mean_square(), value=1.0, tolerance=0.1, clip=2.0)
    inside, outside = 1.15, 2.0
    np.testing.assert_allclose(target.loss(inside), 0.5 * 1.5**2)
    np.testing.assert_allclose(target.loss(outside), 2.0 * (10.0 - 1.0))
    for prediction in (inside, outside):
        slope = jax.grad(lambda p: target.loss(p))(prediction)
        np.testing.assert_allclose(slope * 0.1, target.pull(np.asarray(prediction))[0], rtol=1e-12)


def test_a_target_that_is_not_finite_is_named_with_its_index():
    bins = rdf(r_max=4.0, n_bins=4)
    with pytest.raises(ValueError, match=r"target `rdf.*` is not finite at index \[2\]"):
        Target(observable=bins, value=np.array([0.0, 1.0, np.nan, 1.0]), tolerance=0.1)


def test_a_target_on_other_bins_is_refused():
    with pytest.raises(ValueError, match=r"its observable has 4 bins; interpolate"):
        Target(observable=rdf(r_max=4.0, n_bins=4), value=np.ones(5), tolerance=0.1)


@pytest.mark.parametrize("setting", [{"tolerance": 0.0}, {"weight": -1.0}, {"clip": 0.0}])
def test_settings_must_be_positive(setting):
    with pytest.raises(ValueError, match="must be positive"):
        Target(**({"observable": mean_square(), "value": 1.0, "tolerance": 0.1} | setting))
