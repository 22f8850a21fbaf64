"""Times until something ends, of which some are known only to be longer: curves and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Survival(NamedTuple):
    """The share that is left, a step function that falls at ``times``."""

    times: np.ndarray  # [n], ascending, of events
    share: np.ndarray  # [n], after each
    error: np.ndarray  # [n], Greenwood's standard error; replicas count as independent

    @property
    def median(self) -> float:
        """The time at which half are left; infinite where more than half last."""
        below = np.flatnonzero(self.share <= 0.5)
        return float(self.times[below[0]]) if len(below) else float("inf")


def survival_curve(times: ArrayLike, ended: ArrayLike) -> Survival:
    """The share of runs that last longer than a time.

    Args:
        times: until the event, or until nobody looked any more.
        ended: whether the event was seen; ``False`` is a censored time.

    Raises:
        ValueError: for no times, other shapes, or times that are not finite and positive.

    References:
        Kaplan & Meier, J. Am. Stat. Assoc. 53, 457 (1958).
    """
    times, ended = _checked(times, ended)
    at, lost = np.unique(times[ended], return_counts=True)
    left = len(times) - np.searchsorted(np.sort(times), at).astype(float)
    share = np.cumprod(1.0 - lost / left)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(lost / (left * (left - lost)))
        error = np.where(share > 0.0, share * np.sqrt(variance), 0.0)
    return Survival(at, share, error)


def restricted_mean(times: ArrayLike, ended: ArrayLike, horizon: float) -> float:
    """Mean time up to a horizon, the area below the survival curve.

    Where nothing was censored before the horizon it is the mean of ``min(time, horizon)``.

    Raises:
        ValueError: as :func:`survival_curve`, and for a horizon that is not positive.

    References:
        Royston & Parmar, BMC Med. Res. Methodol. 13, 152 (2013).
    """
    if not horizon > 0.0:
        raise ValueError(f"`horizon` must be positive, got {horizon!r}")
    curve = survival_curve(times, ended)
    inside = curve.times < horizon
    edges = np.concatenate([[0.0], curve.times[inside], [horizon]])
    return float(np.sum(np.diff(edges) * np.concatenate([[1.0], curve.share[inside]])))


class Means(NamedTuple):
    """Restricted means of several kinds of models, and how much longer each lasts."""

    mean: dict[str, float]
    error: dict[str, float]
    ratio: dict[str, float]  # to the reference; 1 for itself
    interval: dict[str, tuple[float, float]]  # of the ratio, 95 %


def compared_means(
    times: Mapping[str, Sequence[ArrayLike]],
    ended: Mapping[str, Sequence[ArrayLike]],
    reference: str,
    *,
    horizon: float,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Means:
    """Restricted means by kind, with errors that know that replicas share a model.

    Models are drawn anew with replacement, then the replicas of each: the spread over
    resamples is that of models and of dynamics. Model ``k`` of every kind is drawn together
    with model ``k`` of the reference, as they have learned from the same structures.

    Args:
        times: by kind, one array of replicas for each model; as in :func:`survival_curve`.
        ended: likewise.
        reference: the kind that ratios refer to.
        horizon: as in :func:`restricted_mean`.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: for kinds with other numbers of models, or no reference.
    """
    if reference not in times:
        raise ValueError(f"`reference` {reference!r} is none of {sorted(times)}")
    counts = {name: len(models) for name, models in times.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise ValueError(f"kinds have different numbers of models: {counts}")
    rng = np.random.default_rng(seed)
    n_models = counts[reference]
    drawn: dict[str, list[float]] = {name: [] for name in times}
    for _ in range(n_resamples):
        models = rng.integers(n_models, size=n_models)
        for name in times:
            some, ends = [], []
            for model in models:
                mine, over = _checked(times[name][model], ended[name][model])
                replicas = rng.integers(len(mine), size=len(mine))
                some.append(mine[replicas])
                ends.append(over[replicas])
            drawn[name].append(restricted_mean(np.concatenate(some), np.concatenate(ends), horizon))
    mean = {
        name: restricted_mean(np.concatenate(times[name]), np.concatenate(ended[name]), horizon)
        for name in times
    }
    samples = {name: np.array(values) for name, values in drawn.items()}
    quantiles = {
        name: np.quantile(values / samples[reference], [0.025, 0.975])
        for name, values in samples.items()
    }
    return Means(
        mean,
        {name: float(values.std(ddof=1)) for name, values in samples.items()},
        {name: mean[name] / mean[reference] for name in times},
        {name: (float(low), float(high)) for name, (low, high) in quantiles.items()},
    )


def _checked(times: ArrayLike, ended: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    times, ended = np.asarray(times, float), np.asarray(ended, bool)
    if times.ndim != 1 or not len(times) or times.shape != ended.shape:
        raise ValueError(f"`times` {times.shape} and `ended` {ended.shape} must be equal rows")
    if not np.all(np.isfinite(times)) or np.any(times < 0.0):
        raise ValueError("`times` must be finite and not negative")
    return times, ended
