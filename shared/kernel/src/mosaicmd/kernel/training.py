"""`Algorithm`: one shape for everything that learns, and the loop that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.checkpoints import Checkpointer
from mosaicmd.kernel.metrics import MetricLog, progress

Array = jax.Array
Params = Any
Callback = Callable[[int, Any, Mapping[str, Any]], bool | None]
"""``(step, state, metrics) -> stop``, called by :func:`train` after a step."""


def replace_params(state: Any, params: Params) -> Any:
    """The state with other parameters and all else as it was."""
    return state._replace(params=params)


class Algorithm(NamedTuple):
    """``init(params) -> state`` and ``step(state, batch) -> (state, metrics)``.

    A state is a pytree of arrays of fixed shapes whose field ``params`` holds the current
    parameters; ``metrics`` are plain numbers by name. A step given the same state and
    batch gives the same result, bit for bit, so a loop over steps can be interrupted and
    resumed anywhere.

    ``adopt(state, params) -> state`` tells the algorithm that its parameters were changed
    from outside, by another algorithm of a routine (:mod:`mosaicmd.kernel.routines`). The
    default replaces the field ``params``; an algorithm that keeps what belongs to its
    parameters, such as frames sampled with them, or a state within its state, gives its
    own. Adopting the parameters that it has must change nothing. To wrap ``init`` or
    ``step`` of an algorithm, use ``algorithm._replace(...)``, which keeps the rest.
    """

    init: Callable[[Params], Any]
    step: Callable[[Any, Any], tuple[Any, dict[str, float]]]
    adopt: Callable[[Any, Params], Any] = replace_params


def train(
    algorithm: Algorithm,
    params: Params,
    n_steps: int,
    *,
    batches: Callable[[int], Any] | None = None,
    callbacks: Sequence[Callback] = (),
    directory: str | os.PathLike[str] | None = None,
    every: int = 1,
    description: str = "training",
    show: str | None = "loss",
    quiet: bool = False,
) -> Any:
    """Run an algorithm for ``n_steps``, with progress, a metric log and checkpoints.

    With a ``directory`` the run can be killed at any moment: starting it again goes on
    from the last checkpoint in ``directory/checkpoints`` and ends in the same state and
    the same ``directory/metrics.jsonl`` as a run that was left alone.

    Callbacks are called in their order after each step, with the step, its state and its
    metrics. One that returns ``True`` or raises ``StopIteration`` makes this step the last;
    the others are still called. The checkpoint of that step says that the run was stopped,
    so that starting it again returns its state at once, whatever ``n_steps`` and callbacks
    are given. Steps that are repeated after a kill are told to the callbacks again: what
    one decides should follow from its arguments alone. Where it needs a memory, that
    belongs in the state of the algorithm (:mod:`mosaicmd.kernel.early_stopping`).

    Args:
        algorithm: what to run.
        params: initial parameters.
        n_steps: of the whole run, those before a resume included.
        batches: ``step -> batch``, a function so that a resumed run sees the same batches;
            ``None`` for algorithms that make their own data.
        callbacks: ``(step, state, metrics) -> stop``.
        directory: where the run is kept; ``None``: nowhere.
        every: steps between checkpoints.
        description: name of the progress bar.
        show: metric beside the progress bar; of a routine, that of whichever algorithm ran.
        quiet: show no progress.

    Returns:
        The final state; its parameters are ``state.params``.

    Raises:
        ValueError: if ``n_steps`` or ``every`` is below 1.
        CheckpointError: if the directory holds checkpoints of another algorithm.
    """
    for name, count in (("n_steps", n_steps), ("every", every)):
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}")
    state, start = algorithm.init(params), 0
    checkpointer = log = None
    if directory is not None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        checkpointer = Checkpointer(directory / "checkpoints")
        log = MetricLog(directory / "metrics.jsonl")
        if (found := checkpointer.restore(state)) is not None:
            start, state = found.step, found.state
        log.truncate(start)
        if found is not None and found.metadata.get("stopped"):
            return state
    with progress(n_steps, description, start=start, quiet=quiet) as bar:
        for step in range(start + 1, n_steps + 1):
            state, metrics = algorithm.step(state, None if batches is None else batches(step))
            if log is not None:
                log.append(step, metrics)
            stops = [_stops(callback, step, state, metrics) for callback in callbacks]
            stopped = any(stops)
            if checkpointer is not None and (step % every == 0 or step == n_steps or stopped):
                checkpointer.save(step, state, {"stopped": True} if stopped else None)
            bar.advance(1, _note(metrics, show))
            if stopped:
                break
    return state


def _stops(callback: Callback, step: int, state: Any, metrics: Mapping[str, Any]) -> bool:
    try:
        return bool(callback(step, state, metrics))
    except StopIteration:
        return True


def _note(metrics: Mapping[str, Any], show: str | None) -> str | None:
    """The metric to show, under its own name or, in a routine, one that ends in it."""
    if show is None or show in metrics:
        name = show
    else:
        name = next((name for name in metrics if name.endswith(f"/{show}")), None)
    return None if name is None else f"{name} {metrics[name]:.4g}"


class TailAverageState(NamedTuple):
    """State of :func:`tail_average`."""

    params: Params  # of the wrapped algorithm
    inner: Any
    recent: Params  # leading axis: the last iterates, in a ring
    n_steps: Array  # [], int32


def tail_average(algorithm: Algorithm, window: int) -> Algorithm:
    """The algorithm, keeping its last ``window`` iterates for :func:`averaged_params`.

    Averaging the tail removes most of the noise that sampling puts into the iterates of a
    stochastic method (Polyak & Juditsky, SIAM J. Control Optim. 30, 838 (1992)).

    Raises:
        ValueError: for a window below 1.
    """
    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}")

    def init(params: Params) -> TailAverageState:
        recent = jax.tree.map(lambda p: jnp.zeros((window, *jnp.shape(p)), p.dtype), params)
        return TailAverageState(params, algorithm.init(params), recent, jnp.zeros((), jnp.int32))

    def step(state: TailAverageState, batch: Any) -> tuple[TailAverageState, dict[str, float]]:
        inner, metrics = algorithm.step(state.inner, batch)
        slot = state.n_steps % window
        recent = jax.tree.map(lambda ring, p: ring.at[slot].set(p), state.recent, inner.params)
        return TailAverageState(inner.params, inner, recent, state.n_steps + 1), metrics

    def adopt(state: TailAverageState, params: Params) -> TailAverageState:
        return state._replace(params=params, inner=algorithm.adopt(state.inner, params))

    return Algorithm(init, step, adopt)


def averaged_params(state: TailAverageState) -> Params:
    """Mean of the iterates that :func:`tail_average` has kept so far."""
    window = jax.tree.leaves(state.recent)[0].shape[0]
    filled = jnp.clip(state.n_steps, 1, window)
    kept = jnp.arange(window) < filled

    def mean(ring: Array) -> Array:
        weights = kept.reshape(-1, *(1,) * (ring.ndim - 1))
        return (jnp.sum(ring * weights, axis=0) / filled).astype(ring.dtype)

    return jax.tree.map(mean, state.recent)
