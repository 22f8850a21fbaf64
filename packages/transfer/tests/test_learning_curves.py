"""Subsets that contain each other, rates chosen by validation, and ratios with their errors."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicmd.transfer import (
    Trial,
    chosen_rates,
    learning_curve,
    nested_subsets,
    plan_trials,
    relative_errors,
)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 4), st.data())
def test_subsets_contain_each_other_in_proportion(n, seed, n_groups, data):
    groups = [k % n_groups for k in range(n)]
    sizes = sorted(data.draw(st.lists(st.integers(1, n), min_size=1, max_size=4)))
    subsets = nested_subsets(n, sizes, seed, groups=groups)
    for size, subset in zip(sizes, subsets, strict=True):
        assert len(set(subset.tolist())) == size
        counts = np.bincount([groups[i] for i in subset], minlength=n_groups)
        whole = np.bincount(groups, minlength=n_groups)
        assert np.all(np.abs(counts - size * whole / n) <= 1.0 + n_groups / 2)
    for small, large in itertools.pairwise(subsets):
        assert set(small.tolist()) <= set(large.tolist())


def test_seeds_give_other_subsets():
    first, second, again = (nested_subsets(50, [10], seed)[0] for seed in (0, 1, 0))
    assert set(first.tolist()) != set(second.tolist())
    np.testing.assert_array_equal(first, again)


def test_plan_is_the_same_for_all_strategies():
    plan = plan_trials(["a", "b"], [5, 10], 3, [0.1, 0.2])
    assert len(plan) == len(set(plan)) == 2 * 2 * 3 * 2
    mine, yours = ([t[1:] for t in plan if t.strategy == name] for name in ("a", "b"))
    assert mine == yours


def test_rate_is_chosen_by_validation_and_not_by_the_test():
    plan = plan_trials(["a"], [5, 10], 2, [0.1, 0.2])
    results = [
        {"val": abs(t.rate - (0.1 if t.size == 5 else 0.2)), "test": t.seed + 10 * t.rate + t.size}
        for t in plan
    ]
    curve = learning_curve(plan, results, "a", "test", tuned_on="val")
    np.testing.assert_array_equal(curve.rates, [0.1, 0.2])
    np.testing.assert_allclose(curve.values, [[6.0, 7.0], [12.0, 13.0]])
    np.testing.assert_allclose(curve.error, 0.5)
    results[0]["val"] = results[2]["val"] = float("nan")  # both seeds of 0.1 at size 5
    assert learning_curve(plan, results, "a", "test", tuned_on="val").rates[0] == 0.2


def test_rates_are_chosen_with_some_seeds():
    """Each strategy and size has its own; a rate that diverged is never taken."""
    tried = plan_trials(["a", "b"], [5, 10], 2, [0.1, 0.2])
    best = {("a", 5): 0.1, ("a", 10): 0.2, ("b", 5): 0.2, ("b", 10): 0.1}
    results = [{"val": abs(t.rate - best[t[:2]]) + t.seed} for t in tried]
    assert chosen_rates(tried, results, tuned_on="val") == best
    results[0]["val"] = float("nan")  # of rate 0.1, one of two seeds
    assert chosen_rates(tried, results, tuned_on="val")["a", 5] == 0.2
    with pytest.raises(ValueError, match="tried with different seeds"):
        chosen_rates(tried[:3], results[:3], tuned_on="val")
    with pytest.raises(ValueError, match=r"has no metric 'x'; it has \['val'\]"):
        chosen_rates(tried, results, tuned_on="x")
    with pytest.raises(ValueError, match=r"no rate of \[0.1\] gave \('a', 5\) a finite"):
        chosen_rates(tried[:1], results[:1], tuned_on="val")


def test_ratios_are_taken_seed_by_seed():
    """Subsets differ much between seeds; the gain, which does not, keeps its small error."""
    plan = plan_trials(["scratch", "transfer"], [10], 3, [0.1])
    results = [{"rmse": (1.0 + t.seed) * (0.8 if t.strategy == "transfer" else 1.0)} for t in plan]
    curves = [
        learning_curve(plan, results, name, "rmse", tuned_on="rmse")
        for name in ("transfer", "scratch")
    ]
    ratios = relative_errors(*curves)
    np.testing.assert_allclose(ratios.mean, 0.8)
    np.testing.assert_allclose(ratios.error, 0.0, atol=1e-15)
    assert curves[0].error[0] > 0.4


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"`sizes` \[9\] are not between 1 and the 8"):
        nested_subsets(8, [2, 9], 0)
    with pytest.raises(ValueError, match="`groups` has 1 labels for 8 structures"):
        nested_subsets(8, [2], 0, groups=["a"])
    plan = [Trial("a", 5, 0, 0.1), Trial("a", 5, 1, 0.1), Trial("a", 10, 0, 0.1)]
    with pytest.raises(ValueError, match="do not all have the seeds"):
        learning_curve(plan, [{"x": 1.0}] * 3, "a", "x", tuned_on="x")
    with pytest.raises(ValueError, match=r"has no metric \['y'\]; it has \['x'\]"):
        learning_curve(plan, [{"x": 1.0}] * 3, "a", "y", tuned_on="x")
    with pytest.raises(ValueError, match="no trial of `strategy` 'b'"):
        learning_curve(plan, [{"x": 1.0}] * 3, "b", "x", tuned_on="x")
    one = learning_curve(plan[:1], [{"x": 1.0}], "a", "x", tuned_on="x")
    two = learning_curve(plan[:2], [{"x": 1.0}] * 2, "a", "x", tuned_on="x")
    assert np.isnan(one.error).all()
    with pytest.raises(ValueError, match="curves differ"):
        relative_errors(one, two)
