"""Observables over frames: recorded during a run, or evaluated afterwards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.neighbors import NeighborList, grow, neighbor_list
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.systems import System, bucket_size
from mosaicmd.kernel.trajectory import Trajectory, map_frames

Array = jax.Array

_PLANNED_FRAMES = 8


def observe(
    observables: Sequence[Observable], *, cutoff: float
) -> Callable[[Any, System, Graph, Array | None], dict[str, Array]]:
    """What a simulation evaluates once per frame, on the neighbor list of its forces.

    ``Simulation(..., cutoff=cutoff, observe=observe(observables, cutoff=cutoff))`` puts
    every observable into the quantities of its trajectories.

    Args:
        observables: with distinct names.
        cutoff: of the run, Å: how far its graphs reach at least.

    Returns:
        ``(params, system, graph, momenta) -> {name: value}``.

    Raises:
        ValueError: if two share a name, or one needs neighbors beyond ``cutoff``.
    """
    group = _distinct(observables)
    for observable in group:
        if observable.cutoff is not None and observable.cutoff > cutoff:
            raise ValueError(
                f"observable {observable.name!r} needs neighbors within {observable.cutoff} Å, "
                f"but the lists of the run reach {cutoff} Å; raise the cutoff of the run, use "
                "`pairs='all'` if it is an rdf, or evaluate it afterwards by `add_quantities`"
            )

    def per_frame(
        params: Any, system: System, graph: Graph, momenta: Array | None
    ) -> dict[str, Array]:
        return {o.name: o.per_frame(params, system, graph, momenta) for o in group}

    return per_frame


def evaluate_frames(
    observables: Sequence[Observable], params: Any, trajectory: Trajectory
) -> dict[str, Array]:
    """Instantaneous values of every observable in every frame.

    Builds one neighbor list per frame and distinct cutoff, on the device; a list that
    overflows is enlarged and its frames are evaluated again. Calls with the same
    `Observable` objects share their compiled program. The plan of the lists is made on the
    host, so this is not for ``jit`` or ``grad``.

    Args:
        observables: with distinct names.
        params: handed to ``per_frame``.
        trajectory: the frames.

    Returns:
        By name, shape ``[n_frames, ...]``.

    Raises:
        ValueError: if two observables share a name, or a value is not finite.
    """
    group = _distinct(observables)
    by_cutoff: dict[float | None, tuple[Observable, ...]] = {}
    for observable in group:
        by_cutoff[observable.cutoff] = (*by_cutoff.get(observable.cutoff, ()), observable)
    frames = trajectory._replace(quantities={}, time=None)
    found: dict[str, Array] = {}
    for cutoff, members in by_cutoff.items():
        plan = None
        if cutoff is not None:
            some = np.linspace(0, trajectory.n_frames - 1, _PLANNED_FRAMES).astype(int)
            plan = neighbor_list(_selected(trajectory, np.unique(some)), cutoff, skin=0.0)
            # Few sizes, so that trajectories alike share a program.
            plan = dataclasses.replace(plan, row_length=bucket_size(plan.row_length))
        values, overflow = _evaluate(members, plan, params, frames)
        while plan is not None and np.any(overflow):
            plan = grow(plan, _selected(trajectory, np.flatnonzero(overflow)))
            values, overflow = _evaluate(members, plan, params, frames)
        found |= values
    for name, values in found.items():
        _require_finite(name, np.asarray(values))
    return {observable.name: found[observable.name] for observable in group}


def add_quantities(
    observables: Sequence[Observable], params: Any, trajectory: Trajectory
) -> Trajectory:
    """The trajectory with the values of :func:`evaluate_frames` among its quantities."""
    values = evaluate_frames(observables, params, trajectory)
    return trajectory._replace(quantities={**trajectory.quantities, **values})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    group: tuple[Observable, ...], plan: NeighborList | None, params: Any, frames: Trajectory
) -> tuple[dict[str, Array], Array]:
    def one(system: System, momenta: Array | None) -> tuple[dict[str, Array], Array]:
        graph = None if plan is None else plan.build(system).graph
        overflow = jnp.zeros((), bool) if graph is None else graph.overflow
        return {o.name: o.per_frame(params, system, graph, momenta) for o in group}, overflow

    return map_frames(one, frames, frames.momenta)


def _require_finite(name: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"observable {name!r} is not finite in frame {bad[0]} ({len(bad)} of {len(values)} "
            "frames): its radius exceeds half the cell with `pairs='all'`, an atom has more "
            "neighbors within it than `max_neighbors`, or the system is not periodic; reduce "
            "`r_max`, raise `max_neighbors`, or use `pairs='neighbors'`"
        )


def _distinct(observables: Sequence[Observable]) -> tuple[Observable, ...]:
    names = [observable.name for observable in observables]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"observables share the names {repeated}; give each its own `name`")
    return tuple(observables)


def _selected(trajectory: Trajectory, index: np.ndarray) -> System:
    systems = trajectory.systems
    return systems._replace(positions=systems.positions[index], cell=systems.cell[index])
