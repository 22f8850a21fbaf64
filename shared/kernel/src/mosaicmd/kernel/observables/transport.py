"""Mean-square displacement and the diffusion coefficient, from the order of frames."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import statistics
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import Trajectory

Array = jax.Array

YEH_HUMMER = 2.837297
"""Minus the Madelung constant of a simple cubic lattice in units of the box edge."""


class MeanSquareDisplacement(NamedTuple):
    """Displacements squared against lag."""

    lag: Array  # [n_lags], t, from 0 on
    value: Array  # [n_lags], Å²
    per_atom: Array  # [n_selected, n_lags], Å², averaged over time origins


class DiffusionInfo(NamedTuple):
    """How a diffusion coefficient came about."""

    error: Array  # [], Å²/t, standard error
    correction: Array  # [], Å²/t, added for the finite size of the cell
    intercept: Array  # [], Å², of the fitted line
    fitted: tuple[float, float]  # first and last lag of the fit, t
    blocks: Array  # [n_blocks], Å²/t, the estimates whose scatter gives the error


def mean_square_displacement(
    trajectory: Trajectory,
    *,
    species: int | None = None,
    max_lag: int | None = None,
    remove_drift: bool = True,
    unwrap: bool = False,
) -> MeanSquareDisplacement:
    """Mean of ``|r(t0 + lag) - r(t0)|²`` over atoms and all time origins, by FFT.

    Frames must be equally spaced and positions not wrapped into the cell, as simulations
    leave them; ``unwrap=True`` undoes wrapping in a fixed cell where atoms move less than
    half a cell height between frames.

    Args:
        trajectory: frames of one system, with ``time``.
        species: label of the atoms to follow; ``None``: all.
        max_lag: largest lag in frames; by default half the frames.
        remove_drift: subtract the motion of the centre of mass of all atoms; of ``N``
            independent ones it takes away ``1 / N`` of the displacement.
        unwrap: see above.

    Raises:
        ValueError: without times, for unequal spacing, a lag that does not fit, or if no
            atom has the label.

    References:
        Calandrini, Pellegrini, Calligari, Hinsen & Kneller, École thém. SFN 12, 201 (2011).
    """
    spacing = _spacing(trajectory)
    n_frames = trajectory.n_frames
    n_lags = 1 + (n_frames // 2 if max_lag is None else max_lag)
    if not 2 <= n_lags <= n_frames:
        raise ValueError(
            f"`max_lag` must lie between 1 and {n_frames - 1} frames, got {n_lags - 1}"
        )
    positions = _paths(trajectory, species, remove_drift=remove_drift, unwrap=unwrap)
    per_atom = _displacements(positions, n_lags)
    lag = jnp.arange(n_lags) * spacing
    return MeanSquareDisplacement(lag, jnp.mean(per_atom, axis=0), per_atom)


def diffusion_coefficient(
    trajectory: Trajectory,
    *,
    fit: tuple[float, float] | None = None,
    species: int | None = None,
    blocks_of: Literal["atoms", "time"] = "atoms",
    n_blocks: int = 10,
    viscosity: float | None = None,
    remove_drift: bool = True,
    unwrap: bool = False,
) -> tuple[Array, DiffusionInfo]:
    """Self-diffusion coefficient, Å²/t: a sixth of the slope of the displacement.

    The slope is that of the least-squares line through the lags in ``fit``. Its error is
    the scatter over blocks: of atoms, good when there are many (their motions are taken as
    independent), or of time, each of which must hold the longest lag twice.

    Args:
        trajectory: as for :func:`mean_square_displacement`.
        fit: first and last lag, t, past the ballistic and caged motion; by default 10 % to
            50 % of the (block of the) trajectory.
        species: label of the atoms to follow; ``None``: all.
        blocks_of: ``"atoms"`` or ``"time"``.
        n_blocks: number of blocks.
        viscosity: shear viscosity, eV t/Å³ (``PASCAL * SECOND`` times Pa s); with it the
            value is corrected to an infinite system by ``xi kT / (6 pi eta L)``. Exact for
            cubic cells, whose edge is taken from the mean volume.
        remove_drift: as for :func:`mean_square_displacement`.
        unwrap: as for :func:`mean_square_displacement`.

    Returns:
        The coefficient and its `DiffusionInfo`.

    Raises:
        ValueError: for settings that the trajectory is too short or too small for.

    References:
        Yeh & Hummer, J. Phys. Chem. B 108, 15873 (2004).
    """
    spacing, n_frames = _spacing(trajectory), trajectory.n_frames
    positions = _paths(trajectory, species, remove_drift=remove_drift, unwrap=unwrap)
    n_atoms = positions.shape[1]
    if blocks_of not in ("atoms", "time"):
        raise ValueError(f"`blocks_of` must be 'atoms' or 'time', got {blocks_of!r}")
    length = n_frames if blocks_of == "atoms" else n_frames // n_blocks
    if blocks_of == "atoms" and not 2 <= n_blocks <= n_atoms:
        raise ValueError(
            f"`n_blocks` must lie between 2 and the {n_atoms} atoms followed, got {n_blocks}; "
            "for few atoms use `blocks_of='time'`"
        )
    if n_blocks < 2 or length < 4:
        raise ValueError(
            f"{n_frames} frames do not make {n_blocks} blocks of time; use 2 or more blocks of "
            "4 or more frames"
        )
    first, last = (0.1 * length * spacing, 0.5 * length * spacing) if fit is None else fit
    begin, end = math.ceil(first / spacing - 1e-6), math.floor(last / spacing + 1e-6)
    if not (0 <= begin < end < length):
        raise ValueError(
            f"`fit` from {first:.6g} to {last:.6g} (t) must hold two or more lags within the "
            f"{'trajectory' if blocks_of == 'atoms' else 'block'} of {length} frames every "
            f"{spacing:.6g}"
        )
    if blocks_of == "time":
        pieces = positions[: n_blocks * length].reshape(n_blocks, length, n_atoms, 3)
        curves = jnp.mean(jax.lax.map(lambda p: _displacements(p, end + 1), pieces), axis=1)
        whole = jnp.mean(curves, axis=0)
    else:
        per_atom = _displacements(positions, end + 1)
        whole = jnp.mean(per_atom, axis=0)
        block = statistics.block_index(n_atoms, n_blocks)
        size = jnp.bincount(block, length=n_blocks)[:, None]
        curves = jax.ops.segment_sum(per_atom, block, n_blocks) / size
    lag = np.arange(begin, end + 1) * spacing
    slope_of = jnp.asarray((lag - lag.mean()) / np.sum((lag - lag.mean()) ** 2))
    blocks = curves[:, begin:] @ slope_of / 6.0
    slope = whole[begin:] @ slope_of
    correction = jnp.zeros_like(slope)
    if viscosity is not None:
        edge = jnp.mean(jnp.abs(jnp.linalg.det(trajectory.systems.cell))) ** (1.0 / 3.0)
        kT = trajectory.state_point.kT
        correction = YEH_HUMMER * kT / (6.0 * math.pi * viscosity * edge)
    info = DiffusionInfo(
        error=jnp.std(blocks, ddof=1) / math.sqrt(n_blocks),
        correction=correction,
        intercept=jnp.mean(whole[begin:]) - slope * lag.mean(),
        fitted=(float(lag[0]), float(lag[-1])),
        blocks=blocks,
    )
    return slope / 6.0 + correction, info


@functools.partial(jax.jit, static_argnums=1)
def _displacements(positions: Array, n_lags: int) -> Array:
    """Per-atom mean-square displacement, ``[n_frames, n_atoms, 3] -> [n_atoms, n_lags]``.

    ``sum |r(t + m) - r(t)|²`` over origins is the sum of both squares, a running sum, less
    twice the correlation of the path with itself, an FFT.
    """
    n_frames = positions.shape[0]
    positions = positions - jnp.mean(positions, axis=0)[None]  # keeps the digits of small steps
    size = 1 << (2 * n_frames - 1).bit_length()

    def one(path: Array) -> Array:  # [n_frames, 3]
        spectrum = jnp.fft.rfft(path, n=size, axis=0)
        power = jnp.sum(spectrum.real**2 + spectrum.imag**2, axis=1)
        correlation = jnp.fft.irfft(power, n=size)[:n_lags]
        squares = jnp.cumsum(jnp.sum(path**2, axis=1))
        lag = jnp.arange(n_lags)
        up_to = squares[n_frames - 1 - lag]  # first n_frames - lag squares
        before = jnp.where(lag > 0, squares[jnp.maximum(lag - 1, 0)], 0.0)
        total = up_to + squares[-1] - before - 2.0 * correlation
        return jnp.maximum(total / (n_frames - lag), 0.0).at[0].set(0.0)

    return jax.lax.map(one, jnp.swapaxes(positions, 0, 1), batch_size=64)


def _paths(
    trajectory: Trajectory, species: int | None, *, remove_drift: bool, unwrap: bool
) -> Array:
    """Positions of the atoms to follow in the widest float, ``[n_frames, n_selected, 3]``."""
    systems = trajectory.systems
    positions = jnp.asarray(systems.positions, jax.dtypes.canonicalize_dtype(float))
    if unwrap:
        positions = _unwrapped(positions, systems)
    mask = np.asarray(systems.mask)
    if remove_drift:
        masses = jnp.where(systems.mask, systems.masses, 0.0).astype(positions.dtype)
        shares = masses / jnp.sum(masses)
        centre = jnp.einsum("a,fad->fd", shares, positions, precision="highest")
        positions = positions - centre[:, None]
    chosen = mask if species is None else mask & (np.asarray(systems.species) == species)
    if not chosen.any():
        raise ValueError(
            f"no atom has the label {species}; the system has "
            f"{np.unique(np.asarray(systems.species)[mask]).tolist()}"
        )
    return positions[:, np.flatnonzero(chosen)]


def _unwrapped(positions: Array, systems: System) -> Array:
    cell = jnp.asarray(systems.cell[0], positions.dtype)
    steps = jnp.diff(positions, axis=0)
    fractional = jnp.matmul(steps, jnp.linalg.inv(cell), precision="highest")
    crossed = jnp.cumsum(jnp.round(fractional) * systems.pbc[None, None], axis=0)
    return positions.at[1:].add(-jnp.matmul(crossed, cell, precision="highest"))


def _spacing(trajectory: Trajectory) -> float:
    if trajectory.time is None:
        raise ValueError("the trajectory has no `time`, so lags have no unit; give it `time` (t)")
    time = np.asarray(trajectory.time, float)
    steps = np.diff(time)
    if len(steps) == 0 or not (steps > 0.0).all() or np.ptp(steps) > 1e-3 * steps.mean():
        raise ValueError(
            "`time` must grow by the same step from frame to frame, "
            f"got steps {np.unique(np.round(steps, 6))[:3].tolist()} (t) among {len(time)} frames"
        )
    return float((time[-1] - time[0]) / len(steps))
