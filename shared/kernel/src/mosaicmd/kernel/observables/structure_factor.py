"""Static structure factors: sums over the wave vectors of the cell, and transforms of g(r)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import statistics
from mosaicmd.kernel.observables._histogram import bin_edges
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.systems import System

Array = jax.Array

_BATCH = 32
"""Wave vectors summed at once."""

_SAME_LENGTH = 1e-4
"""Wave vectors whose lengths differ by less than this, relatively, share a shell."""


def wave_vectors(cell: np.ndarray | Array, k_max: float) -> np.ndarray:
    """Integers ``n`` of all wave vectors ``2 pi n cell^-T`` with ``0 < |k| <= k_max``.

    Of ``n`` and ``-n``, which scatter alike, only one is listed.

    Args:
        cell: shape ``[3, 3]``, Å, rows are lattice vectors.
        k_max: 1/Å.

    Returns:
        Shape ``[n_vectors, 3]``, by increasing length.

    Raises:
        ValueError: for a cell without volume, or if ``k_max`` reaches no wave vector.
    """
    cell = np.asarray(cell, float)
    if cell.shape != (3, 3) or abs(np.linalg.det(cell)) < 1e-9:
        raise ValueError(f"`cell` must be three independent lattice vectors, got {cell.tolist()}")
    if not k_max > 0.0:
        raise ValueError(f"`k_max` must be positive (1/Å), got {k_max!r}")
    # n = k . a / (2 pi), so |n| <= |k| |a| / (2 pi).
    largest = np.floor(k_max * np.linalg.norm(cell, axis=1) / (2.0 * math.pi) + 1e-9).astype(int)
    axes = [np.arange(0, largest[0] + 1), *(np.arange(-m, m + 1) for m in largest[1:])]
    n = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    first = n[np.arange(len(n)), np.argmax(n != 0, axis=1)]
    lengths = _lengths(n, cell)
    chosen = (first > 0) & (lengths <= k_max * (1.0 + 1e-9))
    if not chosen.any():
        raise ValueError(
            f"no wave vector of the cell is shorter than `k_max` {k_max!r} 1/Å; raise it"
        )
    n, lengths = n[chosen], lengths[chosen]
    return n[np.lexsort((*n.T, np.round(lengths, 9)))]


def structure_factor(
    cell: np.ndarray | Array,
    species_a: int | None = None,
    species_b: int | None = None,
    *,
    k_max: float,
    n_shells: int | None = None,
    scattering_lengths: Mapping[int, float] | None = None,
    name: str | None = None,
) -> Observable:
    """Structure factor ``S(k)``, averaged over the wave vectors of the cell in each shell.

    Of all atoms ``|sum_i exp(i k r_i)|² / N``; of two species, after Ashcroft and Langreth,
    ``Re(rho_a rho_b*) / sqrt(N_a N_b)``, which at large ``k`` tends to 1 for like and 0 for
    unlike ones. An ideal gas has 1 at every ``k``.

    Shells are those of the cell given here. In a cell that changes, the integers of each
    wave vector and its shell stay, so they follow the cell.

    Args:
        cell: which the wave vectors belong to, ``[3, 3]``, Å.
        species_a: label; ``None``: all atoms.
        species_b: label; ``None``: as ``species_a``.
        k_max: length of the longest wave vector, 1/Å; the cost grows with its cube.
        n_shells: equal shells up to ``k_max``, of which those without a wave vector are
            left out; ``None``: one for each distinct length.
        scattering_lengths: by label, to weight atoms as neutrons do: the sum is
            ``|sum_i b_i exp(i k r_i)|² / sum_i b_i²``. Labels left out do not scatter.
        name: by default ``structure_factor``, or ``structure_factor_a_b``.

    Returns:
        Values ``[n_shells]``; ``axis`` holds the mean length in each shell, 1/Å. Without
        three periodic directions they are nan.

    Raises:
        ValueError: for settings out of range.
    """
    if n_shells is not None and n_shells < 1:
        raise ValueError(f"`n_shells` must be at least 1, got {n_shells!r}")
    indices = wave_vectors(cell, k_max)
    lengths = _lengths(indices, np.asarray(cell, float))
    if n_shells is None:
        jumps = np.diff(lengths) > _SAME_LENGTH * lengths[1:]
        shell = np.concatenate([[0], np.cumsum(jumps)])
    else:
        found = np.minimum(lengths / k_max * n_shells, n_shells - 1).astype(int)
        shell = np.unique(found, return_inverse=True)[1]
    sizes = np.bincount(shell)
    single = bragg_intensities(
        indices, species_a, species_b, scattering_lengths=scattering_lengths, name=name
    )

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        values = single.per_frame(params, system, None, None)
        total = jax.ops.segment_sum(values, jnp.asarray(shell, jnp.int32), len(sizes))
        return total / jnp.asarray(sizes, values.dtype)

    return Observable(
        name=single.name.replace("bragg_intensities", "structure_factor"),
        unit="1",
        per_frame=per_frame,
        axis=np.bincount(shell, weights=lengths) / sizes,
        axis_unit="1/Å",
    )


def bragg_intensities(
    indices: Sequence[Sequence[int]] | np.ndarray,
    species_a: int | None = None,
    species_b: int | None = None,
    *,
    scattering_lengths: Mapping[int, float] | None = None,
    name: str | None = None,
) -> Observable:
    """The structure factor at single wave vectors ``2 pi n cell^-T``, ``[n_vectors]``.

    For a crystal in a supercell of ``m`` cells a side, the reflection ``hkl`` has the
    integers ``m hkl``.

    Args:
        indices: integers ``n``, shape ``[n_vectors, 3]``.
        species_a: as for :func:`structure_factor`.
        species_b: as for :func:`structure_factor`.
        scattering_lengths: as for :func:`structure_factor`.
        name: by default ``bragg_intensities``, or ``bragg_intensities_a_b``.

    Raises:
        ValueError: for indices that are no integers, ``species_b`` alone, or species with
            scattering lengths.
    """
    n = np.asarray(indices)
    if n.ndim != 2 or n.shape[1] != 3 or not np.issubdtype(n.dtype, np.integer) or not len(n):
        raise ValueError(f"`indices` must be integers of shape [n_vectors, 3], got {n.shape}")
    if species_a is None and species_b is not None:
        raise ValueError(f"`species_b` is {species_b} but `species_a` is not given")
    if scattering_lengths is not None and species_a is not None:
        raise ValueError("give either `species_a` or `scattering_lengths`, not both")
    species_b = species_a if species_b is None else species_b
    if name is None:
        name = "bragg_intensities" + ("" if species_a is None else f"_{species_a}_{species_b}")

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        a = _scattering(system, species_a, scattering_lengths)
        b = a if species_a == species_b else _scattering(system, species_b, None)
        both = jnp.stack([a] if b is a else [a, b])
        amplitude = _amplitudes(system, n, both)
        product = jnp.sum(amplitude[:, 0] * amplitude[:, -1], axis=-1)
        norm = jnp.sqrt(jnp.sum(a**2)) * jnp.sqrt(jnp.sum(b**2))
        return jnp.where(jnp.all(system.pbc), product / norm, jnp.nan)

    return Observable(name=name, unit="1", per_frame=per_frame)


def structure_factor_from_rdf(
    rdf: Observable,
    k: np.ndarray,
    number_density: float,
    *,
    like: bool = True,
    lorch: bool = True,
) -> Observable:
    """``S(k)`` as the Fourier transform of a radial distribution function.

    It reads what the ``rdf`` recorded: both have the same per-frame values and ``name``,
    so one of them is observed, and either is called on the trajectory. See
    :func:`transform_of_rdf`; errors are those of the jackknife.

    Args:
        rdf: from :func:`mosaicmd.kernel.observables.rdf`.
        k: shape ``[n_k]``, 1/Å.
        number_density: 1/Å³; ``sqrt(rho_a rho_b)`` for two species.
        like: whether the pairs are of one species.
        lorch: see :func:`transform_of_rdf`.

    Raises:
        ValueError: for an observable that is no ``rdf``, or settings out of range.
    """
    axis = rdf.axis
    if axis is None or axis.ndim != 1 or rdf.axis_unit != "Å":
        raise ValueError(f"`rdf` must have an axis of distances, {rdf.name!r} has none")
    transform_of_rdf(np.ones(len(axis)), axis, k, number_density)  # checks the settings

    def combine(values: Array, weights: Array) -> Array:
        g = statistics.weighted_mean(values, weights)
        return transform_of_rdf(g, axis, k, number_density, like=like, lorch=lorch)

    return dataclasses.replace(rdf, axis=np.asarray(k), axis_unit="1/Å", combine=combine)


def transform_of_rdf(
    g: Array | np.ndarray,
    axis: np.ndarray,
    k: np.ndarray,
    number_density: float,
    *,
    like: bool = True,
    lorch: bool = True,
) -> Array:
    """``S(k) = delta + 4 pi rho int (g(r) - 1) sin(k r) / (k r) W(r) r² dr``, ``[n_k]``.

    ``g`` is taken as constant in each bin, over which the integral is exact, and as 1
    beyond the last. Cutting it off there leaves ripples in ``S``; the window of Lorch,
    ``W = sin(pi r / R) / (pi r / R)``, quenches them and widens peaks to about ``5.4 / R``.

    Args:
        g: radial distribution function that tends to 1, shape ``[n_bins]``; differentiable.
        axis: bin centres, Å, equally spaced from half a bin on.
        k: shape ``[n_k]``, 1/Å, positive.
        number_density: ``rho``, 1/Å³; ``sqrt(rho_a rho_b)`` for two species.
        like: ``delta`` is 1 for like pairs and 0 for unlike ones.
        lorch: whether to apply the window.

    Raises:
        ValueError: for wave numbers or a density that are not positive.

    References:
        Lorch, J. Phys. C 2, 229 (1969).
    """
    k = np.asarray(k, float)
    if k.ndim != 1 or not (k > 0.0).all():
        raise ValueError(f"`k` must be positive wave numbers (1/Å) of shape [n_k], got {k!r}")
    if not number_density > 0.0:
        raise ValueError(f"`number_density` must be positive (1/Å³), got {number_density!r}")
    upper = float(axis[-1] + axis[0])
    edges = bin_edges(upper, len(axis))[None]
    wave = k[:, None]
    if lorch:
        q = math.pi / upper  # int sin(k r) sin(q r) dr / q
        integral = 0.5 * edges / q * (_sinc((wave - q) * edges) - _sinc((wave + q) * edges))
    else:
        integral = np.sin(wave * edges) / wave**2 - edges * np.cos(wave * edges) / wave
    kernel = 4.0 * math.pi * number_density / wave * np.diff(integral, axis=1)
    g = jnp.asarray(g)
    transformed = jnp.matmul(jnp.asarray(kernel, g.dtype), g - 1.0, precision="highest")
    return transformed + (1.0 if like else 0.0)


def _scattering(system: System, species: int | None, lengths: Mapping[int, float] | None) -> Array:
    """By how much every atom scatters, ``[n_atoms]``."""
    dtype = system.positions.dtype
    if lengths is not None:
        weight = jnp.zeros(system.n_atoms, dtype)
        for label, value in lengths.items():
            weight = jnp.where(system.species == label, jnp.asarray(value, dtype), weight)
        return jnp.where(system.mask, weight, 0.0)
    member = system.mask if species is None else system.mask & (system.species == species)
    return member.astype(dtype)


def _amplitudes(system: System, indices: np.ndarray, weights: Array) -> Array:
    """Cosine and sine sums of weighted atoms at each wave vector, ``[n_vectors, n_weights, 2]``.

    Phases of single lattice directions are tabulated once, and multiplied.
    """
    cell = jnp.where(jnp.all(system.pbc), system.cell, jnp.eye(3, dtype=system.cell.dtype))
    fractional = jnp.matmul(system.positions, jnp.linalg.inv(cell), precision="highest")
    # Wrapped, so that float32 keeps its digits.
    fractional = fractional - jax.lax.stop_gradient(jnp.round(fractional))
    lowest = indices.min(axis=0)
    tables = []
    for direction in range(3):
        n = jnp.arange(lowest[direction], indices[:, direction].max() + 1, dtype=weights.dtype)
        angle = 2.0 * math.pi * n[:, None] * fractional[None, :, direction]
        tables.append((jnp.cos(angle), jnp.sin(angle)))

    @jax.checkpoint
    def batch(rows: Array) -> Array:  # [_BATCH, 3]
        (cx, sx), (cy, sy), (cz, sz) = (
            (cosine[rows[:, d]], sine[rows[:, d]]) for d, (cosine, sine) in enumerate(tables)
        )
        c, s = cx * cy - sx * sy, sx * cy + cx * sy
        waves = jnp.stack([c * cz - s * sz, s * cz + c * sz], axis=1)  # [_BATCH, 2, n_atoms]
        return jnp.matmul(waves, weights.T, precision="highest")

    n_vectors = len(indices)
    rows = np.zeros((-(-n_vectors // _BATCH) * _BATCH, 3), np.int32)
    rows[:n_vectors] = indices - lowest
    sums = jax.lax.map(batch, jnp.asarray(rows.reshape(-1, _BATCH, 3))).reshape(-1, 2, len(weights))
    return jnp.swapaxes(sums[:n_vectors], 1, 2)


def _lengths(indices: np.ndarray, cell: np.ndarray) -> np.ndarray:
    return 2.0 * math.pi * np.linalg.norm(indices @ np.linalg.inv(cell).T, axis=1)


def _sinc(x: np.ndarray) -> np.ndarray:
    """``sin(x) / x``."""
    return np.sinc(x / math.pi)
