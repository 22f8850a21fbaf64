"""Velocity autocorrelation, and what follows from it: vibrational spectra and diffusion."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import statistics, units
from mosaicmd.kernel.observables.transport import _spacing
from mosaicmd.kernel.trajectory import Trajectory

Array = jax.Array

SPEED_OF_LIGHT_CM_PER_S = 2.99792458e10


class VelocityAutocorrelation(NamedTuple):
    """Correlation of velocities against lag."""

    lag: Array  # [n_lags], t, from 0 on
    value: Array  # [n_lags], Å²/t², or eV if weighted by mass, or 1 if normalised
    error: Array  # [n_lags], standard error


class VibrationalSpectrum(NamedTuple):
    """Vibrational density of states."""

    frequency: Array  # [n_frequencies], 1/t (cycles, not radians), from 0 on
    wavenumber_per_cm: Array  # [n_frequencies], the same in 1/cm
    value: Array  # [n_frequencies], t; integrates over frequency to 3
    error: Array  # [n_frequencies], standard error


class GreenKuboInfo(NamedTuple):
    """How a diffusion coefficient came about."""

    error: Array  # [], Å²/t, standard error
    lag: Array  # [n_lags], t
    running: Array  # [n_lags], Å²/t, the integral up to each lag: look for its plateau


def velocity_autocorrelation(
    trajectory: Trajectory,
    *,
    species: int | None = None,
    mass_weighted: bool = False,
    normalised: bool = False,
    max_lag: int | None = None,
    remove_drift: bool = True,
    weights: Array | None = None,
    n_blocks: int = 10,
) -> VelocityAutocorrelation:
    """``<v(t0) . v(t0 + lag)>`` averaged over atoms and time origins, by FFT.

    At lag 0 it is ``3 kT <1 / m>``; weighted by mass, ``<m v . v>``, it is ``3 kT``. The
    errors are those of the jackknife over blocks of time origins, nan at lags that only one
    block reaches. The value is differentiable in momenta and weights.

    Args:
        trajectory: equally spaced frames of one system, with ``momenta`` and ``time``.
        species: label of the atoms to follow; ``None``: all.
        mass_weighted: see above.
        normalised: divide by the value at lag 0.
        max_lag: largest lag in frames; by default half the frames.
        remove_drift: subtract the velocity of the centre of mass of all atoms.
        weights: of the frames as time origins, ``[n_frames]``: they reweight the ensemble
            that trajectories start from, not the dynamics. ``None``: equal.
        n_blocks: contiguous blocks of origins.

    Raises:
        ValueError: without momenta or times, for unequal spacing, a lag or number of
            blocks that does not fit, or if no atom has the label.
    """
    spacing, blocks = _correlation_blocks(
        trajectory, species, mass_weighted, max_lag, remove_drift, weights, n_blocks
    )

    def estimate(correlation: Array) -> Array:
        return correlation / correlation[0] if normalised else correlation

    value, error = _jackknife(blocks, estimate)
    return VelocityAutocorrelation(jnp.arange(len(value)) * spacing, value, error)


def vibrational_spectrum(
    trajectory: Trajectory,
    *,
    species: int | None = None,
    mass_weighted: bool = True,
    max_lag: int | None = None,
    remove_drift: bool = True,
    weights: Array | None = None,
    n_blocks: int = 10,
) -> VibrationalSpectrum:
    """Vibrational density of states, by the Wiener-Khinchin theorem.

    The cosine transform of the velocity autocorrelation function under a Hann window,
    which widens a line to about ``1 / max_lag``. It integrates over the frequencies to 3,
    the number of modes per atom. Weighted by mass, modes of equal energy count alike; at
    zero frequency its value is then ``12 m D / kT`` for atoms of one kind. Frequencies end
    at half the sampling rate: frames farther apart than half a period alias.

    Args:
        trajectory: as for :func:`velocity_autocorrelation`, and so are the others.
        species: see there; spectra of species add up by their shares of atoms.
        mass_weighted: see there.
        max_lag: in frames; sets the resolution.
        remove_drift: see there.
        weights: see there.
        n_blocks: see there.

    Raises:
        ValueError: as :func:`velocity_autocorrelation`.

    References:
        Dickey & Paskin, Phys. Rev. 188, 1407 (1969); Lin, Blanco & Goddard, J. Chem. Phys.
        119, 11792 (2003).
    """
    spacing, blocks = _correlation_blocks(
        trajectory, species, mass_weighted, max_lag, remove_drift, weights, n_blocks
    )
    n_lags = blocks[0].shape[1]
    window = 0.5 * (1.0 + jnp.cos(math.pi * jnp.arange(n_lags) / (n_lags - 1)))

    def estimate(correlation: Array) -> Array:
        half = window * correlation / correlation[0]
        even = jnp.concatenate([half, half[-2:0:-1]])
        return 6.0 * spacing * jnp.fft.rfft(even).real

    value, error = _jackknife(blocks, estimate)
    frequency = jnp.arange(n_lags) / (2.0 * (n_lags - 1) * spacing)
    wavenumber = frequency * units.SECOND / SPEED_OF_LIGHT_CM_PER_S
    return VibrationalSpectrum(frequency, wavenumber, value, error)


def green_kubo_diffusion(
    trajectory: Trajectory,
    *,
    max_lag: int,
    species: int | None = None,
    remove_drift: bool = True,
    weights: Array | None = None,
    n_blocks: int = 10,
) -> tuple[Array, GreenKuboInfo]:
    """Self-diffusion coefficient, Å²/t: a third of the integral of the autocorrelation.

    The integral is that of the trapezoidal rule, so frames must resolve the decay, and it
    ends at ``max_lag``, which should lie past the decay but not in the noise: the running
    integral in the info shows both.

    Args:
        trajectory: as for :func:`velocity_autocorrelation`, and so are the others.
        max_lag: end of the integral, in frames.
        species: see there.
        remove_drift: see there; of ``N`` independent atoms it takes away ``1 / N``.
        weights: see there.
        n_blocks: see there.

    Returns:
        The coefficient and its `GreenKuboInfo`.

    Raises:
        ValueError: as :func:`velocity_autocorrelation`.

    References:
        Green, J. Chem. Phys. 22, 398 (1954); Kubo, J. Phys. Soc. Jpn. 12, 570 (1957).
    """
    spacing, blocks = _correlation_blocks(
        trajectory, species, False, max_lag, remove_drift, weights, n_blocks
    )

    def estimate(correlation: Array) -> Array:
        steps = 0.5 * spacing * (correlation[1:] + correlation[:-1])
        return jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)]) / 3.0

    running, error = _jackknife(blocks, estimate)
    lag = jnp.arange(len(running)) * spacing
    return running[-1], GreenKuboInfo(error=error[-1], lag=lag, running=running)


def _correlation_blocks(
    trajectory: Trajectory,
    species: int | None,
    mass_weighted: bool,
    max_lag: int | None,
    remove_drift: bool,
    weights: Array | None,
    n_blocks: int,
) -> tuple[float, tuple[Array, Array]]:
    """Spacing; and for each block of origins, sums of products and of weights by lag."""
    spacing, n_frames = _spacing(trajectory), trajectory.n_frames
    n_lags = 1 + (n_frames // 2 if max_lag is None else max_lag)
    if not 3 <= n_lags <= n_frames:
        raise ValueError(
            f"`max_lag` must lie between 2 and {n_frames - 1} frames, got {n_lags - 1}"
        )
    velocities = _velocities(trajectory, species, mass_weighted, remove_drift)
    origins = jnp.ones(n_frames) if weights is None else jnp.asarray(weights, float)
    statistics.check_weights(velocities, origins)
    block = statistics.block_index(n_frames, n_blocks)
    return spacing, _blocks(velocities, origins, block, n_blocks, n_lags)


def _velocities(
    trajectory: Trajectory, species: int | None, mass_weighted: bool, remove_drift: bool
) -> Array:
    """Of the atoms to follow, in the widest float, ``[n_frames, n_selected, 3]``."""
    if trajectory.momenta is None:
        raise ValueError(
            "the trajectory has no momenta; run with `Simulation(..., store_momenta=True)`"
        )
    systems = trajectory.systems
    momenta = jnp.asarray(trajectory.momenta, jax.dtypes.canonicalize_dtype(float))
    masses = jnp.asarray(systems.masses, momenta.dtype)
    mask = np.asarray(systems.mask)
    velocities = momenta / masses[None, :, None]
    if remove_drift:
        total = jnp.sum(jnp.where(systems.mask[None, :, None], momenta, 0.0), axis=1)
        mass = jnp.sum(jnp.where(systems.mask, masses, 0.0))
        velocities = velocities - (total / mass)[:, None]
    chosen = mask if species is None else mask & (np.asarray(systems.species) == species)
    if not chosen.any():
        raise ValueError(
            f"no atom has the label {species}; the system has "
            f"{np.unique(np.asarray(systems.species)[mask]).tolist()}"
        )
    selected = np.flatnonzero(chosen)
    velocities = velocities[:, selected]
    return velocities * jnp.sqrt(masses[selected])[None, :, None] if mass_weighted else velocities


@functools.partial(jax.jit, static_argnums=(3, 4))
def _blocks(
    velocities: Array, weights: Array, block: Array, n_blocks: int, n_lags: int
) -> tuple[Array, Array]:
    """See :func:`_correlation_blocks`; each ``[n_blocks, n_lags]``."""
    n_frames, n_atoms = velocities.shape[:2]
    size = 1 << (2 * n_frames - 1).bit_length()
    weights = weights / jnp.mean(weights)

    def correlate(first: Array, second: Array) -> Array:  # sum_t first(t) second(t + lag)
        product = jnp.conj(jnp.fft.rfft(first, n=size, axis=0)) * second
        product = jnp.sum(product.reshape(product.shape[0], -1), axis=1)
        return jnp.fft.irfft(product, n=size)[:n_lags]

    present = jnp.fft.rfft(jnp.ones(n_frames), n=size)

    def one(number: Array) -> tuple[Array, Array]:
        origins = jnp.where(block == number, weights, 0.0)

        def of_atom(path: Array) -> Array:  # [n_frames, 3]
            spectrum = jnp.fft.rfft(path, n=size, axis=0)
            return correlate(origins[:, None] * path, spectrum)

        paths = jnp.swapaxes(velocities, 0, 1)
        products = jax.lax.map(of_atom, paths, batch_size=min(16, n_atoms))
        return jnp.sum(products, axis=0) / n_atoms, correlate(origins, present)

    return jax.lax.map(one, jnp.arange(n_blocks, dtype=block.dtype))


def _jackknife(
    blocks: tuple[Array, Array], estimate: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """``estimate`` of the correlation, and its standard error from leaving blocks out."""
    products, weights = blocks
    n_blocks = len(products)
    total, norm = jnp.sum(products, axis=0), jnp.sum(weights, axis=0)
    value = estimate(total / norm)
    rest = norm[None] - weights
    # No origin is left at lags that a single block reaches.
    replicas = (total[None] - products) / jnp.where(rest > 0.5, rest, jnp.nan)
    spread = jnp.var(jax.vmap(estimate)(jax.lax.stop_gradient(replicas)), axis=0)
    return value, jnp.sqrt(spread * (n_blocks - 1))
