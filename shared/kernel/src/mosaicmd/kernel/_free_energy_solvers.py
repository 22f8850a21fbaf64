"""Equations of BAR and MBAR: their roots, weights and covariances, without checks of input."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

Array = jax.Array


def increasing_root(function: Callable[[Array], Array], lower: Array, upper: Array) -> Array:
    """Root between two bounds by Newton steps, halving the bracket where they do poorly."""
    tolerance = 4.0 * jnp.finfo(lower.dtype).eps

    def unfinished(state):
        x, _, _, step, i = state
        return (jnp.abs(step) > tolerance * (1.0 + jnp.abs(x))) & (i < 200)

    def advance(state):
        x, low, high, last, i = state
        value, slope = jax.value_and_grad(function)(x)
        low, high = jnp.where(value < 0.0, x, low), jnp.where(value > 0.0, x, high)
        newton = x - value / slope
        good = (newton >= low) & (newton <= high) & (jnp.abs(newton - x) < 0.5 * jnp.abs(last))
        new = jnp.where(value == 0.0, x, jnp.where(good, newton, 0.5 * (low + high)))
        return new, low, high, new - x, i + 1

    start = (0.5 * (lower + upper), lower, upper, 2.0 * (upper - lower), 0)
    return jax.lax.while_loop(unfinished, advance, start)[0]


def mbar_root(u_kn: Array, n_k: Array, start: Array) -> Array:
    """Minimum of the MBAR objective with ``sum(n_k f) = 0``; free energies [n_states]."""
    eps, log_n = jnp.finfo(u_kn.dtype).eps, log_counts(n_k)
    sampled, n = n_k > 0, jnp.sum(n_k)

    def unfinished(state):
        f, size, last, i = state
        stalled = (size < jnp.sqrt(eps)) & (size > 0.5 * last)  # only rounding is left
        return (size > 8.0 * eps * (1.0 + jnp.max(jnp.abs(f)))) & ~stalled & (i < 1000)

    def advance(state):
        f, size, _, i = state
        log_p = log_posterior(f, u_kn, log_n)
        p = jnp.exp(log_p)
        total = jnp.sum(p, axis=1)
        hessian = jnp.diag(total) - jnp.matmul(p, p.T, precision="highest")
        hessian += jnp.outer(n_k, n_k) / n + jnp.diag(jnp.where(sampled, 0.0, 1.0))
        newton = jnp.linalg.solve(hessian, n_k - total)
        iterate = jnp.where(sampled, log_n - logsumexp(log_p, axis=1), 0.0)
        iterate = jnp.where(sampled, iterate - jnp.sum(n_k * iterate) / n, 0.0)
        # Along a step of range R the Hessian changes by at most exp(2 R): short steps descend.
        span = jnp.max(newton) - jnp.min(newton)
        short = jnp.minimum(1.0, jnp.array([8.0, 1.0]) / span)
        steps = jnp.stack([newton, iterate, short[0] * newton, short[1] * newton])

        def change(step):  # of the objective; the self-consistent iteration lowers it always
            return jnp.sum(logsumexp(log_p + step[:, None], axis=0)) - jnp.sum(n_k * step)

        changes = jax.lax.map(change, steps)
        best = jnp.argmin(jnp.where(jnp.isfinite(changes), changes, jnp.inf).at[1].min(1e300))
        step = jnp.where(span < 0.5, newton, steps[best])
        return f + step, jnp.max(jnp.abs(step)), size, i + 1

    far = jnp.asarray(jnp.inf, u_kn.dtype)
    return jax.lax.while_loop(unfinished, advance, (start, far, far, 0))[0]


def mbar_covariance(weights: Array, n_k: Array) -> Array:
    """``W' (1 - W N W')^+ W`` from the root of the overlaps ``W' W``, ``[n_states, n_states]``.

    The bracket is singular along one direction that is known, and only that is left out: a
    small eigenvalue means that states hardly overlap and must make the error large.
    """
    matmul = functools.partial(jnp.matmul, precision="highest")
    overlaps, vectors = jnp.linalg.eigh(matmul(weights, weights.T))
    root = matmul(vectors * jnp.sqrt(jnp.maximum(overlaps, 0.0))[None], vectors.T)
    null = matmul(root, n_k)
    projector = jnp.outer(null, null) / jnp.sum(null**2)
    bracket = jnp.eye(n_k.shape[0], dtype=n_k.dtype) - matmul(root * n_k[None], root.T) + projector
    values, vectors = jnp.linalg.eigh(bracket)
    inverse = matmul(vectors / jnp.maximum(values, jnp.finfo(values.dtype).eps)[None], vectors.T)
    return matmul(matmul(root, inverse - projector), root)


def log_counts(n_k: Array) -> Array:
    """Logarithm of the counts, ``-inf`` where there are none."""
    return jnp.where(n_k > 0, jnp.log(jnp.maximum(n_k, 1.0)), -jnp.inf)


def log_mixture(f: Array, u_kn: Array, log_n: Array) -> Array:
    """``ln sum_k n_k exp(f_k - u_kn)``, shape ``[n_samples]``."""
    return logsumexp((log_n + f)[:, None] - u_kn, axis=0)


def log_posterior(f: Array, u_kn: Array, log_n: Array) -> Array:
    """Logarithm of the probability that a sample came from a state, like ``u_kn``."""
    return (log_n + f)[:, None] - u_kn - log_mixture(f, u_kn, log_n)[None]
