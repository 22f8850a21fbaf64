"""Statistics of correlated and reweighted series: weights, sample sizes, error bars.

Series have the frame axis first. Every sum runs in the widest float that JAX has enabled,
and results are returned in it.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array


def log_weights(delta_u: Array) -> Array:
    """Logarithms of the normalised weights ``exp(-delta_u) / sum(exp(-delta_u))``.

    Args:
        delta_u: ``beta (U_target - U_sampled)`` of every frame, shape ``[n_frames]``.

    Returns:
        Shape ``[n_frames]``; by log-sum-exp, so any constant may be added to ``delta_u``.
    """
    return jax.nn.log_softmax(-_widest(delta_u), axis=0)


def reweighting_weights(delta_u: Array) -> Array:
    """Weights that turn averages over sampled frames into averages in the target ensemble.

    Differentiable; ``d w_i / d u_j = w_i (w_j - delta_ij)``.

    Args:
        delta_u: ``beta (U_target - U_sampled)`` of every frame, shape ``[n_frames]``.

    Returns:
        Weights that sum to 1, shape ``[n_frames]``.

    References:
        Zwanzig, J. Chem. Phys. 22, 1420 (1954).
    """
    return jnp.exp(log_weights(delta_u))


def effective_sample_size(weights: Array, kind: Literal["kish", "entropy"] = "kish") -> Array:
    """Number of equally weighted frames that would carry as much information.

    For a Gaussian ``beta dU`` of variance ``s²`` and many frames, ``N_eff / N`` tends to
    ``exp(-s²)`` for Kish's size ``(sum w)² / sum w²`` and to ``exp(-s² / 2)`` for the
    exponential of the entropy of the weights, the one DiffTRe uses. The latter is never
    below the former.

    Args:
        weights: non-negative, shape ``[n_frames]``; need not be normalised.
        kind: ``"kish"`` or ``"entropy"``.

    Returns:
        Between 1 and ``n_frames``, shape ``[]``; differentiable.

    Raises:
        ValueError: for another ``kind``.

    References:
        Kish, Survey Sampling (Wiley, 1965); Carmichael & Shell, J. Phys. Chem. B 116,
        8383 (2012).
    """
    normalised = normalised_weights(weights)
    if kind == "kish":
        return 1.0 / jnp.sum(normalised**2)
    if kind == "entropy":
        return jnp.exp(jnp.sum(jax.scipy.special.entr(normalised)))
    raise ValueError(f"`kind` must be 'kish' or 'entropy', got {kind!r}")


def normalised_weights(weights: Array) -> Array:
    """``weights / sum(weights)`` in the widest float, shape ``[n_frames]``."""
    weights = _widest(weights)
    return weights / jnp.sum(weights)


def weighted_mean(series: Array, weights: Array | None = None) -> Array:
    """Mean over frames, ``[n_frames, ...] -> [...]``; differentiable in both arguments.

    Args:
        series: per-frame values, shape ``[n_frames, ...]``.
        weights: shape ``[n_frames]``, need not be normalised; ``None``: all equal.
    """
    series = _widest(series)
    if weights is None:
        return jnp.mean(series, axis=0)
    check_weights(series, weights)
    return jnp.tensordot(normalised_weights(weights), series, axes=1, precision="highest")


def influence(series: Array, weights: Array | None = None) -> Array:
    """Series of mean zero whose standard error is that of the weighted mean.

    To first order in the fluctuations, the weighted mean is the plain mean of
    ``n w_i (x_i - <x>)``, plus a constant. Shape ``[n_frames, ...]``.
    """
    deviation = _widest(series) - weighted_mean(series, weights)[None]
    if weights is None:
        return deviation
    scaled = normalised_weights(weights) * deviation.shape[0]
    return scaled.reshape(-1, *(1,) * (deviation.ndim - 1)) * deviation


def autocorrelation(series: Array) -> Array:
    """Normalised autocorrelation function at every lag, ``[n_frames, ...]``, by FFT.

    Lag ``t`` is averaged over its ``n_frames - t`` pairs; a constant series gives 0.
    """
    deviation = _widest(series) - jnp.mean(_widest(series), axis=0)[None]
    n_frames = deviation.shape[0]
    spectrum = jnp.fft.rfft(deviation, n=_fast_length(2 * n_frames), axis=0)
    power = spectrum.real**2 + spectrum.imag**2
    products = jnp.fft.irfft(power, n=_fast_length(2 * n_frames), axis=0)[:n_frames]
    pairs = jnp.arange(n_frames, 0, -1).reshape(-1, *(1,) * (deviation.ndim - 1))
    variance = jnp.mean(deviation**2, axis=0)[None]
    safe = jnp.where(variance > 0.0, variance, 1.0)
    return jnp.where(variance > 0.0, products / pairs / safe, 0.0)


def statistical_inefficiency(series: Array, *, shortest: int = 3) -> Array:
    """Number of frames per independent one, ``g = 1 + 2 sum_t (1 - t / n) C(t)``.

    The sum over the autocorrelation function ends before its first value at or below
    zero, but not within the first ``shortest`` lags. The variance of the mean is
    ``g var(series) / n_frames``.

    Args:
        series: shape ``[n_frames, ...]``; every component is treated on its own.
        shortest: lags always summed.

    Returns:
        At least 1, shape ``[...]``; 1 for a constant series.

    References:
        Chodera, Swope, Pitera, Seok & Dill, J. Chem. Theory Comput. 3, 26 (2007).
    """
    series = jnp.asarray(series)
    n_frames = series.shape[0]
    correlation = autocorrelation(series)
    lag = jnp.arange(n_frames).reshape(-1, *(1,) * (series.ndim - 1))
    ended = jnp.cumsum((correlation <= 0.0) & (lag > shortest), axis=0) > 0
    summed = (lag > 0) & (lag < n_frames - 1) & ~ended
    terms = jnp.where(summed, (1.0 - lag / n_frames) * correlation, 0.0)
    return jnp.maximum(1.0, 1.0 + 2.0 * jnp.sum(terms, axis=0))


def standard_error(series: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Standard error of the weighted mean, from the correlation of the series itself.

    Args:
        series: per-frame values, shape ``[n_frames, ...]``.
        weights: shape ``[n_frames]``, need not be normalised; ``None``: all equal.

    Returns:
        The error (nan for a single frame) and the statistical inefficiency of the weighted
        series, each ``[...]``.
    """
    deviation = influence(series, weights)
    n_frames = deviation.shape[0]
    inefficiency = statistical_inefficiency(deviation)
    if n_frames == 1:
        return jnp.full_like(inefficiency, jnp.nan), inefficiency
    variance = jnp.sum(deviation**2, axis=0) / (n_frames - 1)
    return jnp.sqrt(inefficiency * variance / n_frames), inefficiency


def block_average(
    series: Array, weights: Array | None = None, *, n_blocks: int = 16
) -> tuple[Array, Array]:
    """Weighted mean and its standard error from the scatter of block means.

    The error is right once a block is several correlation times long; its own relative
    uncertainty is ``1 / sqrt(2 (n_blocks - 1))``. Blocks count by their share of the
    weight, and all frames are used: sizes differ by at most one.

    Args:
        series: per-frame values, shape ``[n_frames, ...]``.
        weights: shape ``[n_frames]``, need not be normalised; ``None``: all equal.
        n_blocks: number of contiguous blocks.

    Returns:
        Mean and standard error, each ``[...]``.

    Raises:
        ValueError: for fewer than 2 blocks or fewer frames than blocks.

    References:
        Flyvbjerg & Petersen, J. Chem. Phys. 91, 461 (1989).
    """
    deviation = influence(series, weights)
    sums = jax.ops.segment_sum(
        deviation, block_index(deviation.shape[0], n_blocks), n_blocks, indices_are_sorted=True
    )
    shares = sums / deviation.shape[0]
    error = jnp.sqrt(jnp.sum(shares**2, axis=0) * n_blocks / (n_blocks - 1))
    return weighted_mean(series, weights), error


def block_index(n_frames: int, n_blocks: int) -> Array:
    """Block of every frame, ``[n_frames]``, int32: contiguous, sizes differ by at most one.

    Raises:
        ValueError: for fewer than 2 blocks or fewer frames than blocks.
    """
    if not 2 <= n_blocks <= n_frames:
        raise ValueError(
            f"`n_blocks` must lie between 2 and the number of frames ({n_frames}), got {n_blocks}"
        )
    return (jnp.arange(n_frames) * n_blocks // n_frames).astype(jnp.int32)


def check_weights(series: Array, weights: Array) -> None:
    """Raise a ``ValueError`` unless there is one weight per frame of the series."""
    if jnp.shape(weights) != series.shape[:1]:
        raise ValueError(
            f"`weights` must have one value per frame, shape {series.shape[:1]}, "
            f"got {jnp.shape(weights)}"
        )


def _widest(values: Array) -> Array:
    return jnp.asarray(values, jax.dtypes.canonicalize_dtype(float))


def _fast_length(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
