"""Per-frame values of observables that a run did not record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph, host_graph, pad_graph
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.systems import System, bucket_size
from mosaicmd.kernel.trajectory import Trajectory

Array = jax.Array


def evaluate_frames(
    observables: Sequence[Observable], params: Any, trajectory: Trajectory
) -> dict[str, Array]:
    """Instantaneous values of every observable in every frame.

    Builds one exact neighbor list per frame and distinct cutoff. Runs on the host; to
    differentiate in ``params``, map ``observable.per_frame`` over frames instead.

    Args:
        observables: with distinct names.
        params: handed to ``per_frame``.
        trajectory: the frames.

    Returns:
        By name, shape ``[n_frames, ...]``.

    Raises:
        ValueError: if two observables share a name.
    """
    names = [observable.name for observable in observables]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"observables share the names {repeated}; give each its own `name`")
    by_cutoff: dict[float | None, list[Observable]] = {}
    for observable in observables:
        by_cutoff.setdefault(observable.cutoff, []).append(observable)
    found: dict[str, Array] = {}
    for cutoff, group in by_cutoff.items():
        found |= _evaluate_group(tuple(group), cutoff, params, trajectory)
    return {name: found[name] for name in names}


def add_quantities(
    observables: Sequence[Observable], params: Any, trajectory: Trajectory
) -> Trajectory:
    """The trajectory with the values of :func:`evaluate_frames` among its quantities."""
    values = evaluate_frames(observables, params, trajectory)
    return trajectory._replace(quantities={**trajectory.quantities, **values})


def _evaluate_group(
    group: tuple[Observable, ...], cutoff: float | None, params: Any, trajectory: Trajectory
) -> dict[str, Array]:
    rows = []
    n_edges = 0
    for index in range(trajectory.n_frames):
        system = trajectory.frame(index)
        graph = None
        if cutoff is not None:
            graph = host_graph(system, cutoff)
            n_edges = max(n_edges, bucket_size(graph.n_edges))
            graph = pad_graph(graph, n_edges, n_atoms=system.n_atoms)
        momenta = None if trajectory.momenta is None else trajectory.momenta[index]
        rows.append(_evaluate_frame(group, params, system, graph, momenta))
    return jax.tree.map(lambda *values: jnp.stack(values), *rows)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_frame(
    group: tuple[Observable, ...],
    params: Any,
    system: System,
    graph: Graph | None,
    momenta: Array | None,
) -> dict[str, Array]:
    return {o.name: o.per_frame(params, system, graph, momenta) for o in group}
