"""Free-energy differences between sampled states: FEP, BAR and MBAR, with their errors.

All energies are reduced, ``u = beta (U + p V - mu . N)``, and so are the free energies: ``kT``
times the results is in eV. Errors are those of independent samples; thin a correlated series
with `decorrelated` first. Everything runs in the widest float that JAX has enabled: switch on
``jax_enable_x64``. An energy of ``+inf`` is a configuration that its state forbids.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp

from mosaicmd.kernel import statistics
from mosaicmd.kernel._free_energy_solvers import (
    increasing_root,
    log_counts,
    log_mixture,
    log_posterior,
    mbar_covariance,
    mbar_root,
)

Array = jax.Array


class FepInfo(NamedTuple):
    """What `fep` knows beside the free energy."""

    error: Array  # [], one standard error; nan for a single sample
    n_eff: Array  # [], Kish's sample size of the weights


class BarInfo(NamedTuple):
    """What `bar` knows beside the free energy."""

    error: Array  # [], one standard error; nan for a single sample of either state
    overlap: Array  # [], 0: none, 1: equal states; distrust the error below some 0.03
    residual: Array  # [], the imbalance of the two sides, as a logarithm


class MbarInfo(NamedTuple):
    """What `mbar` knows beside the free energies."""

    error: Array  # [n_states, n_states], one standard error of f[j] - f[i]
    covariance: Array  # [n_states, n_states], of f up to a common constant
    overlap: Array  # [n_states, n_states], as from `overlap_matrix`
    residual: Array  # [], the largest of |sum of weights - 1| of a sampled state


class DecorrelationInfo(NamedTuple):
    """What `decorrelated` knows beside the indices."""

    inefficiency: float  # frames per independent one


def fep(delta_u: Array) -> tuple[Array, FepInfo]:
    """Free energy of a target state by exponential averaging over samples of another.

    ``-ln <exp(-delta_u)>``; biased upwards when few samples reach what matters in the target,
    which a small ``n_eff`` reveals. Differentiable.

    Args:
        delta_u: ``u_target - u_sampled`` of every sample, shape ``[n_samples]``.

    Returns:
        ``f_target - f_sampled``, shape ``[]``, and its `FepInfo`, which is not differentiated.

    Raises:
        ValueError: for another shape, no samples, NaN, ``-inf``, or nothing but ``+inf``.

    References:
        Zwanzig, J. Chem. Phys. 22, 1420 (1954).
    """
    delta_u = _differences("delta_u", delta_u)
    n = delta_u.shape[0]
    weights = statistics.reweighting_weights(jax.lax.stop_gradient(delta_u))
    variance = jnp.sum((weights - 1.0 / n) ** 2) if n > 1 else jnp.full_like(weights[0], jnp.nan)
    info = FepInfo(jnp.sqrt(variance), statistics.effective_sample_size(weights))
    return math.log(n) - logsumexp(-delta_u), info


def bar(forward: Array, reverse: Array) -> tuple[Array, BarInfo]:
    """Free-energy difference of two sampled states by Bennett's acceptance ratio.

    The root of ``sum_0 s(f - m - forward) = sum_1 s(m - f - reverse)``, where ``s`` is the
    logistic function and ``m = ln(n_0 / n_1)``: of all estimates from both sets of samples
    the one of least variance, for any two counts. Differentiable any number of times, by
    the implicit function theorem. Work done in switching may stand for the differences.

    Args:
        forward: ``u_1 - u_0`` of samples of state 0, shape ``[n_0]``.
        reverse: ``u_0 - u_1`` of samples of state 1, shape ``[n_1]``.

    Returns:
        ``f_1 - f_0``, shape ``[]``, and its `BarInfo`, which is not differentiated.

    Raises:
        ValueError: for other shapes, no samples of a state (use `fep`), NaN, ``-inf``, or
            nothing but ``+inf`` in one direction.

    References:
        Bennett, J. Comput. Phys. 22, 245 (1976); Shirts, Bair, Hooker & Pande, Phys. Rev.
        Lett. 91, 140601 (2003).
    """
    forward, reverse = _differences("forward", forward), _differences("reverse", reverse)
    n_0, n_1 = forward.shape[0], reverse.shape[0]
    log_ratio = math.log(n_0 / n_1)

    def imbalance(f: Array) -> Array:
        accepted = jax.nn.log_sigmoid(f - log_ratio - forward)
        returned = jax.nn.log_sigmoid(log_ratio - f - reverse)
        return logsumexp(accepted) - logsumexp(returned)

    # Every term on one side of these bounds is either below 1 / (n_0 + n_1 + 1) or, for the
    # other direction, above 1 - 1 / (n_0 + n_1 + 1): the imbalance has changed its sign.
    differences = jnp.concatenate([forward, -reverse])
    margin = math.log(n_0 + n_1 + 1.0)
    finite = jnp.isfinite(differences)
    lower = jnp.min(differences, where=finite, initial=jnp.inf) + log_ratio - margin
    upper = jnp.max(differences, where=finite, initial=-jnp.inf) + log_ratio + margin
    lower, upper = jax.lax.stop_gradient((lower, upper))
    delta_f = jax.lax.custom_root(
        imbalance,
        0.5 * (lower + upper),
        lambda function, _: increasing_root(function, lower, upper),
        lambda linear, y: y / linear(jnp.ones_like(y)),
    )

    forward, reverse, f = jax.lax.stop_gradient((forward, reverse, delta_f))
    accepted = jax.nn.sigmoid(f - log_ratio - forward)  # probability of state 1
    returned = jax.nn.sigmoid(log_ratio - f - reverse)  # probability of state 0
    shared = jnp.sum(accepted * jax.nn.sigmoid(forward + log_ratio - f))
    shared += jnp.sum(returned * jax.nn.sigmoid(reverse + f - log_ratio))
    variance = jnp.sum((_shares(f - log_ratio - forward) - 1.0 / n_0) ** 2)
    variance += jnp.sum((_shares(log_ratio - f - reverse) - 1.0 / n_1) ** 2)
    if min(n_0, n_1) == 1:
        variance = jnp.full_like(variance, jnp.nan)
    info = BarInfo(jnp.sqrt(variance), (1.0 / n_0 + 1.0 / n_1) * shared, jnp.abs(imbalance(f)))
    return delta_f, jax.lax.stop_gradient(info)


def mbar(u_kn: Array, n_k: Array) -> tuple[Array, MbarInfo]:
    """Free energies of all states from the samples of all states, with their covariance.

    Minimises the convex MBAR objective by Newton steps, shortened or replaced by one
    self-consistent iteration wherever that descends further. States without samples get
    the free energy that the others imply. Differentiable in ``u_kn``, by the implicit
    function theorem, and fit for ``jit``, where values go unchecked. The memory is several
    times that of ``u_kn``.

    Args:
        u_kn: energy in state ``k`` of sample ``n``, whichever state it came from, shape
            ``[n_states, n_samples]``.
        n_k: number of samples from each state, shape ``[n_states]``; some may be 0.

    Returns:
        Free energies less that of the first state, shape ``[n_states]``, and their
        `MbarInfo`, which is not differentiated. Where states hardly overlap, the errors
        grow beyond all bounds that precision leaves.

    Raises:
        ValueError: for other shapes, counts that are negative, fractional or do not add up
            to ``n_samples``, NaN or ``-inf``, a sample that every sampled state forbids, or
            a state that forbids every sample.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008).
    """
    u_kn, n_k = _states(u_kn, n_k)
    log_n = log_counts(n_k)
    # A constant per sample cancels; taking the lowest sampled energy off keeps all digits.
    lowest = jnp.min(jnp.where(n_k[:, None] > 0, u_kn, jnp.inf), axis=0)
    u_kn = u_kn - jax.lax.stop_gradient(lowest)[None]

    def residual(f: Array) -> Array:
        log_p = log_posterior(f, u_kn, log_n)
        gauge = n_k * (jnp.sum(n_k * f) / jnp.sum(n_k))
        return jnp.where(n_k > 0, jnp.sum(jnp.exp(log_p), axis=1) - n_k + gauge, f)

    def tangent_solve(linear, y: Array) -> Array:
        matrix = jax.lax.map(linear, jnp.eye(y.shape[0], dtype=y.dtype)).T
        return jnp.linalg.solve(matrix, y)

    f = jax.lax.custom_root(
        residual, jnp.zeros_like(n_k), lambda _, start: mbar_root(u_kn, n_k, start), tangent_solve
    )
    f = -logsumexp(-u_kn - log_mixture(f, u_kn, log_n)[None], axis=1)
    f_k = f - f[0]

    u_kn, f = jax.lax.stop_gradient((u_kn, f_k))
    weights = jnp.exp(f[:, None] - u_kn - log_mixture(f, u_kn, log_n)[None])
    total = jnp.sum(weights, axis=1)
    residue = jnp.max(jnp.where(n_k > 0, jnp.abs(total - 1.0), 0.0))
    weights = weights / total[:, None]
    covariance = mbar_covariance(weights, n_k)
    variance = jnp.diag(covariance)[:, None] + jnp.diag(covariance)[None] - 2.0 * covariance
    error = jnp.sqrt(jnp.maximum(variance, 0.0))
    return f_k, MbarInfo(error, covariance, overlap_matrix(weights, n_k), residue)


def mbar_weights(u_kn: Array, n_k: Array, f_k: Array, target: Array | None = None) -> Array:
    """Weights that turn averages over the samples of all states into those of a target.

    ``statistics.weighted_mean(series, weights)`` is then the average of a series in the
    target; differentiable in ``target``, ``u_kn`` and ``f_k``.

    Args:
        u_kn: as for `mbar`, shape ``[n_states, n_samples]``.
        n_k: as for `mbar`, shape ``[n_states]``.
        f_k: free energies from `mbar`, shape ``[n_states]``.
        target: energy of every sample in the target, shape ``[n_samples]``, or in several,
            ``[n_targets, n_samples]``; ``None``: the states of ``u_kn`` themselves.

    Returns:
        Weights that sum to 1 over the samples, of the shape of ``target``.

    Raises:
        ValueError: as `mbar`; if ``f_k`` or ``target`` fits not the rest.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008).
    """
    u_kn, n_k = _states(u_kn, n_k)
    f_k = _widest(f_k)
    if f_k.shape != n_k.shape:
        raise ValueError(f"`f_k` must have shape {n_k.shape} like `n_k`, got {f_k.shape}")
    u = u_kn if target is None else _widest(target)
    if u.ndim not in (1, 2) or u.shape[-1] != u_kn.shape[1]:
        raise ValueError(
            f"`target` must have shape [{u_kn.shape[1]}] or [n_targets, {u_kn.shape[1]}], one "
            f"energy per sample of `u_kn`, got {u.shape}"
        )
    _check_energies("target", u)
    mixture = log_mixture(f_k, u_kn, log_counts(n_k))
    rows = jax.vmap(lambda row: statistics.reweighting_weights(row + mixture))
    return rows(u) if u.ndim == 2 else rows(u[None])[0]


def overlap_matrix(weights: Array, n_k: Array) -> Array:
    """Probability that a sample of state ``i`` could have come from state ``j``.

    Every row sums to 1. Neighbouring states are connected well enough where the elements
    beside the diagonal exceed 0.03.

    Args:
        weights: of samples in the states, shape ``[n_states, n_samples]``, from `mbar_weights`.
        n_k: number of samples from each state, shape ``[n_states]``.

    Returns:
        Shape ``[n_states, n_states]``; columns of states without samples are 0.

    Raises:
        ValueError: if the shapes do not belong to the same number of states.

    References:
        Klimovich, Shirts & Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015).
    """
    weights, n_k = _widest(weights), _widest(n_k)
    if weights.ndim != 2 or n_k.shape != weights.shape[:1]:
        raise ValueError(
            "`weights` must have shape [n_states, n_samples] and `n_k` [n_states], "
            f"got {weights.shape} and {n_k.shape}"
        )
    return jnp.matmul(weights, weights.T, precision="highest") * n_k[None]


def decorrelated(
    series: Array, inefficiency: float | None = None
) -> tuple[np.ndarray, DecorrelationInfo]:
    """Indices of frames that may count as independent, as many as the series is worth.

    Frames nearest to the multiples of the statistical inefficiency; the first is among
    them, so cut off the equilibration before. Runs on the host: the number depends on values.

    Args:
        series: what decorrelates slowest, ``delta_u`` or the energy, shape ``[n_frames]``.
        inefficiency: frames per independent one; ``None``: that of the series.

    Returns:
        Increasing indices, shape ``[n_independent]``, and the `DecorrelationInfo`.

    Raises:
        ValueError: for another shape, no frames, values that are not finite, a constant
            series without ``inefficiency``, or an ``inefficiency`` below 1.

    References:
        Chodera, Swope, Pitera, Seok & Dill, J. Chem. Theory Comput. 3, 26 (2007).
    """
    values = np.asarray(series)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`series` must have shape [n_frames], not empty, got {values.shape}")
    if not np.all(np.isfinite(values)):
        first = np.flatnonzero(~np.isfinite(values))[0]
        raise ValueError(f"`series` must be finite, got {values[first]} at frame {first}")
    if inefficiency is None:
        if np.all(values == values[0]):
            raise ValueError("`series` is constant and has no inefficiency; pass `inefficiency`")
        inefficiency = float(statistics.statistical_inefficiency(jnp.asarray(values)))
    if not 1.0 <= inefficiency < math.inf:
        raise ValueError(f"`inefficiency` must be at least 1 and finite, got {inefficiency!r}")
    indices = np.rint(np.arange(values.size) * inefficiency).astype(int)
    return indices[indices < values.size], DecorrelationInfo(inefficiency)


def _shares(log_odds: Array) -> Array:
    """Logistic functions over their sum, without underflow."""
    return jax.nn.softmax(jax.nn.log_sigmoid(log_odds))


def _differences(name: str, values: Array) -> Array:
    values = _widest(values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`{name}` must have shape [n_samples], not empty, got {values.shape}")
    _check_energies(name, values)
    if not isinstance(values, Tracer) and np.all(np.isposinf(np.asarray(values))):
        raise ValueError(f"`{name}` is +inf for every sample: the other state forbids them all")
    return values


def _states(u_kn: Array, n_k: Array) -> tuple[Array, Array]:
    u_kn, n_k = _widest(u_kn), _widest(n_k)
    if u_kn.ndim != 2 or u_kn.size == 0 or n_k.shape != u_kn.shape[:1]:
        raise ValueError(
            "`u_kn` must have shape [n_states, n_samples], not empty, and `n_k` [n_states], "
            f"got {u_kn.shape} and {n_k.shape}"
        )
    _check_energies("u_kn", u_kn)
    if isinstance(n_k, Tracer):
        return u_kn, n_k
    counts = np.asarray(n_k)
    if not (np.all(counts >= 0) and np.all(counts % 1 == 0) and counts.sum() == u_kn.shape[1]):
        raise ValueError(
            f"`n_k` must be whole numbers, none negative, that add up to the {u_kn.shape[1]} "
            f"samples of `u_kn`, got {counts.tolist()}"
        )
    if not isinstance(u_kn, Tracer):
        allowed = np.isfinite(np.asarray(u_kn))
        if np.any(~allowed.any(axis=1)):
            state = np.flatnonzero(~allowed.any(axis=1))[0]
            raise ValueError(f"`u_kn` is +inf for every sample in state {state}")
        if np.any(~allowed[counts > 0].any(axis=0)):
            sample = np.flatnonzero(~allowed[counts > 0].any(axis=0))[0]
            raise ValueError(f"`u_kn` of sample {sample} is +inf in every state with samples")
    return u_kn, n_k


def _check_energies(name: str, values: Array) -> None:
    if isinstance(values, Tracer):
        return
    bad = np.argwhere(np.isnan(np.asarray(values)) | np.isneginf(np.asarray(values)))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(f"`{name}` must not be NaN or -inf, got {values[where]} at {where}")


def _widest(values: Array) -> Array:
    return jnp.asarray(values, jax.dtypes.canonicalize_dtype(float))
