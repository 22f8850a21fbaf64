"""DiffTRe as an `Algorithm`: sample where reuse ends, reweight, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.difftre.devices import on_devices
from mosaicmd.difftre.reweighting import Reweighting, Samples
from mosaicmd.difftre.sampling import Sampler
from mosaicmd.difftre.targets import Target
from mosaicmd.difftre.updates import Penalty, Problem, Update
from mosaicmd.kernel.potentials import EnergyFn
from mosaicmd.kernel.simulation import ContactError, SimulationError
from mosaicmd.kernel.training import Algorithm

Array = jax.Array
Params = Any

_MAX_RETREATS = 6
_FEW = 8
"""Values of a target that are logged one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StatePointData:
    """One state point: how to sample it, and what was measured there.

    ``direct_every`` is that of :class:`Reweighting`, for Gauss–Newton steps.
    """

    name: str
    sampler: Sampler
    targets: Sequence[Target]
    direct_every: int = 1


class DiffTReState(NamedTuple):
    """Everything that the next step depends on."""

    params: Params
    update: Any
    samplers: tuple[Any, ...]
    samples: tuple[Samples, ...]
    n_simulations: Array  # [], int32, so far


def difftre(
    energy_fn: EnergyFn,
    cutoff: float | None,
    state_points: Sequence[StatePointData],
    update: Update,
    *,
    reuse_fraction: float = 0.9,
    penalty: Penalty | None = None,
) -> Algorithm:
    """Learn parameters from measured averages by reweighting simulated frames.

    A step simulates every state point whose frames have lost too much of their effective
    size (at the same time, one on each device, where JAX finds several), predicts the targets
    by reweighting and updates the parameters. ``batch`` is not used. Where a simulation breaks,
    the step before it was too long: the parameters go halfway back and it is tried again.
    Metrics per step: ``loss``, ``n_eff/NAME`` (fraction, after the update), ``simulations`` (so
    far), ``retreats`` (after broken simulations), ``step_scale``,
    ``deviation/NAME/OBSERVABLE`` (root mean square, in tolerances), and
    ``value/NAME/OBSERVABLE/k`` of targets with few values. Where a routine changes the
    parameters in between, the effective sizes are computed anew, so that frames are reused
    only as far as they represent what it found.

    Args:
        energy_fn: per-atom energies of the potential that is learned.
        cutoff: of the energy function, Å; ``None`` if it needs no graph.
        state_points: what was measured, and samplers of the same energy function there.
        update: :func:`first_order` or :func:`gauss_newton`.
        reuse_fraction: frames are reused while their effective share is at least this.
        penalty: residuals whose half square sum is added to the loss.

    Raises:
        ValueError: for no state points or names that are shared.

    References:
        Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021).
    """
    if not state_points:
        raise ValueError("`state_points` is empty: there is nothing to learn from")
    names = [point.name for point in state_points]
    if len(set(names)) < len(names):
        raise ValueError(f"state points share a name: {names}")
    if not 0.0 <= reuse_fraction <= 1.0:
        raise ValueError(f"`reuse_fraction` must lie in [0, 1], got {reuse_fraction}")
    reweightings = tuple(
        Reweighting(
            energy_fn,
            cutoff,
            point.targets,
            point.sampler.state_point,
            direct_every=point.direct_every,
        )
        for point in state_points
    )

    def init(params: Params) -> DiffTReState:
        return DiffTReState(
            params=params,
            update=update.init(params),
            samplers=tuple(point.sampler.init() for point in state_points),
            samples=tuple(
                reweighting.blank(params, point.sampler.system, point.sampler.n_frames)
                for reweighting, point in zip(reweightings, state_points, strict=True)
            ),
            n_simulations=jnp.zeros((), jnp.int32),
        )

    def step(state: DiffTReState, batch: Any = None) -> tuple[DiffTReState, dict[str, float]]:
        del batch
        state, retreats = _sampled(state, state_points, reweightings, reuse_fraction)
        graphs = tuple(
            reweighting.graphs(samples.systems)
            for reweighting, samples in zip(reweightings, state.samples, strict=True)
        )
        problem = Problem(reweightings, state.samples, graphs, penalty)
        params, update_state, info = update.step(problem, state.params, state.update)
        samples = [
            one._replace(n_eff=jnp.asarray(n_eff, one.n_eff.dtype))
            for one, n_eff in zip(state.samples, info.n_eff, strict=True)
        ]
        metrics = {
            "loss": info.loss,
            "simulations": int(state.n_simulations),
            "retreats": retreats,
            "step_scale": info.step_scale,
        }
        for point, prediction, n_eff in zip(
            state_points, info.predictions, info.n_eff, strict=True
        ):
            metrics[f"n_eff/{point.name}"] = float(n_eff) / point.sampler.n_frames
            for target in point.targets:
                name = target.observable.name
                deviations = np.asarray(target.deviations(prediction.values[name]))
                size = float(np.sqrt(np.sum(deviations**2) / target.weight))
                metrics[f"deviation/{point.name}/{name}"] = size
                values = np.ravel(prediction.values[name])
                if len(values) <= _FEW:
                    named = {f"value/{point.name}/{name}/{k}": v for k, v in enumerate(values)}
                    metrics |= {key: float(value) for key, value in named.items()}
        state = state._replace(params=params, update=update_state, samples=tuple(samples))
        return state, metrics

    def adopt(state: DiffTReState, params: Params) -> DiffTReState:
        samples = tuple(
            _weighed(reweighting, params, one)
            for reweighting, one in zip(reweightings, state.samples, strict=True)
        )
        return state._replace(params=params, samples=samples)

    return Algorithm(init, step, adopt)


def _weighed(reweighting: Reweighting, params: Params, samples: Samples) -> Samples:
    """The samples with their effective size at parameters that came from elsewhere."""
    if float(samples.n_eff) == 0.0:  # nothing was simulated yet
        return samples
    n_eff = float(reweighting.n_eff(params, samples, reweighting.graphs(samples.systems)))
    n_eff = n_eff if np.isfinite(n_eff) else 1.0  # no frame makes sense: simulate anew
    return samples._replace(n_eff=jnp.asarray(n_eff, samples.n_eff.dtype))


def _sampled(
    state: DiffTReState,
    state_points: Sequence[StatePointData],
    reweightings: Sequence[Reweighting],
    reuse_fraction: float,
) -> tuple[DiffTReState, int]:
    """The state with frames that represent its parameters, simulated where necessary.

    If a simulation breaks, the last step went where no frame had been, and the parameters
    go halfway back to those of the frames before; how often is returned too.
    """
    for retreats in range(_MAX_RETREATS + 1):
        try:
            return _resampled(state, state_points, reweightings, reuse_fraction), retreats
        except (SimulationError, ContactError):
            first = any(float(samples.n_eff) == 0.0 for samples in state.samples)
            if first or retreats == _MAX_RETREATS:
                raise
        halfway = jax.tree.map(
            lambda here, there: 0.5 * (here + there), state.params, state.samples[0].params
        )
        spent = state.n_simulations + 1
        state = state._replace(params=halfway, n_simulations=spent)
    raise AssertionError("unreachable")


def _resampled(
    state: DiffTReState,
    state_points: Sequence[StatePointData],
    reweightings: Sequence[Reweighting],
    reuse_fraction: float,
) -> DiffTReState:
    """New frames for every state point that has too few effective ones.

    Where there are several devices, state points are simulated at the same time, one on each.
    """
    samplers, samples = list(state.samplers), list(state.samples)
    sizes = [float(one.n_eff) for one in samples]  # 0 where nothing was simulated yet
    wanted = [reuse_fraction * point.sampler.n_frames for point in state_points]
    stale = [i for i, size in enumerate(sizes) if size == 0.0 or size < wanted[i]]

    def simulated(i: int) -> tuple[Any, Samples]:
        sampler, trajectory = state_points[i].sampler.sample(state.params, state.samplers[i])
        graphs = reweightings[i].graphs(trajectory.systems)
        return sampler, reweightings[i].prepare(state.params, trajectory, graphs)

    for i, (sampler, sample) in zip(stale, on_devices(simulated, stale), strict=True):
        samplers[i], samples[i] = sampler, sample
    return state._replace(
        samplers=tuple(samplers),
        samples=tuple(samples),
        n_simulations=state.n_simulations + len(stale),
    )
