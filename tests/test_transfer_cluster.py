"""A learning curve on a dask cluster: the trials of a plan, each on whichever worker is free."""

import functools
import importlib
import sys
import textwrap

import numpy as np
import pytest

from mosaicmd.kernel import cluster
from mosaicmd.transfer import learning_curve, plan_trials, relative_errors

N_FEATURES, NOISE = 3, 0.5
WORK = """
    import os
    import numpy as np


    def least_squares(trial, n_features, noise):
        '''Excess error of coefficients fitted to `size` points; transfer knows all but one.'''
        rng = np.random.default_rng(1000 * trial.size + trial.seed)
        design = rng.standard_normal((trial.size, n_features))
        labels = noise * rng.standard_normal(trial.size)  # true coefficients are zero
        free = n_features if trial.strategy == "scratch" else 1
        found = np.linalg.lstsq(design[:, :free], labels, rcond=None)[0]
        return {"error": float(found @ found), "rate": trial.rate, "process": os.getpid()}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "work_of_transfer.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("work_of_transfer")
    sys.modules.pop("work_of_transfer")


def test_least_squares_learn_on_a_cluster_as_theory_says(tmp_path, work):
    """Excess errors of ``p`` coefficients from ``n`` points: ``noise² p / (n - p - 1)``.

    For normally distributed features; see Hastie, Tibshirani & Friedman, The Elements of
    Statistical Learning, or the mean of an inverse Wishart matrix. Within four standard errors.
    """
    distributed = pytest.importorskip("distributed")
    plan = plan_trials(["scratch", "transfer"], sizes=[10, 40], seeds=60, rates=[1.0])
    function = functools.partial(work.least_squares, n_features=N_FEATURES, noise=NOISE)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as local:
        results = cluster.map(
            function,
            plan,
            cache=tmp_path / "cache",
            cluster=local.scheduler_address,
            quiet=True,
        )
    assert len({result["process"] for result in results}) == 2
    curves = {
        name: learning_curve(plan, results, name, "error", tuned_on="rate")
        for name in ("scratch", "transfer")
    }
    for name, p in (("scratch", N_FEATURES), ("transfer", 1)):
        curve = curves[name]
        z_scores = (curve.mean - NOISE**2 * p / (curve.sizes - p - 1)) / curve.error
        assert np.all(np.abs(z_scores) < 4.0), z_scores
    assert np.all(relative_errors(curves["transfer"], curves["scratch"]).mean < 1.0)
    again = cluster.map(function, plan, cache=tmp_path / "cache", n_workers=1, quiet=True)
    assert again == results
