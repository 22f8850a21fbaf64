"""What two charges at a distance do to each other: point or Gaussian, bare or screened."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfc

from mosaicmd.kernel.graphs import (
    Graph,
    edge_components,
    gather_receivers,
    gather_senders,
    sum_edges,
)
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.lattice import nearest_images

Array = jax.Array


class Exclusions(NamedTuple):
    """Pairs of atoms, at their nearest images, that interact less or not at all.

    ``fraction`` is what is taken away: 1 excludes a pair, 1/2 halves its interaction.
    """

    pairs: Array  # [n_pairs, 2], int32, every pair once
    fraction: Array  # [n_pairs]


def pair_kernel(distances: Array, spread: Array | None, splitting: float | None) -> Array:
    """Interaction of two unit charges over the Coulomb constant, 1/Å.

    ``erf(r / s) / r`` with ``s² = 2 (sigma_i² + sigma_j²)``, which is ``1 / r`` for points;
    with a ``splitting`` ``alpha``, that minus ``erf(alpha r) / r``.

    Args:
        distances: ``r``, positive, Å.
        spread: ``s²``, same shape, Å²; ``None`` if all charges are points.
        splitting: ``alpha``, 1/Å.
    """
    if spread is not None:
        point = spread <= 0.0
        scaled = distances / jnp.sqrt(jnp.where(point, 1.0, spread))
    if splitting is None:
        shape = 1.0 if spread is None else jnp.where(point, 1.0, erf(scaled))
        return shape / distances
    shape = erfc(splitting * distances)
    if spread is not None:
        shape = shape - jnp.where(point, 0.0, erfc(scaled))
    return shape / distances


def edge_kernels(
    system: System, graph: Graph, cutoff: float, widths: Array | None, splitting: float | None
) -> Array:
    """:func:`pair_kernel` of every edge shorter than ``cutoff``, else zero, ``[n_edges]``."""
    x, y, z = edge_components(system, graph)
    squares = x * x + y * y + z * z
    inside = graph.mask & (squares < cutoff * cutoff)
    distances = jnp.sqrt(jnp.where(inside, squares, cutoff * cutoff))
    spread = None
    if widths is not None:
        variances = 2.0 * jnp.square(widths)
        spread = gather_senders(variances, graph) + gather_receivers(variances, graph)
    return jnp.where(inside, pair_kernel(distances, spread, splitting), 0.0)


def sum_over_edges(kernels: Array, charges: Array, graph: Graph) -> Array:
    """Potentials of the charges at the senders, ``[n_atoms]``, e/Å."""
    return sum_edges(kernels * gather_senders(charges, graph), graph, charges.shape[0])


def all_pairs_kernel(positions: Array, mask: Array, widths: Array | None, rows: Array) -> Array:
    """:func:`pair_kernel` in free space between the atoms ``rows`` and all, ``[n_rows, n]``."""
    apart = positions[rows][:, None, :] - positions[None, :, :]
    squares = jnp.sum(jnp.square(apart), axis=-1)
    other = rows[:, None] != jnp.arange(positions.shape[0])[None, :]
    valid = other & mask[rows][:, None] & mask[None, :]
    distances = jnp.sqrt(jnp.where(valid, squares, 1.0))
    spread = None
    if widths is not None:
        variances = 2.0 * jnp.square(widths)
        spread = variances[rows][:, None] + variances[None, :]
    return jnp.where(valid, pair_kernel(distances, spread, None), 0.0)


def excluded_kernels(
    system: System, exclusions: Exclusions, widths: Array | None, n_periodic: int
) -> Array:
    """What :func:`subtract_excluded` takes away per unit charge, ``[n_pairs]``, 1/Å."""
    i, j = exclusions.pairs[:, 0], exclusions.pairs[:, 1]
    vectors = nearest_images(system.positions[j] - system.positions[i], system, n_periodic)
    distances = jnp.linalg.norm(vectors, axis=-1)
    spread = None if widths is None else 2.0 * (jnp.square(widths[i]) + jnp.square(widths[j]))
    fraction = jnp.asarray(exclusions.fraction, distances.dtype)
    return fraction * pair_kernel(distances, spread, None)


def subtract_excluded(kernels: Array, charges: Array, exclusions: Exclusions) -> Array:
    """Minus the potentials of excluded partners, ``[n_atoms]``, e/Å."""
    i, j = exclusions.pairs[:, 0], exclusions.pairs[:, 1]
    potentials = jnp.zeros_like(charges)
    return potentials.at[i].add(-kernels * charges[j]).at[j].add(-kernels * charges[i])


def self_kernel(widths: Array | None, splitting: float | None) -> Array | float:
    """Potential of a unit charge at its own place, 1/Å: scalar, or ``[n_atoms]`` with widths.

    ``1 / (sqrt(pi) sigma)`` of a Gaussian, nothing of a point (its infinite self energy is left
    out), minus the ``2 alpha / sqrt(pi)`` that the reciprocal sum holds.
    """
    screened = 0.0 if splitting is None else -2.0 * splitting / math.sqrt(math.pi)
    if widths is None:
        return screened
    point = widths <= 0.0
    own = 1.0 / (math.sqrt(math.pi) * jnp.where(point, 1.0, widths))
    return jnp.where(point, 0.0, own) + screened
