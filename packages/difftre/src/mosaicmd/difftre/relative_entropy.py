r"""Relative entropy minimisation: the ensemble of a coarse model towards reference frames.

The relative entropy of a reference ensemble to that of a model,

``S(theta) = beta <U_theta>_ref + ln Z(theta) + const``,

is what the reference frames are less likely in the model than they could be. Its gradient
needs averages alone, ``dS/dtheta = beta (<dU/dtheta>_ref - <dU/dtheta>_theta)``, and no
forces. For parameters that the energy is linear in, its curvature is the Fisher information
``beta^2 cov(dU/dtheta)``, so it has a single minimum, where every ``<dU/dtheta>`` agrees.

References:
    Shell, J. Chem. Phys. 129, 144108 (2008); Chaimovich & Shell, J. Chem. Phys. 134, 094112
    (2011); Thaler, Stupp & Zavadlav, J. Chem. Phys. 157, 244103 (2022): with reweighting.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from mosaicmd.difftre.reweighting import Reweighting, Samples
from mosaicmd.difftre.sampling import Sampler
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import EnergyFn, total_energy
from mosaicmd.kernel.simulation import ContactError, SimulationError
from mosaicmd.kernel.statistics import effective_sample_size, log_weights
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.training import Algorithm
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, map_frames

Array = jax.Array
Params = Any

_MAX_RETREATS = 6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NaturalGradient:
    """Newton's step in the Fisher metric, for tens to hundreds of parameters.

    The metric is the mean of those of both ensembles, so that energies which only one of them
    feels are moved by bounded amounts. ``gain`` is the share of the step that is taken;
    where it changes the ensemble too much, it is shortened until ``delta^T F delta``, twice
    the relative entropy between before and after, is at most ``max_divergence``. The diagonal
    grows by the share ``ridge`` of its mean, so that parameters which hardly any frame feels,
    such as those of splines at the edge of what is visited, stay where they are.
    """

    gain: float = 1.0
    max_divergence: float = 1.0
    ridge: float = 1.0e-3

    def __post_init__(self) -> None:
        for name in ("gain", "max_divergence", "ridge"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)!r}")


class RelativeEntropyState(NamedTuple):
    """Everything that the next step depends on."""

    params: Params
    optimizer: Any
    sampler: Any
    samples: Samples
    relative_entropy: Array  # [], nats, since the parameters of `init`
    n_simulations: Array  # [], int32, so far


def relative_entropy(
    energy_fn: EnergyFn,
    cutoff: float | None,
    sampler: Sampler,
    reference: Trajectory,
    update: optax.GradientTransformation | NaturalGradient,
    *,
    reuse_fraction: float = 0.9,
    frames_at_once: int | None = None,
) -> Algorithm:
    """Minimise the relative entropy of reference frames to the ensemble of the model.

    A step simulates if the frames have lost too much of their effective size, averages
    ``dU/dtheta`` over them by reweighting and over the reference, and updates the parameters.
    ``batch`` is not used. Where a simulation breaks, the parameters go halfway back to those of
    the frames before, and it is tried again. Metrics per step: ``relative_entropy`` (nats, its
    change since the parameters of ``init``: a sum of free-energy perturbations, without
    retreats), ``gradient_norm`` (1 per unit of the parameters), ``divergence``
    (``delta^T F delta``, of natural gradients), ``n_eff`` (fraction, after the update) and
    ``simulations`` (so far).

    Args:
        energy_fn: per-atom energies of the model.
        cutoff: of the energy function, Å; ``None`` if it needs no graph.
        sampler: of the same energy function, at the temperature of the reference.
        reference: frames of the reference ensemble, mapped to the sites of the model.
        update: any of optax, for any number of parameters, or :class:`NaturalGradient`, which
            holds a row of derivatives of every frame.
        reuse_fraction: frames are reused while their effective share is at least this.
        frames_at_once: of each ensemble; by default as :func:`map_frames` does. Small
            molecules go faster in hundreds, also on a CPU.

    Raises:
        ValueError: for a reference of another number of sites or of another temperature.

    References:
        Shell, J. Chem. Phys. 129, 144108 (2008).
    """
    if not 0.0 <= reuse_fraction <= 1.0:
        raise ValueError(f"`reuse_fraction` must lie in [0, 1], got {reuse_fraction}")
    kT = sampler.state_point.kT
    if not np.isclose(float(reference.state_point.kT), float(kT), rtol=1e-6):
        raise ValueError(
            f"`reference` was sampled at kT = {reference.state_point.kT} eV, the model at {kT} eV"
        )
    found, own = reference.systems.positions.shape[-2:], sampler.system.positions.shape[-2:]
    if found != own:
        raise ValueError(f"`reference` has frames of shape {found}, the model {own}")
    beta = 1.0 / kT
    frames = Reweighting(energy_fn, cutoff, (), sampler.state_point)
    their_graphs: list[Graph | None] = []

    def energies_of(params: Params, systems: System, graphs: Graph | None) -> Array:
        one = jax.checkpoint(lambda system, graph: total_energy(energy_fn, params, system, graph))
        trajectory = Trajectory(systems, {}, StatePoint(kT))
        return map_frames(one, trajectory, graphs, batch_size=frames_at_once)

    def slopes_of(params: Params, systems: System, graphs: Graph | None) -> tuple[Array, Array]:
        """Energies, and a row of their derivatives for every frame."""
        flat, unravel = ravel_pytree(params)

        def one(system: System, graph: Any) -> tuple[Array, Array]:
            def energy(flat: Array) -> Array:
                return total_energy(energy_fn, unravel(flat), system, graph)

            return jax.value_and_grad(energy)(flat)

        trajectory = Trajectory(systems, {}, StatePoint(kT))
        return map_frames(one, trajectory, graphs, batch_size=frames_at_once)

    @jax.jit
    def gradient_of(
        params: Params, samples: Samples, mine: Graph | None, theirs: Graph | None
    ) -> tuple[Params, Array, Array]:
        """Gradient of the relative entropy, and energies of frames and reference."""

        def difference(params: Params) -> tuple[Array, tuple[Array, Array]]:
            here = energies_of(params, samples.systems, mine)
            there = energies_of(params, reference.systems, theirs)
            shares = log_weights(beta * (jax.lax.stop_gradient(here) - samples.energies))
            return beta * (jnp.mean(there) - jnp.exp(shares) @ here), (here, there)

        gradient, (here, there) = jax.grad(difference, has_aux=True)(params)
        return gradient, here, there

    @jax.jit
    def metric_of(
        params: Params, samples: Samples, mine: Graph | None, theirs: Graph | None
    ) -> tuple[Array, Array, Array, Array]:
        """Flat gradient, metric, and energies of frames and reference."""
        here, slopes = slopes_of(params, samples.systems, mine)
        there, others = slopes_of(params, reference.systems, theirs)
        weights = jnp.exp(log_weights(beta * (here - samples.energies)))
        equal = jnp.full(len(there), 1.0 / len(there), weights.dtype)
        mean, covariance = _moments(slopes.astype(weights.dtype), weights)
        wanted, scatter = _moments(others.astype(weights.dtype), equal)
        metric = 0.5 * beta**2 * (covariance + scatter)
        return beta * (wanted - mean), metric, here, there

    energies = jax.jit(energies_of)

    def init(params: Params) -> RelativeEntropyState:
        return RelativeEntropyState(
            params=params,
            optimizer=() if isinstance(update, NaturalGradient) else update.init(params),
            sampler=sampler.init(),
            samples=frames.blank(params, sampler.system, sampler.n_frames),
            relative_entropy=jnp.zeros((), jax.dtypes.canonicalize_dtype(float)),
            n_simulations=jnp.zeros((), jnp.int32),
        )

    def sampled(state: RelativeEntropyState) -> RelativeEntropyState:
        """The state with frames that represent its parameters."""
        n_eff = float(state.samples.n_eff)
        if n_eff > 0.0 and n_eff >= reuse_fraction * sampler.n_frames:
            return state
        params = state.params
        for retreats in range(_MAX_RETREATS + 1):
            try:
                sampler_state, trajectory = sampler.sample(params, state.sampler)
                break
            except (SimulationError, ContactError):
                if n_eff == 0.0 or retreats == _MAX_RETREATS:
                    raise
            halfway = lambda here, there: 0.5 * (here + there)  # noqa: E731
            params = jax.tree.map(halfway, params, state.samples.params)
        graphs = frames.graphs(trajectory.systems)
        samples = Samples(
            systems=trajectory.systems,
            params=params,
            energies=energies(params, trajectory.systems, graphs),
            fixed={},
            n_eff=jnp.asarray(float(sampler.n_frames)),
        )
        return state._replace(
            params=params,
            sampler=sampler_state,
            samples=samples,
            n_simulations=state.n_simulations + 1,
        )

    def step(
        state: RelativeEntropyState, batch: Any = None
    ) -> tuple[RelativeEntropyState, dict[str, float]]:
        del batch
        state = sampled(state)
        samples, params = state.samples, state.params
        mine = frames.graphs(samples.systems)
        if not their_graphs:
            their_graphs.append(frames.graphs(reference.systems))
        (theirs,) = their_graphs
        metrics: dict[str, float] = {}
        if isinstance(update, NaturalGradient):
            flat, unravel = ravel_pytree(params)
            slope, metric, here, there = metric_of(params, samples, mine, theirs)
            slope, metric = np.asarray(slope), np.asarray(metric)
            change = update.gain * _natural_step(slope, metric, update)
            moved = unravel((flat + change).astype(flat.dtype))
            optimizer = state.optimizer
            metrics["divergence"] = float(change @ metric @ change)
            metrics["gradient_norm"] = float(np.linalg.norm(slope))
        else:
            gradient, here, there = gradient_of(params, samples, mine, theirs)
            change, optimizer = update.update(gradient, state.optimizer, params)
            moved = optax.apply_updates(params, change)
            metrics["gradient_norm"] = float(optax.tree.norm(gradient))
        # S changes by beta <dU>_ref + ln <exp(-beta dU)>
        here_moved = energies(moved, samples.systems, mine)
        there_moved = energies(moved, reference.systems, theirs)
        log_shares = log_weights(beta * (here - samples.energies))
        shift = jax.nn.logsumexp(log_shares - beta * (here_moved - here))
        total = state.relative_entropy + beta * jnp.mean(there_moved - there) + shift
        n_eff = _effective(here_moved, samples, beta)
        state = state._replace(
            params=moved,
            optimizer=optimizer,
            samples=samples._replace(n_eff=jnp.asarray(n_eff, samples.n_eff.dtype)),
            relative_entropy=total.astype(state.relative_entropy.dtype),
        )
        metrics |= {
            "relative_entropy": float(total),
            "n_eff": n_eff / sampler.n_frames,
            "simulations": int(state.n_simulations),
        }
        return state, metrics

    def adopt(state: RelativeEntropyState, params: Params) -> RelativeEntropyState:
        samples = state.samples
        if float(samples.n_eff) > 0.0:  # else nothing was simulated yet
            found = energies(params, samples.systems, frames.graphs(samples.systems))
            n_eff = _effective(found, samples, beta)
            samples = samples._replace(n_eff=jnp.asarray(n_eff, samples.n_eff.dtype))
        return state._replace(params=params, samples=samples)

    return Algorithm(init, step, adopt)


def _effective(energies: Array, samples: Samples, beta: float | Array) -> float:
    """Effective number of frames at these energies; 1 where no frame makes sense."""
    weights = jnp.exp(log_weights(beta * (energies - samples.energies)))
    n_eff = float(effective_sample_size(weights, "entropy"))
    return n_eff if np.isfinite(n_eff) else 1.0


def _moments(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean and covariance of rows."""
    mean = weights @ rows
    centred = rows - mean[None]
    return mean, (centred.T * weights[None]) @ centred


def _natural_step(slope: np.ndarray, metric: np.ndarray, update: NaturalGradient) -> np.ndarray:
    """The step of :class:`NaturalGradient`, before its gain.

    ``-((1 + mu) F + ridge trace(F) / n)^-1 g`` with the least ``mu`` that keeps to the bound.
    """
    values, vectors = np.linalg.eigh(metric)
    values = np.maximum(values, 0.0)
    held = update.ridge * values.mean()
    along = -(vectors.T @ slope)

    def step(mu: float) -> np.ndarray:
        stiffness = (1.0 + mu) * values + held
        return np.divide(along, stiffness, out=np.zeros_like(along), where=stiffness > 0.0)

    def is_far(mu: float) -> bool:
        return bool(values @ step(mu) ** 2 > update.max_divergence)

    low = high = 0.0
    if is_far(0.0):
        high = 1.0
        while is_far(high):
            low, high = high, 4.0 * high
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if is_far(middle) else (low, middle)
    return vectors @ step(high)
