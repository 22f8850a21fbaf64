"""Early stopping whose memory is part of the state, so that it survives a resume."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.training import Algorithm, Callback

Array = jax.Array
Params = Any


class WatchState(NamedTuple):
    """State of :func:`watch`."""

    params: Params
    inner: Any
    best: Array  # [], lowest value so far
    n_stale: Array  # [], int32, values since then


def watch(algorithm: Algorithm, metric: str) -> Algorithm:
    """The algorithm, counting how long ``metric`` has not become lower, as metric ``stale``.

    Steps without the metric, such as those of another algorithm of a routine, do not count::

        routine = watch(alternate(labels=force_matching, water=difftre), "labels/loss")
        train(routine, params, n_steps, callbacks=[stop_when_stale(50)])
    """

    def init(params: Params) -> WatchState:
        return WatchState(
            params, algorithm.init(params), jnp.asarray(jnp.inf, float), jnp.zeros((), jnp.int32)
        )

    def step(state: WatchState, batch: Any = None) -> tuple[WatchState, dict[str, float]]:
        inner, metrics = algorithm.step(state.inner, batch)
        best, n_stale = state.best, state.n_stale
        if metric in metrics:
            value = jnp.asarray(metrics[metric], best.dtype)
            n_stale = jnp.where(value < best, 0, n_stale + 1).astype(n_stale.dtype)
            best = jnp.where(value < best, value, best)
        metrics = metrics | {"stale": int(n_stale)}
        return WatchState(inner.params, inner, best, n_stale), metrics

    def adopt(state: WatchState, params: Params) -> WatchState:
        return state._replace(params=params, inner=algorithm.adopt(state.inner, params))

    return Algorithm(init, step, adopt)


def stop_when_stale(patience: int, metric: str = "stale") -> Callback:
    """A callback that ends training after so many values in :func:`watch` without a gain.

    Args:
        patience: values that may go by.
        metric: ``"stale"``, or ``"NAME/stale"`` where a part of a routine is watched.

    Raises:
        ValueError: for a patience below 1.
    """
    if patience < 1:
        raise ValueError(f"`patience` must be at least 1, got {patience}")
    return lambda step, state, metrics: metrics.get(metric, 0) >= patience
