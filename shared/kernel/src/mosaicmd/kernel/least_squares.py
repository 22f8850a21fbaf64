"""Least squares: of labels, of any residuals, and what labels say beside other sources.

For potentials of few parameters. Sums of terms, such as a pair spline and an embedding energy,
are fitted in seconds where steps of first order take minutes and end higher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.label_errors import MatchingLoss, predict
from mosaicmd.kernel.potentials import EnergyFn, Params, Potential, sum_potentials
from mosaicmd.kernel.slots import Batch
from mosaicmd.kernel.training import Algorithm

Array = jax.Array
Residuals = Callable[[Params], Array]
"""``params -> residuals``; half their sum of squares is a loss."""

_FACTOR = 4.0
_MAX_TRIALS = 12


class LeastSquaresState(NamedTuple):
    """State of :func:`least_squares`."""

    params: Params
    damping: Array  # [], relative to the diagonal of the curvature


class Quadratic(NamedTuple):
    """The loss of all labels to second order, in the curvature of Gauss and Newton."""

    loss: float
    slope: np.ndarray  # [n_params]
    curvature: np.ndarray  # [n_params, n_params]


def least_squares(
    quadratic: Callable[[Params], Quadratic],
    loss: Callable[[Params], float],
    *,
    damping: float = 1e-2,
) -> Algorithm:
    """Levenberg–Marquardt steps on a loss that needs no batch.

    For few parameters: a dozen of steps end where many thousands of first order do not. A step
    that would raise the loss is repeated with more damping, and not taken if none helps.
    Metrics per step: ``loss`` before it, ``damping`` after it.

    Args:
        quadratic: the loss about parameters, to second order.
        loss: the same loss alone.
        damping: at first; of the squares of parameters, in units of their own curvature.

    Raises:
        ValueError: for a damping that is not positive.

    References:
        Levenberg, Q. Appl. Math. 2, 164 (1944); Marquardt, J. SIAM 11, 431 (1963).
    """
    if not damping > 0.0:
        raise ValueError(f"`damping` must be positive, got {damping!r}")

    def init(params: Params) -> LeastSquaresState:
        return LeastSquaresState(params, jnp.asarray(damping))

    def step(
        state: LeastSquaresState, batch: Any = None
    ) -> tuple[LeastSquaresState, dict[str, float]]:
        del batch
        now = quadratic(state.params)
        flat, unravel = ravel_pytree(state.params)
        share, params = float(state.damping), state.params
        for _ in range(_MAX_TRIALS):
            size = np.diag(now.curvature)
            held = share * np.diag(np.maximum(size, 1e-9 * size.max()))
            change = -np.linalg.solve(now.curvature + held, now.slope)
            there = unravel(flat + jnp.asarray(change, flat.dtype))
            if loss(there) < now.loss:
                params, share = there, share / _FACTOR
                break
            share *= _FACTOR
        return LeastSquaresState(params, jnp.asarray(share)), {"loss": now.loss, "damping": share}

    return Algorithm(init, step)


def fit_labels(
    terms: Sequence[Potential],
    loss: MatchingLoss,
    batches: Batches,
    *,
    penalty: Residuals | None = None,
) -> Algorithm:
    """Force matching by least squares, each step over all structures.

    A step costs about two gradients per parameter. The weights are those of a mean over the
    structures, as in force matching; deviations are squared, whatever Huber's threshold.

    Args:
        terms: of the potential, :func:`~mosaicmd.kernel.potentials.sum_potentials` of which
            has the parameters that are learned.
        loss: weights of the labels.
        batches: the structures.
        penalty: residuals half the square sum of which is added, for example those of
            :func:`near`, for parameters that hardly any label reaches.
    """
    total, about = _total(sum_potentials(*terms).energy, loss), quadratic_loss(terms, loss, batches)

    def loss_of(params: Params) -> float:
        return sum(float(total(params, batch)) for batch in batches.epoch()) / batches.n_examples

    if penalty is None:
        return least_squares(about, loss_of)
    beside, half_square = _linearised(penalty)

    def both(params: Params) -> Quadratic:
        labels, other = about(params), beside(params)
        return Quadratic(
            labels.loss + other.loss,
            labels.slope + other.slope,
            labels.curvature + other.curvature,
        )

    return least_squares(both, lambda params: loss_of(params) + half_square(params))


def fit_residuals(residuals: Residuals) -> Algorithm:
    """Least squares of a function of the parameters."""
    return least_squares(*_linearised(residuals))


def joined(*residuals: Residuals) -> Residuals:
    """All of them at once."""
    return lambda params: jnp.concatenate([of(params) for of in residuals])


def _linearised(
    residuals: Residuals,
) -> tuple[Callable[[Params], Quadratic], Callable[[Params], float]]:
    """Half the square sum to second order, and alone."""
    linear = jax.jit(lambda params: (residuals(params), jax.jacfwd(residuals)(params)))
    half_square = jax.jit(lambda params: 0.5 * jnp.sum(residuals(params) ** 2))

    def about(params: Params) -> Quadratic:
        residual, slopes = linear(params)
        residual = np.asarray(residual, float)
        jacobian = np.asarray(jax.vmap(lambda row: ravel_pytree(row)[0])(slopes), float)
        loss = 0.5 * float(residual @ residual)
        return Quadratic(loss, jacobian.T @ residual, jacobian.T @ jacobian)

    return about, lambda params: float(half_square(params))


def anchor(best: Params, about: Quadratic, weight: float) -> Residuals:
    """Residuals of parameters that leave ``best``, those that fit the labels.

    Half their square sum is ``weight`` times what the loss of the labels grows by, to second
    order and by Gauss and Newton's approximation of its curvature.
    """
    flat, _ = ravel_pytree(best)
    values, vectors = np.linalg.eigh(weight * about.curvature)
    root = jnp.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
    return lambda params: root @ (ravel_pytree(params)[0] - flat)


def near(params: Params, weight: float) -> Residuals:
    """Residuals that count every change of a parameter alike."""
    flat, _ = ravel_pytree(params)
    return lambda moved: weight * (ravel_pytree(moved)[0] - flat)


def quadratic_loss(
    terms: Sequence[Potential], loss: MatchingLoss, batches: Batches
) -> Callable[[Params], Quadratic]:
    """The mean loss over the structures of an epoch, as in :func:`fit_labels`."""
    sums = _sums([term.energy for term in terms], loss)

    def about(params: Params) -> Quadratic:
        found = [sums(params, batch) for batch in batches.epoch()]
        value, slope, curvature = (
            np.sum([np.asarray(one[k], float) for one in found], axis=0) / batches.n_examples
            for k in range(3)
        )
        return Quadratic(float(value), slope, curvature)

    return about


def _scaled(loss: MatchingLoss, slot: Batch, values: Any) -> Array:
    """Values of the labels of a slot in one row, so that their square sum is the loss."""
    parts = []
    for label in loss.labels:
        value = getattr(values, label)
        if label == "energy":
            value = value / jnp.maximum(slot.n_atoms, 1)
        present = slot.targets.weight(label)
        present = present.reshape(*present.shape, *(1,) * (value.ndim - present.ndim))
        share = loss.term(label).weight / (value.size / max(len(value), 1))
        parts.append(jnp.ravel(value * jnp.sqrt(share * present)))
    return jnp.concatenate(parts)


def _total(energy_fn: EnergyFn, loss: MatchingLoss) -> Callable[[Any, Batch], Array]:
    """Sum of the loss over a batch."""

    def add(total: Array, slot: Batch, params: Any) -> tuple[Array, None]:
        found = _scaled(loss, slot, predict(energy_fn, params, slot, loss.labels))
        return total + jnp.sum((found - _scaled(loss, slot, slot.targets)) ** 2, dtype=float), None

    return jax.jit(
        lambda params, batch: jax.lax.scan(
            lambda total, slot: add(total, slot, params), jnp.zeros((), float), batch
        )[0]
    )


def _sums(
    terms: Sequence[EnergyFn], loss: MatchingLoss
) -> Callable[[Any, Batch], tuple[Array, Array, Array]]:
    """Loss, gradient and curvature summed over a batch.

    Predictions are sums over terms, so each term is differentiated by its own parameters alone.
    """

    def add(total: Any, slot: Batch, params: Any) -> tuple[Any, None]:
        plain = dataclasses.replace(slot.graph, reverse=None)  # for forward derivatives
        slot = dataclasses.replace(slot, graph=plain)
        residual, rows = -_scaled(loss, slot, slot.targets), []
        for term, inner in zip(terms, params, strict=True):
            flat, unravel = ravel_pytree(inner)

            def values(flat: Array, term: Any = term, unravel: Any = unravel) -> Array:
                found = predict(term, unravel(flat), slot, loss.labels)
                return _scaled(loss, slot, found)

            if not flat.size:
                residual = residual + values(flat)
                continue
            found, along = jax.linearize(values, flat)
            residual = residual + found
            rows.append(jax.lax.map(along, jnp.eye(flat.size, dtype=flat.dtype)))
        residual, jacobian = residual.astype(float), jnp.concatenate(rows).astype(float)
        new = jnp.sum(residual**2), 2.0 * jacobian @ residual, 2.0 * jacobian @ jacobian.T
        return jax.tree.map(jnp.add, total, new), None

    def sums(params: Any, batch: Batch) -> tuple[Array, Array, Array]:
        n = ravel_pytree(params)[0].size
        start = jnp.zeros(()), jnp.zeros(n), jnp.zeros((n, n))
        return jax.lax.scan(lambda total, slot: add(total, slot, params), start, batch)[0]

    return jax.jit(sums)
