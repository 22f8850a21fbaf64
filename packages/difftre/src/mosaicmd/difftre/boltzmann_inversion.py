"""Iterative Boltzmann inversion, the classical way to a pair potential from an RDF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.difftre.sampling import Sampler
from mosaicmd.kernel.observables import Observable, evaluate_frames
from mosaicmd.kernel.statistics import weighted_mean
from mosaicmd.kernel.training import Algorithm

Array = jax.Array
Params = Any


class InversionState(NamedTuple):
    """State of :func:`boltzmann_inversion`."""

    params: Params
    sampler: Any
    n_simulations: Array  # [], int32


def boltzmann_inversion(
    sampler: Sampler,
    rdf: Observable,
    target: np.ndarray,
    add_pair_potential: Callable[[Params, Array, Array], Params],
    *,
    gain: float = 1.0,
    floor: float = 1.0e-2,
) -> Algorithm:
    """Add ``gain kT ln(g / g_target)`` to the pair potential after every simulation.

    Bins where either function is below ``floor`` are left alone. Metrics per step:
    ``mse`` of g before the step, and ``simulations``.

    Args:
        sampler: of the potential that is learned.
        rdf: with ``axis`` in Å.
        target: measured g on that axis.
        add_pair_potential: ``(params, weights, correction) -> params``; adds the
            correction (eV, one per bin) where ``weights`` (0 or 1) say that it is known,
            for instance by a least-squares fit of spline coefficients.
        gain: fraction of the full correction.
        floor: least g that a logarithm is taken of.

    Raises:
        ValueError: if ``target`` does not have one finite value per bin.

    References:
        Reith, Pütz & Müller-Plathe, J. Comput. Chem. 24, 1624 (2003).
    """
    target = np.asarray(target, float)
    if rdf.axis is None or target.shape != np.shape(rdf.axis) or not np.isfinite(target).all():
        raise ValueError(
            f"`target` must hold one finite value per bin of `{rdf.name}`, got {target.shape}"
        )
    kT = sampler.state_point.kT

    def init(params: Params) -> InversionState:
        return InversionState(params, sampler.init(), jnp.zeros((), jnp.int32))

    def step(state: InversionState, batch: Any = None) -> tuple[InversionState, dict[str, float]]:
        del batch
        sampler_state, trajectory = sampler.sample(state.params, state.sampler)
        values = evaluate_frames([rdf], state.params, trajectory)[rdf.name]
        g = np.asarray(weighted_mean(values))
        known = (g > floor) & (target > floor)
        ratio = np.where(known, g, 1.0) / np.where(known, target, 1.0)
        correction = jnp.asarray(gain * kT * np.log(ratio))
        params = add_pair_potential(state.params, jnp.asarray(known, float), correction)
        n_simulations = state.n_simulations + 1
        metrics = {
            "mse": float(np.mean((g - target) ** 2)),
            "simulations": int(n_simulations),
        }
        return InversionState(params, sampler_state, n_simulations), metrics

    return Algorithm(init, step)
