"""The Jensen-Shannon divergence against closed forms."""

import numpy as np
import pytest

from mosaicmd.difftre import jensen_shannon_divergence


def test_closed_forms():
    """Equal: 0; disjoint: ln 2; (1, 0) and (1/2, 1/2): 3/4 ln 4/3 (from H(m) - mean H)."""
    p = np.array([[0.2, 0.3], [0.1, 0.4]])
    assert jensen_shannon_divergence(p, 7.0 * p) == 0.0
    assert jensen_shannon_divergence([1.0, 0.0], [0.0, 2.0]) == pytest.approx(np.log(2.0))
    expected = -0.75 * np.log(0.75) - 0.25 * np.log(0.25) - 0.5 * np.log(2.0)
    found = jensen_shannon_divergence([1.0, 0.0], [0.5, 0.5])
    assert found == pytest.approx(expected, rel=1e-12)
    assert jensen_shannon_divergence([0.5, 0.5], [1.0, 0.0]) == pytest.approx(expected, rel=1e-12)


def test_close_gaussians_differ_by_a_quarter_of_half_their_fisher_distance():
    """For a small shift ``d`` of a Gaussian of width 1: ``d² / 8``."""
    x = np.linspace(-8.0, 8.0, 4001)
    found = jensen_shannon_divergence(np.exp(-0.5 * x**2), np.exp(-0.5 * (x - 0.05) ** 2))
    assert found == pytest.approx(0.05**2 / 8.0, rel=1e-3)


def test_noise_of_counting_is_as_said():
    """20 repetitions over 50 bins; the divergence scatters by sqrt(2 / 49) of its mean."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(50, 5.0))
    found = [
        jensen_shannon_divergence(rng.multinomial(20_000, p), rng.multinomial(30_000, p))
        for _ in range(20)
    ]
    expected = 49.0 / 8.0 * (1.0 / 20_000 + 1.0 / 30_000)
    assert abs(np.mean(found) / expected - 1.0) < 4.0 * np.sqrt(2.0 / 49.0 / 20.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0], [1.0, 2.0], "shape"),
        ([-1.0, 2.0], [1.0, 2.0], "`first` must be finite"),
        ([1.0, 2.0], [0.0, 0.0], "`second` must be finite"),
    ],
)
def test_bad_distributions_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        jensen_shannon_divergence(np.array(first), np.array(second))
