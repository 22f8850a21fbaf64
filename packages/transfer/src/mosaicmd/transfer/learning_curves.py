"""Learning curves: nested subsets, trials over seeds and rates, and gains with their errors.

A function of a :class:`Trial` trains and returns metrics; :func:`mosaicmd.kernel.cluster.map`
spreads it over processes or machines and keeps what is done::

    plan = plan_trials(["scratch", "transfer"], sizes=[23, 228], seeds=3, rates=[0.003, 0.01])
    results = cluster.map(train_and_test, plan, cache=folder)
    curves = {name: learning_curve(plan, results, name, "test/rmse", tuned_on="validation/rmse")
              for name in ("scratch", "transfer")}
    ratios = relative_errors(curves["transfer"], curves["scratch"])

Where trainings are dear, rates are tried with some of the seeds, and the others follow::

    tried = plan_trials(strategies, sizes, seeds=1, rates=rates)
    best = chosen_rates(tried, cluster.map(train_and_test, tried, cache=folder),
                        tuned_on="validation/rmse")
    plan = [Trial(*key, seed, rate) for key, rate in best.items() for seed in range(3)]
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Trial(NamedTuple):
    """One training."""

    strategy: str
    size: int  # structures
    seed: int  # of the subset, the order and the random parameters
    rate: float  # learning rate


class Curve(NamedTuple):
    """A metric against the number of training structures."""

    sizes: np.ndarray  # [n_sizes]
    values: np.ndarray  # [n_sizes, n_seeds]
    rates: np.ndarray  # [n_sizes], the learning rate that validation chose

    @property
    def mean(self) -> np.ndarray:
        """``[n_sizes]``, over seeds."""
        return self.values.mean(axis=1)

    @property
    def error(self) -> np.ndarray:
        """``[n_sizes]``, standard error of the mean over seeds; nan for a single one."""
        return _standard_error(self.values)


class Ratios(NamedTuple):
    """One curve relative to another, seed by seed."""

    sizes: np.ndarray  # [n_sizes]
    mean: np.ndarray  # [n_sizes], below 1 where the first is better
    error: np.ndarray  # [n_sizes], standard error; nan for a single seed
    values: np.ndarray  # [n_sizes, n_seeds]


def nested_subsets(
    n: int, sizes: Sequence[int], seed: int, *, groups: Sequence[object] | None = None
) -> list[np.ndarray]:
    """Indices of random subsets, each of which contains all smaller ones.

    Args:
        n: number of structures.
        sizes: of the subsets.
        seed: of the order.
        groups: one label per structure; every subset has them in about the proportion that
            all structures have.

    Raises:
        ValueError: for sizes outside 1 to ``n``, or labels of another number.
    """
    if bad := [size for size in sizes if not 1 <= size <= n]:
        raise ValueError(f"`sizes` {bad} are not between 1 and the {n} structures there are")
    labels = [0] * n if groups is None else list(groups)
    if len(labels) != n:
        raise ValueError(f"`groups` has {len(labels)} labels for {n} structures")
    rng = np.random.default_rng(seed)
    place = np.empty(n)
    for label in sorted(set(labels), key=str):
        members = np.flatnonzero([one == label for one in labels])
        ranks = np.arange(len(members)) + rng.uniform(size=len(members))
        place[rng.permutation(members)] = ranks / len(members)
    order = np.argsort(place, kind="stable")
    return [order[:size] for size in sizes]


def plan_trials(
    strategies: Sequence[str], sizes: Sequence[int], seeds: int, rates: Sequence[float]
) -> list[Trial]:
    """Every combination: all strategies get the same sizes, seeds and learning rates to try."""
    combinations = itertools.product(strategies, sizes, range(seeds), rates)
    return [Trial(*one) for one in combinations]


def chosen_rates(
    trials: Sequence[Trial], results: Sequence[Mapping[str, float]], *, tuned_on: str
) -> dict[tuple[str, int], float]:
    """The learning rate with the lowest mean of a metric over seeds, by strategy and size.

    Args:
        trials: as :func:`plan_trials` gives.
        results: metrics of each trial.
        tuned_on: the metric, of validation; where it is not finite the rate is not taken.

    Raises:
        ValueError: if a trial lacks the metric, rates were tried with different seeds, or
            no rate gave a finite value.
    """
    found: dict[tuple[str, int], dict[float, dict[int, float]]] = {}
    for trial, result in zip(trials, results, strict=True):
        if tuned_on not in result:
            raise ValueError(f"{trial} has no metric {tuned_on!r}; it has {sorted(result)}")
        tried = found.setdefault((trial.strategy, trial.size), {})
        tried.setdefault(trial.rate, {})[trial.seed] = result[tuned_on]
    best = {}
    for key, tried in found.items():
        if len(seeds := {tuple(sorted(one)) for one in tried.values()}) > 1:
            raise ValueError(f"rates of {key} were tried with different seeds: {sorted(seeds)}")
        scores = {rate: np.mean(list(one.values())) for rate, one in tried.items()}
        if not np.any(np.isfinite(list(scores.values()))):
            raise ValueError(f"no rate of {sorted(scores)} gave {key} a finite {tuned_on!r}")
        best[key] = min(scores, key=lambda r, s=scores: s[r] if np.isfinite(s[r]) else np.inf)
    return best


def learning_curve(
    trials: Sequence[Trial],
    results: Sequence[Mapping[str, float]],
    strategy: str,
    metric: str,
    *,
    tuned_on: str,
) -> Curve:
    """The curve of one strategy, at the learning rate that is best in another metric.

    Args:
        trials: as :func:`plan_trials` gives.
        results: metrics of each trial.
        strategy: whose curve.
        metric: to report, on data that nothing was chosen with.
        tuned_on: at each size the rate is taken whose mean of this over seeds is lowest.

    Raises:
        ValueError: if the strategy has no trials, seeds are missing, or a metric is.
    """
    found: dict[tuple[int, float], dict[int, Mapping[str, float]]] = {}
    for trial, result in zip(trials, results, strict=True):
        if trial.strategy == strategy:
            found.setdefault((trial.size, trial.rate), {})[trial.seed] = result
            if missing := [name for name in (metric, tuned_on) if name not in result]:
                raise ValueError(f"{trial} has no metric {missing}; it has {sorted(result)}")
    if not found:
        known = sorted({trial.strategy for trial in trials})
        raise ValueError(f"no trial of `strategy` {strategy!r}; there are {known}")
    seeds = sorted({seed for runs in found.values() for seed in runs})
    if any(sorted(runs) != seeds for runs in found.values()):
        raise ValueError(f"trials of {strategy!r} do not all have the seeds {seeds}")
    sizes = sorted({size for size, _ in found})
    values, rates = [], []
    for size in sizes:
        tried = {rate: runs for (n, rate), runs in found.items() if n == size}
        scores = {rate: np.mean([runs[s][tuned_on] for s in seeds]) for rate, runs in tried.items()}
        best = min(scores, key=lambda rate: np.nan_to_num(scores[rate], nan=np.inf))
        rates.append(best)
        values.append([tried[best][seed][metric] for seed in seeds])
    return Curve(np.array(sizes), np.array(values, float), np.array(rates))


def relative_errors(curve: Curve, reference: Curve) -> Ratios:
    """``curve / reference`` at equal sizes, seed by seed: equal seeds have equal subsets.

    Raises:
        ValueError: for other sizes or another number of seeds.
    """
    if curve.values.shape != reference.values.shape or np.any(curve.sizes != reference.sizes):
        raise ValueError(
            f"curves differ in sizes {curve.sizes}, {reference.sizes} or seeds: "
            f"{curve.values.shape[1]}, {reference.values.shape[1]}"
        )
    values = curve.values / reference.values
    return Ratios(curve.sizes, values.mean(axis=1), _standard_error(values), values)


def _standard_error(values: np.ndarray) -> np.ndarray:
    n = values.shape[1]
    return values.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(values), np.nan)
