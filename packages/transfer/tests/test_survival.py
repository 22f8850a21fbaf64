"""Survival curves against a published one, and errors of means against their spread."""

import numpy as np
import pytest

from mosaicmd.transfer import compared_means, restricted_mean, survival_curve

WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
ENDED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_curve_of_a_textbook():
    """Weeks of remission under 6-mercaptopurine, and Kaplan and Meier's curve with its errors.

    Freireich et al., Blood 21, 699 (1963); Collett, Modelling Survival Data in Medical
    Research, and Kleinbaum & Klein, Survival Analysis, both print the curve.
    """
    curve = survival_curve(WEEKS, ENDED)
    np.testing.assert_array_equal(curve.times, [6, 7, 10, 13, 16, 22, 23])
    share = [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]
    np.testing.assert_allclose(curve.share, share, atol=6e-5)
    error = [0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346]
    np.testing.assert_allclose(curve.error, error, atol=6e-5)
    assert curve.median == 23.0
    widths, heights = np.diff([0, 6, 7, 10, 13, 16, 22, 23, 35]), [1.0, *share]
    assert restricted_mean(WEEKS, ENDED, 35.0) == pytest.approx(widths @ heights, abs=2e-3)


def test_without_censoring_it_is_the_share_and_the_mean():
    times = np.random.default_rng(0).exponential(2.0, size=50)
    horizon = 3.0
    seen = np.minimum(times, horizon)
    curve = survival_curve(seen, times < horizon)
    np.testing.assert_allclose(curve.share, [np.mean(times > t) for t in curve.times], rtol=1e-12)
    n, p = len(times), curve.share
    np.testing.assert_allclose(curve.error, np.sqrt(p * (1.0 - p) / n), rtol=1e-10)
    assert restricted_mean(seen, times < horizon, horizon) == pytest.approx(seen.mean())
    assert restricted_mean(times, np.ones(n), horizon) == pytest.approx(seen.mean())
    assert survival_curve([1.0, 2.0], [False, False]).median == np.inf


def test_errors_are_those_of_models_and_replicas():
    """Means of models are spread by 0.3: the error follows from four models, not 400 replicas.

    Over 30 repetitions the bootstrap's error agrees with the spread of means to a third.
    """
    rng = np.random.default_rng(1)

    def experiment():
        means = 1.0 + 0.3 * rng.standard_normal(4)
        times = [rng.exponential(abs(mean), size=100) for mean in means]
        kinds = {"one": times, "other": [2.0 * time for time in times]}
        ended = {name: [np.ones(100)] * 4 for name in kinds}
        return compared_means(kinds, ended, "one", horizon=100.0, n_resamples=100)

    found = [experiment() for _ in range(30)]
    spread = np.std([one.mean["one"] for one in found], ddof=1)
    error = np.sqrt(np.mean([one.error["one"] ** 2 for one in found]))
    assert error == pytest.approx(spread, rel=0.35)
    assert error > 2.0 / np.sqrt(400)
    for one in found[:3]:
        assert one.ratio["other"] == pytest.approx(2.0)
        low, high = one.interval["other"]
        assert low < 2.0 < high
        assert high - low < 1.0  # models are drawn together: their spread is not in it


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must be equal rows"):
        survival_curve([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="finite and not negative"):
        survival_curve([1.0, np.nan], [True, True])
    with pytest.raises(ValueError, match="`horizon` must be positive, got 0"):
        restricted_mean([1.0], [True], 0.0)
    times = {"a": [[1.0]], "b": [[1.0], [2.0]]}
    ended = {"a": [[True]], "b": [[True], [True]]}
    with pytest.raises(ValueError, match="different numbers of models"):
        compared_means(times, ended, "a", horizon=1.0)
    with pytest.raises(ValueError, match="`reference` 'c' is none of"):
        compared_means(times, ended, "c", horizon=1.0)
