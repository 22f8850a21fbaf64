"""Bonded priors from sampled distributions of bond lengths, angles and dihedrals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_N_QUADRATURE = 1440
_MAX_ITERATIONS = 100


class HarmonicPrior(NamedTuple):
    """``k / 2 (x - x_0)²`` for each column of the samples."""

    stiffness: np.ndarray  # [n_terms], eV per unit of x squared
    center: np.ndarray  # [n_terms], unit of x


class DihedralPrior(NamedTuple):
    """``sum_n k_n (1 + cos(n phi - delta_n))``."""

    amplitude: np.ndarray  # [n_multiplicities], eV, not negative
    phase: np.ndarray  # [n_multiplicities], rad


def harmonic_prior(
    samples: np.ndarray,
    kT: float,
    *,
    weights: np.ndarray | None = None,
    periodic: bool = False,
) -> HarmonicPrior:
    """Harmonic terms whose Boltzmann distribution has the mean and variance of the samples.

    ``k = kT / <(x - <x>)²>``, the constant of ``k / 2 (x - x_0)²`` as in
    :mod:`mosaicmd.gnn_models.bonded`. Its relative standard error over ``n`` independent
    samples of a Gaussian is ``sqrt(2 / n)``.

    Args:
        samples: of the coordinates, ``[n_samples, n_terms]`` or ``[n_samples]``, Å or rad.
        kT: of the ensemble that they were drawn from, eV.
        weights: of the samples, same shape. ``1 / r²`` for bond lengths or
            ``1 / sin(theta)`` for angles takes out the density of free atoms.
        periodic: the samples are dihedrals, rad; the mean is the circular one.

    Raises:
        ValueError: for fewer than two samples, samples that do not vary or are not finite,
            and weights that do not fit.
    """
    values, share = _checked(samples, kT, weights)
    if periodic:
        center = np.arctan2((share * np.sin(values)).sum(0), (share * np.cos(values)).sum(0))
        values = center + np.mod(values - center + np.pi, 2.0 * np.pi) - np.pi
    center = (share * values).sum(axis=0)
    variance = (share * (values - center) ** 2).sum(axis=0)
    if not (variance > 0.0).all():
        still = np.flatnonzero(~(variance > 0.0))[:5].tolist()
        raise ValueError(f"`samples` of terms {still} do not vary, so their stiffness is infinite")
    if periodic:
        center = np.mod(center + np.pi, 2.0 * np.pi) - np.pi
    return HarmonicPrior(kT / variance, center)


def dihedral_prior(
    samples: np.ndarray,
    kT: float,
    multiplicities: Sequence[int] = (1, 2, 3),
    *,
    weights: np.ndarray | None = None,
) -> DihedralPrior:
    """The periodic dihedral under which the samples are most likely, ``p ~ exp(-E / kT)``.

    The likelihood is concave in the Fourier coefficients, and at its maximum the averages
    ``<cos n phi>`` and ``<sin n phi>`` are those of the samples; Newton's method finds it.
    No histogram and no bin width enter.

    Args:
        samples: of one dihedral or of alike ones, any shape, rad.
        kT: of the ensemble that they were drawn from, eV.
        multiplicities: ``n`` of the terms.
        weights: of the samples, same shape.

    Raises:
        ValueError: as :func:`harmonic_prior`; also for samples so narrow that the series
            cannot describe them: take fewer multiplicities or a harmonic improper.
    """
    n = np.asarray(multiplicities)
    if not len(n) or n.min() < 1 or len(set(n.tolist())) < len(n):
        raise ValueError(f"`multiplicities` must be distinct and positive, got {n.tolist()}")
    flat = None if weights is None else np.ravel(weights)
    values, share = _checked(np.ravel(samples), kT, flat)
    target = (share * _waves(values[:, 0], n)).sum(axis=0)
    grid = _waves(2.0 * np.pi / _N_QUADRATURE * np.arange(_N_QUADRATURE), n)

    def log_likelihood(exponents: np.ndarray) -> float:
        return float(exponents @ target - _log_mean_exp(grid @ exponents))

    exponents = np.zeros(2 * len(n))  # -E / kT
    for _ in range(_MAX_ITERATIONS):
        density = np.exp(grid @ exponents - _log_mean_exp(grid @ exponents))[:, None]
        gradient = target - (density * grid).mean(axis=0)
        if np.abs(gradient).max() < 1e-12:
            break
        centered = grid - (density * grid).mean(axis=0)
        covariance = (density * centered).T @ centered / len(grid)
        step = np.linalg.lstsq(covariance, gradient, rcond=None)[0]
        here = log_likelihood(exponents)
        while log_likelihood(exponents + step) < here - 1e-14 and np.abs(step).max() > 1e-14:
            step = 0.5 * step
        exponents = exponents + step
    else:
        raise ValueError(
            f"`samples` are too narrow for multiplicities {n.tolist()}: averages still differ by "
            f"{np.abs(gradient).max():.1e}; take fewer multiplicities or a harmonic improper"
        )
    cosine, sine = -kT * exponents.reshape(2, -1)
    return DihedralPrior(np.hypot(cosine, sine), np.arctan2(sine, cosine))


def _waves(angles: np.ndarray, n: np.ndarray) -> np.ndarray:
    """``cos(n phi)`` and then ``sin(n phi)``, ``[n_angles, 2 n_multiplicities]``."""
    return np.concatenate([np.cos(angles[:, None] * n), np.sin(angles[:, None] * n)], axis=1)


def _log_mean_exp(values: np.ndarray) -> float:
    return float(values.max() + np.log(np.mean(np.exp(values - values.max()))))


def _checked(
    samples: np.ndarray, kT: float, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and weights that add up to 1 per column, both ``[n_samples, n_terms]``."""
    if not kT > 0.0:
        raise ValueError(f"`kT` must be positive (eV), got {kT!r}")
    values = np.asarray(samples, float)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            "`samples` must have shape [n_samples, n_terms] with two samples or more, got "
            f"{np.shape(samples)}"
        )
    if not np.isfinite(values).all():
        raise ValueError("`samples` has values that are not finite")
    share = np.ones_like(values) if weights is None else np.asarray(weights, float)
    share = share.reshape(-1, 1) if share.ndim == 1 else share
    if share.shape != values.shape or not (share >= 0.0).all() or not (share.sum(0) > 0.0).all():
        raise ValueError(
            f"`weights` must be like `samples`, {values.shape}, not negative and not all zero, "
            f"got shape {share.shape}"
        )
    return values, share / share.sum(axis=0)
