r"""Averages in the ensemble of new parameters from frames of old ones, and their derivatives.

With frames sampled at ``theta_0``, weights ``w_f`` proportional to
``exp(-beta (U_theta - U_theta0))`` give ``<O>_theta = sum_f w_f O_f(theta)``, and

``d<O>/dtheta = <dO/dtheta> - beta (<O dU/dtheta> - <O> <dU/dtheta>)``

without a derivative of the dynamics. The metric ``beta^2 cov(dU/dtheta)`` is the Fisher
information of the ensemble: it measures how far, in relative entropy, a step moves it.

References:
    Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021), Eqs. 4 and 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mosaicmd.difftre.targets import Target
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.neighbors import NeighborList, neighbor_list
from mosaicmd.kernel.observables import Observable, evaluate_frames
from mosaicmd.kernel.potentials import EnergyFn, total_energy
from mosaicmd.kernel.statistics import (
    effective_sample_size,
    normalised_weights,
    reweighting_weights,
)
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, map_frames

Array = jax.Array
Params = Any


_ROW_STEP = 16
"""Rows of frame graphs come in multiples of this, so that few programs are compiled."""


class Samples(NamedTuple):
    """What reweighting keeps of one simulation."""

    systems: System  # positions and cell with a leading frame axis
    params: Params  # that were simulated
    energies: Array  # [n_frames], eV, of these parameters
    fixed: dict[str, Array]  # per-frame observables that do not depend on parameters
    n_eff: Array  # [], effective sample size at the current parameters


class Prediction(NamedTuple):
    """Reweighted averages."""

    values: dict[str, Array]  # by observable name
    weights: Array  # [n_frames]
    n_eff: Array  # [], exponential of the weights' entropy


class Linearised(NamedTuple):
    """A prediction and how it changes with the parameters, flattened."""

    prediction: Prediction
    jacobian: dict[str, Array]  # [*value.shape, n_params]
    scores: Array  # [n_frames, n_params], beta sqrt(w) (dU/dtheta - <dU/dtheta>)

    @property
    def metric(self) -> Array:
        """Fisher information of the ensemble, ``[n_params, n_params]``."""
        return self.scores.T @ self.scores


class Reweighting:
    """Reweighted averages of the targets at one state point, compiled once.

    Holds functions alone; frames, graphs and parameters are arguments.
    """

    def __init__(
        self,
        energy_fn: EnergyFn,
        cutoff: float | None,
        targets: Sequence[Target],
        state_point: StatePoint,
        *,
        direct_every: int = 1,
    ) -> None:
        """Settings.

        Args:
            energy_fn: per-atom energies.
            cutoff: of the energy function, Å; ``None`` if it needs no graph.
            targets: whose observables are predicted; names must differ.
            state_point: at which the frames are sampled.
            direct_every: ``<dO/dtheta>`` in :meth:`linearise` is taken from every so many
                frames; the other terms, and all predictions, are from all frames. It varies
                little between frames, and costs most where the observable is a second
                derivative, as elastic constants are.

        Raises:
            ValueError: for observables that share a name, or ``direct_every`` below 1.
        """
        names = [target.observable.name for target in targets]
        if len(set(names)) < len(names):
            raise ValueError(f"targets share an observable name: {sorted(names)}")
        if direct_every < 1:
            raise ValueError(f"`direct_every` must be at least 1, got {direct_every}")
        self.direct_every = direct_every
        observables = [target.observable for target in targets]
        self.targets = tuple(targets)
        self.energy_fn, self.state_point = energy_fn, state_point
        self.fixed = tuple(o for o in observables if not o.depends_on_params)
        self.moving = tuple(o for o in observables if o.depends_on_params)
        radii = [cutoff, *(o.cutoff for o in self.moving)]
        self.cutoff = max((radius for radius in radii if radius is not None), default=None)
        self.energies = jax.jit(lambda p, s, g: self._frame_values(p, s, g)[0])
        self.predict = jax.jit(self._predict)
        self.n_eff = jax.jit(self._n_eff)
        self.loss_and_gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        self.linearise = jax.jit(self._linearise)
        self._build = jax.jit(_build_graphs, static_argnums=0)

    def graphs(self, systems: System) -> Graph | None:
        """Graphs of all frames, with as many rows as these frames need."""
        if self.cutoff is None:
            return None
        plan = neighbor_list(systems, self.cutoff, skin=0.0, headroom=1.0)
        rows = -(-plan.row_length // _ROW_STEP) * _ROW_STEP
        plan = dataclasses.replace(plan, row_length=rows)
        graphs = self._build(plan, systems)
        if bool(jnp.any(graphs.overflow)):
            raise RuntimeError("a neighbor list that was counted exactly overflowed")
        return graphs

    def prepare(self, params: Params, trajectory: Trajectory, graphs: Graph | None) -> Samples:
        """Samples from the trajectory that ``params`` were simulated in."""
        return Samples(
            systems=trajectory.systems,
            params=params,
            energies=self.energies(params, trajectory.systems, graphs),
            fixed=evaluate_frames(self.fixed, params, trajectory),
            n_eff=jnp.asarray(float(trajectory.n_frames)),
        )

    def blank(self, params: Params, system: System, n_frames: int) -> Samples:
        """Samples of the right shapes that no simulation stands behind (``n_eff`` 0).

        Args:
            params: initial parameters.
            system: one structure like those to come.
            n_frames: frames of every simulation.
        """

        def zeros(observable: Observable) -> Array:
            plan = None
            if observable.cutoff is not None:
                plan = neighbor_list(system, observable.cutoff, skin=0.0)

            def one(system: System) -> Array:
                graph = None if plan is None else plan.build(system).graph
                return observable.per_frame(params, system, graph, None)

            shape = jax.eval_shape(one, system)
            return jnp.zeros((n_frames, *shape.shape), shape.dtype)

        wide = jax.dtypes.canonicalize_dtype(float)
        frames = system._replace(
            positions=jnp.zeros((n_frames, *system.positions.shape), system.positions.dtype),
            cell=jnp.zeros((n_frames, *system.cell.shape), system.cell.dtype),
        )
        return Samples(
            systems=frames,
            params=params,
            energies=jnp.zeros(n_frames, wide),
            fixed={observable.name: zeros(observable) for observable in self.fixed},
            n_eff=jnp.zeros((), wide),
        )

    def _frame_values(
        self, params: Params, systems: System, graphs: Graph | None, observe: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """Energies and parameter-dependent observables of every frame."""
        moving = self.moving if observe else ()

        @jax.checkpoint
        def one(system: System, graph: Any) -> tuple[Array, dict[str, Array]]:
            values = {o.name: o.per_frame(params, system, graph, None) for o in moving}
            return total_energy(self.energy_fn, params, system, graph), values

        return map_frames(one, Trajectory(systems, {}, self.state_point), graphs)

    def _weights(self, energies: Array, samples: Samples) -> tuple[Array, Array]:
        weights = reweighting_weights((energies - samples.energies) * self.state_point.beta)
        return weights, effective_sample_size(weights, "entropy")

    def _n_eff(self, params: Params, samples: Samples, graphs: Graph | None) -> Array:
        energies, _ = self._frame_values(params, samples.systems, graphs, observe=False)
        return self._weights(energies, samples)[1]

    def _averages(self, values: dict[str, Array], weights: Array) -> dict[str, Array]:
        return {
            target.observable.name: target.observable.estimate(
                values[target.observable.name], weights
            )[0]
            for target in self.targets
        }

    def _predict(self, params: Params, samples: Samples, graphs: Graph | None) -> Prediction:
        energies, moving = self._frame_values(params, samples.systems, graphs)
        weights, n_eff = self._weights(energies, samples)
        return Prediction(self._averages(samples.fixed | moving, weights), weights, n_eff)

    def _loss(
        self, params: Params, samples: Samples, graphs: Graph | None
    ) -> tuple[Array, Prediction]:
        prediction = self._predict(params, samples, graphs)
        terms = [t.loss(prediction.values[t.observable.name]) for t in self.targets]
        return jnp.sum(jnp.stack(terms)), prediction

    def _linearise(self, params: Params, samples: Samples, graphs: Graph | None) -> Linearised:
        flat, unravel = ravel_pytree(params)

        def energy(flat: Array, system: System, graph: Any) -> Array:
            return total_energy(self.energy_fn, unravel(flat), system, graph)

        def observe(flat: Array, system: System, graph: Graph | None) -> dict[str, Array]:
            return {o.name: o.per_frame(unravel(flat), system, graph, None) for o in self.moving}

        def one(system: System, graph: Graph | None) -> tuple:
            value, slope = jax.value_and_grad(energy)(flat, system, graph)
            return value, slope, observe(flat, system, graph)

        trajectory = Trajectory(samples.systems, {}, self.state_point)
        energies, slopes, moving = map_frames(one, trajectory, graphs)
        weights, n_eff = self._weights(energies, samples)
        beta = self.state_point.beta
        wide = weights.dtype
        slopes, values = jax.tree.map(
            lambda leaf: leaf.astype(wide), (slopes, samples.fixed | moving)
        )
        centred = slopes - (weights @ slopes)[None]
        scores = beta * jnp.sqrt(weights)[:, None] * centred
        averages = self._averages(values, weights)
        by_weight = jax.jacrev(self._averages, argnums=1)(values, weights)
        weight_slopes = -beta * weights[:, None] * centred
        jacobian = jax.tree.map(lambda pull: pull @ weight_slopes, by_weight)
        if self.moving:
            direct = self._direct(observe, flat, trajectory, graphs, values, weights)
            jacobian |= {name: jacobian[name] + slope for name, slope in direct.items()}
        return Linearised(Prediction(averages, weights, n_eff), jacobian, scores)

    def _direct(
        self,
        observe: Callable[[Array, System, Graph | None], dict[str, Array]],
        flat: Array,
        trajectory: Trajectory,
        graphs: Graph | None,
        values: dict[str, Array],
        weights: Array,
    ) -> dict[str, Array]:
        """What averages change because observables of a frame do, by some of the frames.

        Averages of such observables alone, distributions that are fixed in a frame not among
        them, are mostly fewer than values of a frame (six elastic constants, from 29 numbers),
        so each is followed backwards, to the frames and then to the parameters.
        """
        systems = trajectory.systems
        moving = {o.name: values[o.name] for o in self.moving}
        positions, cell, moving, weights, graphs = jax.tree.map(
            lambda leaf: leaf[:: self.direct_every],
            (systems.positions, systems.cell, moving, weights, graphs),
        )
        trajectory = trajectory._replace(systems=systems._replace(positions=positions, cell=cell))
        pulls, unravel = self._pulls(moving, normalised_weights(weights))
        backwards = pulls[next(iter(pulls))].shape[1] <= flat.size

        def one(system: System, graph: Graph | None, pull: dict[str, Array]) -> Array:
            """Of one frame, ``[n_averages, n_params]``."""
            if backwards:
                found, back = jax.vjp(lambda x: observe(x, system, graph), flat)
                rows = jax.tree.map(lambda p, v: p.astype(v.dtype), pull, found)
                return jax.lax.map(lambda row: back(row)[0], rows)
            # forward mode, which edges that know their reverse refuse
            plain = None if graph is None else dataclasses.replace(graph, reverse=None)
            slope = jax.jacfwd(observe)(flat, system, plain)
            parts = [
                pull[name].reshape(len(pull[name]), -1) @ slope[name].reshape(-1, flat.size)
                for name in slope
            ]
            return sum(parts[1:], start=parts[0])

        total = jnp.sum(map_frames(one, trajectory, graphs, pulls), axis=0, dtype=weights.dtype)
        return jax.vmap(unravel, in_axes=1, out_axes=-1)(total)

    def _pulls(
        self, moving: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Callable[[Array], dict[str, Array]]]:
        """Derivatives of averages in their values, ``[n_frames, n_averages, *value]``."""

        def averages(moving: dict[str, Array]) -> dict[str, Array]:
            return {o.name: o.estimate(moving[o.name], weights)[0] for o in self.moving}

        unravel = ravel_pytree(averages(moving))[1]
        pulls = jax.jacrev(lambda x: ravel_pytree(averages(x))[0])(moving)
        return jax.tree.map(lambda pull: jnp.swapaxes(pull, 0, 1), pulls), unravel


def _build_graphs(plan: NeighborList, systems: System) -> Graph:
    build: Callable[[System], Graph] = lambda system: plan.build(system).graph  # noqa: E731
    return map_frames(build, Trajectory(systems, {}, StatePoint(1.0)))
